"""Really run a candidate: a few training steps on real images, then held-out images.

In a process of its own under a hard memory cap: the parent (``validate``) asks, the child
(``run_validation``) answers in JSON. What is trained is what ``planner.training.loop`` would train. Peak,
time and energy of a step are read as in ``profiler.running.measurement``.

On a CPU, time is what is short, so:

- the first step, which makes the optimizer's state, takes a few images only;
- the second is the steady one whose memory is recorded, from before the model was built. With
  accumulation it takes a few images and then one whole micro-batch, which finds the gradients of
  the first beside it: its peak is that of any number of micro-batches;
- later steps are whole, with two micro-batches at most and the time scaled up, and they end when
  their time is used up; what was cut short is in the notes;
- the held-out images are a sample whose size follows from the time of one batch.

Images are decoded beforehand, a limited number of them, so that neither time nor memory of decoding
is counted; what is timed copies them, as a loader's batch is copied to a device. Accuracy after a
few steps says that training works, not how good the model gets: it always comes with the number of
steps and the weights. Time and memory of inference are of the same model without its optimizer.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from planner.plan import Accuracy
from planner.training.images.image_set import DataSource
from profiler.errors import DeviceError, MeasurementError, UsageError
from profiler.models.backbones import WeightSource
from profiler.records import Report
from profiler.running.measurement import (
    MeasuredSteps,
    cap_host_step,
    measure_on_cuda,
    report_measurement,
)
from profiler.running.memory_caps import cap_cuda_memory
from profiler.running.messages import Message
from profiler.running.sandbox import Progress, run_in_process
from profiler.units import MIB, format_bytes
from profiler.workload import Candidate, Workload

if TYPE_CHECKING:
    from torch import Tensor, nn

    from planner.training.images.image_set import ImageData, ImageSet
    from planner.training.session import Session
    from profiler.models.build import BuiltModel
    from profiler.training_step import Batch, TrainingStep

DEFAULT_STEPS = 6

TRAINING_SECONDS = 40.0
"""For the steps on a CPU; at least two are done whatever they take."""

HELD_OUT_SECONDS = 15.0

HELD_OUT_IMAGES = {"cpu": 256, "cuda": 2048}

POOL_BYTES = 96 * MIB
"""Decoded images kept beside the run; the sandbox's slack must hold them."""

WARM_UP_STEPS = 2
"""On CUDA."""

POWER_SECONDS = 2.0
"""Of inference on a GPU: twenty periods of the energy counter (``profiler.devices.nvml``)."""

FEW_IMAGES = 4
"""BatchNorm needs two."""

INFERENCE_BATCH = 32
"""At most; never above the micro-batch."""

TOLERANCE = 0.02
"""Above this a measured peak is called higher than predicted; replay aims at 0.005 on a CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What a real run showed.

    Attributes:
        report: peak, time and energy of a step, of rung ``measured``.
        accuracy: on held-out images after these few steps.
        accuracy_images: how many there were.
        weights: where the backbone's weights came from.
        data: the data source as plain data.
        losses: one for each step done.
        inference_seconds: for the whole held-out set, scaled up from ``accuracy_images``.
        inference_peak_bytes: peak of one evaluated batch; the model included, no optimizer.
        inference_watts: average power while evaluating; None where it cannot be read.
        notes: what was cut short.
    """

    report: Report
    accuracy: Accuracy
    accuracy_images: int
    weights: WeightSource
    data: Mapping[str, Any]
    losses: tuple[float, ...]
    inference_seconds: float
    inference_peak_bytes: int
    inference_watts: float | None = None
    notes: tuple[str, ...] = field(default=())

    def findings(self, prediction: Report, *, budget_bytes: int) -> tuple[str, ...]:
        """Say in a sentence each what was not as expected.

        Args:
            prediction: of the same candidate on the device that it was run on.
            budget_bytes: the budget.
        """
        found = []
        peak, expected = self.report.memory.peak_bytes, prediction.memory.peak_bytes
        if peak > (1 + TOLERANCE) * expected:
            found.append(
                f"measured peak of {format_bytes(peak)} is {peak / expected - 1:.1%} above the "
                f"predicted {format_bytes(expected)}"
            )
        used = self.report.memory.device_bytes or peak
        if used > budget_bytes:
            found.append(
                f"the run used {format_bytes(used)}, more than the budget of "
                f"{format_bytes(budget_bytes)}"
            )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "report": self.report.to_json(),
            "accuracy": self.accuracy.to_json(),
            "accuracy_images": self.accuracy_images,
            "weights": {"kind": self.weights.kind, "detail": self.weights.detail},
            "data": dict(self.data),
            "losses": list(self.losses),
            "inference_seconds": self.inference_seconds,
            "inference_peak_bytes": self.inference_peak_bytes,
            "inference_watts": self.inference_watts,
            "notes": list(self.notes),
        }


