"""Sets the power limit of a GPU for a while, where the driver permits it.

NVML lets only an administrator change a limit. A refusal is no error: the work runs at the present
limit, and a warning says so. The earlier limit is restored at the end.

Limitations: the limit holds for every process on the GPU. If the process is killed, the limit
stays; ``nvidia-smi -pl`` resets it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from profiler.errors import BudgetplanWarning, DeviceError


class PowerLimitWarning(BudgetplanWarning):
    """A planned power limit could not be set."""


class LimitedGpu(Protocol):
    """A GPU whose power limit can be read and set."""

    def power_limit_watts(self) -> float | None:
        """Present power limit; None if it cannot be read."""

    def set_power_limit(self, watts: float) -> None:
        """Set the power limit.

        Raises:
            DeviceError: the driver refuses.
        """


@contextmanager
def limited_power(gpu: LimitedGpu, watts: float) -> Iterator[None]:
    """Set a power limit for the time of a ``with`` block, and warn if that is not possible.

    Args:
        gpu: the GPU.
        watts: power limit.
    """
    before = gpu.power_limit_watts()
    try:
        gpu.set_power_limit(watts)
    except DeviceError as error:
        warnings.warn(
            f"the planned power limit of {watts:g} W was not set ({error}); an administrator sets "
            f"it by `nvidia-smi -pl {watts:.0f}`. Time and energy are those of the present limit",
            PowerLimitWarning,
            stacklevel=3,
        )
        yield
        return
    try:
        yield
    finally:
        if before is not None:
            gpu.set_power_limit(before)
