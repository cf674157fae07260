"""Placements to continue a training with after an out-of-memory error.

With a cost model these are the least-time placements for shrinking budgets, down to the smallest
budget that any placement fits. Without a cost model, or where it fails (it cannot compose the
placement, or there is no memory left to profile in), the first half of the units is recomputed,
then all units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from planner.placement.policies import OFFLOAD, OPTIMAL
from profiler.errors import InfeasibleError, InputError, UsageError
from profiler.placement import HOST_DECISIONS, Decision, Placement, PolicyChoice
from profiler.units import DeviceBytes
from profiler.workload import Candidate

if TYPE_CHECKING:
    from planner.cost.model import CostModel

BUDGET_SHARES = (0.75, 0.5, 0.25, 0.0)
"""The budgets to try: shares of the way from the smallest feasible budget to the one exceeded."""

_COST_MODEL_ERRORS = (UsageError, InputError, ValueError, RuntimeError, MemoryError)


def tighter_placements(
    candidate: Candidate, units: Sequence[str], cost: CostModel | None = None
) -> Iterator[Candidate]:
    """Yield candidates of the same workload that keep less, each less than the one before.

    They are computed one at a time, as they are drawn. There are none for a compiled model, which
    takes no placement.

    Args:
        candidate: candidate that ran out of memory.
        units: units of its backbone in forward order.
        cost: cost model of the device; None for the fixed placements.
    """
    if "compile" in candidate.workload.levers:
        return
    seen = [candidate.placement]
    if cost is not None:
        with suppress(*_COST_MODEL_ERRORS):
            for tighter in _optimal_placements(candidate, cost):
                if tighter.placement not in seen:
                    seen.append(tighter.placement)
                    yield tighter
            return
    for tighter in _fixed_placements(candidate, units):
        if tighter.placement not in seen:
            seen.append(tighter.placement)
            yield tighter


def _optimal_placements(candidate: Candidate, cost: CostModel) -> Iterator[Candidate]:
    """Yield the least-time placements for shrinking budgets."""
    workload = candidate.workload
    policy = OFFLOAD if candidate.placement.uses_host_memory else OPTIMAL
    options, size = cost.profiles.unit_options(workload), cost.estimate(candidate).device_bytes
    least: int = size
    try:
        # No placement fits one byte: the error carries the smallest feasible budget.
        cost.place(workload, policy, DeviceBytes(1), options=options)
    except InfeasibleError as error:
        least = error.smallest_bytes or size
    for share in BUDGET_SHARES:
        if least < size:
            budget = DeviceBytes(least + int(share * (size - least)))
            yield cost.place(workload, policy, budget, options=options)


def _fixed_placements(candidate: Candidate, units: Sequence[str]) -> tuple[Candidate, Candidate]:
    """Return the first half of the units recomputed, and all units recomputed.

    Recomputing the first units costs as much time as recomputing as many later units, and the peak
    is one unit lower. Units that the candidate recomputes, or whose tensors wait on the host, stay
    so, and if there are some of the latter, inputs of the others wait there too.
    """
    on_host = candidate.placement.uses_host_memory
    word = Decision.RECOMPUTE_FROM_HOST if on_host else Decision.RECOMPUTE
    stay = {Decision.SEGMENT, *HOST_DECISIONS}

    def recompute(names: Sequence[str], policy: PolicyChoice) -> Candidate:
        kept = {
            name: decision
            for name, decision in candidate.placement.decisions.items()
            if name.partition("/")[0] not in names or decision in stay
        }
        placement = Placement(dict.fromkeys(names, word) | kept)
        return replace(candidate, placement=placement, policy=policy)

    half = (len(units) + 1) // 2
    return (
        recompute(units[:half], PolicyChoice("first-k", {"k": half})),
        recompute(units, PolicyChoice("static")),
    )