class ValidationRequest(Message, frozen=True, kw_only=True):
    """The request of one validating process.

    Attributes:
        candidate: workload and placement to run.
        device: type of device to run on.
        budget_bytes: hard limit on memory; None for no limit.
        data: data source, as ``planner.training.data`` names it.
        steps: number of training steps.
        seed: seed of new weights, dropout and the choice of images.
        weights: path of a file of weights.
        pretrained: whether timm's hub is tried when no file is given.
        training_seconds: time limit of the steps on a CPU.
        held_out_seconds: time limit of the evaluation.
    """

    candidate: Candidate
    device: Literal["cpu", "cuda"]
    budget_bytes: int | None
    data: str
    steps: int
    seed: int
    weights: str | None
    pretrained: bool
    training_seconds: float
    held_out_seconds: float


class Inference(Message, frozen=True, kw_only=True):
    """Readings of evaluating held-out images.

    Attributes:
        accuracy: share of the images that were classified correctly.
        images: number of images.
        seconds: time of the whole held-out set, scaled up from ``images``.
        peak_bytes: peak of one evaluated batch; the model included, no optimizer.
        watts: average power; None where it cannot be read.
    """

    accuracy: float
    images: int
    seconds: float
    peak_bytes: int
    watts: float | None


class ValidationResult(Message, frozen=True, kw_only=True):
    """The result of one validating process.

    Attributes:
        training: readings of the training steps, with every note of the run.
        losses: loss of each step.
        inference: readings of the evaluation.
        weights: source of the backbone's weights.
        data: source of the images.
    """

    training: MeasuredSteps
    losses: tuple[float, ...]
    inference: Inference
    weights: WeightSource
    data: DataSource


def validate(
    candidate: Candidate,
    *,
    device: str,
    budget_bytes: int | None,
    data: str,
    steps: int = DEFAULT_STEPS,
    seed: int = 0,
    weights: Path | None = None,
    pretrained: bool = True,
    training_seconds: float = TRAINING_SECONDS,
    held_out_seconds: float = HELD_OUT_SECONDS,
    on_progress: Progress | None = None,
) -> Validation:
    """Really run a candidate for a few steps and evaluate it.

    Args:
        candidate: what to run.
        device: ``cpu``, ``cuda``, or the name of this machine's GPU in the table.
        budget_bytes: hard limit on memory; None for no limit.
        data: what ``planner.training.images.load`` loads.
        steps: training steps; fewer are done on a CPU when their time is used up.
        seed: of new weights, dropout and the choice of images.
        weights: a file of weights.
        pretrained: try timm's hub when no file is given.
        training_seconds: for the steps on a CPU.
        held_out_seconds: for the evaluation.
        on_progress: called with (what it does, fraction done).

    Raises:
        OutOfMemoryError: the budget was exceeded.
        InputError: the data cannot be read or does not fit.
        DeviceError: no such device here.
        MeasurementError: the run failed in another way.
    """
    if steps < 2:
        raise UsageError(f"a validation needs at least two steps, got {steps!r}")
    request = ValidationRequest(
        candidate=candidate,
        device="cpu" if device == "cpu" else "cuda",
        budget_bytes=budget_bytes,
        data=data,
        steps=steps,
        seed=seed,
        weights=None if weights is None else str(weights),
        pretrained=pretrained,
        training_seconds=training_seconds,
        held_out_seconds=held_out_seconds,
    )
    result = run_in_process(
        run_validation,
        request,
        ValidationResult,
        cap_bytes=budget_bytes,
        on_progress=on_progress,
    )
    inference = result.inference
    return Validation(
        report=report_measurement(candidate, result.training, device=device),
        accuracy=Accuracy(
            value=inference.accuracy, source=_accuracy_source(result), kind="measured"
        ),
        accuracy_images=inference.images,
        weights=result.weights,
        data=result.data.to_json(),
        losses=result.losses,
        inference_seconds=inference.seconds,
        inference_peak_bytes=inference.peak_bytes,
        inference_watts=inference.watts,
        notes=result.training.notes,
    )


