"""Peak and recomputation of a placement as a few array operations, for the search.

With one option per unit, unit i's forward stores ``stored_i`` bytes for backward. It leaves another
``cached_i`` bytes live until the last forward has ended (autocast's weight casts). ``forward_i``
and ``backward_i`` are the highest live bytes while it runs, and ``after_i`` are the gradients that
are live when its backward begins, those of later units and of the head. For n units:

    before_i = stored_1 + ... + stored_{i-1}
    there_i  = before_i + cached_1 + ... + cached_{i-1}
    peak     = base + max( max over i of (there_i + forward_i),
                           max over i of (before_i + after_i + backward_i),
                           there_{n+1} + head )

All terms that depend on one unit and its option alone are added up once per workload. A placement
then takes a running sum and a maximum over its n units: O(n), some microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from planner.cost.unit_costs import UnitCosts
from profiler.arrays import Floats, Ints
from profiler.timing.step_load import added_up
from profiler.unit_options import KEPT, UnitOption


@dataclass(frozen=True, slots=True, kw_only=True)
class TableIndices:
    """One option per unit, as positions in flattened tables.

    Attributes:
        options: options of the tables, in the order of their rows.
        flat: [units] positions in a flattened [options, units] table.
        used: options that a unit has.
    """

    options: tuple[UnitOption, ...]
    flat: Ints
    used: frozenset[UnitOption]

    @classmethod
    def of(cls, unit_options: Sequence[UnitOption], options: tuple[UnitOption, ...]) -> Self:
        """Return the positions of an option for each unit; each must be among ``options``."""
        rows = np.array([options.index(option) for option in unit_options], dtype=np.int64)
        return cls(
            options=options,
            flat=rows * len(unit_options) + np.arange(len(unit_options)),
            used=frozenset(unit_options),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakTables:
    """Costs by (option, unit), flattened to [options * units].

    Attributes:
        stored: stored bytes.
        excess: highest live bytes of forward and backward above ``before_i``, less the unit's own
            stored bytes, so that a running sum that includes the unit can be added to it.
        caching: the same two arrays for forward alone, with cached bytes added to stored ones; None
            if no option caches anything. If it is given, ``excess`` is that of backward alone.
        recompute: [options * units, LOAD_SUMS] load of recomputation.
        base_bytes: live bytes when the first forward begins.
        floor_bytes: highest live bytes of the optimizer step.
        head_bytes: live bytes of classifier and loss above the last unit's exit.
        kept_bytes: peak with every unit kept.
    """

    stored: Floats
    excess: Floats
    caching: tuple[Floats, Floats] | None
    recompute: Floats
    base_bytes: float
    floor_bytes: float
    head_bytes: float
    kept_bytes: float

    @classmethod
    def of(cls, costs: UnitCosts, options: tuple[UnitOption, ...]) -> Self:
        """Stack the costs of some options; ``keep`` must be the first."""
        assert options[0] == KEPT
        left = costs.gradients
        after = left.sum() - np.cumsum(left)[:-1]

        def stacked(table: Mapping[UnitOption, Floats]) -> Floats:
            return np.stack([table[option] for option in options])

        stored, cached = stacked(costs.stored), stacked(costs.cached)
        forward, backward = stacked(costs.forward), stacked(costs.backward) + after
        there = stored + cached
        # Without cached bytes, forward and backward have the same level and need one pass.
        caches = bool(cached.any())
        tables = cls(
            stored=stored.ravel(),
            excess=((backward if caches else np.maximum(forward, backward)) - stored).ravel(),
            caching=(there.ravel(), (forward - there).ravel()) if caches else None,
            recompute=np.concatenate([costs.recompute[option] for option in options]),
            base_bytes=costs.base_bytes,
            floor_bytes=costs.floor_bytes,
            head_bytes=costs.head_bytes[KEPT],
            kept_bytes=0.0,
        )
        kept, _ = tables.at(TableIndices.of([KEPT] * len(after), options))
        return replace(tables, kept_bytes=kept)

    def at(self, indices: TableIndices) -> tuple[float, Floats]:
        """Return (peak bytes, load of recomputation) of a placement."""
        flat = indices.flat
        level = self.stored.take(flat).cumsum()
        highest = float((level + self.excess.take(flat)).max())
        if self.caching is not None:
            there, excess = self.caching
            level = there.take(flat).cumsum()
            highest = max(highest, float((level + excess.take(flat)).max()))
        above = max(highest, float(level[-1]) + self.head_bytes)
        recompute = added_up(self.recompute.take(flat, axis=0))
        return max(self.base_bytes + above, self.floor_bytes), recompute
