"""A GPU of this machine that the device table lacks: its rates are timed on it, once.

`adopt_gpu` makes it known under its own name. What the driver does not tell (multiprocessors,
rates) is asked of PyTorch in a process of its own, so that this one stays free of CUDA, and kept
in the store. Its board power is not known, so no energy is predicted for it.
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

if TYPE_CHECKING:
    from profiler.store import Store

SIDE = 4096
"""Of the square matrices that are multiplied: 64 MiB each in fp32."""

REPEATS = 5


class TimingRequest(Message, frozen=True, kw_only=True):
    """The request of a timing process; there is nothing to choose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedRates:
    """What was asked of PyTorch.

    Attributes:
        fp32_flops: of a matrix product.
        fp16_flops: of one in fp16.
        bf16_flops: of one in bf16, which GPUs before Ampere do not have and imitate.
        bytes_per_second: of a copy, read and written.
        sm_count: streaming multiprocessors.
    """

    fp32_flops: float
    fp16_flops: float
    bf16_flops: float
    bytes_per_second: float
    sm_count: float


def adopt_gpu(spec: DeviceSpec, store: Store) -> DeviceSpec:
    """Make a GPU known to `lookup`, with rates timed on it.

    Args:
        spec: what the driver says of it.
        store: where what was timed is kept.

    Raises:
        DeviceError: PyTorch cannot use it.
        MeasurementError: the timing failed.
    """

    def ask() -> TimedRates:
        return run_in_process(time_rates, TimingRequest(), TimedRates)

    seen = store.fetch(TimedRates, ("gpu", spec.full_name, spec.memory_bytes), ask)
    has_bf16 = (spec.compute_capability or (0, 0)) >= (8, 0)
    timed = replace(
        spec,
        fp32_flops=float(seen.fp32_flops),
        fp16_tensor_flops=float(seen.fp16_flops),
        bf16_tensor_flops=float(seen.bf16_flops) if has_bf16 else None,
        memory_bandwidth_bytes_per_second=float(seen.bytes_per_second),
        sm_count=int(seen.sm_count),
        source=TIMED,
    )
    adopt(timed)
    return timed


def time_rates(_: TimingRequest, progress: Progress) -> TimedRates:
    """Time matrix products and a copy on the first CUDA device (runs in a process of its own)."""
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
