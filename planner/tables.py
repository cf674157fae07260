"""A workload's numbers as arrays, so that a candidate's peak is a few operations on them.

With one option per unit, ``stored_i`` bytes are left by unit i's forward, ``forward_i`` and
``backward_i`` are the most it needs while it runs, and ``after_i`` are the gradients that are there
when its backward begins (those of the units behind it and of the head):

    before_i = stored_1 + ... + stored_{i-1}
    peak = base + max( before_i + max(forward_i, after_i + backward_i) for all i,
                       stored_1 + ... + stored_n + head )

What depends on the unit and its option alone is worked out once; a candidate takes a running sum
and a maximum over its units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from profiler.placement import KEEP

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """A family's profile at one micro-batch and rank: bytes and seconds per unit and option.

    Attributes:
        base: live bytes when the first forward begins, optimizer state included.
        floor: highest live bytes of the optimizer's step.
        stored: option to [units].
        forward: option to [units].
        backward: option to [units], for the accumulation at hand.
        head: bytes above the last unit's exit, by option of the last unit.
        gradients: [units + 1] left behind by each unit's backward, the head's last (zeros when they
            are there already).
        again: option to [units] seconds of recomputation.
        step_seconds: forward and backward of one micro-batch, nothing recomputed.
        update_seconds: of the optimizer's step.
    """

    base: float
    floor: float
    stored: Mapping[str, Floats]
    forward: Mapping[str, Floats]
    backward: Mapping[str, Floats]
    head: Mapping[str, float]
    gradients: Floats
    again: Mapping[str, Floats]
    step_seconds: float | None
    update_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One option per unit.

    Attributes:
        options: the rows of the tables it indexes.
        flat: [units] positions in a flattened [options, units] table.
    """

    options: tuple[str, ...]
    flat: Ints

    @classmethod
    def of(cls, chosen: list[str], options: tuple[str, ...]) -> Self:
        """Index a list of options, one per unit, each of which is among the given ones."""
        rows = np.array([options.index(option) for option in chosen], dtype=np.int64)
        return cls(options=options, flat=rows * len(chosen) + np.arange(len(chosen)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """Numbers by (option, unit), flattened.

    Attributes:
        stored: [options * units] bytes.
        excess: likewise, the most that is needed above what earlier units store, less what the unit
            itself stores: a running sum of ``stored`` is all that has to be added.
        again: likewise, seconds of recomputation.
        base: live bytes when the first forward begins.
        floor: highest live bytes of the optimizer's step.
        head: bytes above the last unit's exit.
        kept_bytes: the peak when every unit is kept.
    """

    stored: Floats
    excess: Floats
    again: Floats
    base: float
    floor: float
    head: float
    kept_bytes: float

    @classmethod
    def of(cls, numbers: Numbers, options: tuple[str, ...]) -> Self:
        """Stack the numbers of the options; ``keep`` must be the first."""
        assert options[0] == KEEP
        left = numbers.gradients
        after = left.sum() - np.cumsum(left)[:-1]
        stored, forward, backward, again = (
            np.stack([table[option] for option in options])
            for table in (numbers.stored, numbers.forward, numbers.backward, numbers.again)
        )
        excess = np.maximum(forward, after + backward) - stored
        head = numbers.head[KEEP]
        kept = peak_above(stored[0], excess[0], head)
        return cls(
            stored=stored.ravel(),
            excess=excess.ravel(),
            again=again.ravel(),
            base=numbers.base,
            floor=numbers.floor,
            head=head,
            kept_bytes=max(numbers.base + kept, numbers.floor),
        )

    def at(self, choice: Choice) -> tuple[float, float]:
        """Return (peak bytes, recompute seconds) of one option per unit."""
        flat = choice.flat
        above = peak_above(self.stored.take(flat), self.excess.take(flat), self.head)
        return max(self.base + above, self.floor), float(self.again.take(flat).sum())


def peak_above(stored: Floats, excess: Floats, head: float) -> float:
    """Return the peak above the base from [units] stored and excess bytes."""
    level = stored.cumsum()
    return max(float((level + excess).max()), float(level[-1]) + head)