def _accuracy_source(result: ValidationResult) -> str:
    return (
        f"measured on {result.inference.images} held-out images of {result.data.name} "
        f"after {len(result.losses)} steps, {result.weights.kind} weights"
    )


# ---- the child -----------------------------------------------------------------------------------


def run_validation(request: ValidationRequest, progress: Progress) -> ValidationResult:
    """Load, train and evaluate. Runs in the child process."""
    import torch

    from planner.training.trained_model import data_for
    from planner.training.training_device import device_type
    from profiler.training_step import gc_frozen

    workload, kind = request.candidate.workload, device_type(request.device)
    progress("loading images", 0.0)
    images = data_for(workload, request.data)
    run = _Run(request, images)
    if request.budget_bytes:
        _cap(request.budget_bytes, kind, workload)
    torch.manual_seed(request.seed)
    with gc_frozen():
        trained = run.on_cuda(progress) if kind == "cuda" else run.on_host(progress)
    run.forget_training()
    progress("evaluating held-out images", 0.75)
    inference = run.evaluate()
    return ValidationResult(
        training=msgspec.structs.replace(trained, notes=tuple(run.notes)),
        losses=tuple(run.losses),
        inference=inference,
        weights=run.weights,
        data=images.source,
    )


def _cap(budget_bytes: int, kind: str, workload: Workload) -> None:
    """Cap what may be allocated from now on; on CUDA, what the budget leaves beside the context."""
    from profiler.devices.nvml import open_gpu
    from profiler.devices.table import cuda_context

    if kind == "cpu":
        cap_host_step(workload, budget_bytes)
        return
    try:
        context = cuda_context(open_gpu().spec).nbytes
    except DeviceError:
        context = 0
    cap_cuda_memory(max(MIB, budget_bytes - context))


