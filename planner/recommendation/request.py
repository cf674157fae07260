"""A request: search space, budget, device, and the options of the real runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from planner.cost.fit_probability import DEFAULT_RISK, FitRule, check_risk
from planner.disk.names import safe_file_name
from planner.recipe import Recipe
from planner.recommendation.lever_choice import LeverChoice
from planner.recommendation.objective import Objective
from planner.scoring.backbone_level import BackboneLevel, backbone_levels
from planner.search.pareto import HypervolumeStagnation
from planner.search.space import Space
from planner.training.images.image_set import DataSource
from planner.training.images.registry import find_named
from planner.training.run_options import RunOptions
from profiler.devices.table import device_spec
from profiler.errors import UsageError
from profiler.records import DeviceLabel
from profiler.units import DeviceBytes
from profiler.workload import Workload

Notify = Callable[[str, str, float], None]
"""Called with (stage, current work, fraction of the stage done)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A method or micro-batch that is not searched.

    Attributes:
        name: name of the method or micro-batch.
        reason: why it is not searched, a clause without a full stop.
    """

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits beside memory; None for no limit.

    Attributes:
        min_accuracy: least expected accuracy, a fraction.
        max_hours: longest training in hours on the planned device.
        max_kwh: largest energy of the training in kWh.

    Raises:
        UsageError: a limit is out of its domain.
    """

    min_accuracy: float | None = None
    max_hours: float | None = None
    max_kwh: float | None = None

    def __post_init__(self) -> None:
        if self.min_accuracy is not None and not 0 < self.min_accuracy <= 1:
            raise UsageError(
                "min_accuracy must be above 0 and at most 100 percent, "
                f"got {100 * self.min_accuracy:g}"
            )
        for name in ("max_hours", "max_kwh"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{name} must be positive, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyRates:
    """The user's rates of energy; None for no such total.

    Attributes:
        price_per_kwh: price of a kWh, in any currency.
        grams_per_kwh: grams of CO2 emitted for a kWh.

    Raises:
        UsageError: a rate is negative or not finite.
    """

    price_per_kwh: float | None = None
    grams_per_kwh: float | None = None

    def __post_init__(self) -> None:
        for name in ("price_per_kwh", "grams_per_kwh"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UsageError(f"{name} must be 0 or more, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request for a recommendation.

    Attributes:
        space: the search space.
        budget_bytes: budget in device bytes, the CUDA context included.
        device: the device to plan for.
        runs_on: name of the device of real runs in this process: the planned GPU if this machine
            has it, else ``cpu``.
        run: options of the real runs; the seed is also that of the search.
        study: name of the study of this backbone's search.
        trials: number of trials of the search; None to evaluate every point if that is quick.
        storage: SQLAlchemy URL of the study; None for a file under ``studies/``.
        validations: most candidates that are really run; 0 for none.
        validation_seconds: time after which no further candidate is begun; None for no limit. The
            first one always runs.
        uses_workers: whether workers run them, and not this process.
        has_weights: whether the pretrained weights can be loaded, here or where the plan will run.
        stop: rule that ends the search early; None for no such rule.
        out: folder of the plan files.
        objective: criterion for candidates that are expected to be equally accurate.
        levers: levers of the rows: ``auto``, or the levers that each takes if it allows them.
        limits: limits of accuracy, duration and energy.
        risk: largest accepted probability that a plan does not fit.
        energy_rates: the user's price and emissions of a kWh.
        probe_seconds: time of the short trainings on the user's images; None for none.
        find_lr: whether learning rates are tried for the recommended plan; None to try them if
            that is cheap.
        training_free: whether published models that need no fine-tuning are listed; None to list
            those that are replayed within seconds or known already.
        allow_training_free: whether such a model may win over the tuned plans.
        power_limit_watts: power limit that the plans are made for; None for the board's own.
        left_out: methods and micro-batches that are not searched.
        source: origin of the images of a folder; None for a named data set.
        set_apart_images: number of selection images that are part of the whole training set.
        images_per_class: training images of each class of a folder, by label; empty for a named
            data set.
        weight_notes: sentences on the content of the weights file.
        image_notes: sentences on the image size.
        joint_study: name that the user knows the question by if it has several backbones; None if
            that is the study's own. The real runs of all backbones are queued under it.
        others: requests for the other backbones of the same question; they differ from this one
            in the space, the study and the facts of their backbone.

    Raises:
        UsageError: there are to be workers, and no real runs or no storage that they can reach.
    """

    space: Space
    budget_bytes: DeviceBytes
    device: DeviceLabel
    runs_on: str
    run: RunOptions
    study: str
    trials: int | None
    storage: str | None = None
    validations: int = 3
    validation_seconds: float | None = None
    uses_workers: bool = False
    has_weights: bool = True
    stop: HypervolumeStagnation | None = None
    out: Path = Path("plans")
    objective: Objective = "balanced"
    levers: LeverChoice = "auto"
    limits: Limits = Limits()
    risk: float = DEFAULT_RISK
    energy_rates: EnergyRates = EnergyRates()
    probe_seconds: float | None = None
    find_lr: bool | None = None
    training_free: bool | None = None
    allow_training_free: bool = False
    power_limit_watts: float | None = None
    left_out: tuple[LeftOut, ...] = ()
    source: DataSource | None = None
    set_apart_images: int = 0
    images_per_class: tuple[int, ...] = ()
    weight_notes: tuple[str, ...] = ()
    image_notes: tuple[str, ...] = ()
    joint_study: str | None = None
    others: tuple[Request, ...] = ()

    def __post_init__(self) -> None:
        if self.uses_workers and self.storage is None:
            raise UsageError("--workers needs --storage: the database that the workers take from")
        if self.uses_workers and not self.has_real_runs:
            raise UsageError(
                "--workers needs the real runs that --no-validate leaves out, --probe-minutes or "
                "--find-lr"
            )
        check_risk(self.risk)

    @property
    def backbones(self) -> tuple[Request, ...]:
        """The request for each backbone of the question, this one first."""
        return (replace(self, others=()), *self.others)

    def of_backbone(self, model: str) -> Request:
        """Return the request for one of the backbones alone, by its canonical name."""
        return next(each for each in self.backbones if each.space.base.model == model)

    def led_by(self, model: str) -> Request:
        """Return the request with one of its backbones first."""
        others = tuple(each for each in self.backbones if each.space.base.model != model)
        return replace(self.of_backbone(model), others=others)

    @property
    def has_real_runs(self) -> bool:
        """Whether trainings are run to answer: validations, a probe or learning rates."""
        return has_real_runs(
            validations=self.validations, probe=self.probe_seconds, find_lr=self.find_lr
        )

    @property
    def question_study(self) -> str:
        """Name that ``--study`` continues, and under which the real runs are queued."""
        return self.joint_study or self.study

    @property
    def limit_bytes(self) -> DeviceBytes:
        """Largest predicted device bytes of this backbone alone, by ``budget_bytes`` and ``risk``.

        Its search, replay and checks use the same bytes, so that all admit the same candidates.
        """
        return min(
            rule.largest_prediction(self.budget_bytes, risk=self.risk) for rule in self._fit_rules()
        )

    def limit_of(self, workload: Workload) -> DeviceBytes:
        """Return the ``limit_bytes`` of the backbone of a workload."""
        return self.of_backbone(workload.model).limit_bytes

    def budget_for(self, need_bytes: int) -> DeviceBytes:
        """Return the smallest budget whose ``limit_bytes`` are at least ``need_bytes``."""
        return max(rule.smallest_budget(need_bytes, risk=self.risk) for rule in self._fit_rules())

    def _fit_rules(self) -> list[FitRule]:
        device, base = device_spec(self.device.name), self.space.base
        return [
            FitRule.of(base.replace(precision=precision), device)
            for precision in self.space.precisions
        ]

    @property
    def train_images(self) -> int:
        """Number of training images, those of the selection part not included."""
        if self.source is not None:
            return self.source.train_images
        named = find_named(self.run.data)
        assert named is not None, self.run.data
        return named[0].size_of(named[1]).train_images

    def images_of(self, recipe: Recipe) -> int:
        """Return the number of images that an epoch of a recipe trains on.

        A recipe that selects no epoch trains on the whole training set.
        """
        return self.train_images + (0 if recipe.selects_epoch else self.set_apart_images)

    @property
    def balanced_images(self) -> int:
        """Number of training images of a balanced data set that says as much about each class.

        It is the number of classes times the harmonic mean of the images per class, because the
        variance of a class's mean falls with one over its images. Published comparisons are of
        balanced data sets. A class without images counts as one with a single image.
        """
        counts = [max(1, count) for count in self.images_per_class]
        if not counts:
            return self.train_images
        return round(len(counts) ** 2 / sum(1 / count for count in counts))

    @property
    def pretrained_model(self) -> str | None:
        """Backbone whose weights timm loads in the real runs; None without such weights."""
        loads = self.run.pretrained and self.run.weights is None and self.has_weights
        return self.space.base.model if loads else None

    @property
    def backbone_levels(self) -> Mapping[str, BackboneLevel]:
        """Expected level of each backbone of the question, this one first."""
        parts = {part.space.base.model: part for part in self.backbones}
        return backbone_levels(
            list(parts),
            data=self.run.data,
            image_sizes={model: part.space.base.image_size for model, part in parts.items()},
            from_files=[model for model, part in parts.items() if part.run.weights is not None],
            train_images=self.balanced_images,
        )

    @property
    def trains_pretrained(self) -> bool:
        """Whether plans begin with pretrained weights, even if they cannot be loaded here."""
        return self.run.pretrained or self.run.weights is not None


def has_real_runs(*, validations: int | None, probe: float | None, find_lr: bool | None) -> bool:
    """Return whether a question trains on the images.

    Args:
        validations: most candidates to run; None for the default, which is not 0.
        probe: time of the probe in any unit; None without one.
        find_lr: whether learning rates are tested.
    """
    return validations != 0 or probe is not None or bool(find_lr)


def check_weights(base: Workload, weights: Path) -> tuple[str, ...]:
    """Refuse a file of weights before anything is computed, and return notes on its content.

    Raises:
        InputError: the file cannot be read, or holds weights of another model.
    """
    from profiler.models import backbones

    model = backbones.build(
        base.model, num_classes=base.num_classes, image_size=base.image_size, device="meta"
    )
    return backbones.load_weights(model, base.model, weights=weights, pretrained=False).notes


def question_folder(model: str, data: str, budget_bytes: int) -> str:
    """Return the name of the folder for the plans of a question, such as ``vit_s-photos-2000MB``.

    A plan of another content never replaces one that is there (``planner.plan.write_new_plan``).
    """
    images = Path(data).name or Path(data).resolve().name
    return safe_file_name(
        f"{model.replace('/', '_')}-{images.replace(':', '_')}-{budget_bytes / 1e6:.0f}MB",
        otherwise="question",
    )


def study_name(model: str, device: DeviceLabel, budget_bytes: int) -> str:
    """Return a readable name for a new study, with the time of its start."""
    budget = f"{budget_bytes / 1e6:.0f}MB"
    return f"{model.replace('/', '_')}-{device.name}-{budget}-{start_time()}"


def start_time() -> str:
    """Return the time to the millisecond: questions asked in a row have names of their own."""
    return datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]
