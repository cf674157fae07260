"""The cases of the study: a net on a labelled set with a seed, a whole length, and trainings as rows.

A training is a row: net, set, seed, method, steps, learning rate, and which of the held-out and of
the test images it classified right. The rules that are compared read rows only, so that they can be
changed without training anything again. ``cpu_seconds`` of a row is the processor time of the
training, its evaluation and, in the first one of a method, its features: other programs on the
machine do not change it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import letters
import numpy as np
from glyphs import load_glyphs
from harness import Rows

from planner.recipe import InitialWeights
from planner.training.choose_recipe import TARGET_STEPS, default_recipe
from planner.training.images.image_set import ImageData, ImageSet, InputFormat
from planner.training.images.load import load_data
from planner.training.images.named.load_request import LoadRequest
from planner.training.images.split import indices_by_label
from planner.training.probe_images import ProbeImages
from planner.training.probe_records import Learner, LearnerRule, ProbeRun, ProbeSetting, as_bits
from planner.training.probe_run import ProbeRunner
from profiler.models import backbones
from profiler.models.methods import get_method
from profiler.workload import Candidate, Workload

BATCH = 32
TRAIN, HELD_OUT, TEST = 640, 400, 460
"""Images of a case, 1,500 in all; 640 are 20 steps of an epoch."""

SHORT_STEPS = (20, 40)
"""Steps of the short trainings: one epoch and two."""

IMAGENET = ("tf_efficientnet_lite0", "tf_efficientnet_lite1")
WITH_BATCH_NORM = (*IMAGENET, "test_resnet")
LONG_STEPS = {
    **dict.fromkeys(IMAGENET, (80, TARGET_STEPS)),
    **dict.fromkeys(letters.STEPS, (160, TARGET_STEPS)),
}
"""Steps of the whole trainings: four epochs, eight of the nets that learn slower, and those of the
plan that a user gets for so few images. Each is a case of its own."""

SIZES = {**dict.fromkeys(IMAGENET, 32), **dict.fromkeys(letters.STEPS, letters.IMAGE_SIZE)}
COMMON_METHODS = ("full", "head", "bitfit", "lora", "ssf", "side", "partial_2")
METHODS = {
    **dict.fromkeys(letters.STEPS, (*COMMON_METHODS, "adaptformer")),
    **dict.fromkeys(WITH_BATCH_NORM, (*COMMON_METHODS, "bn_head")),
    "test_convnext": (*COMMON_METHODS, "ln_tune"),
}
SETS = ("digits", "animals", "glyphs")
SEEDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One net on one set with one seed, and a whole training of some steps."""

    model: str
    data: str
    seed: int
    steps: int

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods."""
        return METHODS[self.model]

    def __str__(self) -> str:
        return f"{self.model} {self.data} {self.seed}"


def all_cases() -> list[Case]:
    """Return all cases; those of a further seed come after all of the seed before."""
    return [
        Case(model=model, data=data, seed=seed, steps=steps)
        for seed in range(SEEDS)
        for model in METHODS
        for data in SETS
        for steps in LONG_STEPS[model]
    ]


def weights_file(model: str, folder: Path) -> Path:
    """Return a file with the pretrained weights of a net; it is made if it is not there."""
    path = folder / f"{model}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if model in letters.STEPS:
            right = letters.pretrain(model, path)
            print(f"{model}, pretrained on letters: {100 * right:.1f} %", flush=True)
        else:
            # Both scripts are named run.py, so that one is loaded by its path.
            source = Path(__file__).parents[1] / "recipes" / "run.py"
            spec = spec_from_file_location("recipes_run", source)
            assert spec is not None and spec.loader is not None
            recipes = module_from_spec(spec)
            spec.loader.exec_module(recipes)
            recipes.weights_file(model, folder)
    return path


def images_of(
    case: Case, *, image_size: int | None = None
) -> tuple[ImageSet, ImageSet, ImageSet, ImageData]:
    """Return the images to train on, those held out, those of the test, and the whole set.

    Args:
        case: the case.
        image_size: side in pixels; None for that of ``SIZES``.
    """
    size = image_size or SIZES[case.model]
    backbone = backbones.build(case.model, num_classes=2, image_size=size, device="meta")
    mean, std = backbones.image_statistics(backbone)
    if case.data == "glyphs":
        shape = InputFormat(image_size=size, mean=mean, std=std)
        images = load_glyphs(LoadRequest(input_format=shape, root=Path(), seed=0))
    else:
        images = load_data(case.data, image_size=size, mean=mean, std=std)
    whole = images.training_whole()
    order = list(_stratified(whole.labels, case.seed))
    train = whole.select(order[:TRAIN])
    held_out = replace(
        whole.select(order[TRAIN : TRAIN + HELD_OUT]), crop=images.test.crop, mirror=False
    )
    return train, held_out, images.test.sample(TEST, seed=0), images


def joined(held_out: ImageSet, test: ImageSet) -> ImageSet:
    """Return the held-out images and then those of the test, with the former's transform."""
    return replace(
        held_out,
        images=[*held_out.images, *test.images],
        labels=[*held_out.labels, *test.labels],
    )


def _stratified(labels: Any, seed: int) -> Iterator[int]:
    """Yield indices in a random order, all classes in turn."""
    rng = np.random.default_rng(seed)
    groups = [list(rng.permutation(group)) for group in indices_by_label(labels).values()]
    for turn in range(max(map(len, groups))):
        yield from (int(group[turn]) for group in groups if turn < len(group))


