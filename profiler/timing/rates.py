"""Selects the rates of a device: data sheet, timed GPU, or timed CPU."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from profiler.devices.table import TIMED, DeviceSpec
from profiler.errors import UsageError
from profiler.records import Origin
from profiler.store import STORE_SCHEMA
from profiler.timing.corrections import Correction
from profiler.timing.kept_corrections import kept_correction
from profiler.timing.kernel_rates import COEFFICIENTS_FILE, kernel_file
from profiler.timing.lever_factors import LAYOUT_FILE, layout_spread
from profiler.timing.measured_runs import this_machine
from profiler.timing.power import LEAST_LIMIT
from profiler.timing.roofline import LAUNCH_SECONDS, Rates

if TYPE_CHECKING:
    from profiler.workload import Workload


def rates(
    device: DeviceSpec,
    workload: Workload,
    *,
    power_limit_watts: float | None = None,
    corrected: bool = True,
) -> Rates | None:
    """Return the rates of a device for a workload; None if the device's rates are unknown.

    No rates are known for kernels that ``torch.compile`` makes.
    The first call for a CPU and a backbone times the backbone's operations, which takes seconds.

    Args:
        device: the device.
        workload: the workload.
        power_limit_watts: power limit of a GPU; None for the board's own.
        corrected: whether the correction of this machine is applied, if it has one.

    Raises:
        UsageError: the power limit is out of the range that predictions hold for.
    """
    if power_limit_watts is not None:
        check_power_limit(device, power_limit_watts)
    if "compile" in workload.levers:
        return None
    found: Rates | None
    if device.is_cuda:
        found = published_rates(device, precision=workload.precision, levers=workload.levers)
    else:
        from profiler.timing.cpu_rates import cpu_rates

        found = cpu_rates(workload)
    if found is None:
        return None
    found = replace(found, power_limit_watts=power_limit_watts)
    correction = kept_correction(device) if corrected else None
    return found if correction is None else corrected_rates(found, correction)


def rates_version(device: DeviceSpec, *, power_limit_watts: float | None = None) -> str:
    """Return a short text that changes with everything that a device's rates depend on.

    For a GPU these are the coefficients, its row of the table, and the correction of this machine;
    for a CPU the processor and the versions that its operations were timed with.
    """
    correction = kept_correction(device)
    factors = None if correction is None else correction.factors.tolist()
    parts: list[object]
    if device.is_cuda:
        texts = [file.read_text(encoding="utf-8") for file in (COEFFICIENTS_FILE, LAYOUT_FILE)]
        parts = [*texts, repr(device), power_limit_watts]
    else:
        machine = this_machine(device)
        parts = [None if machine is None else machine.key]
    text = json.dumps([*parts, factors, STORE_SCHEMA])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def corrected_rates(found: Rates, correction: Correction) -> Rates:
    """Return rates with the factors and the interval of a correction."""
    products, other, launches, host = correction.factors.tolist()
    before, after = (100 * error for error in correction.errors.tolist())
    runs, backbones = (int(count) for count in correction.counts.tolist())
    return replace(
        found,
        factors=(products, other, launches, host),
        origin=Origin.MEASURED,
        spread=correction.interval,
        source=f"{found.source}; corrected by {runs} real runs of this machine: median error "
        f"{before:.0f} % before and {after:.0f} % after, {backbones} backbones left out in turn",
    )


def check_power_limit(device: DeviceSpec, watts: float) -> None:
    """Refuse a power limit that no prediction holds for.

    Raises:
        UsageError: the device has no known power limit, or the limit is out of its range.
    """
    board = device.tdp_watts
    if not device.is_cuda or board is None or kernel_file().power(device) is None:
        raise UsageError(
            f"a power limit needs a GPU whose board power is known, got {device.name}; leave "
            "--power-limit out"
        )
    if not LEAST_LIMIT * board <= watts <= board:
        raise UsageError(
            f"--power-limit must be {math.ceil(LEAST_LIMIT * board)} to {board:.0f} watts for "
            f"{device.name}, got {watts:g}"
        )


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
