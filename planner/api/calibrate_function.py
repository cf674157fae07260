"""The function behind ``budgetplan calibrate``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.api.arguments import device_name, no_progress
from planner.api.early_checks import check_names

if TYPE_CHECKING:
    from planner.cost.calibrate_device import DeviceCalibration
    from planner.recommendation.request import Notify
    from profiler.devices.table import DeviceSpec


def calibrate(
    *,
    device: str | DeviceSpec = "auto",
    with_cells: bool = True,
    on_progress: Notify | None = None,
) -> DeviceCalibration:
    """Time short training steps on this machine and correct its predicted seconds.

    The correction is kept for the device, its driver, the processor and the version of PyTorch.
    Predictions of training steps on this device use it if cross-validation says that it lowers the
    error of backbones it has not seen.

    Args:
        device: ``auto`` (this machine's GPU, else the CPU), ``cpu``, or the name of this machine's
            GPU.
        with_cells: whether steps are timed now; otherwise the correction is fitted to the runs that
            earlier commands kept.
        on_progress: called with (stage, description, fraction of the stage done).

    Raises:
        UnknownNameError: no such device.
        DeviceError: the device is not in this machine.
        InputError: the runs cannot be stored.
        MeasurementError: nothing was kept: the machine is too busy, or no step runs.
    """
    from planner.cost.calibrate_device import calibrate_device
    from planner.target_device import find_target
    from profiler.devices.table import device_spec

    name = device_name(device)
    check_names(device=name)
    target = find_target(name)
    here = target.runs_on if name == "auto" else target.label.name
    notify = on_progress or no_progress
    return calibrate_device(
        device_spec(here),
        with_cells=with_cells,
        on_progress=lambda text, done: notify("calibrate", text, done),
    )
