"""Evaluates every point of a small search space, without a sampler and outside the storage.

A point takes about a millisecond once its family is profiled, so a backbone's few thousand
points take seconds, and the result depends on no seed. Storing each would take longer than
evaluating it: the study gets the Pareto front, the rows of the answer and the number of the others.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from planner.search.evaluation import PointEvaluator
from planner.search.pareto import non_dominated
from planner.search.problem import CONSTRAINT, OBJECTIVES, OnTrial, TrialResult, assignment_key
from planner.search.space import Assignment, Space
from planner.search.trial_records import TrialRecords, user_attributes
from profiler.errors import BudgetplanError, InfeasibleError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

EXHAUSTIVE_SECONDS = 60.0
"""Longest expected processor time of an exhaustive evaluation; the sampler takes over above it. The
decision thus depends on the machine and not on its load."""

_POINTS_BEFORE_ESTIMATE = 100

_POINTS_PER_REPORT = 50

_SECONDS_FOR_A_FORK = 1.0
"""Expected processor time of the remaining points, from which processes are forked for them."""

KeptRows = Callable[[Sequence[TrialResult]], Sequence[TrialResult]]
"""Selects the results that a study keeps beside the front, from all results."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExhaustiveResults:
    """Every point of a space.

    Attributes:
        results: one result per point that did not fail, in the order of the space.
        failures: reason of each point that failed.
    """

    results: tuple[TrialResult, ...]
    failures: tuple[str, ...]

    @property
    def points(self) -> int:
        """Number of points, failed ones included."""
        return len(self.results) + len(self.failures)


def evaluate_all(
    evaluator: PointEvaluator,
    *,
    on_trial: OnTrial = lambda done, total: None,
    most_seconds: float | None = None,
) -> ExhaustiveResults | None:
    """Return every point of a space; None if that is expected to take too long.

    Args:
        evaluator: evaluator of the problem.
        on_trial: called with (points done, points in all).
        most_seconds: longest expected processor time; None for ``EXHAUSTIVE_SECONDS``.

    Raises:
        InfeasibleError: not even the placement that stores least can be made.
    """
    assignments = list(evaluator.problem.space.assignments())
    limit_seconds = EXHAUSTIVE_SECONDS if most_seconds is None else most_seconds
    chunks = _chunks(assignments)
    ahead: dict[int, list[TrialResult | str]] = {}
    found, seconds = list[TrialResult | str](), list[float]()
    for number, chunk in enumerate(chunks):
        if number in ahead:
            found += ahead[number]
            continue
        with evaluator.cost.stored_together():
            for assignment in chunk:
                began = time.process_time()
                found.append(_evaluated(evaluator, assignment))
                seconds.append(time.process_time() - began)
        on_trial(len(found), len(assignments))
        if len(seconds) < _POINTS_BEFORE_ESTIMATE:
            continue
        # The first point of a family profiles it, which the median leaves out: the sampler would
        # profile it as well.
        if median(seconds) * len(assignments) > limit_seconds:
            return None
        left = median(seconds) * (len(assignments) - len(found))
        if not ahead and left > _SECONDS_FOR_A_FORK and evaluator.problem.device.is_cuda:
            ahead = _ahead(evaluator, chunks, number + 1, on_trial)
    return ExhaustiveResults(
        results=tuple(each for each in found if isinstance(each, TrialResult)),
        failures=tuple(each for each in found if isinstance(each, str)),
    )


def _evaluated(evaluator: PointEvaluator, assignment: Assignment) -> TrialResult | str:
    """Return the result of a point, or the reason why it has none."""
    try:
        return evaluator.evaluate(evaluator.problem.space.point(assignment), assignment)
    except InfeasibleError:
        raise
    except BudgetplanError as error:
        return str(error)


def _chunks(assignments: Sequence[Assignment]) -> list[Sequence[Assignment]]:
    """Return the points in chunks by method, because points of a method read the same profiles."""
    chunks: list[Sequence[Assignment]] = []
    for _, group in itertools.groupby(assignments, key=lambda each: each["method"]):
        of_method = list(group)
        chunks += [
            of_method[first : first + _POINTS_PER_REPORT]
            for first in range(0, len(of_method), _POINTS_PER_REPORT)
        ]
    return chunks


def _ahead(
    evaluator: PointEvaluator,
    chunks: Sequence[Sequence[Assignment]],
    first: int,
    on_trial: OnTrial,
) -> dict[int, list[TrialResult | str]]:
    """Evaluate the chunks from ``first`` on in forked processes; return the results by chunk.

    Missing chunks are evaluated by the caller. On a CPU nothing is forked: its operations may be
    timed on the way, and several timings at once disturb each other.
    """
    from planner.parallel import map_forked

    total = sum(map(len, chunks))
    before = sum(map(len, chunks[:first]))

    def evaluate(chunk: Sequence[Assignment]) -> list[TrialResult | str]:
        with evaluator.cost.stored_together():
            return [_evaluated(evaluator, assignment) for assignment in chunk]

    found = map_forked(
        evaluate,
        chunks[first:],
        lambda _, share: on_trial(before + round(share * (total - before)), total),
    )
    return {first + index: results for index, results in found.items()}


def store_kept(
    records: TrialRecords,
    storage: BaseStorage,
    evaluator: PointEvaluator,
    found: ExhaustiveResults,
    kept_rows: KeptRows,
) -> None:
    """Append the front and the kept rows to a study, and the number of all points.

    Args:
        records: trials of the study.
        storage: storage of the study.
        evaluator: evaluator of the problem.
        found: every point.
        kept_rows: selects the results that are kept beside the front.
    """
    problem = evaluator.problem
    excess = [result.device_bytes - problem.limit_bytes for result in found.results]
    front = non_dominated(
        [result.objectives for result in found.results], directions=OBJECTIVES, violations=excess
    )
    fitting = [r for r, over in zip(found.results, excess, strict=True) if over <= 0]
    rows = [*(found.results[i] for i in front), *kept_rows(found.results)]
    stored = {assignment_key(result.assignment) for result in records.results}
    records.write_cost_unit(evaluator.cost_unit)
    new: dict[str, TrialResult] = {}
    for row in rows:
        key = assignment_key(row.assignment)
        if key not in stored:
            new.setdefault(key, row)
    trials = [
        _trial(row, row.device_bytes - problem.limit_bytes, problem.space) for row in new.values()
    ]
    records.append_results(trials, tuple(new.values()), storage)
    records.write_exhaustive_counts(
        points=found.points, fitting=len(fitting), failed=len(found.failures)
    )


def _trial(result: TrialResult, excess_bytes: int, space: Space) -> FrozenTrial:
    from optuna.trial import create_trial

    from planner.search.trial_records import point_distributions

    return create_trial(
        values=list(result.objectives),
        params=dict(result.assignment),
        distributions=point_distributions(result.assignment, space),
        user_attrs=user_attributes(result),
        constraints={CONSTRAINT: float(excess_bytes)},
    )