class _Run:
    """A candidate on real images."""

    def __init__(self, request: ValidationRequest, images: ImageData) -> None:
        self.request, self.data = request, images
        self.candidate, self.device = request.candidate, request.device
        self.workload = request.candidate.workload
        if self.device == "cpu":
            self.workload = self.workload.replace(accumulation=min(2, self.workload.accumulation))
        self.losses: list[float] = []
        self.notes: list[str] = []
        self._built: BuiltModel | None = None
        self._step: TrainingStep | None = None
        self._pool = _decode(images.train, self.workload, request)
        self._source = cycle(self._pool)

    # -- training --------------------------------------------------------------------------------

    def build(self) -> TrainingStep:
        """Make the model and its training step, exactly as training does."""
        from planner.training.learning_rate import choose_learning_rate
        from planner.training.session import Session
        from profiler.models.build import build_model

        request = self.request
        built = build_model(
            self.workload,
            weights=None if request.weights is None else Path(request.weights),
            pretrained=request.pretrained,
        )
        built.model.to(self.device).train()
        session = Session(
            candidate=self.candidate,
            built=built,
            device=self.device,
            rate=choose_learning_rate(self.workload, built),
            total_steps=request.steps,
        )
        self._built, self._step = built, self._listened(session)
        return self._step

    def _listened(self, session: Session) -> TrainingStep:
        """Have every step set its learning rate and tell its loss, as a training does."""
        run = session.step.run

        def told(batches: Sequence[Callable[[], Batch]]) -> Tensor:
            session.set_rate()
            loss = run(batches)
            # the step takes the mean over all of its micro-batches, done or not
            self._note_loss(float(loss) * self.workload.accumulation / len(batches))
            return loss

        session.step.run = told  # type: ignore[method-assign, assignment]
        return session.step

    def _timed_step(self, *fetches: Callable[[], Batch]) -> float:
        assert self._step is not None
        started = time.perf_counter()
        self._step.run(fetches)
        return time.perf_counter() - started

    def _note_loss(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise MeasurementError(
                f"the loss is {loss} after {len(self.losses)} steps in "
                f"{self.workload.precision}; use another precision or learning rate"
            )
        self.losses.append(loss)

    def _fetch(self) -> Batch:
        images, labels = next(self._source)
        if self.device == "cpu":
            return images.clone(), labels.clone()
        return images.to(self.device), labels.to(self.device)

    def _fetch_few(self) -> Batch:
        images, labels = self._pool[0]
        return images[:FEW_IMAGES].clone(), labels[:FEW_IMAGES].clone()

    def on_host(self, progress: Progress) -> MeasuredSteps:
        """Record the memory of the second step, from before the model; time it and others."""
        from profiler.device_rules.cpu_allocator import peak_during
        from profiler.environment import environment

        wanted, started = self.request.steps, time.perf_counter()
        recorded: list[float] = []

        def prepare() -> None:
            progress("building the model", 0.05)
            self.build()
            self._timed_step(self._fetch_few)

        def steady() -> None:
            progress(f"step 2 of {wanted}, recording memory", 0.2)
            few = [self._fetch_few] * (self.workload.accumulation - 1)
            recorded.append(self._timed_step(*few, self._fetch))

        peak = peak_during(prepare, steady)
        seconds = self._more_steps(recorded[0], started=started, progress=progress)
        return MeasuredSteps(
            peak_bytes=peak,
            reserved_bytes=None,
            device_bytes=peak,
            step_seconds=tuple(seconds),
            energy_joules=None,
            device_name="cpu",
            environment=environment(),
        )

    def _more_steps(self, recorded: float, *, started: float, progress: Progress) -> list[float]:
        """Do whole steps while there is time; return the seconds of the candidate's own step."""
        wanted, limit = self.request.steps, self.request.training_seconds
        micro_batches, planned = self.workload.accumulation, self.candidate.workload.accumulation
        seconds: list[float] = []
        next_seconds = recorded * micro_batches
        while len(self.losses) < wanted:
            if time.perf_counter() - started + next_seconds > limit:
                self.notes.append(
                    f"{len(self.losses)} of {wanted} steps were done in the {limit:g} s there were"
                )
                break
            done = len(self.losses)
            progress(f"step {done + 1} of {wanted}", 0.2 + 0.5 * done / wanted)
            next_seconds = self._timed_step(*[self._fetch] * micro_batches)
            seconds.append(next_seconds)
        if not seconds:
            self.notes.append(
                "step time is an upper bound: the only step with a whole micro-batch is the one "
                "whose memory was recorded"
            )
            return [planned * recorded]
        if planned > micro_batches:
            self.notes.append(
                f"step time is {planned / micro_batches:g} times that of {micro_batches} "
                "micro-batches"
            )
        return [planned / micro_batches * s for s in seconds]

    def on_cuda(self, progress: Progress) -> MeasuredSteps:
        """Read peaks, time and energy of the steps after two of warm-up."""
        fetches: list[Callable[[], Batch]] = [self._fetch] * self.workload.accumulation
        seen = measure_on_cuda(
            lambda: (self.build(), fetches),
            steps=max(1, self.request.steps - WARM_UP_STEPS),
            warmup=WARM_UP_STEPS,
            progress=lambda text, done: progress(text, 0.75 * done),
        )
        self.notes += seen.notes
        return seen

    @property
    def weights(self) -> WeightSource:
        """Source of the backbone's weights."""
        assert self._built is not None
        return self._built.weights

    # -- inference -------------------------------------------------------------------------------

    def forget_training(self) -> None:
        """Drop optimizer, gradients and images: what inference needs is the model."""
        self._step, self._pool, self._source = None, [], iter(())  # type: ignore[assignment]
        gc.collect()

    def evaluate(self) -> Inference:
        """Return accuracy, time and peak over a sample of the held-out images."""
        assert self._built is not None
        model, held_out = self._built.model, self.data.held_out
        most = min(HELD_OUT_IMAGES[self.device], len(held_out))
        batch_size = min(self.workload.micro_batch, INFERENCE_BATCH, most)
        first = held_out.sample(batch_size, seed=self.request.seed)
        peak, one_batch = self._inference_peak(model, first)
        count = max(batch_size, int(batch_size * self.request.held_out_seconds / one_batch))
        sample = held_out.sample(min(most, count), seed=self.request.seed)
        right, seconds, watts = self._classify(model, sample, batch_size)
        if len(sample) < len(held_out):
            self.notes.append(
                f"inference time is scaled up from {len(sample)} to {len(held_out)} images"
            )
        return Inference(
            accuracy=right / len(sample),
            images=len(sample),
            seconds=seconds * len(held_out) / len(sample),
            peak_bytes=peak,
            watts=watts,
        )

    def _inference_peak(self, model: nn.Module, images: ImageSet) -> tuple[int, float]:
        """Return the peak of evaluating one batch, and its seconds."""
        import torch

        from profiler.device_rules.cpu_allocator import memory_events, peak_and_growth

        ((pixels, _),) = _batches(images, len(images))
        started = time.perf_counter()
        if self.device == "cpu":
            events = memory_events(lambda: self._predict(model, pixels.clone()))
            peak = peak_and_growth(events)[0] + _model_bytes(model)
            return peak, time.perf_counter() - started
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        self._predict(model, pixels.to(self.device))
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated(), time.perf_counter() - started

    def _classify(
        self, model: nn.Module, images: ImageSet, batch_size: int
    ) -> tuple[int, float, float | None]:
        """Return how many were right, the seconds that took without decoding, and the watts."""
        right, seconds = 0, 0.0

        def one(pixels: Tensor, labels: Tensor) -> None:
            nonlocal right, seconds
            started = time.perf_counter()
            predicted = self._predict(model, pixels.to(self.device)).cpu()
            seconds += time.perf_counter() - started
            right += int((predicted == labels).sum())

        if self.device == "cpu":
            for pixels, labels in _batches(images, batch_size):
                one(pixels, labels)
            return right, seconds, None
        decoded = list(_batches(images, batch_size))  # so that the window is inference alone
        for pixels, labels in decoded:
            one(pixels, labels)
        again = cycle(decoded)
        watts = power_of(lambda: self._predict(model, next(again)[0].to(self.device)).cpu())
        return right, seconds, watts

    def _predict(self, model: nn.Module, images: Tensor) -> Tensor:
        import torch

        from planner.training.training_device import autocast

        model.eval()
        with torch.no_grad(), autocast(self.workload.precision, self.device):
            predicted: Tensor = model(images).argmax(dim=1)
        return predicted


def power_of(work: Callable[[], object]) -> float | None:
    """Return the average power of this machine's GPU in watts while something is repeated.

    None where it cannot be read. One pass over few images is shorter than the sensor's period.
    """
    from profiler.running.measurement import energy_of

    started, seconds = time.perf_counter(), 0.0

    def repeat() -> None:
        nonlocal seconds
        while seconds < POWER_SECONDS:
            work()
            seconds = time.perf_counter() - started

    joules, _ = energy_of(repeat)
    return None if joules is None else joules / seconds


def _decode(images: ImageSet, workload: Workload, request: ValidationRequest) -> list[Batch]:
    """Return micro-batches of decoded images: those of all steps, or as many as may be kept."""
    from planner.training.images.batches import batch_loader

    wanted = workload.accumulation * request.steps
    image_bytes = 3 * workload.image_size**2 * 4
    affordable = max(1, POOL_BYTES // (image_bytes * workload.micro_batch))
    batches = batch_loader(
        images,
        batch_size=workload.micro_batch,
        shuffle=True,
        seed=request.seed,
        drop_last=True,
    )
    return [(x, y) for x, y in islice(iter(batches), min(wanted, affordable))]


def _batches(images: ImageSet, batch_size: int) -> Iterator[Batch]:
    from planner.training.images.batches import batch_loader

    yield from batch_loader(images, batch_size=batch_size, shuffle=False, seed=0, drop_last=False)


def _model_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers, shared storages once."""
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in (*model.parameters(), *model.buffers())
    }
    return sum(storages.values())
