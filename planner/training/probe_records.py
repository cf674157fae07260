"""Records of a probe: its setting, its learners and its finished runs.

A *learner* is a class of candidates that learn alike: they differ in micro-batch, placement or,
on a CPU, precision, and share every run. A *run* is one short training of a learner, from the first
step to the last, by the plan's recipe over fewer steps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Self

from msgspec import Meta

from planner.recipe import Recipe
from profiler.errors import InputError
from profiler.json_records import NonNegativeFloat, PositiveInt, read_record
from profiler.records import DeviceKind
from profiler.workload import HOST_OPTIMIZER, Candidate, Workload

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RATE_FACTORS = (1 / 3, 1.0, 3.0)
"""Bracket of learning rates, as factors of the recipe's: the steps of ``studies/recipes``."""

MOST_HELD_OUT_IMAGES = 100_000

LONGEST_SETTING_TEXT = 200

ShortText = Annotated[str, Meta(min_length=1, max_length=LONGEST_SETTING_TEXT)]

Bits = Annotated[str, Meta(pattern="^[0-9a-f]+$", max_length=MOST_HELD_OUT_IMAGES // 4)]

RateFactor = Annotated[float, Meta(gt=0, le=1000)]

RecipeHash = Annotated[str, Meta(pattern="^([0-9a-f]{16})?$", max_length=16)]

WITHOUT_EFFECT_ON_A_RUN = ("epochs", "patience_epochs", "selects_epoch", "source")
"""Fields of a recipe that no run depends on: its steps are given, and its last step is judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """A class of candidates that learn alike.

    Attributes:
        name: method, rank, optimizer and images per step, such as ``lora r8, adamw, 32 a step``.
        candidate: candidate that stands for the class, at the image size of the plan.
        recipe: recipe of its plan.
    """

    name: str
    candidate: Candidate
    recipe: Recipe

    @property
    def recipe_hash(self) -> str:
        """Hash of the values of the recipe that a run depends on."""
        values = asdict(self.recipe)
        for name in WITHOUT_EFFECT_ON_A_RUN:
            del values[name]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerRule:
    """The rule for which candidates learn alike.

    The micro-batch changes the trained model only if BatchNorm normalises by it. On a CPU, runs are
    in fp32, because its half precision is emulated or slow, and without levers, which are for GPUs.

    Attributes:
        device: device of the runs, ``cpu`` or ``cuda``.
        has_batch_norm: whether the backbone has BatchNorm.
    """

    device: DeviceKind
    has_batch_norm: bool

    def workload(self, workload: Workload) -> Workload:
        """Return a workload as its runs train it, from a candidate's."""
        if workload.optimizer == HOST_OPTIMIZER:
            workload = workload.replace(optimizer="adamw")  # learns alike
        if self.device != "cpu":
            return workload
        changes: dict[str, Any] = {"precision": "fp32", "levers": ()}
        if not self._learns_from_micro_batch(workload):
            changes |= {"micro_batch": workload.effective_batch, "accumulation": 1}
        return workload.replace(**changes)

    def name(self, workload: Workload) -> str:
        """Return a short name, the same for candidates that learn alike."""
        trained = self.workload(workload)
        name = f"{trained.method_text}, {trained.optimizer}, {trained.effective_batch} a step"
        if self._learns_from_micro_batch(trained):
            name += f" of {trained.micro_batch}"
        return name if trained.precision == "fp32" else f"{name}, {trained.precision}"

    def _learns_from_micro_batch(self, workload: Workload) -> bool:
        return self.has_batch_norm and not workload.frozen_batch_norm


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneRules:
    """The same rule for candidates of several backbones; names begin with the backbone.

    Attributes:
        rules: rule of each backbone by its canonical name, for the same device; not empty.
    """

    rules: Mapping[str, LearnerRule]

    @property
    def device(self) -> DeviceKind:
        """Device of the runs, ``cpu`` or ``cuda``."""
        return next(iter(self.rules.values())).device

    def workload(self, workload: Workload) -> Workload:
        """Return a workload as its runs train it, from a candidate's."""
        return self.rules[workload.model].workload(workload)

    def name(self, workload: Workload) -> str:
        """Return a short name, the same for candidates that learn alike."""
        return f"{workload.model} {self.rules[workload.model].name(workload)}"


ProbeRule = LearnerRule | BackboneRules


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSetting:
    """What all runs of a probe have in common. Runs of two settings are never compared.

    Attributes:
        data: fingerprint of the images.
        weights: origin and SHA-256 of the weights of each backbone.
        model: backbone, or all backbones in alphabetical order.
        image_size: height and width of the images in pixels.
        train_images: images to train on.
        held_out_images: images to evaluate on, disjoint from the test part.
        device: type of device of the runs.
        seed: seed of the choice of images.
    """

    data: ShortText
    weights: ShortText
    model: ShortText
    image_size: PositiveInt
    train_images: PositiveInt
    held_out_images: Annotated[int, Meta(ge=1, le=MOST_HELD_OUT_IMAGES)]
    device: ShortText
    seed: int

    @property
    def key(self) -> str:
        """Hash of all values."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRun:
    """A finished run.

    Attributes:
        setting: setting of the run.
        learner: name of the learner.
        rate_factor: learning rate over that of the recipe.
        learning_rate: learning rate.
        seed: seed of new weights and of the order of images.
        steps: optimizer steps.
        seconds: duration, with building the model and evaluating, without computing features that
            later runs find.
        right: whether each held-out image was classified right: bits in hexadecimal digits, the
            first image in the highest bit.
        diverged: whether the loss was not finite; no image counts as right then.
        from_features: whether the run trained on cached features.
        of_rate_test: whether a learning-rate test made it. The size and the steps of such a run say
            nothing about those of a probe.
        recipe: hash of the values of the recipe that the run depends on; empty if an earlier
            version made the run.
    """

    setting: ProbeSetting
    learner: ShortText
    rate_factor: RateFactor
    learning_rate: RateFactor
    seed: int
    steps: PositiveInt
    seconds: NonNegativeFloat
    right: Bits
    diverged: bool = False
    from_features: bool = False
    of_rate_test: bool = False
    recipe: RecipeHash = ""

    def __post_init__(self) -> None:
        if len(self.right) != -(-self.setting.held_out_images // 4):
            raise InputError(
                f"a run on {self.setting.held_out_images} images has another number of bits"
            )

    @property
    def key(self) -> str:
        """Name of the run in a study: equal for runs that would repeat each other."""
        return run_key(
            self.setting,
            self.learner,
            recipe=self.recipe,
            steps=self.steps,
            seed=self.seed,
            factor=self.rate_factor,
        )

    def is_of(self, learner: Learner) -> bool:
        """Return whether the run trained a learner by the same recipe."""
        return (self.learner, self.recipe) == (learner.name, learner.recipe_hash)

    @property
    def right_images(self) -> NDArray[np.bool_]:
        """Whether each held-out image was classified right, [images]."""
        import numpy as np

        count = self.setting.held_out_images
        digits = self.right + "0" * (len(self.right) % 2)
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(digits), dtype=np.uint8))
        return bits[:count].astype(bool)

    @property
    def accuracy(self) -> float:
        """Fraction of the held-out images classified right."""
        return float(self.right_images.mean())

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a study."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Read the object that ``to_json`` returns, from a study of unknown origin.

        Raises:
            InputError: the data is no finished run.
        """
        return read_record(cls, data, part="probe run", dropped=None)


def planned_steps(learners: Sequence[Learner], setting: ProbeSetting) -> int:
    """Return the steps that the epochs of the longest plan take on the images of a probe.

    The plan itself has more steps: a probe holds out a part of the plan's training images.
    """
    return max(
        each.recipe.steps(
            setting.train_images, effective_batch=each.candidate.workload.effective_batch
        )
        for each in learners
    )


def run_key(
    setting: ProbeSetting, learner: str, *, recipe: str, steps: int, seed: int, factor: float
) -> str:
    """Return the name of a run in a study.

    Args:
        setting: setting of the run.
        learner: name of the learner.
        recipe: hash of its recipe; empty for a run of an earlier version, whose name had none.
        steps: optimizer steps.
        seed: seed of the run.
        factor: learning rate over that of the recipe.
    """
    given = [setting.key, learner, factor, seed, steps, *([recipe] if recipe else [])]
    return hashlib.sha256(json.dumps(given).encode()).hexdigest()[:24]


def as_bits(right: NDArray[np.bool_]) -> str:
    """Return the hexadecimal digits of ``ProbeRun.right``.

    Args:
        right: whether each image was classified right, [images].
    """
    import numpy as np

    return np.packbits(right).tobytes().hex()[: -(-len(right) // 4)]
