"""Time and energy from a device's data sheet: the roofline, uncalibrated.

Each operation takes the longer of its arithmetic at the peak rate and its traffic at the peak
bandwidth (Williams, Waterman, Patterson, CACM 2009), and at least the time it takes to launch.
Caches and the kernels' efficiency are left out, so large operations take longer than this says.
Energy is that time at the board power, so it is no bound at all: a label says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from profiler.event_log import OperationRecord
from profiler.hardware import TIMED, DeviceSpec

LAUNCH_SECONDS = 5e-6
"""Assumed: what one eager operation takes before its kernel runs. Published figures go from 5 to 25
microseconds of host work an operation
(https://jiahuanglin.xyz/all_lessons/gpu_kernel_serving/18_pytorch_to_kernel.html); the low end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a roofline needs.

    Attributes:
        flops_per_second: peak arithmetic at the workload's precision.
        bytes_per_second: peak memory bandwidth.
        watts: board power, None when not known.
        source: where the two rates come from.
        launch_seconds: the least an operation takes, however small.
    """

    flops_per_second: float
    bytes_per_second: float
    watts: float | None
    source: str
    launch_seconds: float = 0.0

    def seconds(self, flops: float, moved_bytes: float) -> float:
        """Return the roofline time of one operation."""
        arithmetic = flops / self.flops_per_second
        return max(arithmetic, moved_bytes / self.bytes_per_second, self.launch_seconds)

    def total_seconds(self, operations: Iterable[OperationRecord]) -> float:
        """Return the sum over operations, one after the other."""
        return sum(self.seconds(op.flops, op.moved_bytes) for op in operations)


def rates(spec: DeviceSpec, *, precision: str) -> Rates | None:
    """Return the rates of a device at a precision; None where the table does not know them.

    fp32 uses the ordinary units (PyTorch leaves TF32 off for matmuls); bf16 and fp16 the tensor
    cores, and where bf16 has none, the ordinary units.
    """
    if not spec.is_cuda:
        return measured_cpu_rates()
    tensor = {"bf16": spec.bf16_tensor_flops, "fp16": spec.fp16_tensor_flops}.get(precision)
    flops = tensor or spec.fp32_flops
    if flops is None or spec.memory_bandwidth_bytes_per_second is None:
        return None
    return Rates(
        flops_per_second=flops,
        bytes_per_second=spec.memory_bandwidth_bytes_per_second,
        watts=spec.tdp_watts,
        source=TIMED if spec.source == TIMED else "data sheet, uncalibrated",
        launch_seconds=LAUNCH_SECONDS,
    )


@cache
def measured_cpu_rates() -> Rates:
    """Measure this processor's matmul and copy rates, a quarter of a second in all."""
    import time

    import torch

    def best(run: object, work: float) -> float:
        fastest = float("inf")
        for _ in range(4):
            start = time.perf_counter()
            run()  # type: ignore[operator]
            fastest = min(fastest, time.perf_counter() - start)
        return work / fastest

    size = 1024
    a, b = torch.rand(size, size), torch.rand(size, size)
    source = torch.rand(1 << 23)
    target = torch.empty_like(source)
    return Rates(
        flops_per_second=best(lambda: a @ b, 2.0 * size**3),
        bytes_per_second=best(lambda: target.copy_(source), 2.0 * source.numel() * 4),
        watts=None,
        source="matmul and copy timed on this processor",
    )
