"""Place within a budget by the replay, not only by composed bytes.

A policy counts what is composed. A replay knows more: what CPU kernels take inside an operation,
how an allocator's blocks fall. What it finds in a unit beyond (or below) the composed bytes is
learned, and the policy asked again; what is no unit's own is taken off the budget.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from planner.placement import option_indices, peak_bytes
from planner.placement.chain import JOINED, Chain, ChainOption, ChainUnit, OptionIndices
from planner.placement.chain_cost import unit_live_bytes
from profiler.devices.table import device_spec
from profiler.errors import InfeasibleError
from profiler.placement import Decision, Placement
from profiler.prediction.report import report_of
from profiler.records import Report
from profiler.replay.unit_spans import highest_by_unit
from profiler.unit_options import LEAN_LAYERS
from profiler.units import GIB, MIB
from profiler.workload import Candidate, Workload

if TYPE_CHECKING:
    from planner.cost.model import CostModel
    from profiler.replay.event_log import EventLog

PLACEMENTS = 6
"""Of one menu, until a replay fits; then comes the one that needs least."""

REFINEMENTS = 2
"""Once one fits: what takes less than composed may leave room for a quicker one."""

WHOLE_UNITS = (Decision.KEEP, Decision.RECOMPUTE)


def needed_bytes(report: Report) -> int:
    """Return what a budget is held against."""
    memory = report.memory
    return memory.peak_bytes if memory.device_bytes is None else memory.device_bytes


class Lessons:
    """What replays found in units beyond the composed bytes, by unit and option.

    Of an option that no replay has shown, the least that any of the unit's options had too little
    is assumed, since most of it is the same kernels.
    """

    def __init__(self) -> None:
        self._known: dict[str, dict[tuple[object, ...], tuple[int, int]]] = {}

    def learn(self, chain: Chain, choice: OptionIndices, log: EventLog) -> None:
        """Compare a choice's replay with the chain, unit by unit; segments teach nothing."""
        composed = unit_live_bytes(chain, choice)
        following = (*choice[1:], None)
        for index, seen in highest_by_unit(log).items():
            if JOINED in (choice[index], following[index]):
                continue
            unit = chain.units[index]
            option = unit.options[choice[index]]
            found = seen[0] - composed[0][index], seen[1] - composed[1][index]
            self._known.setdefault(unit.name, {})[option.key] = found

    def applied(self, chain: Chain) -> Chain:
        """Return the chain with what was learned."""
        return replace(chain, units=tuple(self._corrected(unit) for unit in chain.units))

    def _corrected(self, unit: ChainUnit) -> ChainUnit:
        known = self._known.get(unit.name)
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


class _Search:
    """Placements of one workload under one policy, each replayed once."""

    def __init__(
        self, load: Workload, policy: str, cost: CostModel, *, device: str, budget_bytes: int
    ) -> None:
        self.load, self.policy, self.cost = load, policy, cost
        self.device, self.budget_bytes = device, budget_bytes
        self.reports: dict[Placement, Report] = {}

    def excess(
        self, candidate: Candidate, chain: Chain | None = None, lessons: Lessons | None = None
    ) -> int:
        """Return what a placement's replay needs beyond the budget; a new one is a lesson."""
        placement = candidate.placement
        if placement not in self.reports:
            from profiler.replay.step_replay import replay_step

            device = device_spec(self.device)
            log = replay_step(candidate, device=device)
            self.reports[placement] = report_of(candidate, log, device=device)
            if chain is not None and lessons is not None:
                lessons.learn(chain, option_indices(chain, placement), log)
        return needed_bytes(self.reports[placement]) - self.budget_bytes

    def fits(self) -> bool:
        """Return whether any of them fits."""
        return any(needed_bytes(r) <= self.budget_bytes for r in self.reports.values())

    def within_menu(self, options: tuple[str, ...]) -> None:
        """Try placements from a menu until one fits, and then for quicker ones.

        Raises:
            InfeasibleError: nothing fits, and the policy does not know what would.
        """
        lessons, given, left = Lessons(), self.budget_bytes, REFINEMENTS
        chain = known = self.cost.chain(self.load, options)
        for attempt in range(PLACEMENTS):
            try:
                candidate = self._place(given, known)
            except InfeasibleError:
                break
            is_new = candidate.placement not in self.reports
            over = self.excess(candidate, chain, lessons)
            known = lessons.applied(chain)
            if over <= 0:
                left -= 1
                if left < 0 or not is_new:
                    break
            elif not self._is_ruled_out(candidate, known, given):
                given -= max(over, self.budget_bytes // 100) * 2**attempt
        for least in (known, chain):
            if not self.fits():
                self.excess(self._least(least))

    def _least(self, chain: Chain) -> Candidate:
        try:
            return self._place(1, chain)
        except InfeasibleError as error:
            smallest = device_bytes_of(error, self.load, self.cost)
            if smallest is None:
                raise
        return self._place(smallest, chain)

    def _is_ruled_out(self, candidate: Candidate, chain: Chain, budget: int) -> bool:
        peak = peak_bytes(chain, option_indices(chain, candidate.placement))
        return peak > self.cost.live_budget(self.load, budget)

    def _place(self, budget: int, chain: Chain) -> Candidate:
        return self.cost.place(self.load, self.policy, budget, chain=chain)

    def uniform(self, options: tuple[str, ...]) -> None:
        """Try what treats all units alike, the quickest first."""
        for policy in (
            *(
                p
                for p in (Decision.DROP_CHEAP, Decision.DROP_CHEAP_AND_MIXING, LEAN_LAYERS)
                if p in options
            ),
            "static",
        ):
            if self.excess(self.cost.place(self.load, policy, 1)) <= 0:
                return

    def best(self) -> Report:
        """Return the quickest of those that fit, else what needs least."""
        return min(self.reports.values(), key=self._preference)

    def _preference(self, report: Report) -> tuple[int, float]:
        over = max(0, needed_bytes(report) - self.budget_bytes)
        return over, (report.step_seconds or 0.0)


def place_checked(
    load: Workload,
    policy: str,
    cost: CostModel,
    *,
    device: str,
    budget_bytes: int,
    options: tuple[str, ...],
) -> Report:
    """Place by a policy that respects a budget until the replay respects it too.

    If nothing from the whole menu fits: whole units alone, and what treats all units alike. What
    is returned has been replayed: the quickest that fits, or what needs least; the caller compares.

    Raises:
        InfeasibleError: nothing fits, and the policy does not know what would.
    """
    search = _Search(load, policy, cost, device=device, budget_bytes=budget_bytes)
    for menu in (options, WHOLE_UNITS):
        search.within_menu(menu)
        if search.fits():
            return search.best()
    search.uniform(options)
    return search.best()


def device_bytes_of(error: InfeasibleError, load: Workload, cost: CostModel) -> int | None:
    """Return what a placement's smallest budget, which is of live bytes, is on the device."""
    if error.smallest_bytes is None:
        return None
    low, high = 0, 1
    while cost.live_budget(load, high) < error.smallest_bytes:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if cost.live_budget(load, middle) < error.smallest_bytes:
            low = middle
        else:
            high = middle
    return high


def round_up(size: int) -> int:
    """Round up to the last digit that is printed, so that the printed size is enough."""
    step = GIB / 100 if size >= 0.9995 * GIB else MIB
    return math.floor(math.ceil(size / step) * step)
