"""The replay stage: replays candidates of the front and drops those above the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from planner.cost.budget import needed_bytes
from planner.cost.place_within_budget import place_within_budget
from planner.placement.policies import OPTIMAL
from planner.recommendation.answer import candidate_summary
from planner.recommendation.checks import CheckedCandidate, CheckOutcome
from planner.recommendation.ranking import next_to_check
from planner.recommendation.request import Notify, Request
from planner.search.problem import TrialResult
from profiler.errors import UsageError
from profiler.records import Report
from profiler.units import format_bytes
from profiler.workload import Candidate

if TYPE_CHECKING:
    from planner.cost.model import CostModel

FRONT_SIZE = 6
"""Number of candidates that are replayed, shown and written: as many as a person compares."""


def replay_front(
    request: Request, front: Sequence[TrialResult], cost: CostModel, notify: Notify
) -> CheckOutcome:
    """Replay candidates of the front until ``FRONT_SIZE`` fit or twice as many do not.

    Returns:
        The candidates that fit, by descending accuracy score, then by memory.
    """
    waiting = list(front)
    passed: list[CheckedCandidate] = []
    dropped: list[str] = []
    ahead = _replay_ahead(request, front, cost, notify)
    while waiting and len(passed) < FRONT_SIZE and len(dropped) < 2 * FRONT_SIZE:
        result = waiting.pop(next_to_check(request, waiting, [c.result for c in passed]))
        summary = candidate_summary(result.candidate)
        notify("replay", summary, len(passed) / FRONT_SIZE)
        try:
            report = ahead.get(result.candidate) or _replay(request, result.candidate, cost)
        except UsageError as error:
            dropped.append(f"{summary}: {error}")
            continue
        need_bytes = needed_bytes(report)
        if need_bytes <= request.budget_bytes:
            # The replay may have changed the placement. Its score is the same, its cost is close.
            placed = replace(result, candidate=report.candidate)
            passed.append(CheckedCandidate(result=placed, prediction=report))
        else:
            dropped.append(
                f"{summary}: the search composed {format_bytes(result.device_bytes)}, but the "
                f"replay needs {format_bytes(need_bytes)}"
            )
    passed.sort(key=lambda c: (-c.result.score, needed_bytes(c.prediction)))
    return CheckOutcome(passed=tuple(passed), dropped=tuple(dropped))


def _replay_ahead(
    request: Request, front: Sequence[TrialResult], cost: CostModel, notify: Notify
) -> dict[Candidate, Report]:
    """Replay, in parallel, the candidates that ``replay_front`` needs if every candidate fits.

    For a CPU, nothing is replayed ahead. Its replay runs kernels to find their workspace, on OpenMP
    threads, and those do not survive a fork: the child would wait for them for ever.
    """
    from planner.parallel import forked

    if not cost.device.is_cuda:
        return {}
    waiting, wanted = list(front), list[TrialResult]()
    while waiting and len(wanted) < FRONT_SIZE:
        wanted.append(waiting.pop(next_to_check(request, waiting, wanted)))
    candidates = [result.candidate for result in wanted]
    reports = forked(
        lambda candidate: _replay(request, candidate, cost),
        candidates,
        lambda candidate, done: notify("replay", candidate_summary(candidate), done),
    )
    return {candidates[index]: report for index, report in reports.items()}


def _replay(request: Request, candidate: Candidate, cost: CostModel) -> Report:
    """Replay a candidate; place an optimal one again, with all options of its units.

    The search places with fewer options, because each option costs a replay of the family.
    """
    from profiler.prediction.report import predict

    load = candidate.workload
    if candidate.policy != OPTIMAL or candidate.placement.is_none:
        report = predict(candidate, device=cost.device)
    else:
        report = place_within_budget(
            load,
            OPTIMAL,
            cost,
            budget_bytes=request.budget_bytes,
            options=cost.profiles.unit_options(load),
        )
    return replace(report, device=request.device)
