"""Selects the rates of a device: data sheet, timed GPU, or timed CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from profiler.devices.table import TIMED, DeviceSpec
from profiler.records import Origin
from profiler.timing.kernel_rates import kernel_file
from profiler.timing.lever_factors import layout_spread
from profiler.timing.roofline import LAUNCH_SECONDS, Rates

if TYPE_CHECKING:
    from profiler.workload import Workload


def rates(device: DeviceSpec, workload: Workload) -> Rates | None:
    """Return the rates of a device for a workload; None if they are unknown.

    No rates are known for kernels that ``torch.compile`` makes.
    The first call for a CPU and a backbone times the backbone's operations, which takes seconds.
    """
    if "compile" in workload.levers:
        return None
    if device.is_cuda:
        return published_rates(device, precision=workload.precision, levers=workload.levers)
    from profiler.timing.cpu_rates import cpu_rates

    return cpu_rates(workload)


def published_rates(
    device: DeviceSpec, *, precision: str, levers: tuple[str, ...] = ()
) -> Rates | None:
    """Return the rates of a GPU from its record; None if they are unknown.

    fp32 uses the ordinary units, because PyTorch leaves TF32 off for matrix products. bf16 and
    fp16 use the tensor cores. On a GPU without bf16 tensor cores, bf16 uses the ordinary units.

    Args:
        device: a GPU.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        levers: levers of the workload.
    """
    tensor = {"bf16": device.bf16_tensor_flops, "fp16": device.fp16_tensor_flops}.get(precision)
    flops = tensor or device.fp32_flops
    if flops is None or device.memory_bandwidth_bytes_per_second is None:
        return None
    file = kernel_file()
    origin = Origin.DATA_SHEET if "tf32" in levers else file.origin(device, precision)
    spread = file.spread(origin)
    return Rates(
        flops_per_second=flops,
        bytes_per_second=device.memory_bandwidth_bytes_per_second,
        watts=device.tdp_watts,
        source=TIMED if device.source == TIMED else _RATE_SOURCES[origin],
        launch_seconds=LAUNCH_SECONDS,
        kernels=file.rates(device, precision, levers),
        power=file.power(device),
        origin=origin,
        spread=spread.times(layout_spread()) if "channels_last" in levers else spread,
        power_spread=file.power_spread(device),
        power_origin=file.power_origin(device),
    )


_RATE_SOURCES = {
    Origin.FITTED: "kernel rates fitted to published runs on this GPU",
    Origin.TRANSFERRED: "kernel rates fitted to other GPUs, scaled by the data sheet",
    Origin.DATA_SHEET: "kernel rates of other generations, scaled by the data sheet",
}
