"""The placement of a workload by the name of a policy, as every command accepts it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from profiler.errors import InfeasibleError, UsageError

if TYPE_CHECKING:
    from planner.cost.model import CostModel
    from profiler.workload import Candidate, Workload

POLICIES_WITHOUT_COUNT = ("none", "static", "cheap", "light", "lean", "chen")

BUDGET_FREE = (*POLICIES_WITHOUT_COUNT, "every-K", "first-K", "last-K")

BUDGETED = ("adaptive", "optimal", "rotor")


def place(
    load: Workload, policy: str, *, device: str, budget: int | None, threshold: float = 0.5
) -> Candidate:
    """Return the workload with the placement that a ``--checkpoint`` stands for.

    Args:
        load: whose units.
        policy: one of ``BUDGET_FREE``, with a number for K, or of ``BUDGETED``.
        device: what is planned for.
        budget: in bytes, for the second kind.
        threshold: of ``adaptive``.

    Raises:
        UsageError: a policy that needs a budget and has none.
        InfeasibleError: an exact policy, and nothing fits.
    """
    if policy not in BUDGETED:
        return _place_without_budget(load, policy)
    if budget is None:
        raise UsageError(f"--checkpoint {policy} needs a budget; give it with --vram")
    from planner.cost.place_within_budget import needed_bytes, place_checked, round_up

    cost = cost_model(device)
    cost.prepare(load)
    if policy == "adaptive":  # a rule, not a promise to fit
        return cost.place(load, policy, budget, threshold=threshold)
    report = place_checked(
        load, policy, cost, device=device, budget_bytes=budget, options=cost.menu(load)
    )
    if needed_bytes(report) > budget:
        raise InfeasibleError(
            budget_bytes=budget,
            smallest_bytes=round_up(needed_bytes(report)),
            advice="a smaller --batch-size frees activations, a method that trains less the rest",
        )
    return report.candidate


def cost_model(device: str) -> CostModel:
    """Return the cost model of a device."""
    from planner.cost.model import CostModel
    from profiler.store import Store

    return CostModel(device, Store.default())


def _place_without_budget(load: Workload, checkpoint: str) -> Candidate:
    """Let a policy decide that only asks which units there are."""
    from planner.placement import POLICIES, Chain, ChainOption, ChainUnit
    from profiler.models.build import build_model
    from profiler.placement import Decision, Placement, PolicyChoice
    from profiler.workload import Candidate

    if checkpoint == "none":
        return Candidate(workload=load)
    names = build_model(load.replace(micro_batch=1, accumulation=1), device="meta").units
    if not names:
        raise UsageError(f"{load.model} has no units that can be recomputed")
    if checkpoint in (Decision.DROP_CHEAP, Decision.DROP_CHEAP_AND_MIXING, Decision.DROP_PER_USE):
        placement = Placement(decisions=dict.fromkeys(names, Decision(checkpoint)))
        return Candidate(workload=load, placement=placement, policy=PolicyChoice(checkpoint))
    menu = tuple(
        ChainOption(
            decision=d, stored_bytes=0, forward_bytes=0, backward_bytes=0, recompute_seconds=0.0
        )
        for d in (Decision.KEEP, Decision.RECOMPUTE)
    )
    chain = Chain(units=tuple(ChainUnit(name=n, options=menu, boundary_bytes=0) for n in names))
    stem, _, count = checkpoint.rpartition("-")
    name, parameters = (f"{stem}-k", {"k": int(count)}) if count.isdigit() else (checkpoint, None)
    policy = POLICIES[name]
    placement = policy(chain, 1, parameters)
    return Candidate(workload=load, placement=placement, policy=policy.choice(parameters))
