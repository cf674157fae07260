"""Sums over operations from which the time and the power of a step follow.

Seconds of kernels alone do not decide a step: if the host launches kernels more slowly than the GPU
runs them, the GPU waits, and its power falls. A *load* is a vector of four sums:

    SECONDS   seconds of the operations, one after the other
    PRODUCTS  seconds that matrix products take
    WAITING   seconds of the coefficients ``launch``, in which the GPU does no work
    LAUNCHES  kernels launched

Loads of units, options and micro-batches add up, so the search adds rows of tables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from profiler.arrays import Floats, Ints
from profiler.timing.kernel_terms import LAUNCH, PRODUCT_SLOTS

SECONDS, PRODUCTS, WAITING, LAUNCHES = range(4)

LOAD_SUMS = 4
"""Length of a load."""

_ARITHMETIC_BOUND, _LAUNCH_BOUND = 0, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """Time and power of a step.

    Attributes:
        seconds: seconds of the step.
        host_seconds: seconds of the host for the step's launches, at most ``seconds``.
        watts: average power; None if it is unknown.
    """

    seconds: float
    host_seconds: float
    watts: float | None

    @property
    def host_decides(self) -> bool:
        """Whether the host's launches take longer than the kernels of the step."""
        return self.seconds <= self.host_seconds

    @property
    def joules(self) -> float | None:
        """Energy of the step."""
        return None if self.watts is None else self.seconds * self.watts


def loads_of_parts(parts: Floats, launches: Ints) -> Floats:
    """Return [operations, LOAD_SUMS] loads.

    Args:
        parts: [operations, SLOTS] seconds of each term.
        launches: [operations] kernels launched.
    """
    return np.stack(
        [
            parts.sum(axis=1),
            parts[:, PRODUCT_SLOTS].sum(axis=1),
            parts[:, LAUNCH],
            np.asarray(launches, dtype=np.float64),
        ],
        axis=1,
    )


def loads_of_bounds(bounds: Floats, launches: Ints, *, added_seconds: Floats) -> Floats:
    """Return [operations, LOAD_SUMS] loads of operations that take the longest of three times.

    Args:
        bounds: [3, operations] seconds of arithmetic, traffic and launches.
        launches: [operations] kernels launched.
        added_seconds: [operations] seconds of Python code beside the operation, counted as waiting.
    """
    longest, seconds = bounds.argmax(axis=0), bounds.max(axis=0, initial=0.0)
    waiting = added_seconds + seconds * (longest == _LAUNCH_BOUND)
    products = seconds * (longest == _ARITHMETIC_BOUND)
    counts = np.asarray(launches, dtype=np.float64)
    return np.stack([seconds + added_seconds, products, waiting, counts], axis=1)


def added_up(loads: Floats) -> Floats:
    """Return [LOAD_SUMS] the sums of [operations, LOAD_SUMS] loads."""
    total: Floats = np.add.reduce(loads, axis=0)
    return total


def loads_by_unit(loads: Floats, unit: Ints, count: int) -> Floats:
    """Return [count, LOAD_SUMS] sums by unit; operations outside all units are left out.

    Args:
        loads: [operations, LOAD_SUMS] loads.
        unit: [operations] unit index, -1 outside all units.
        count: number of units.
    """
    inside = unit >= 0
    return np.stack(
        [np.bincount(unit[inside], weights=row, minlength=count) for row in loads[inside].T], axis=1
    )
