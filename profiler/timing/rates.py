"""Selects the rates of a device: data sheet, timed GPU, or timed CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from profiler.devices.table import TIMED, DeviceSpec
from profiler.timing.roofline import LAUNCH_SECONDS, Rates

if TYPE_CHECKING:
    from profiler.workload import Workload


def rates(spec: DeviceSpec, workload: Workload) -> Rates | None:
    """Return the rates of a device for a workload; None where the table does not know them."""
    if spec.is_cuda:
        return published_rates(spec, precision=workload.precision)
    from profiler.timing.cpu_rates import cpu_rates

    return cpu_rates(workload)


def published_rates(spec: DeviceSpec, *, precision: str) -> Rates | None:
    """Return the rates of a GPU at a precision; None where the table does not know them.

    fp32 uses the ordinary units (PyTorch leaves TF32 off for matmuls); bf16 and fp16 the tensor
    cores, and where bf16 has none, the ordinary units.
    """
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
