"""The child process of a rehearsal: build, train a few steps, evaluate, save, on an emulated GPU.

torch is imported by the functions, because the parent imports this module only for its address.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.recipe import Recipe
from profiler.devices.cuda_properties import has_kernels_for
from profiler.errors import MeasurementError, UsageError
from profiler.json_records import NonNegativeInt, PositiveInt
from profiler.records import DeviceKind
from profiler.running.memory_caps import cap_cuda_memory, cap_host_memory, is_out_of_memory
from profiler.running.messages import Message
from profiler.running.sandbox import Progress
from profiler.units import GIB
from profiler.workload import Candidate

if TYPE_CHECKING:
    from torch import Tensor

    from planner.training.session import Session

HOST_BYTES = 6 * GIB
"""Limit on the host memory of a rehearsal: weights are made on the host and moved to the device."""

DEVICE: DeviceKind = "cuda"

STEADY_STAGE = "a training step"
"""Stage whose memory is that of the plan."""


class RehearsalRequest(Message, frozen=True, kw_only=True):
    """Request of a rehearsal.

    Attributes:
        candidate: workload and placement to run.
        cap_bytes: limit on the bytes that the CUDA allocator reserves.
        recipe: the plan's recipe, whose parameter groups decide temporaries of the optimizer; None
            for the default one.
        steps: number of training steps, at least two.
    """

    candidate: Candidate
    cap_bytes: PositiveInt
    recipe: Recipe | None
    steps: PositiveInt


class StageBytes(Message, frozen=True, kw_only=True):
    """Highest bytes of the CUDA allocator in a stage of the run.

    Attributes:
        stage: name of the stage.
        peak_bytes: highest allocated bytes.
        reserved_bytes: highest reserved bytes.
    """

    stage: str
    peak_bytes: NonNegativeInt
    reserved_bytes: NonNegativeInt


class RehearsedRun(Message, frozen=True, kw_only=True):
    """Readings of a rehearsal.

    Attributes:
        stages: readings of each stage, in their order.
        expandable_segments: whether the allocator ran under expandable segments.
    """

    stages: tuple[StageBytes, ...]
    expandable_segments: bool


class RehearsalBatch(Message, frozen=True, kw_only=True):
    """Request of rehearsals, one after the other.

    Attributes:
        requests: the rehearsals.
    """

    requests: tuple[RehearsalRequest, ...]


class ExhaustedMemory(StrEnum):
    """Memory whose allocator refused a request."""

    NONE = "none"
    HOST = "host"
    DEVICE = "device"

    @classmethod
    def of(cls, error: BaseException) -> ExhaustedMemory:
        """Return the memory that an exception, or the innermost of its causes, reports."""
        import torch

        chain = [error]
        while (cause := chain[-1].__cause__) is not None:
            chain.append(cause)
        refusal = next((each for each in reversed(chain) if is_out_of_memory(each)), None)
        if refusal is None:
            return cls.NONE
        # pinned memory is the host's, although an error of the CUDA runtime reports it
        is_of_device = isinstance(refusal, torch.cuda.OutOfMemoryError)
        return cls.DEVICE if is_of_device else cls.HOST


class RehearsalRow(Message, frozen=True, kw_only=True):
    """Outcome of a rehearsal.

    Attributes:
        run: readings; None if it failed.
        failure: why it failed; empty if it did not.
        exhausted: memory that ran out.
    """

    run: RehearsedRun | None
    failure: str = ""
    exhausted: ExhaustedMemory = ExhaustedMemory.NONE


class RehearsedBatch(Message, frozen=True, kw_only=True):
    """Outcomes of rehearsals.

    Attributes:
        rows: outcome of each request, in their order.
    """

    rows: tuple[RehearsalRow, ...]


class _Stages:
    """Runs the stages of a rehearsal one after the other and reads the allocator after each."""

    def __init__(self, progress: Progress, *, count: int) -> None:
        self.readings: list[StageBytes] = []
        self._progress, self._count = progress, count

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Enclose a stage; an error inside names it.

        Raises:
            MeasurementError: the stage failed.
        """
        import torch

        self._progress(name, len(self.readings) / self._count)
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        try:
            yield
            torch.cuda.synchronize()
        except Exception as error:  # it would fail on the GPU as well
            first = (str(error).strip().splitlines() or ["no message"])[0]
            raise MeasurementError(f"{name} fails: {type(error).__name__}: {first}") from error
        self.readings.append(
            StageBytes(
                stage=name,
                peak_bytes=torch.cuda.max_memory_allocated(),
                reserved_bytes=torch.cuda.max_memory_reserved(),
            )
        )