def learners_of(
    case: Case,
    classes: int,
    *,
    methods: Sequence[str] | None = None,
    image_size: int | None = None,
    weights: InitialWeights = "pretrained",
) -> dict[str, Learner]:
    """Return the learner of each method, with the default recipe.

    Args:
        case: the case.
        classes: number of classes.
        methods: names of the methods; None for those of ``METHODS``.
        image_size: side in pixels; None for that of ``SIZES``.
        weights: initial weights. BatchNorm keeps its statistics with pretrained ones only.
    """
    size = image_size or SIZES[case.model]
    has_batch_norm = case.model in WITH_BATCH_NORM
    base = Workload(
        model=case.model, image_size=size, num_classes=classes, micro_batch=BATCH,
        frozen_batch_norm=has_batch_norm and weights == "pretrained",
    )  # fmt: skip
    backbone = backbones.build(case.model, num_classes=classes, image_size=size, device="meta")
    rule = LearnerRule(device="cpu", has_batch_norm=has_batch_norm)
    learners = {}
    for name in methods or METHODS[case.model]:
        method = get_method(name)
        workload = method.resolve(base.replace(method=name))
        recipe = default_recipe(workload, backbone, weights=weights, train_images=TRAIN)
        candidate = Candidate(workload=workload)
        learners[name] = Learner(name=rule.name(workload), candidate=candidate, recipe=recipe)
    return learners


class CaseRunner:
    """Makes the trainings of a case, and keeps them as rows.

    Args:
        case: the case.
        rows: rows of the study.
        folder: folder of weights.
        weights: initial weights of the trainings.
    """

    def __init__(
        self, case: Case, rows: Rows, folder: Path, *, weights: InitialWeights = "pretrained"
    ) -> None:
        self.case, self.rows = case, rows
        self._known = {key_of(row) for row in rows.read()}
        file = weights_file(case.model, folder) if weights == "pretrained" else None
        train, held_out, test, images = images_of(case)
        self._held_out, self._test = len(held_out), len(test)
        both = joined(held_out, test)
        self.learners = learners_of(case, images.num_classes, weights=weights)
        setting = ProbeSetting(
            data=f"{case.data} {images.source.fingerprint}"[:200], weights=file.name if file else weights,
            model=case.model, image_size=SIZES[case.model], train_images=len(train),
            held_out_images=len(both), device="cpu", seed=case.seed,
        )  # fmt: skip
        self._runner = ProbeRunner(
            setting=setting,
            images=ProbeImages(train=train, held_out=both),
            weights=file,
            pretrained=False,
            features_folder=folder / "features",
        )

    def train(self, method: str, *, steps: int, number: int = 0, factor: float = 1.0) -> None:
        """Make a training if there is no row of it.

        Args:
            method: name of the method.
            steps: optimizer steps.
            number: number of the training among those that differ in their seed only.
            factor: learning rate over that of the recipe.
        """
        wanted = {
            "model": self.case.model, "data": self.case.data, "seed": self.case.seed,
            "method": method, "steps": steps, "number": number, "rate_factor": factor,
        }  # fmt: skip
        if key_of(wanted) in self._known:
            return
        whole = LONG_STEPS[self.case.model]
        length = 1 + whole.index(steps) if steps in whole else 0
        seed = 1000 * self.case.seed + 100 * length + number
        began = time.process_time()
        run = self._runner.run(self.learners[method], steps=steps, seed=seed, rate_factor=factor)
        cpu_seconds = time.process_time() - began
        assert run is not None
        right = run.right_images
        held_out, test = right[: self._held_out], right[self._held_out :]
        self.rows.append({
            **wanted, "learner": run.learner, "image_size": run.setting.image_size,
            "train_images": run.setting.train_images, "held_out_images": len(held_out),
            "test_images": len(test), "learning_rate": run.learning_rate,
            "seconds": round(run.seconds, 2), "cpu_seconds": round(cpu_seconds, 2), "diverged": run.diverged,
            "from_features": run.from_features, "held_out": as_bits(held_out),
            "test": as_bits(test), "held_out_accuracy": round(float(held_out.mean()), 4),
            "test_accuracy": round(float(test.mean()), 4),
        })  # fmt: skip
        self._known.add(key_of(wanted))
        print(f"{self.case} {method} {steps} x{factor:.2g}: held out {held_out.mean():.3f}, "
              f"test {test.mean():.3f}, {run.seconds:.1f} s", flush=True)  # fmt: skip


def key_of(row: dict[str, Any]) -> str:
    """Return what distinguishes a training from others."""
    keys = ("model", "data", "seed", "method", "steps", "number")
    return " ".join(str(row[key]) for key in keys) + f" {row['rate_factor']:.3g}"


def as_probe_run(row: dict[str, Any]) -> ProbeRun:
    """Return a training as the product's probe sees it: without the test images."""
    setting = ProbeSetting(
        data=row["data"], weights="pretrained", model=row["model"], image_size=row["image_size"],
        train_images=row["train_images"], held_out_images=row["held_out_images"], device="cpu",
        seed=row["seed"],
    )  # fmt: skip
    return ProbeRun(
        setting=setting, learner=row["method"], rate_factor=row["rate_factor"],
        learning_rate=row["learning_rate"], seed=row["number"], steps=row["steps"],
        seconds=0.0 if row["from_features"] else float(row["steps"]), right=row["held_out"],
        diverged=row["diverged"], from_features=row["from_features"],
    )  # fmt: skip
