"""Placements of a chain by the chain policies of the registry.

    place_chain                        the placement of any chain policy
    every_k, first_k, last_k, chen     without a budget
    adaptive                           rule on the bytes at a unit's entry
    rotor, optimal, offload            least time within a budget

A unit is *eligible* for a chain policy if it has a plain ``recompute`` option.

studies/placement_curves compares the policies on measured steps. ``adaptive`` keeps the first units
and recomputes the last ones, since live bytes grow during forward. In a uniform chain this has the
highest peak for a given number of recomputed units: the last unit is recomputed while all kept
units are stored. Recomputing the *first* units costs the same time, and the kept units are freed
before the first recomputation.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from planner.placement.chain import JOINED, Chain, ChainUnit, to_placement
from planner.placement.optimal import Solution, solve
from planner.placement.policies import find_policy
from profiler.errors import InfeasibleError
from profiler.placement import Decision, Placement, PolicyChoice
from profiler.units import LiveBytes


def place_chain(chain: Chain, policy: PolicyChoice, budget: int) -> Placement:
    """Return the placement that a chain policy makes.

    Args:
        chain: chain of units.
        policy: policy and parameters; defaults fill in missing parameters.
        budget: live bytes for a policy with ``BudgetUse.LIMIT``, device bytes for one with
            ``BudgetUse.RULE``; ignored by the others.

    Raises:
        UsageError: a parameter is unknown or out of range.
        InfeasibleError: the policy has ``BudgetUse.LIMIT``, and no placement fits. The sizes in the
            error are live bytes.
    """
    parameters = find_policy(policy.name).choice(policy.parameters).parameters
    match policy.name:
        case "every-k":
            placement = every_k(chain, int(parameters["k"]))
        case "first-k":
            placement = first_k(chain, int(parameters["k"]))
        case "last-k":
            placement = last_k(chain, int(parameters["k"]))
        case "chen":
            placement = chen(chain)
        case "adaptive":
            placement = adaptive(chain, budget, parameters["threshold"])
        case "rotor":
            placement = rotor(chain, LiveBytes(budget))
        case "optimal" | "offload":  # the chain has the options
            placement = optimal(chain, LiveBytes(budget))
        case other:
            raise AssertionError(f"{other} is no chain policy")
    return placement


def every_k(chain: Chain, k: int) -> Placement:
    """Recompute the first of every k eligible units."""
    return _recompute(chain, _eligible(chain)[::k])


def first_k(chain: Chain, k: int) -> Placement:
    """Recompute the first k eligible units."""
    return _recompute(chain, _eligible(chain)[:k])


def last_k(chain: Chain, k: int) -> Placement:
    """Recompute the last k eligible units."""
    eligible = _eligible(chain)
    return _recompute(chain, eligible[len(eligible) - min(k, len(eligible)) :])


def chen(chain: Chain, segments: int | None = None) -> Placement:
    """Divide the units into equally long segments, and recompute all segments but the last.

    The last segment is kept: its backward follows its forward at once, so that recomputing it would
    cost time and free nothing at the peak.

    Args:
        chain: chain of units.
        segments: number of segments, at least 1; None for the rounded square root of the number of
            units that can be joined.
    """
    indices = _default_indices(chain)
    joinable = [i for i, unit in enumerate(chain.units) if unit.can_join]
    count = segments or max(1, round(math.sqrt(len(joinable))))
    length = max(1, len(joinable) // count)
    for place, i in enumerate(joinable[: length * (count - 1)]):
        # a segment also starts after a unit that cannot join, or at one that may not continue it
        starts = place % length == 0 or joinable[place - 1] != i - 1
        starts = starts or not chain.units[i].may_continue_segment
        indices[i] = _recompute_index(chain.units[i]) if starts else JOINED
    return to_placement(chain, indices)


def rotor(chain: Chain, live_budget_bytes: LiveBytes) -> Placement:
    """Return the placement of least time over whole units (kept or recomputed) and segments.

    Raises:
        InfeasibleError: no such placement fits.
    """
    whole_units = Chain(
        units=tuple(_whole_unit(unit) for unit in chain.units),
        static_bytes=chain.static_bytes,
        floor_bytes=chain.floor_bytes,
    )
    return _feasible_placement(solve(whole_units, live_budget_bytes))


def optimal(chain: Chain, live_budget_bytes: LiveBytes) -> Placement:
    """Return the placement of least time over all options and segments.

    Raises:
        InfeasibleError: no placement fits; it names the smallest budget that would.
    """
    return _feasible_placement(solve(chain, live_budget_bytes))


def adaptive(
    chain: Chain,
    budget_bytes: int,
    threshold: float = 0.5,
    eligible: Collection[str] | None = None,
) -> Placement:
    """Recompute a unit if live bytes at its entry are at least ``threshold`` times the budget.

    Source: ``inject_dynamic_checkpointing`` in the code of arXiv 2607.02158. Live bytes grow during
    forward, so the rule keeps a prefix of the units and recomputes a suffix.

    Args:
        chain: chain of units.
        budget_bytes: memory cap of the rule.
        threshold: tau of the paper, above zero.
        eligible: names of the units that may be recomputed; None for all with a ``recompute``
            option. The paper's code never recomputes convolutional stages.
    """
    indices = _default_indices(chain)
    live = chain.static_bytes
    for i, unit in enumerate(chain.units):
        index = unit.plain_index(Decision.RECOMPUTE)
        is_eligible = index is not None and (eligible is None or unit.name in eligible)
        if is_eligible and index is not None and live >= threshold * budget_bytes:
            indices[i] = index
        live += unit.options[indices[i]].stored_bytes
    return to_placement(chain, indices)


def _default_indices(chain: Chain) -> list[int]:
    return [unit.default_index for unit in chain.units]


def _eligible(chain: Chain) -> list[int]:
    return [
        i for i, unit in enumerate(chain.units) if unit.plain_index(Decision.RECOMPUTE) is not None
    ]


def _recompute_index(unit: ChainUnit) -> int:
    index = unit.plain_index(Decision.RECOMPUTE)
    assert index is not None, f"{unit.name} has no {Decision.RECOMPUTE} option"
    return index


def _recompute(chain: Chain, units: list[int]) -> Placement:
    indices = _default_indices(chain)
    for i in units:
        indices[i] = _recompute_index(chain.units[i])
    return to_placement(chain, indices)


def _whole_unit(unit: ChainUnit) -> ChainUnit:
    """Return the unit with its plain keep and recompute options; without any, with its default."""
    whole = {Decision.KEEP, Decision.RECOMPUTE}
    plain = [o for o in unit.options if o.decision in whole and not o.parts]
    return ChainUnit(
        name=unit.name,
        options=tuple(plain) or (unit.options[unit.default_index],),
        gradient_bytes=unit.gradient_bytes,
        boundary_bytes=unit.boundary_bytes,
        forward_seconds=unit.forward_seconds,
        may_continue_segment=unit.may_continue_segment,
    )


def _feasible_placement(solution: Solution) -> Placement:
    if solution.placement is None:
        raise InfeasibleError(
            budget_bytes=solution.live_budget_bytes,
            smallest_bytes=solution.smallest_feasible_bytes,
            advice="a smaller micro-batch frees activations",
        )
    return solution.placement