def run_rehearsals(batch: RehearsalBatch, progress: Progress) -> RehearsedBatch:
    """Run rehearsals one after the other, each from an empty allocator."""
    rows = []
    count = len(batch.requests)
    for index, request in enumerate(batch.requests):
        workload = request.candidate.workload
        prefix = f"{workload.method} {workload.batch_text} {workload.precision}: "

        def show(text: str, done: float, index: int = index, prefix: str = prefix) -> None:
            progress(prefix + text, (index + done) / count)

        try:
            rows.append(RehearsalRow(run=run_rehearsal(request, show)))
        except (MeasurementError, UsageError, MemoryError) as error:
            failure = str(error) or type(error).__name__
            rows.append(
                RehearsalRow(run=None, failure=failure, exhausted=ExhaustedMemory.of(error))
            )
        _empty_allocator()
    return RehearsedBatch(rows=tuple(rows))


def _empty_allocator() -> None:
    """Free the remains of a rehearsal: cycles of a failed step, cuBLAS' workspaces, the cache."""
    import torch

    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


def run_rehearsal(request: RehearsalRequest, progress: Progress) -> RehearsedRun:
    """Run the stages of a training on the emulated GPU of this process."""
    import torch

    from profiler.models.forward_check import explain_refusals
    from profiler.training_step import gc_frozen

    _check_kernels()
    cap_host_memory(HOST_BYTES)
    torch.manual_seed(0)
    stages = _Stages(progress, count=7)
    with gc_frozen(), explain_refusals(request.candidate.workload):
        _rehearse(request, stages)
    settings = torch.cuda.memory._snapshot()["allocator_settings"]
    return RehearsedRun(
        stages=tuple(stages.readings),
        expandable_segments=bool(settings["expandable_segments"]),
    )


def _check_kernels() -> None:
    """Refuse a GPU without kernels in this build of PyTorch: an emulated kernel never fails."""
    import torch

    capability, built_for = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
    if not has_kernels_for(capability, built_for):
        raise MeasurementError(
            f"this PyTorch has no kernels for compute capability {capability[0]}.{capability[1]}, "
            f"only for {', '.join(built_for)}; install a build that has them"
        )


def _rehearse(request: RehearsalRequest, stages: _Stages) -> None:
    import torch

    from planner.training.checkpoints import TrainState, load_checkpoint, save_checkpoint
    from planner.training.trained_model import save_model
    from profiler.models.build import build_model

    workload = request.candidate.workload
    batches: Iterator[Any] = repeat(_random_batch(request.candidate))
    with stages.stage("loading the model"):
        built = build_model(workload)
        cap_cuda_memory(request.cap_bytes)
        built.model.to(DEVICE).train()
        session = _session(request, built)
    # Every micro-batch after the second allocates as the second does, so one whole step is enough.
    short_step = _stepper(session, batches, min(2, workload.accumulation))
    with stages.stage("the first step"):
        short_step()
    if request.steps > 2:
        with stages.stage("the second step"):  # the optimizer's state exists from here on
            for _ in range(request.steps - 2):
                short_step()
    with stages.stage(STEADY_STAGE):
        _stepper(session, batches, workload.accumulation)()
    with stages.stage("evaluation"):
        session.model.eval()
        with torch.no_grad(), session.step.autocast():
            images: Tensor = next(batches)[0].to(DEVICE)
            session.model(images).argmax(dim=1).cpu()
            del images
        session.model.train()
    with tempfile.TemporaryDirectory() as folder, stages.stage("saving and resuming"):
        state = TrainState()
        save_checkpoint(Path(folder), session, state, {})
        latest = Path(folder) / f"checkpoint-{session.step.global_step}"
        session.step.optimizer.state.clear()  # a resumed training begins without any
        load_checkpoint(latest, session, {})
        save_model(session.built, Path(folder) / "model")
    with stages.stage("a step after resuming"):
        short_step()
    session.close()


def _session(request: RehearsalRequest, built: Any) -> Session:
    from planner.training.choose_recipe import default_recipe
    from planner.training.session import Session

    workload = request.candidate.workload
    recipe = request.recipe or default_recipe(
        workload, built.backbone, weights="random", train_images=100 * workload.effective_batch
    )
    return Session(
        candidate=request.candidate,
        built=built,
        device=DEVICE,
        recipe=recipe,
        total_steps=1000,
    )


def _stepper(session: Session, batches: Iterator[Any], accumulation: int) -> Callable[[], None]:
    """Return a function that runs one step as a training does, without its fallback on memory."""

    def fetch() -> tuple[Tensor, Tensor]:
        images, labels = next(batches)
        return images.to(DEVICE), labels.to(DEVICE)

    def step() -> None:
        session.set_rate()
        float(session.step.run([fetch] * accumulation))

    return step


def _random_batch(candidate: Candidate) -> tuple[Tensor, Tensor]:
    """Return a micro-batch of images and labels on the host."""
    import torch

    workload = candidate.workload
    size = workload.image_size
    images = torch.rand(workload.micro_batch, 3, size, size)
    return images, torch.zeros(workload.micro_batch, dtype=torch.long)
