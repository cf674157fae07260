"""The training steps of a validation.

On CUDA the steps are those of ``profiler.running.measurement.measure_on_cuda``. On a CPU a step can
take a minute, so the run is shortened:

- The first step, in which the optimizer makes its state, takes a few images only.
- The second step is the steady one whose memory is recorded, from before the model was built. With
  accumulation it takes a few images and then one whole micro-batch. The gradients of the first are
  then in memory during the second, so its peak is that of any number of micro-batches.
- Later steps have at most two micro-batches. The time of these is scaled up to the candidate's
  number, that of the update is not. The steps end at the time limit. Notes record how much was cut
  short.

A limited number of images is decoded beforehand and copied for each step, as a loader's batch is
copied to a device. Decoding is thus neither timed nor recorded.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

from torch import Tensor

from planner.training.images.batches import batch_loader
from planner.training.images.image_set import ImageSet
from planner.training.resolve_recipe import planned_or_default
from planner.training.session import Session
from planner.training.validation_messages import ValidationRequest
from planner.training.zero_classifier import zero_new_classifier
from profiler.device_rules.cpu_allocator import peak_during
from profiler.environment import environment
from profiler.errors import MeasurementError
from profiler.models.build import BuiltModel, build_model
from profiler.running.measurement import Fetch, MeasuredSteps, measure_on_cuda
from profiler.running.memory_caps import timed_without_cap
from profiler.running.sandbox import Progress
from profiler.training_step import Batch
from profiler.units import MIB
from profiler.workload import Workload

DECODED_BYTES = 96 * MIB
"""Most bytes of decoded images that are kept beside the run."""

CUDA_WARM_UP_STEPS = 2
"""Steps on CUDA before the first reading."""

SHORT_BATCH = 4
"""Images of a shortened micro-batch; BatchNorm needs at least two."""


class ShortTraining:
    """A candidate in training for a few steps.

    Args:
        request: candidate and limits.
        images: images to train on.

    Attributes:
        losses: loss of each step done.
        notes: sentences about the parts that were cut short.
    """

    def __init__(self, request: ValidationRequest, images: ImageSet) -> None:
        self.losses: list[float] = []
        self.notes: list[str] = []
        self._request = request
        self._workload = request.candidate.workload
        if request.device == "cpu":
            accumulation = min(2, self._workload.accumulation)
            self._workload = self._workload.replace(accumulation=accumulation)
        self._train_images = len(images)
        self._decoded = _decode(images, self._workload, request)
        self._batches = cycle(self._decoded)
        self._session: Session | None = None
        self._update_seconds = 0.0  # of the last step

    def on_host(self, progress: Progress) -> MeasuredSteps:
        """Record the memory of the second step, from before the model; time it and later ones."""
        steps, started = self._request.steps, time.perf_counter()
        recorded: list[float] = []

        def first_step() -> None:
            progress("building the model", 0.05)
            self._build()
            self._timed_step(self._fetch_short)

        def second_step() -> None:
            progress(f"step 2 of {steps}, recording memory", 0.2)
            short = [self._fetch_short] * (self._workload.accumulation - 1)
            recorded.append(self._timed_step(*short, self._fetch))

        peak = peak_during(first_step, second_step)
        with timed_without_cap():
            seconds = self._later_steps(recorded[0], started=started, progress=progress)
        return MeasuredSteps(
            peak_bytes=peak,
            reserved_bytes=None,
            device_bytes=peak,
            step_seconds=tuple(seconds),
            energy_joules=None,
            device_name="cpu",
            environment=environment(),
        )

    def on_cuda(self, progress: Progress) -> MeasuredSteps:
        """Read peaks, time and energy of the steps after the warm-up."""

        def build() -> tuple[ShortTraining, list[Fetch]]:
            self._build()
            return self, [self._fetch] * self._workload.accumulation

        measured = measure_on_cuda(
            build,
            steps=max(1, self._request.steps - CUDA_WARM_UP_STEPS),
            warmup=CUDA_WARM_UP_STEPS,
            progress=lambda text, done: progress(text, 0.75 * done),
        )
        self.notes += measured.notes
        return measured

    def drop_all_but_model(self) -> BuiltModel:
        """Drop optimizer, gradients and images, which inference does not need; return the model."""
        assert self._session is not None
        built = self._session.built
        self._session, self._decoded, self._batches = None, [], cycle(())
        built.model.zero_grad(set_to_none=True)
        gc.collect()
        return built

    def run(self, batches: Iterable[Fetch]) -> Tensor:
        """Run one step at its learning rate, note its loss and return it."""
        assert self._session is not None
        fetches = list(batches)
        self._session.set_rate()
        loss = self._session.step.run(fetches)
        # A step divides each loss by the accumulation, also if it has fewer micro-batches.
        self._note_loss(float(loss) * self._workload.accumulation / len(fetches))
        return loss

    def _build(self) -> None:
        """Build the model and its training step as a training does."""
        request = self._request
        built = build_model(
            self._workload,
            weights=None if request.weights is None else Path(request.weights),
            pretrained=request.pretrained,
        )
        built.model.to(request.device).train()
        recipe = planned_or_default(
            request.recipe, request.candidate.workload, built, train_images=self._train_images
        )
        zero_new_classifier(built.model, recipe, is_new=built.has_new_classifier)
        steps_per_epoch = self._train_images // request.candidate.workload.effective_batch
        session = Session(
            candidate=replace(request.candidate, workload=self._workload),
            built=built,
            device=request.device,
            recipe=recipe,
            total_steps=max(request.steps, recipe.epochs * steps_per_epoch),
        )
        mark = session.step.mark

        @contextmanager
        def mark_and_time(phase: str) -> Iterator[None]:
            began = time.perf_counter()
            with mark(phase):
                yield
            if phase == "optimizer":
                self._update_seconds = time.perf_counter() - began

        session.step.mark = mark_and_time
        self._session = session

    def _note_loss(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise MeasurementError(
                f"the loss is {loss} after {len(self.losses)} steps in "
                f"{self._workload.precision}; use another precision or learning rate"
            )
        self.losses.append(loss)

    def _timed_step(self, *fetches: Fetch) -> float:
        started = time.perf_counter()
        self.run(fetches)
        return time.perf_counter() - started

    def _later_steps(self, recorded: float, *, started: float, progress: Progress) -> list[float]:
        """Do whole steps until the last one or the time limit.

        Args:
            recorded: seconds of the step whose memory was recorded.
            started: clock at the beginning of the run.
            progress: called with (activity, fraction done).

        Returns:
            Seconds of each step, those of its micro-batches scaled up to the candidate's number.
        """
        steps, limit = self._request.steps, self._request.training_seconds
        done_batches = self._workload.accumulation
        candidate_batches = self._request.candidate.workload.accumulation
        ratio = candidate_batches / done_batches
        seconds: list[float] = []
        expected = recorded * done_batches
        while len(self.losses) < steps:
            if time.perf_counter() - started + expected > limit:
                self.notes.append(
                    f"{len(self.losses)} of {steps} steps were done in the limit of {limit:g} s"
                )
                break
            done = len(self.losses)
            progress(f"step {done + 1} of {steps}", 0.2 + 0.5 * done / steps)
            expected = self._timed_step(*[self._fetch] * done_batches)
            update = self._update_seconds
            seconds.append(ratio * (expected - update) + update)
        if not seconds:
            self.notes.append(
                "step time is an upper bound: the only step with a whole micro-batch is the one "
                "whose memory was recorded"
            )
            return [candidate_batches * recorded]
        if candidate_batches > done_batches:
            self.notes.append(
                f"step time is {ratio:g} times that of {done_batches} micro-batches, and that of "
                "the update"
            )
        return seconds

    def _fetch(self) -> Batch:
        """Return the next micro-batch, copied to the device."""
        images, labels = next(self._batches)
        if self._request.device == "cpu":
            return images.clone(), labels.clone()
        return images.to(self._request.device), labels.to(self._request.device)

    def _fetch_short(self) -> Batch:
        """Return a few images of the first micro-batch."""
        images, labels = self._decoded[0]
        return images[:SHORT_BATCH].clone(), labels[:SHORT_BATCH].clone()


def _decode(images: ImageSet, workload: Workload, request: ValidationRequest) -> list[Batch]:
    """Return decoded micro-batches for all steps, or as many as ``DECODED_BYTES`` hold."""
    wanted = workload.accumulation * request.steps
    image_bytes = 3 * workload.image_size**2 * 4
    affordable = max(1, DECODED_BYTES // (image_bytes * workload.micro_batch))
    batches = batch_loader(
        images,
        batch_size=workload.micro_batch,
        shuffle=True,
        seed=request.seed,
        drop_last=True,
    )
    return [(x, y) for x, y in islice(iter(batches), min(wanted, affordable))]
