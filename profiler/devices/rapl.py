"""Energy counters of CPU packages (RAPL), read from Linux' powercap files.

``/sys/class/powercap/intel-rapl:N/energy_uj`` counts microjoules of package N, on Intel and on AMD
from Zen on, and wraps at ``max_energy_range_uj``. Since Linux 5.10 only root reads it
(CVE-2020-8694). ``RaplPackages`` has the readings of a GPU that ``EnergyMeter`` uses, so a CPU is
measured by the same code.

Limitations: memory is counted on some processors only, and all programs on the package are
included.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

POWERCAP_FOLDER = Path("/sys/class/powercap")


class RaplPackages:
    """The packages of this machine as one counter that does not wrap.

    Args:
        folders: folders of the packages.

    Raises:
        OSError: a counter cannot be read.
    """

    source = "rapl"

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)
        self._ranges = [_number(folder / "max_energy_range_uj") for folder in folders]
        self._last = [_number(folder / "energy_uj") for folder in folders]
        self._total_microjoules = 0

    def counter_joules(self) -> float | None:
        """Joules since this object was made; None if a counter cannot be read any more.

        Two readings must be closer than the time in which a counter wraps, a minute at the least.
        """
        try:
            now = [_number(folder / "energy_uj") for folder in self._folders]
        except (OSError, ValueError):
            return None
        for before, after, limit in zip(self._last, now, self._ranges, strict=True):
            self._total_microjoules += after - before + (limit if after < before else 0)
        self._last = now
        return self._total_microjoules / 1e6

    def power_watts(self) -> float | None:
        """None: a package reports energy alone."""

    def now_seconds(self) -> float:
        """Return the machine's monotonic clock."""
        return time.perf_counter()


def open_packages(powercap: Path = POWERCAP_FOLDER) -> RaplPackages | None:
    """Return the CPU packages of this machine; None if there are none or they may not be read."""
    try:
        folders = [f for f in sorted(powercap.glob("intel-rapl:*")) if is_package(f)]
        return RaplPackages(folders) if folders else None
    except (OSError, ValueError):
        return None


def is_package(zone: Path) -> bool:
    """Return whether a zone is a package; ``psys`` contains the packages, ``core`` is part of one.

    Zones of dies are ``package-0-die-1`` and part of no other zone.
    """
    return (zone / "name").read_text(encoding="ascii").startswith("package")


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))
