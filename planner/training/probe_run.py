"""One run of a probe: a short training of a learner, and its answers on held-out images.

The run is a whole training of fewer steps, with its warm-up and its cosine: an accuracy in the
middle of a long training, where the rate is still high, orders methods worse. The model of the
last step is evaluated, so no epoch is selected on the images that judge it.

A learner in which only the classifier learns is trained on cached features
(``planner.training.features``), and one whose first units are frozen on their stored activations
(``planner.training.frozen_units``). Images are not augmented then. Both take place in fp32 only:
whether stored activations give the same gradients is not seen through the rounding of 16 bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from planner.training.evaluate import right_answers
from planner.training.features import (
    FeatureForward,
    FeatureSet,
    OutOfTimeError,
    cached_features,
    features_in_memory,
    frozen_classifier,
)
from planner.training.frozen_units import FrozenUnits
from planner.training.images.batches import LabelledSet, batch_loader
from planner.training.images.image_set import ImageSet
from planner.training.probe_images import ProbeImages
from planner.training.probe_records import Learner, ProbeRun, ProbeSetting, as_bits, run_key
from planner.training.session import Session
from planner.training.zero_classifier import zero_new_classifier
from profiler.errors import InputError
from profiler.models import backbones
from profiler.models.build import BuiltModel, build_model
from profiler.models.image_layout import use_channels_last
from profiler.records import DeviceKind
from profiler.training_step import gc_frozen
from profiler.workload import Candidate, Workload

if TYPE_CHECKING:
    from torch import nn

    from profiler.training_step import Batch

TIMED_STEPS = 2

LARGEST_FEATURES = 1 << 30
"""Bytes of features of a learner, above which it trains on images. The memory holds those of a
single learner at a time."""

CHECKED_IMAGES = 4
"""Images of the check whether features can be cached."""

EVALUATION_BATCH = 32
"""Smallest number of images of a forward of the evaluation, which keeps no activations."""


class ProbeRunner:
    """Trains learners on the images of a probe.

    Args:
        setting: setting of the runs.
        images: images at the setting's size.
        weights: file of the backbone's weights; None for no file.
        pretrained: whether timm's pretrained weights are loaded when no file is given.
        device: device of the runs.
        features_folder: folder of cached features; None for the user's.
    """

    def __init__(
        self,
        *,
        setting: ProbeSetting,
        images: ProbeImages,
        weights: Path | None,
        pretrained: bool,
        device: DeviceKind = "cpu",
        features_folder: Path | None = None,
    ) -> None:
        self.setting, self._images, self._device = setting, images, device
        self._weights, self._pretrained = weights, pretrained
        self._features_folder = features_folder
        self._frozen: dict[str, FrozenUnits | str | None] = {}
        self._features: dict[str, tuple[FeatureSet, FeatureSet]] = {}

    def has_features(self, learner: Learner) -> bool:
        """Return whether a learner trains on cached features, which its first run computes."""
        return self._frozen_part(learner) is not None

    def _frozen_part(self, learner: Learner) -> FrozenUnits | str | None:
        """Return the units to store activations of, or the word classifier; None without both."""
        if learner.name not in self._frozen:
            self._frozen[learner.name] = self._find_frozen_part(learner)
        return self._frozen[learner.name]

    def release_features(self) -> None:
        """Release the features in memory; they are read again from their files."""
        self._features.clear()

    def key_of(self, learner: Learner, *, steps: int, seed: int, rate_factor: float) -> str:
        """Return the name in a study that a run would have."""
        return run_key(
            self.setting,
            learner.name,
            recipe=learner.recipe_hash,
            steps=steps,
            seed=seed,
            factor=rate_factor,
        )

    def seconds_per_step(self, learner: Learner) -> float:
        """Return the shortest of ``TIMED_STEPS`` steps after a first one, in seconds.

        A learner with cached features computes those of the images of a step alone.
        """
        built = self._build(learner, seed=0)
        images, part = self._images_of(learner)[0], self._frozen_module(built, learner)
        train: LabelledSet = images
        if part is not None:
            few = images.select(range(min(len(images), learner.candidate.workload.effective_batch)))
            train = features_in_memory(built, part, few, FeatureForward(device=self._device))
        session, batches = self._start(learner, built, train, seed=0, steps=1 + TIMED_STEPS)
        seconds = []
        for _ in range(1 + TIMED_STEPS):
            began = time.perf_counter()
            session.run(batches)
            seconds.append(time.perf_counter() - began)
        session.close()
        return min(seconds[1:])

    def run(
        self,
        learner: Learner,
        *,
        steps: int,
        seed: int,
        rate_factor: float = 1.0,
        out_of_time: Callable[[], bool] = lambda: False,
    ) -> ProbeRun | None:
        """Train a learner and evaluate it; None if time runs out before the last step.

        Args:
            learner: the learner.
            steps: optimizer steps.
            seed: seed of new weights and of the order of images.
            rate_factor: learning rate over that of the recipe.
            out_of_time: asked before each step, and before each file of features is computed. The
                features of finished files are kept for the next run.

        Raises:
            InputError: one step takes more images than there are.
            MeasurementError: memory ran out.
        """
        began = time.perf_counter()
        built = self._build(learner, seed)
        built_seconds = time.perf_counter() - began
        try:
            train, held_out = self._parts(learner, built, out_of_time)
        except OutOfTimeError:
            return None
        began = time.perf_counter()
        session, batches = self._start(
            learner, built, train, seed=seed, steps=steps, rate_factor=rate_factor
        )
        workload = session.step.workload
        is_finite = True
        right = torch.zeros(len(held_out), dtype=torch.bool)
        try:
            with gc_frozen():
                while is_finite and session.step.global_step < steps:
                    if out_of_time():
                        return None
                    is_finite = math.isfinite(session.run(batches))
            if is_finite:
                right = right_answers(
                    session.model,
                    held_out,
                    batch_size=max(workload.micro_batch, EVALUATION_BATCH),
                    device=self._device,
                    precision=workload.precision,
                )
        finally:
            session.close()
        return ProbeRun(
            setting=self.setting,
            learner=learner.name,
            rate_factor=rate_factor,
            learning_rate=session.recipe.learning_rate,
            seed=seed,
            steps=steps,
            seconds=built_seconds + time.perf_counter() - began,
            right=as_bits(right.numpy()),
            diverged=not is_finite,
            from_features=self.has_features(learner),
            recipe=learner.recipe_hash,
        )

    def _start(
        self,
        learner: Learner,
        built: BuiltModel,
        train: LabelledSet,
        *,
        seed: int,
        steps: int,
        rate_factor: float = 1.0,
    ) -> tuple[Session, Iterator[Batch]]:
        """Return a training of a new model of a learner, and its micro-batches."""
        candidate, part = self._candidate(learner), self._frozen_module(built, learner)
        if part is not None:
            if isinstance(part, FrozenUnits):
                part.install(built)
            else:
                built.model.forward = part.forward
            candidate = Candidate(workload=candidate.workload)  # no frozen unit runs
        recipe = learner.recipe
        session = Session(
            candidate=candidate,
            built=built,
            device=self._device,
            recipe=replace(recipe, learning_rate=recipe.learning_rate * rate_factor),
            total_steps=steps,
        )
        return session, _endless_batches(
            train, candidate.workload, seed=seed, balance=recipe.balance
        )

    def _frozen_module(self, built: BuiltModel, learner: Learner) -> FrozenUnits | nn.Module | None:
        """Return the units to store activations of, or the only module that learns, if any."""
        frozen = self._frozen_part(learner)
        if frozen is None or isinstance(frozen, FrozenUnits):
            return frozen
        (classifier,) = backbones.classifiers(built.backbone)
        return classifier

    def _build(self, learner: Learner, seed: int) -> BuiltModel:
        """Build a learner's model, ready to train."""
        torch.manual_seed(seed)
        built = build_model(
            learner.candidate.workload.replace(image_size=self.setting.image_size),
            weights=self._weights,
            pretrained=self._pretrained,
        )
        if built.weights.kind == "random" and learner.recipe.weights == "pretrained":
            raise InputError(
                f"the probe needs pretrained weights, which cannot be loaded "
                f"({built.weights.detail}); give a file of weights by --weights"
            )
        built.model.to(self._device).train()
        if self._device == "cpu":
            # Convolutions of small images take half the time; only the order of sums differs.
            use_channels_last(built.model)
        zero_new_classifier(built.model, learner.recipe, is_new=built.has_new_classifier)
        return built

    def _candidate(self, learner: Learner) -> Candidate:
        """Return a learner's candidate at the size of the images."""
        workload = learner.candidate.workload.replace(image_size=self.setting.image_size)
        return replace(learner.candidate, workload=workload)

    def _parts(
        self, learner: Learner, built: BuiltModel, out_of_time: Callable[[], bool]
    ) -> tuple[LabelledSet, LabelledSet]:
        """Return the sets to train and to evaluate on: images, or features if they are cached.

        Raises:
            OutOfTimeError: the time was over before all features were computed.
        """
        images, part = self._images_of(learner), self._frozen_module(built, learner)
        if part is None:
            return images
        if learner.name not in self._features:
            self.release_features()
            train, held_out = (
                cached_features(
                    built,
                    part,
                    each,
                    forward=FeatureForward(device=self._device),
                    folder=self._features_folder,
                    out_of_time=out_of_time,
                )
                for each in images
            )
            self._features[learner.name] = train, held_out
        return self._features[learner.name]

    def _images_of(self, learner: Learner) -> tuple[ImageSet, ImageSet]:
        """Return the images to train and to evaluate on."""
        train, held_out = self._images.train, self._images.held_out
        if not learner.recipe.augment or self.has_features(learner):
            train = train.without_augmentation(held_out)
        return train, held_out

    def _find_frozen_part(self, learner: Learner) -> FrozenUnits | str | None:
        held_out, images = self._images.held_out, self._images.train
        if len(held_out) < CHECKED_IMAGES or learner.candidate.workload.precision != "fp32":
            return None
        built = self._build(learner, seed=0)
        few = torch.stack([held_out[index][0] for index in range(CHECKED_IMAGES)])
        few = few.to(self._device)
        try:
            if frozen_classifier(built, few) is not None:
                return "classifier"
            units = FrozenUnits.of(built, few)
        except Exception:  # an operation that fails for this learner fails in its run too
            return None
        count = len(images) + len(held_out)
        is_small = units is not None and 4 * units.row_numbers * count <= LARGEST_FEATURES
        return units if is_small else None


def _endless_batches(
    images: LabelledSet, workload: Workload, *, seed: int, balance: bool
) -> Iterator[Batch]:
    """Yield micro-batches epoch by epoch; an epoch has whole steps only."""
    steps = len(images) // workload.effective_batch
    if steps == 0:
        raise InputError(
            f"one step takes {workload.effective_batch} images, and the probe has {len(images)} to "
            "train on; use a smaller --effective-batch, or no --probe-minutes"
        )
    for epoch in count():
        batches = iter(
            batch_loader(
                images,
                batch_size=workload.micro_batch,
                shuffle=True,
                seed=seed,
                drop_last=True,
                epoch=epoch,
                balance=balance,
            )
        )
        for _ in range(steps * workload.accumulation):
            yield next(batches)
