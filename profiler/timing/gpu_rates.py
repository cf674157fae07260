"""Rates of a GPU of this machine that the device table lacks, timed once on the GPU itself.

`adopt_gpu` adds the GPU to the devices that `lookup` finds. The driver does not report its rates or
its number of multiprocessors, so a child process gets both from PyTorch, and the store keeps them.
The child keeps this process free of a CUDA context. The board power stays unknown, so no energy is
predicted for such a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from profiler.devices.table import TIMED, DeviceSpec, adopt
from profiler.running.messages import Message
from profiler.running.sandbox import Progress, run_in_process
from profiler.running.time_limit import START_SECONDS

if TYPE_CHECKING:
    from profiler.store import Store

SIDE = 4096
"""Rows and columns of the timed matrices: 64 MiB each in fp32."""

REPEATS = 5
"""Runs of each timing; the fastest counts."""


class TimingRequest(Message, frozen=True, kw_only=True):
    """The request of a timing process. It has no fields."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedRates:
    """Rates timed on a GPU.

    Attributes:
        fp32_flops: FLOP/s of a matrix product in fp32.
        fp16_flops: FLOP/s of a matrix product in fp16.
        bf16_flops: FLOP/s of a matrix product in bf16, which GPUs before Ampere emulate.
        bytes_per_second: bytes read and written by a copy, per second.
        sm_count: number of streaming multiprocessors.
    """

    fp32_flops: float
    fp16_flops: float
    bf16_flops: float
    bytes_per_second: float
    sm_count: float


def adopt_gpu(spec: DeviceSpec, store: Store) -> DeviceSpec:
    """Add a GPU to the devices that `lookup` finds, with rates timed on it.

    Args:
        spec: record of the GPU as the driver reports it.
        store: store that keeps the timings.

    Raises:
        DeviceError: PyTorch cannot use the GPU.
        MeasurementError: the timing failed.
    """

    def time_in_child() -> TimedRates:
        return run_in_process(
            time_rates, TimingRequest(), TimedRates, timeout_seconds=START_SECONDS
        )

    seen = store.fetch(TimedRates, ("gpu", spec.full_name, spec.memory_bytes), time_in_child)
    timed = replace(
        spec,
        fp32_flops=float(seen.fp32_flops),
        fp16_tensor_flops=float(seen.fp16_flops),
        bf16_tensor_flops=float(seen.bf16_flops) if spec.has_bf16 else None,
        memory_bandwidth_bytes_per_second=float(seen.bytes_per_second),
        sm_count=int(seen.sm_count),
        source=TIMED,
    )
    adopt(timed)
    return timed


def time_rates(_: TimingRequest, progress: Progress) -> TimedRates:
    """Time matrix products and a copy on the first CUDA device; runs in a child process."""
    import torch

    def best(run: Callable[[], object], work: float) -> float:
        run()
        fastest = float("inf")
        for _ in range(REPEATS):
            torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            torch.cuda.synchronize()
            fastest = min(fastest, time.perf_counter() - start)
        return work / fastest

    progress("timing this GPU", 0.0)
    products = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        left = torch.ones(SIDE, SIDE, device="cuda", dtype=dtype)
        products[dtype] = best(partial(torch.matmul, left, left), 2.0 * SIDE**3)
    source = torch.empty(SIDE, SIDE, device="cuda")
    target = torch.empty_like(source)
    return TimedRates(
        fp32_flops=products[torch.float32],
        fp16_flops=products[torch.float16],
        bf16_flops=products[torch.bfloat16],
        bytes_per_second=best(lambda: target.copy_(source), 2.0 * SIDE**2 * 4),
        sm_count=torch.cuda.get_device_properties(0).multi_processor_count,
    )
