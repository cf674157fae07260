"""The device that ``--device`` names: what is planned for, and where real runs take place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from profiler.errors import BudgetplanError

if TYPE_CHECKING:
    from profiler.records import DeviceLabel

STUDY_DEVICE = "rtx-2060-super"


# ---- from options to what is run -----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A device as chosen.

    Attributes:
        label: what is planned for, with the reason if it was not named.
        runs_on: where a real run takes place: the same GPU if it is in this machine, else the CPU.
    """

    label: DeviceLabel
    runs_on: str


def find_target(name: str) -> Target:
    """Return the device for ``--device``.

    Raises:
        UnknownNameError: no such device in the table.
    """
    from dataclasses import replace

    from profiler.devices.nvml import detect_gpu
    from profiler.devices.table import DEVICES, device_label, short_name
    from profiler.store import Store
    from profiler.timing.gpu_rates import adopt_gpu

    gpu = detect_gpu()
    here = gpu.spec.name if gpu is not None else None
    reason = "no GPU was found here"
    if gpu is not None and here not in DEVICES and short_name(name) in ("auto", here):
        try:
            adopt_gpu(gpu.spec, Store.default())
        except BudgetplanError as error:
            here, reason = None, f"{gpu.nvml_name} is not in the table, and {error}"
    if name != "auto":
        label = device_label(name)
        return Target(label=label, runs_on=label.name if label.name == here else "cpu")
    if here is not None:
        return Target(label=device_label(here, "this machine's GPU"), runs_on=here)
    label = device_label(STUDY_DEVICE)
    note = f"{reason}, so this is for the study's RTX 2060 SUPER; --device names another"
    return Target(label=replace(label, note=note), runs_on="cpu")
