"""The replay stage: replays the rows of the answer and drops those above the budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

from planner.cost.budget import needed_bytes
from planner.cost.place_within_budget import place_within_budget
from planner.cost.warm_up import profile_options
from planner.parallel import map_forked
from planner.placement.policies import OFFLOAD, OPTIMAL
from planner.recommendation.answer import candidate_summary
from planner.recommendation.checks import CheckedCandidate, CheckOutcome
from planner.recommendation.levers import LeverOutcome, with_levers
from planner.recommendation.limits import exceeded_limit
from planner.recommendation.named_rows import answer_rows, probe_rows
from planner.recommendation.ranking import Question
from planner.recommendation.request import Notify, Request
from planner.search.problem import TrialResult
from profiler.errors import UsageError
from profiler.units import format_bytes_as

if TYPE_CHECKING:
    from planner.cost.model import CostModel

REPLAY_ROUNDS = 4
"""Rounds in which rows that a replay refuses are exchanged for others, if any row has passed."""


def replay_front(
    request: Request,
    results: Sequence[TrialResult],
    cost: CostModel,
    notify: Notify,
    *,
    every_method: bool = False,
    known: Sequence[CheckedCandidate] = (),
) -> CheckOutcome:
    """Replay the named rows of an answer; exchange those above the budget for the next best.

    Args:
        request: the request.
        results: candidates within the budget by their composed memory.
        cost: cost model that composed them.
        notify: called with (stage, candidate, fraction of the stage done).
        every_method: whether the best configuration of every method is a row too.
        known: candidates that were replayed already, which are not replayed again.

    Returns:
        The rows that fit, by descending accuracy score, then by memory.
    """
    question = Question.of(request)
    choose_rows = probe_rows if every_method else answer_rows
    waiting, passed = list(results), _replayed_before(results, known)
    dropped, refused, notes = list[str](), list[TrialResult](), list[str]()

    def wanted_rows() -> list[TrialResult]:
        return choose_rows(waiting, question) if waiting else []

    for number in count():
        missing = [row for row in wanted_rows() if id(row) not in passed]
        if not missing or (number >= REPLAY_ROUNDS and passed):
            break
        for row, outcome in _replayed(request, missing, cost, notify):
            reason = _reason_to_drop(request, row, outcome)
            if reason is not None:
                dropped.append(f"{candidate_summary(row.candidate)}: {reason}")
                refused.append(row)
                waiting.remove(row)
            elif isinstance(outcome, LeverOutcome):
                # The replay may have changed the placement. Its score is the same.
                passed[id(row)] = CheckedCandidate(
                    result=outcome.result(row), prediction=outcome.report, effects=outcome.effects
                )
                if outcome.left_out:
                    notes.append(
                        f"{candidate_summary(row.candidate)} is planned without "
                        f"{', '.join(outcome.left_out)}, with which it would exceed the budget"
                    )
    wanted = {id(row) for row in wanted_rows()}
    kept = [checked for key, checked in passed.items() if key in wanted] or list(passed.values())
    kept.sort(key=lambda c: (-c.result.score, needed_bytes(c.prediction)))
    return CheckOutcome(
        passed=tuple(kept), dropped=tuple(dropped), notes=tuple(notes), refused=tuple(refused)
    )


def _replayed_before(
    results: Sequence[TrialResult], known: Sequence[CheckedCandidate]
) -> dict[int, CheckedCandidate]:
    """Return the known candidate of each row that has one, by the ``id`` of the row.

    The score is that of the row, because it may have changed since.
    """
    by_point = {each.result.point: each for each in known}
    found = {}
    for row in results:
        before = by_point.get(row.point)
        if before is not None:
            found[id(row)] = replace(before, result=replace(before.result, score=row.score))
    return found


def _reason_to_drop(request: Request, row: TrialResult, replayed: LeverOutcome | str) -> str | None:
    """Return why a replayed row is dropped; None if it fits the budget and the limits."""
    if isinstance(replayed, str):
        return replayed
    budget_bytes = request.budget_bytes
    need_bytes = needed_bytes(replayed.report)
    limit_bytes = request.limit_of(row.candidate.workload)
    if need_bytes <= limit_bytes:
        return exceeded_limit(request, replayed.timed_report)
    needs = f"the replay needs {format_bytes_as(need_bytes, budget_bytes)}"
    if need_bytes <= budget_bytes:
        most = format_bytes_as(limit_bytes, budget_bytes)
        return f"{needs}, and at a risk of {request.risk:.2g} at most {most} are planned"
    composed = format_bytes_as(row.device_bytes, budget_bytes)
    return f"the search composed {composed}, but {needs}"


def _replayed(
    request: Request, rows: Sequence[TrialResult], cost: CostModel, notify: Notify
) -> Iterator[tuple[TrialResult, LeverOutcome | str]]:
    """Yield each row with its replay, or with the reason why it cannot be replayed.

    For a GPU, replays run in parallel. For a CPU they run kernels to find their workspace, on
    OpenMP threads, and those do not survive a fork: the child would wait for them for ever.
    """
    ahead = _replayed_in_parallel(request, rows, cost, notify) if cost.device.is_cuda else {}
    for index, row in enumerate(rows):
        if id(row) not in ahead:
            notify("replay", candidate_summary(row.candidate), index / len(rows))
        try:
            yield row, ahead.get(id(row)) or _replay(request, row, cost)
        except UsageError as error:
            yield row, str(error)


def _replayed_in_parallel(
    request: Request, rows: Sequence[TrialResult], cost: CostModel, notify: Notify
) -> dict[int, LeverOutcome]:
    """Return the replays that succeed, by the ``id`` of their row."""
    placed = [row for row in rows if _is_placed_again(row)]
    others = [row for row in rows if not _is_placed_again(row)]
    begin = 0.5 if placed else 0.0
    # Options are many and short, so profiling them first keeps every process busy.
    profile_options(
        cost.profiles,
        [row.candidate.workload for row in placed],
        lambda text, done: notify("replay", text, begin * done),
    )
    longest_first = [*placed, *others]
    found = map_forked(
        lambda row: _replay(request, row, cost),
        longest_first,
        lambda row, done: notify(
            "replay", candidate_summary(row.candidate), begin + (1 - begin) * done
        ),
    )
    return {id(longest_first[index]): outcome for index, outcome in found.items()}


def _is_placed_again(row: TrialResult) -> bool:
    """Return whether a row is placed over all options of its units."""
    return row.candidate.policy in (OPTIMAL, OFFLOAD) and not row.candidate.placement.is_none


def _replay(request: Request, row: TrialResult, cost: CostModel) -> LeverOutcome:
    """Replay a candidate, then with the levers that it takes.

    An optimal one is placed again with all options of its units: the search places with fewer,
    because each option costs a replay of the family.
    """
    from profiler.prediction.report import report_of
    from profiler.replay.step_replay import replay_step

    candidate, workload = row.candidate, row.candidate.workload
    limit_bytes = request.limit_of(workload)
    if not _is_placed_again(row):
        log = replay_step(candidate, device=cost.device)
        report = report_of(
            candidate, log, device=cost.device, power_limit_watts=cost.power_limit_watts
        )
    else:
        placed = place_within_budget(
            workload,
            candidate.policy,
            cost,
            budget_bytes=limit_bytes,
            options=cost.profiles.unit_options(workload),
        )
        report, log = placed.report, placed.log
    outcome = with_levers(
        report,
        row,
        choice=request.levers,
        budget_bytes=limit_bytes,
        device=cost.device,
        log=log,
    )
    return replace(outcome, report=replace(outcome.report, device=request.device))
