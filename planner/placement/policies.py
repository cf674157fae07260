"""Policies: ways to fill a placement, all judged by the evaluator of ``chain.py``.

    none, static, every-k, first-k, last-k   what libraries offer; they know no budget
    chen                                     segments of about sqrt n units (arXiv:1604.06174), cut
                                             as torch.utils.checkpoint.checkpoint_sequential does
    rotor                                    the optimal persistent schedule over whole units and
                                             segments (Beaumont et al., arXiv:1911.13214), less its
                                             nested levels: nothing is recomputed twice
    adaptive                                 the paper's run-time rule, simulated ahead
    optimal                                  least time over the whole menu (``optimal.py``)

"Eligible" is a unit with a plain ``recompute`` option. A policy that ignores the budget may exceed
it, and so may ``adaptive``: that is for the evaluator to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from planner.placement.chain import JOINED, Chain, ChainUnit, to_placement
from planner.placement.optimal import Solution, solve
from profiler.errors import InfeasibleError, UnknownNameError, UsageError
from profiler.placement import Decision, Placement, PolicyChoice
from profiler.units import LiveBytes


def none(chain: Chain) -> Placement:
    """Keep everything."""
    return to_placement(chain, _defaults(chain))


def static(chain: Chain) -> Placement:
    """Recompute every eligible unit."""
    return _recompute(chain, _eligible(chain))


def every_k(chain: Chain, k: int) -> Placement:
    """Recompute the first of every k eligible units."""
    return _recompute(chain, _eligible(chain)[:: _positive(k)])


def first_k(chain: Chain, k: int) -> Placement:
    """Recompute the first k eligible units."""
    return _recompute(chain, _eligible(chain)[: _positive(k, least=0)])


def last_k(chain: Chain, k: int) -> Placement:
    """Recompute the last k eligible units."""
    eligible = _eligible(chain)
    cut = len(eligible) - min(_positive(k, least=0), len(eligible))
    return _recompute(chain, eligible[cut:])


def chen_sqrt(chain: Chain, segments: int | None = None) -> Placement:
    """Recompute in segments: all but the last of about sqrt n equal ones.

    The last segment would be recomputed at once after its forward, at a cost and for nothing.

    Args:
        chain: the step.
        segments: how many; the rounded square root of the number of units if None.
    """
    choice = _defaults(chain)
    joinable = [i for i, unit in enumerate(chain.units) if unit.can_join]
    count = segments or max(1, round(math.sqrt(len(joinable))))
    length = max(1, len(joinable) // _positive(count))
    for place, i in enumerate(joinable[: length * (count - 1)]):
        starts = place % length == 0 or joinable[place - 1] != i - 1
        starts = starts or not chain.units[i].may_continue_segment
        choice[i] = _recompute_index(chain.units[i]) if starts else JOINED
    return to_placement(chain, choice)


def rotor(chain: Chain, budget_bytes: int) -> Placement:
    """Keep, recompute, or recompute as part of a segment, in the least time within the budget.

    Raises:
        InfeasibleError: no such placement fits.
    """
    whole = Chain(
        units=tuple(_whole_only(unit) for unit in chain.units),
        static_bytes=chain.static_bytes,
        floor_bytes=chain.floor_bytes,
    )
    return _placement_of(solve(whole, LiveBytes(budget_bytes)))


def adaptive(
    chain: Chain,
    budget_bytes: int,
    threshold: float = 0.5,
    eligible: Collection[str] | None = None,
) -> Placement:
    """Recompute a unit if live bytes on entering it are at least ``threshold`` of the budget.

    Source: ``inject_dynamic_checkpointing`` of the paper's code (facts/seeds.md section 1.2). Live
    bytes grow in forward, so a prefix is kept and a suffix recomputed.

    Args:
        chain: the step.
        budget_bytes: the memory cap of the rule.
        threshold: its tau.
        eligible: units it may touch, all with a ``recompute`` option if None. The paper's code
            never touches convolutional stages.
    """
    if not threshold > 0:
        raise UsageError(f"the threshold must be above zero, got {threshold}")
    choice = _defaults(chain)
    live = chain.static_bytes
    for i, unit in enumerate(chain.units):
        index = unit.plain_index(Decision.RECOMPUTE)
        touched = index is not None and (eligible is None or unit.name in eligible)
        if touched and index is not None and live >= threshold * budget_bytes:
            choice[i] = index
        live += unit.options[choice[i]].stored_bytes
    return to_placement(chain, choice)


def optimal(chain: Chain, budget_bytes: int) -> Placement:
    """Return the placement of least recompute time within the budget.

    Raises:
        InfeasibleError: none fits; it names the smallest budget that would.
    """
    return _placement_of(solve(chain, LiveBytes(budget_bytes)))


Parameters = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A policy of the registry.

    Attributes:
        name: as in ``PolicyChoice.name``.
        summary: one line.
        decide: ``decide(chain, budget_bytes, parameters)``, the parameters complete.
        defaults: its parameters, by name.
    """

    name: str
    summary: str
    decide: Callable[[Chain, int, Parameters], Placement]
    defaults: Parameters = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "defaults", MappingProxyType(dict(self.defaults)))

    def __call__(
        self, chain: Chain, budget_bytes: int, parameters: Parameters | None = None
    ) -> Placement:
        """Return the placement.

        Raises:
            UnknownNameError: it has no such parameter.
            InfeasibleError: the policy respects the budget, and nothing fits.
        """
        return self.decide(chain, budget_bytes, self.choice(parameters).parameters)

    def choice(self, parameters: Parameters | None = None) -> PolicyChoice:
        """Return the policy with its parameters, defaults filled in.

        Raises:
            UnknownNameError: it has no such parameter.
        """
        for name in parameters or {}:
            if name not in self.defaults:
                raise UnknownNameError(
                    kind=f"parameter of policy {self.name}",
                    name=name,
                    known=self.defaults,
                    hint=f"it takes {', '.join(self.defaults) or 'none'}",
                )
        return PolicyChoice(self.name, {**self.defaults, **(parameters or {})})


POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        policy.name: policy
        for policy in (
            Policy(
                name="none",
                summary="keep everything",
                decide=lambda chain, _budget, _p: none(chain),
            ),
            Policy(
                name="static",
                summary="recompute every unit",
                decide=lambda chain, _budget, _p: static(chain),
            ),
            Policy(
                name="every-k",
                summary="recompute the first of every k units",
                decide=lambda chain, _budget, p: every_k(chain, int(p["k"])),
                defaults={"k": 2},
            ),
            Policy(
                name="first-k",
                summary="recompute the first k units",
                decide=lambda chain, _budget, p: first_k(chain, int(p["k"])),
                defaults={"k": 1},
            ),
            Policy(
                name="last-k",
                summary="recompute the last k units",
                decide=lambda chain, _budget, p: last_k(chain, int(p["k"])),
                defaults={"k": 1},
            ),
            Policy(
                name="chen",
                summary="recompute in about sqrt n segments, the last one kept",
                decide=lambda chain, _budget, _p: chen_sqrt(chain),
            ),
            Policy(
                name="rotor",
                summary="least time within the budget over whole units and segments",
                decide=lambda chain, budget, _p: rotor(chain, budget),
            ),
            Policy(
                name="adaptive",
                summary="recompute a unit entered with live bytes at or above threshold x budget",
                decide=lambda chain, budget, p: adaptive(chain, budget, p["threshold"]),
                defaults={"threshold": 0.5},
            ),
            Policy(
                name="optimal",
                summary="least time within the budget over the whole menu of every unit",
                decide=lambda chain, budget, _p: optimal(chain, budget),
            ),
        )
    }
)


def _defaults(chain: Chain) -> list[int]:
    return [unit.default_index for unit in chain.units]


def _eligible(chain: Chain) -> list[int]:
    return [
        i for i, unit in enumerate(chain.units) if unit.plain_index(Decision.RECOMPUTE) is not None
    ]


def _recompute_index(unit: ChainUnit) -> int:
    index = unit.plain_index(Decision.RECOMPUTE)
    assert index is not None, f"{unit.name} has no {Decision.RECOMPUTE} option"
    return index


def _recompute(chain: Chain, indices: list[int]) -> Placement:
    choice = _defaults(chain)
    for i in indices:
        choice[i] = _recompute_index(chain.units[i])
    return to_placement(chain, choice)


def _whole_only(unit: ChainUnit) -> ChainUnit:
    """Return the unit with its plain keep and recompute options only, where it has any."""
    plain = [
        o for o in unit.options if o.decision in {Decision.KEEP, Decision.RECOMPUTE} and not o.parts
    ]
    return ChainUnit(
        name=unit.name,
        options=tuple(plain) or (unit.options[unit.default_index],),
        gradient_bytes=unit.gradient_bytes,
        boundary_bytes=unit.boundary_bytes,
        forward_seconds=unit.forward_seconds,
        may_continue_segment=unit.may_continue_segment,
    )


def _placement_of(solution: Solution) -> Placement:
    if solution.placement is None:
        raise InfeasibleError(
            budget_bytes=solution.live_budget_bytes,
            smallest_bytes=solution.smallest_feasible_bytes,
            advice="a smaller micro-batch frees activations",
        )
    return solution.placement


def _positive(count: int, *, least: int = 1) -> int:
    if count < least:
        raise UsageError(f"a number of units must be at least {least}, got {count}")
    return count
