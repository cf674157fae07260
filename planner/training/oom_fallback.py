"""Where a training goes on when memory ran out: placements that keep ever less.

    tighter_placements   what to try next, one after the other, worked out when it is asked for

With a cost model they are the least-time placements of shrinking budgets, down to the least that
any placement needs. Without one, or where it cannot say (a placement it does not compose, no
memory left to profile in): half of the units recomputed, then all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from profiler.errors import InfeasibleError, InputError, UsageError
from profiler.placement import Decision, Placement, PolicyChoice
from profiler.workload import Candidate

if TYPE_CHECKING:
    from planner.cost.model import CostModel

SHARES = (0.75, 0.5, 0.25, 0.0)
"""Of what lies between the least that any placement needs and what ran out, from step to step."""

_CANNOT_SAY = (UsageError, InputError, ValueError, RuntimeError, MemoryError)


def tighter_placements(
    candidate: Candidate, units: Sequence[str], cost: CostModel | None = None
) -> Iterator[Candidate]:
    """Yield candidates that keep less than the given one, each less than the one before.

    Args:
        candidate: what ran out of memory.
        units: of its backbone, in forward order.
        cost: to be asked for them.
    """
    seen = [candidate.placement]
    if cost is not None:
        with suppress(*_CANNOT_SAY):
            for lower in _optimal_below(candidate, cost):
                if lower.placement not in seen:
                    seen.append(lower.placement)
                    yield lower
            return
    for lower in _fixed(candidate, units):
        if lower.placement not in seen:
            seen.append(lower.placement)
            yield lower


def _optimal_below(candidate: Candidate, cost: CostModel) -> Iterator[Candidate]:
    """Yield the placements of least time in shrinking budgets."""
    from planner.cost.place_within_budget import device_bytes_of

    load = candidate.workload
    menu, size = cost.menu(load), cost.quick(candidate).device_bytes
    least = size
    try:
        cost.place(load, "optimal", 1, options=menu)
    except InfeasibleError as error:
        least = device_bytes_of(error, load, cost) or size
    for share in SHARES:
        if least < size:
            budget = least + int(share * (size - least))
            yield cost.place(load, "optimal", budget, options=menu)


def _fixed(candidate: Candidate, units: Sequence[str]) -> tuple[Candidate, Candidate]:
    """Return half of the units recomputed, and all of them.

    Recomputing the first units costs what recomputing as many later ones does and has one unit
    less at the peak. What the given candidate recomputes already stays recomputed.
    """

    def recompute(some: Sequence[str], policy: PolicyChoice) -> Candidate:
        kept = {
            name: decision
            for name, decision in candidate.placement.decisions.items()
            if name.partition("/")[0] not in some or decision == Decision.SEGMENT
        }
        placement = Placement(decisions={name: Decision.RECOMPUTE for name in some} | kept)
        return replace(candidate, placement=placement, policy=policy)

    half = (len(units) + 1) // 2
    return (
        recompute(units[:half], PolicyChoice("first-k", {"k": half})),
        recompute(units, PolicyChoice("static")),
    )
