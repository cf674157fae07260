"""A workload's numbers as arrays, so that a candidate's peak is a few operations on them.

With one option per unit, unit i's forward leaves ``stored_i`` bytes, and ``cached_i`` until the
last forward is over; ``forward_i`` and ``backward_i`` are the most it needs while it runs, and
``after_i`` are the gradients that are there when its backward begins (those of the units behind it
and of the head):

    before_i = stored_1 + ... + stored_{i-1}
    there_i  = before_i + cached_1 + ... + cached_{i-1}
    peak = base + max( max(there_i + forward_i, before_i + after_i + backward_i) for all i,
                       there_{n+1} + head )

What depends on the unit and its option alone is worked out once; a candidate takes a running sum
and a maximum over its units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from profiler.placement import Decision

Floats = npt.NDArray[np.float64]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """A family's profile at one micro-batch and rank: bytes and seconds per unit and option.

    Attributes:
        base: live bytes when the first forward begins, optimizer state included.
        floor: highest live bytes of the optimizer's step.
        stored: option to [units].
        cached: option to [units].
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
    cached: Mapping[str, Floats]
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
        caching: the same two of the forward alone, with what is cached among what is stored; None
            where no option caches anything (``excess`` is then of the forward too).
        again: likewise, seconds of recomputation.
        base: live bytes when the first forward begins.
        floor: highest live bytes of the optimizer's step.
        head: bytes above the last unit's exit.
        kept_bytes: the peak when every unit is kept.
    """

    stored: Floats
    excess: Floats
    caching: tuple[Floats, Floats] | None
    again: Floats
    base: float
    floor: float
    head: float
    kept_bytes: float

    @classmethod
    def of(cls, numbers: Numbers, options: tuple[str, ...]) -> Self:
        """Stack the numbers of the options; ``keep`` must be the first."""
        assert options[0] == Decision.KEEP
        left = numbers.gradients
        after = left.sum() - np.cumsum(left)[:-1]

        def stacked(table: Mapping[str, Floats]) -> Floats:
            return np.stack([table[option] for option in options])

        stored, cached = stacked(numbers.stored), stacked(numbers.cached)
        forward, backward = stacked(numbers.forward), stacked(numbers.backward) + after
        there = stored + cached
        caches = bool(cached.any())
        tables = cls(
            stored=stored.ravel(),
            excess=((backward if caches else np.maximum(forward, backward)) - stored).ravel(),
            caching=(there.ravel(), (forward - there).ravel()) if caches else None,
            again=stacked(numbers.again).ravel(),
            base=numbers.base,
            floor=numbers.floor,
            head=numbers.head[Decision.KEEP],
            kept_bytes=0.0,
        )
        kept, _ = tables.at(Choice.of([Decision.KEEP] * len(after), options))
        return replace(tables, kept_bytes=kept)

    def at(self, choice: Choice) -> tuple[float, float]:
        """Return (peak bytes, recompute seconds) of one option per unit."""
        flat = choice.flat
        level = self.stored.take(flat).cumsum()
        highest = float((level + self.excess.take(flat)).max())
        if self.caching is not None:
            there, excess = self.caching
            level = there.take(flat).cumsum()
            highest = max(highest, float((level + excess.take(flat)).max()))
        above = max(highest, float(level[-1]) + self.head)
        return max(self.base + above, self.floor), float(self.again.take(flat).sum())
