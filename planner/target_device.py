"""The device to plan for, and the device that real runs take place on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from profiler.devices.table import (
    DEVICES,
    DeviceSpec,
    device_label,
    device_spec,
    is_adopted,
    short_name,
)
from profiler.errors import BudgetplanError
from profiler.records import DeviceLabel

STUDY_DEVICE = "rtx-2060-super"
"""Device to plan for if none is named and this machine has no GPU: the GPU of arXiv 2607.02158."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetDevice:
    """A device to plan for.

    Attributes:
        spec: the device to plan for.
        label: the same for reports, with the reason if the user did not name it.
        runs_on: name of the device of real runs: the planned GPU if this machine has it, else
            ``cpu``.
    """

    spec: DeviceSpec
    label: DeviceLabel
    runs_on: str


def find_target(name: str) -> TargetDevice:
    """Return the device to plan for.

    Args:
        name: ``cpu``, a GPU of the device table, or ``auto`` for this machine's GPU (without one,
            ``STUDY_DEVICE``). A GPU of this machine that the table lacks is timed once.

    Raises:
        UnknownNameError: no such device.
    """
    from profiler.devices.nvml import detect_gpu, why_no_gpu
    from profiler.store import Store
    from profiler.timing.gpu_rates import adopt_gpu

    gpu = detect_gpu()
    here = gpu.spec.name if gpu is not None else None
    reason = "" if gpu is not None or name != "auto" else why_no_gpu()
    is_unknown = gpu is not None and here not in DEVICES and not is_adopted(gpu.spec.name)
    if gpu is not None and is_unknown and short_name(name) in ("auto", here):
        try:
            adopt_gpu(gpu.spec, Store.default())
        except BudgetplanError as error:
            here, reason = None, f"{gpu.nvml_name} is not in the table, and {error}"
    if name != "auto":
        label = device_label(name)
        return _target(label, runs_on=label.name if label.name == here else "cpu")
    if here is not None:
        return _target(device_label(here, "this machine's GPU"), runs_on=here)
    note = f"{reason}, so this is for the study's RTX 2060 SUPER; --device names another"
    return _target(replace(device_label(STUDY_DEVICE), note=note), runs_on="cpu")


def _target(label: DeviceLabel, *, runs_on: str) -> TargetDevice:
    return TargetDevice(spec=device_spec(label.name), label=label, runs_on=runs_on)
