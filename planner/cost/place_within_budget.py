"""Placement whose *replayed* step fits a budget, not only its composed prediction.

A policy with a budget works on composed bytes. A replay is more exact: it includes scratch memory
of CPU kernels and the blocks and fragmentation of the caching allocator. The two can differ in
either direction, by a few percent. ``place_within_budget`` therefore alternates:

    1. Place by the policy on the chain, within the current budget.
    2. Replay the placement.
    3. Correct the chain: add to each unit the difference between its replayed and its composed
       bytes (``ReplayCorrections``).
    4. If the replay exceeds the budget although the corrected chain does not, the excess belongs to
       no unit (fragmentation). Lower the current budget by it, twice as much in each attempt.

After a placement fits, ``REFINEMENTS`` more attempts look for a faster one, because corrections can
also be negative. If no placement over all options fits, whole units alone are tried, since
decisions inside units fragment more; then uniform policies.

Cost: at most ``2 * (ATTEMPTS + 2) + 4`` replays, and ``ATTEMPTS + 2`` more for a policy that uses
the host's memory; most calls need one to three.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from planner.cost.budget import needed_bytes
from planner.placement.chain import (
    JOINED,
    Chain,
    ChainOption,
    ChainUnit,
    OptionIndices,
    option_indices,
)
from planner.placement.chain_cost import peak_bytes, unit_live_bytes
from planner.placement.policies import POLICIES, UniformPolicy, find_policy
from profiler.errors import InfeasibleError
from profiler.placement import Decision, Placement, PolicyChoice
from profiler.prediction.report import report_of
from profiler.records import Report
from profiler.replay.unit_spans import highest_by_unit
from profiler.unit_options import KEPT, UnitOption, WholeUnit
from profiler.units import DeviceBytes
from profiler.workload import Candidate, Workload

if TYPE_CHECKING:
    from planner.cost.model import CostModel
    from profiler.replay.event_log import EventLog

ATTEMPTS = 6
"""Placements over one set of options, until a replay fits; then the one of least peak is tried."""

REFINEMENTS = 2
"""Attempts after a placement fits, in search of a faster one."""

WHOLE_UNITS = (KEPT, WholeUnit(Decision.RECOMPUTE))
"""Options of units that are kept or recomputed as a whole."""


class ReplayCorrections:
    """Replayed minus composed bytes, by unit and option.

    For options not replayed yet, assume the smallest correction seen for this unit, and at least
    zero: most of a correction comes from the same kernels.
    """

    def __init__(self) -> None:
        self._by_unit: dict[str, dict[tuple[object, ...], tuple[int, int]]] = {}

    def add(self, chain: Chain, indices: OptionIndices, log: EventLog) -> None:
        """Compare the replay of a placement with the chain, unit by unit.

        Units of a segment are left out: their bytes depend on the whole segment.
        """
        composed_forward, composed_backward = unit_live_bytes(chain, indices)
        following = (*indices[1:], None)
        for i, (forward, backward) in highest_by_unit(log).items():
            if JOINED in (indices[i], following[i]):
                continue
            unit = chain.units[i]
            correction = forward - composed_forward[i], backward - composed_backward[i]
            self._by_unit.setdefault(unit.name, {})[unit.options[indices[i]].key] = correction

    def applied(self, chain: Chain) -> Chain:
        """Return the chain with all corrections added."""
        return replace(chain, units=tuple(self._corrected(unit) for unit in chain.units))

    def _corrected(self, unit: ChainUnit) -> ChainUnit:
        known = self._by_unit.get(unit.name)
        if not known:
            return unit
        assumed = tuple(max(0, min(found[i] for found in known.values())) for i in (0, 1))

        def corrected(option: ChainOption) -> ChainOption:
            forward, backward = known.get(option.key, assumed)
            return replace(
                option,
                forward_bytes=max(0, option.forward_bytes + forward),
                backward_bytes=max(0, option.backward_bytes + backward),
            )

        return replace(unit, options=tuple(corrected(option) for option in unit.options))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedPlacement:
    """A placement that was replayed.

    Attributes:
        report: memory, time and energy of the step.
        log: the replay that the report was read from.
    """

    report: Report
    log: EventLog


class _ReplayedPlacements:
    """The placements of a workload under a policy, each replayed once.

    Attributes:
        reports: report of each placement.
        best: the fastest placement that fits; if none does, the one that needs least.
    """

    def __init__(
        self, workload: Workload, policy: PolicyChoice, cost: CostModel, budget_bytes: DeviceBytes
    ) -> None:
        self.workload, self.policy, self.cost = workload, policy, cost
        self.budget_bytes = budget_bytes
        self.reports: dict[Placement, Report] = {}
        self.best: ReplayedPlacement | None = None

    def excess(
        self,
        candidate: Candidate,
        chain: Chain | None = None,
        corrections: ReplayCorrections | None = None,
    ) -> int:
        """Replay a candidate and return its needed bytes minus the budget.

        Args:
            candidate: candidate to replay, unless its placement was replayed before.
            chain: uncorrected chain of the workload.
            corrections: corrections that a new replay is added to.
        """
        placement = candidate.placement
        if placement not in self.reports:
            from profiler.replay.step_replay import replay_step

            device = self.cost.device
            log = replay_step(candidate, device=device)
            report = report_of(
                candidate, log, device=device, power_limit_watts=self.cost.power_limit_watts
            )
            self.reports[placement] = report
            if self.best is None or self._preference(report) < self._preference(self.best.report):
                self.best = ReplayedPlacement(report=report, log=log)
            if chain is not None and corrections is not None:
                corrections.add(chain, option_indices(chain, placement), log)
        return needed_bytes(self.reports[placement]) - self.budget_bytes

    def has_fitting(self) -> bool:
        """Return whether a replayed placement fits the budget."""
        return any(needed_bytes(r) <= self.budget_bytes for r in self.reports.values())

    def try_options(self, options: tuple[UnitOption, ...]) -> None:
        """Replay placements over some options until one fits, then refine it."""
        corrections, budget, refinements = ReplayCorrections(), self.budget_bytes, REFINEMENTS
        chain = corrected = self.cost.chain(self.workload, options)
        for attempt in range(ATTEMPTS):
            try:
                candidate = self._place(budget, corrected)
            except InfeasibleError:
                break
            is_new = candidate.placement not in self.reports
            excess = self.excess(candidate, chain, corrections)
            corrected = corrections.applied(chain)
            if excess <= 0:
                refinements -= 1
                if refinements < 0 or not is_new:
                    break
            # If the corrected chain excludes this placement, placing again gives another one.
            # Otherwise only a lower budget does.
            elif not self._is_excluded(candidate, corrected, budget):
                lower = budget - max(excess, self.budget_bytes // 100) * 2**attempt
                budget = DeviceBytes(lower)
        # corrections are estimates: the least peak may be that of either chain
        for least in (corrected, chain):
            if not self.has_fitting():
                self.excess(self._of_least_peak(least))

    def try_uniform(self, options: tuple[UnitOption, ...]) -> None:
        """Replay uniform policies, the fastest first, until one fits."""
        for name in ("cheap", "light", "lean-layers", "static"):
            policy = POLICIES[name]
            if isinstance(policy, UniformPolicy) and policy.option in options:
                placed = self.cost.place(self.workload, policy.choice(), self.budget_bytes)
                if self.excess(placed) <= 0:
                    return

    def _preference(self, report: Report) -> tuple[int, float]:
        """Return the excess over the budget and the seconds of a step; less is better."""
        excess = max(0, needed_bytes(report) - self.budget_bytes)
        return excess, (report.step_seconds or 0.0)

    def _place(self, budget_bytes: DeviceBytes, chain: Chain) -> Candidate:
        # Start from the least overhead: replays add the rest.
        return self.cost.place(
            self.workload, self.policy, budget_bytes, chain=chain, overhead_of=(KEPT,)
        )

    def _of_least_peak(self, chain: Chain) -> Candidate:
        try:
            return self._place(DeviceBytes(1), chain)
        except InfeasibleError as error:
            smallest = error.smallest_bytes
            if smallest is None:
                raise
        return self._place(DeviceBytes(smallest), chain)

    def _is_excluded(self, candidate: Candidate, chain: Chain, budget_bytes: DeviceBytes) -> bool:
        peak = peak_bytes(chain, option_indices(chain, candidate.placement))
        return peak > self.cost.budget_conversion(self.workload, (KEPT,))(budget_bytes)


def place_within_budget(
    workload: Workload,
    policy: PolicyChoice,
    cost: CostModel,
    *,
    budget_bytes: DeviceBytes,
    options: tuple[UnitOption, ...],
) -> ReplayedPlacement:
    """Place by a policy with ``BudgetUse.LIMIT`` so that the replayed step fits a budget.

    Args:
        workload: workload to place.
        policy: policy that places.
        cost: cost model of the device.
        budget_bytes: budget in device bytes.
        options: unit options that the policy may use; one that uses the host's memory adds its
            own.

    Returns:
        The fastest placement that fits, with its replay. If none fits, the one that needs least:
        the caller compares ``needed_bytes`` with the budget.
    """
    placements = _ReplayedPlacements(workload, policy, cost, budget_bytes)
    registered = find_policy(policy.name)
    if registered.uses_host_memory:
        # first without: the least bytes are often those of a placement that composes as too large
        placements.try_options(options)
    for allowed in map(registered.options, (options, WHOLE_UNITS)):
        placements.try_options(allowed)
        if placements.has_fitting():
            break
    else:
        placements.try_uniform(options)
    assert placements.best is not None, "the placement of least peak was replayed"
    return placements.best
