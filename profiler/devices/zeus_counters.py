"""Energy counters read by Zeus (https://ml.energy/zeus), an optional package.

Zeus reads counters that NVML and the powercap files do not have, or not without root:

- `ZeusGpu`: a GPU of AMD (amdsmi) or NVIDIA (NVML).
- `ZeusChip`: a system on a chip: Jetson's sensor of the whole board, Apple's counters.
- `ZeusPackages`: the packages of a CPU (RAPL), which Zeus' daemon reads for users who are not root.

`open_zeus` returns the one of this machine. Each has the readings that ``EnergyMeter`` uses. Zeus'
`ZeusMonitor` is not used: it reads the same counters, and ``EnergyMeter`` refuses windows that are
shorter than a counter's period.

Limitations:

- On an MI250, the counter of a GPU with an even index counts both of its dies, and the other one
  has none.
- On Grace Hopper, an NVIDIA GPU's counter includes the processor and its memory.
- Zeus counts a Jetson's energy from a reading of the power every 0.1 s.
"""

from __future__ import annotations

import importlib
import queue
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from profiler.devices.energy_meter import EnergySource
from profiler.devices.rapl import is_package
from profiler.errors import DeviceError

_CHIP_COUNTERS = (
    ("total_energy_mj",),  # Jetson
    ("cpu_total_mj", "gpu_mj", "gpu_sram_mj", "dram_mj", "ane_mj"),  # Apple
)
"""Counters of a chip that add up to its energy, by kind of chip."""


class _ZeusSource:
    """A clock, and a name with Zeus' version.

    Args:
        kind: kind of counter.
    """

    def __init__(self, kind: str) -> None:
        import zeus

        self.source = f"zeus {zeus.__version__} {kind}"

    def now_seconds(self) -> float:
        """Return the machine's monotonic clock."""
        return time.perf_counter()


class ZeusGpu(_ZeusSource):
    """A GPU of this machine.

    Args:
        gpu: a ``zeus.device.gpu.common.GPU``.
    """

    def __init__(self, gpu: Any) -> None:
        super().__init__(type(gpu).__name__)
        self._gpu = gpu

    def counter_joules(self) -> float | None:
        """Energy in joules since the driver was loaded; None if there is no counter."""
        return _thousandth(_reading(self._gpu.get_total_energy_consumption))

    def power_watts(self) -> float | None:
        """Present power in watts; None if it cannot be read."""
        milliwatts = _reading(self._gpu.get_instant_power_usage)
        if milliwatts is None:  # some GPUs of AMD report an average alone
            milliwatts = _reading(self._gpu.get_average_power_usage)
        return _thousandth(milliwatts)

    def celsius(self) -> float | None:
        """Temperature in degrees Celsius; None if it cannot be read."""
        degrees = _reading(self._gpu.get_gpu_temperature)
        return None if degrees is None else float(degrees)


class ZeusChip(_ZeusSource):
    """A system on a chip whose counters include processor, GPU and memory.

    Args:
        chip: a ``zeus.device.soc.common.SoC``.
    """

    def __init__(self, chip: Any) -> None:
        super().__init__(type(chip).__name__)
        self._chip = chip

    def counter_joules(self) -> float | None:
        """Energy in joules since this process opened the chip; None if it is not counted."""
        found = _reading(self._chip.get_total_energy_consumption)
        for names in _CHIP_COUNTERS:
            parts = [getattr(found, name, None) for name in names]
            if parts[0] is not None:
                return _thousandth(sum(part for part in parts if part is not None))
        return None

    def power_watts(self) -> float | None:
        """None: Zeus reports a chip's energy alone."""


class ZeusPackages(_ZeusSource):
    """The packages of a CPU.

    Args:
        packages: ``zeus.device.cpu.common.CPU`` of each package.
    """

    def __init__(self, packages: Sequence[Any]) -> None:
        super().__init__(type(_first(packages)).__name__)
        self._packages = tuple(packages)

    def counter_joules(self) -> float | None:
        """Energy in joules since some moment, without the memory; None if it cannot be read."""
        found = [_reading(package.get_total_energy_consumption) for package in self._packages]
        if any(each is None for each in found):
            return None
        return _thousandth(sum(each.cpu_mj for each in found))

    def power_watts(self) -> float | None:
        """None: a package reports energy alone."""


def check_zeus() -> None:
    """Import Zeus.

    Raises:
        DeviceError: Zeus is not installed, or not usable beside another package.
    """
    try:
        importlib.import_module("zeus.device")
    except ImportError as error:
        raise DeviceError(
            f"Zeus, which BUDGETPLAN_ENERGY_SOURCE names, cannot be imported ({error}); "
            "pip install 'budgetplan[zeus]', or unset the variable"
        ) from error


def open_zeus(*, on_cuda: bool) -> EnergySource:
    """Return the counters of the chip, of the first visible GPU or of the CPU's packages.

    Args:
        on_cuda: whether the work runs on a GPU; a chip's counters include the GPU and the CPU.

    Raises:
        DeviceError: Zeus is not installed, or finds no counter.
    """
    check_zeus()
    from zeus.device import get_cpus, get_gpus, get_soc
    from zeus.exception import ZeusBaseError

    try:
        return ZeusChip(get_soc())
    except ZeusBaseError:
        pass  # a machine of separate chips
    try:
        if on_cuda:
            return ZeusGpu(_first(get_gpus().gpus))
        cpus = get_cpus()
        zones = [(cpu, Path(f"{cpus.rapl_dir}/intel-rapl:{cpu.cpu_index}")) for cpu in cpus.cpus]
        return ZeusPackages([cpu for cpu, zone in zones if is_package(zone)])
    # a ValueError: Zeus reads no UUID in CUDA_VISIBLE_DEVICES
    except (ZeusBaseError, ImportError, OSError, ValueError) as error:
        raise DeviceError(f"Zeus finds no counter of energy: {error}") from error


def _first(devices: Sequence[Any]) -> Any:
    """Return the first of the devices.

    Raises:
        DeviceError: there is none.
    """
    if not devices:
        raise DeviceError("Zeus finds no device with a counter of energy")
    return devices[0]


def _reading(read: Callable[[], Any]) -> Any:
    """Return a reading; None if it fails. A chip's process that does not answer raises Empty."""
    from zeus.exception import ZeusBaseError

    try:
        return read()
    except (ZeusBaseError, OSError, ValueError, queue.Empty):
        return None


def _thousandth(value: float | None) -> float | None:
    """Return joules or watts of millijoules or milliwatts."""
    return None if value is None else value / 1000
