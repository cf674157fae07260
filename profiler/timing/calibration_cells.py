"""Short training steps of a few small backbones, timed in rounds, in a process of their own.

The rounds are interleaved: each takes a few steps of every cell. A disturbance that lasts then
shows as a difference between the rounds of a cell, and the cell is dropped. On a CPU with one
thread the time of the process counts, which other processes change less than the wall clock.
With several threads, the time in which they waited for a processor is kept as well: rounds on a
machine that is busy all the time agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from profiler.json_records import NonNegativeFloat, PositiveInt
from profiler.records import DeviceKind
from profiler.running.memory_caps import use_planned_configuration
from profiler.running.messages import Message
from profiler.running.sandbox import Progress
from profiler.timing.processor_wait import wait_share, waited_seconds
from profiler.workload import Candidate, Workload

CELL_ROUNDS = 4
"""Timed steps of a cell on a CPU; on a GPU there are more steps in a round."""

CUDA_STEPS = 8
"""Steps of a round on a GPU, timed together because kernels run behind the host."""


class CellsRequest(Message, frozen=True, kw_only=True):
    """Request of a calibrating process.

    Attributes:
        device: type of the device.
        candidates: cells to time.
        rounds: timed rounds of each cell.
    """

    device: DeviceKind
    candidates: tuple[Candidate, ...]
    rounds: PositiveInt = CELL_ROUNDS


class CellsResult(Message, frozen=True, kw_only=True):
    """Readings of a calibrating process.

    Attributes:
        seconds: for each cell the seconds of a step in each round; empty for a cell that did not
            run.
        clock: ``process`` for the processor time of the process, else ``wall``.
        reasons: for each cell the reason why it did not run, or an empty text.
        waits: for each cell the share of its time that its threads waited for a processor; 0 by
            the clock of the process.
    """

    seconds: tuple[tuple[NonNegativeFloat, ...], ...]
    clock: Literal["process", "wall"]
    reasons: tuple[str, ...]
    waits: tuple[NonNegativeFloat, ...]


def calibration_candidates(*, on_cuda: bool) -> tuple[Candidate, ...]:
    """Return the cells: convolutional, depthwise and attention backbones, with and without LoRA."""
    scale = 4 if on_cuda else 1
    cells = [
        Workload(
            model=model,
            method=method,
            micro_batch=batch * scale,
            precision=precision,
            image_size=224 if on_cuda else 128,
            num_classes=10,
        )
        for precision in (("fp32", "fp16") if on_cuda else ("fp32",))
        for model, method, batch in (
            ("resnet18", "full", 8),
            ("resnet50", "bitfit", 4),
            ("mobilenetv3_small_100", "full", 16),
            ("efficientnet_b0", "full", 4),
            ("vit_tiny_patch16_224", "full", 8),
            ("vit_small_patch16_224", "lora", 4),
            ("convnext_atto", "full", 8),
            ("convnext_atto", "lora", 8),
        )
    ]
    return tuple(Candidate(workload=workload) for workload in cells)


def run_cells(request: CellsRequest, progress: Progress) -> CellsResult:
    """Time all cells in interleaved rounds. Runs in the child process.

    Each round builds the models anew, so that only one is in memory at a time.
    """
    import torch

    from profiler.training_step import gc_frozen

    if request.device == "cuda":
        use_planned_configuration()
    torch.manual_seed(0)
    alone = request.device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    seconds: list[list[float]] = [[] for _ in request.candidates]
    waits = [0.0] * len(request.candidates)
    reasons = [""] * len(request.candidates)
    with gc_frozen():
        for number in range(request.rounds):
            for index, candidate in enumerate(request.candidates):
                done = (number + index / len(request.candidates)) / request.rounds
                progress(f"round {number + 1}: {candidate.workload.model}", done)
                if reasons[index]:
                    continue
                try:
                    taken, share = _time_cell(candidate, request.device, clock)
                    seconds[index].append(taken)
                    waits[index] += (0.0 if alone else share) / request.rounds
                except (RuntimeError, MemoryError, ValueError, AssertionError) as error:
                    reasons[index] = " ".join(str(error).split())[:160] or type(error).__name__
                    seconds[index].clear()
    return CellsResult(
        seconds=tuple(map(tuple, seconds)),
        clock="process" if alone else "wall",
        reasons=tuple(reasons),
        waits=tuple(waits),
    )


def _time_cell(
    candidate: Candidate, device: str, clock: Callable[[], float]
) -> tuple[float, float]:
    """Build a cell, warm up, and return the seconds of a step and the share that it waited."""
    import torch

    from profiler.running.measurement import build_step

    on_cuda = device == "cuda"
    step, batches = build_step(candidate, device=device)
    step.run(batches)  # allocates the optimizer's state
    step.run(batches)
    if on_cuda:
        torch.cuda.synchronize()
    steps = CUDA_STEPS if on_cuda else 1
    waited, start = waited_seconds(), clock()
    for _ in range(steps):
        step.run(batches)
    if on_cuda:
        torch.cuda.synchronize()
    seconds = clock() - start
    return seconds / steps, wait_share(waited, waited_seconds(), seconds=seconds)
