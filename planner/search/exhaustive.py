"""Evaluates every point of a small search space, without a sampler and outside the storage.

A point takes about a millisecond once its family is profiled, so a backbone's few thousand
points take seconds, and the result depends on no seed. Storing each would take longer than
evaluating it: the study gets the Pareto front, the rows of the answer and the number of the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from planner.search.evaluation import PointEvaluator
from planner.search.pareto import non_dominated
from planner.search.problem import CONSTRAINT, OBJECTIVES, OnTrial, TrialResult, assignment_key
from planner.search.space import Space
from planner.search.trial_records import TrialRecords, user_attributes
from profiler.errors import BudgetplanError, InfeasibleError

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

EXHAUSTIVE_SECONDS = 60.0
"""Longest expected processor time of an exhaustive evaluation; the sampler takes over above it. The
decision thus depends on the machine and not on its load."""

_POINTS_BEFORE_ESTIMATE = 100

_POINTS_PER_REPORT = 50

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
) -> ExhaustiveResults | None:
    """Return every point of a space; None if that is expected to take too long.

    Args:
        evaluator: evaluator of the problem.
        on_trial: called with (points done, points in all).

    Raises:
        InfeasibleError: not even the placement that stores least can be made.
    """
    space = evaluator.problem.space
    assignments = list(space.assignments())
    results, failures, seconds = list[TrialResult](), list[str](), list[float]()
    for done, assignment in enumerate(assignments, start=1):
        began = time.process_time()
        try:
            results.append(evaluator.evaluate(space.point(assignment), assignment))
        except InfeasibleError:
            raise
        except BudgetplanError as error:
            failures.append(str(error))
        seconds.append(time.process_time() - began)
        if done % _POINTS_PER_REPORT and done < len(assignments):
            continue
        on_trial(done, len(assignments))
        # The first point of a family profiles it, which the median leaves out: the sampler would
        # profile it as well.
        expected = median(seconds) * len(assignments)
        if done >= _POINTS_BEFORE_ESTIMATE and expected > EXHAUSTIVE_SECONDS:
            return None
    return ExhaustiveResults(results=tuple(results), failures=tuple(failures))


def store_kept(
    records: TrialRecords, evaluator: PointEvaluator, found: ExhaustiveResults, kept_rows: KeptRows
) -> None:
    """Append the front and the kept rows to a study, and the number of all points."""
    problem = evaluator.problem
    excess = [result.device_bytes - problem.budget_bytes for result in found.results]
    front = non_dominated(
        [result.objectives for result in found.results], directions=OBJECTIVES, violations=excess
    )
    fitting = [r for r, over in zip(found.results, excess, strict=True) if over <= 0]
    rows = [*(found.results[i] for i in front), *kept_rows(found.results)]
    stored = {assignment_key(result.assignment) for result in records.results}
    records.write_cost_unit(evaluator.cost_unit)
    for row in rows:
        key = assignment_key(row.assignment)
        if key not in stored:
            stored.add(key)
            excess_bytes = row.device_bytes - problem.budget_bytes
            records.append_result(_trial(row, excess_bytes, problem.space), row)
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
