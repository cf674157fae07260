"""The source of measured energies: the driver's own counters, or those that Zeus reads.

The environment variable ``BUDGETPLAN_ENERGY_SOURCE`` chooses: ``driver`` (the default: NVML, and
the powercap files of a CPU) or ``zeus``. A variable, since measurements run in processes of their
own and in workers on other machines.
"""

from __future__ import annotations

import os

from profiler.devices.energy_meter import EnergySource
from profiler.errors import DeviceError, UsageError

SOURCE_VARIABLE = "BUDGETPLAN_ENERGY_SOURCE"

_ENERGY_SOURCES = ("driver", "zeus")


def wants_zeus() -> bool:
    """Return whether Zeus is to read the energy.

    Raises:
        UsageError: the variable names another source.
        DeviceError: Zeus is wanted and not installed.
    """
    wanted = os.environ.get(SOURCE_VARIABLE) or "driver"
    if wanted not in _ENERGY_SOURCES:
        raise UsageError(
            f"{SOURCE_VARIABLE} is {' or '.join(_ENERGY_SOURCES)}, got {wanted[:60]!r}"
        )
    if wanted == "zeus":
        from profiler.devices.zeus_counters import check_zeus

        check_zeus()
    return wanted == "zeus"


def gpu_source(gpu: EnergySource | DeviceError) -> EnergySource | DeviceError:
    """Return the source of this machine's first visible GPU, or the error of opening it.

    Args:
        gpu: the GPU as the driver reports it, or the error of opening it.

    Raises:
        UsageError: ``BUDGETPLAN_ENERGY_SOURCE`` names another source.
        DeviceError: Zeus is wanted and not installed.
    """
    return _by_zeus(on_cuda=True) if wants_zeus() else gpu


def cpu_source() -> EnergySource | DeviceError | None:
    """Return the source of this machine's CPU; None if its packages have no readable counters.

    Raises:
        UsageError: ``BUDGETPLAN_ENERGY_SOURCE`` names another source.
        DeviceError: Zeus is wanted and not installed.
    """
    from profiler.devices.rapl import open_packages

    return _by_zeus(on_cuda=False) if wants_zeus() else open_packages()


def _by_zeus(*, on_cuda: bool) -> EnergySource | DeviceError:
    from profiler.devices.zeus_counters import open_zeus

    try:
        return open_zeus(on_cuda=on_cuda)
    except DeviceError as error:
        return error
