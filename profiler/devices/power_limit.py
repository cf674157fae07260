"""Sets the power limit of a GPU for a while, where the driver permits it.

NVML lets only an administrator change a limit. A refusal is no error: the work runs at the present
limit, and a warning says so. The earlier limit is restored at the end. Where it cannot be read, no
limit is set.

Limitations: the limit holds for every process on the GPU. If the process is killed, the limit
stays; ``nvidia-smi -pl`` resets it. If two processes overlap that set a limit, the one that began
later reads the limit of the other as the earlier one. If it also ends later, that limit stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from profiler.errors import BudgetplanWarning, DeviceError, warn_caller


class PowerLimitWarning(BudgetplanWarning):
    """A planned power limit could not be set, or the earlier one not restored."""


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
        if before is None:
            raise DeviceError("the present limit cannot be read, so it could not be restored")
        gpu.set_power_limit(watts)
    except DeviceError as error:
        warn_caller(
            f"the planned power limit of {watts:g} W was not set ({error}); an administrator sets "
            f"it by `nvidia-smi -pl {watts:.0f}`. Time and energy are those of the present limit",
            PowerLimitWarning,
        )
        yield
        return
    try:
        yield
    finally:
        # an error here would replace the result of the work, or its own error
        try:
            gpu.set_power_limit(before)
        except DeviceError as error:
            warn_caller(
                f"the power limit of {before:g} W was not restored ({error}), and the GPU has one "
                f"of {watts:g} W; an administrator restores it by `nvidia-smi -pl {before:.0f}`",
                PowerLimitWarning,
            )
