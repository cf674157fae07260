"""The placement of a workload by any policy of the registry, for commands and the Python API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.cost.fit_probability import (
    DEFAULT_RISK,
    FitRule,
    context_clause,
    fits_within,
    smallest_budget_of,
)
from planner.placement.policies import BudgetUse, UniformPolicy, find_policy
from profiler.errors import InfeasibleError, UsageError
from profiler.placement import Decision, PolicyChoice
from profiler.units import DeviceBytes
from profiler.workload import Candidate, Workload

if TYPE_CHECKING:
    from collections.abc import Iterable

    from planner.cost.model import CostModel
    from planner.placement.chain import Chain
    from profiler.devices.table import DeviceSpec


def default_cost_model(device: DeviceSpec, *, power_limit_watts: float | None = None) -> CostModel:
    """Return a cost model that keeps its profiles in the user's store.

    Args:
        device: device to predict for.
        power_limit_watts: power limit of the GPU; None for the board's own.
    """
    from planner.cost.model import CostModel
    from profiler.store import Store

    return CostModel(device, Store.default(), power_limit_watts=power_limit_watts)


def place_by_policy(
    workload: Workload,
    policy: PolicyChoice,
    cost: CostModel,
    *,
    budget_bytes: DeviceBytes | None = None,
    risk: float = DEFAULT_RISK,
) -> Candidate:
    """Return a workload with the placement that a policy makes.

    A policy without a budget and without segments needs no profile, only the units of the
    backbone.

    Args:
        workload: workload to place.
        policy: policy and parameters; defaults fill in missing parameters.
        cost: cost model of the device to plan for.
        budget_bytes: budget in device bytes; None for none.
        risk: largest accepted probability that the training exceeds a budget that the policy
            respects.

    Raises:
        UsageError: the policy or a parameter is unknown or out of range, the policy needs a budget
            and has none, or the backbone has no units.
        InfeasibleError: the policy respects a budget, and no replayed placement fits at the risk.
    """
    registered = find_policy(policy.name)
    policy = registered.choice(policy.parameters)
    if not registered.needs_budget:
        return _place_without_budget(workload, policy, cost)
    if budget_bytes is None:
        raise UsageError(
            f"checkpoint policy {registered.word} needs a memory budget; give it with --vram"
        )
    cost.profiles.prepare(workload)
    if registered.budget is BudgetUse.RULE:  # its placement may exceed the budget
        return cost.place(workload, policy, budget_bytes)
    return _place_within(workload, policy, cost, budget_bytes, risk=risk)


def _place_within(
    workload: Workload,
    policy: PolicyChoice,
    cost: CostModel,
    budget_bytes: DeviceBytes,
    *,
    risk: float,
) -> Candidate:
    from planner.cost.place_within_budget import place_within_budget

    options = cost.profiles.unit_options(workload)
    limit_bytes = FitRule.of(workload, cost.device).largest_prediction(budget_bytes, risk=risk)
    report = place_within_budget(
        workload, policy, cost, budget_bytes=limit_bytes, options=options
    ).report
    if not fits_within(report, budget_bytes, risk=risk):
        smallest_bytes = smallest_budget_of(report, risk=risk)
        raise InfeasibleError(
            budget_bytes=budget_bytes,
            smallest_bytes=smallest_bytes,
            context=context_clause(cost.device, smallest_bytes, budget_bytes),
        )
    return report.candidate


def _place_without_budget(workload: Workload, policy: PolicyChoice, cost: CostModel) -> Candidate:
    from planner.placement.chain_policies import place_chain

    if policy.name == "none":  # the only policy for a backbone without units
        return Candidate(workload=workload)
    units = cost.profiles.unit_parts(workload)
    if not units:
        raise UsageError(f"{workload.model} has no units that can be recomputed")
    # Which neighbours can share a segment is known from the profile only.
    if isinstance(find_policy(policy.name), UniformPolicy) or policy.name == "chen":
        return cost.place(workload, policy, DeviceBytes(0))
    placement = place_chain(_bare_chain(units), policy, 0)
    return Candidate(workload=workload, placement=placement, policy=policy)


def _bare_chain(units: Iterable[str]) -> Chain:
    """Return a chain without costs, for policies that only count units."""
    from planner.placement.chain import Chain, ChainOption, ChainUnit

    options = tuple(
        ChainOption(
            decision=decision,
            stored_bytes=0,
            forward_bytes=0,
            backward_bytes=0,
            recompute_seconds=0.0,
        )
        for decision in (Decision.KEEP, Decision.RECOMPUTE)
    )
    return Chain(
        units=tuple(ChainUnit(name=unit, options=options, boundary_bytes=0) for unit in units)
    )
