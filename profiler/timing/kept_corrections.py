"""The correction of a machine in the store: written by a calibration, read by every prediction."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from profiler.devices.table import DeviceSpec, device_spec
from profiler.store import Store
from profiler.timing.corrections import Correction
from profiler.timing.measured_runs import Machine, this_machine


def kept_correction(device: DeviceSpec) -> Correction | None:
    """Return the correction for a device of this machine; None if there is none that helps."""
    if device.is_cuda and not _may_be_here():
        return None
    return _kept(device.name, Store.default().folder)


def keep_correction(machine: Machine, correction: Correction | None) -> None:
    """Store a machine's correction; None stores that there is none."""
    Store.default().keep(_correction_key(machine), correction or _nothing())
    _kept.cache_clear()


@cache
def _kept(name: str, folder: Path | None) -> Correction | None:
    machine = this_machine(device_spec(name))
    found = None if machine is None else Store(folder).find(Correction, _correction_key(machine))
    return found if found is not None and found.helps else None


def _may_be_here() -> bool:
    """Return whether this machine may have a GPU, which is cheap to find out."""
    from profiler.devices.cuda_properties import has_device_file

    return has_device_file()


def _correction_key(machine: Machine) -> tuple[object, ...]:
    return ("time correction", *machine.key)


def _nothing() -> Correction:
    return Correction(factors=np.ones(4), errors=np.zeros(2), spread=np.ones(2), counts=np.zeros(2))
