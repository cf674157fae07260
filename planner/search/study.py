"""The search: Optuna proposes points, the cost model estimates them, the study keeps the trials.

    search            evaluates every point, or continues a study to a number of trials
    exhaustive.py     evaluates every point of a small space
    sampling.py       proposes points, each once
    evaluation.py     turns a point into a candidate with its estimate
    storage.py        opens the durable study and checks that it belongs to the same problem
    backends.py       connects to databases, journals and proxies
    run_queue.py      the queue of real runs beside a study
    study_lock.py     lets one process at a time work on a study
    storage_url.py    storage URLs without their passwords
    insert_trials.py  inserts many trials at once
    trial_records.py  appends finished trials to the study and reads them back

A search has three objectives: an accuracy score (maximized; it orders candidates and is not an
accuracy), the energy of 1000 training images, or their time on a device of unknown power
(minimized), and device memory (minimized). The budget is a constraint of every trial and not a
penalty. The sampler is Optuna's TPE (``sampling.default_sampler``).

The sampler works on a study in memory. Each finished trial is then appended to the durable study in
one call, so that an interrupted search leaves no unfinished trial behind. Several processes may
search one study: each point is proposed, evaluated and appended under the study's lock, after the
trials of the other processes have been read.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from planner.search.backends import write_ahead
from planner.search.evaluation import PointEvaluator
from planner.search.exhaustive import ExhaustiveResults, KeptRows, evaluate_all, store_kept
from planner.search.pareto import (
    HypervolumeStagnation,
    hypervolume,
    non_dominated,
    reference_point,
)
from planner.search.problem import (
    OBJECTIVES,
    CostEstimator,
    OnProgress,
    OnTrial,
    SearchProblem,
    SearchResult,
    TrialResult,
)
from planner.search.sampling import PointSampler
from planner.search.storage import default_storage, open_study, storage_errors
from planner.search.storage_url import mask_url
from planner.search.study_lock import StudyLock, check_storage, opened_storage
from planner.search.trial_records import TrialRecords
from profiler.errors import BudgetplanError, InfeasibleError, check_whole_number

DEFAULT_TRIALS = 200
"""Trials of the sampler if the space is too large to evaluate every point."""


def search(
    problem: SearchProblem,
    cost: CostEstimator,
    *,
    trials: int | None,
    seed: int,
    study_name: str,
    storage: str | None = None,
    kept_rows: KeptRows = lambda results: (),
    stop: HypervolumeStagnation | None = None,
    on_trial: OnTrial = lambda done, total: None,
    on_profile: OnProgress = lambda text, fraction: None,
) -> SearchResult:
    """Search until the study has the requested number of trials; an existing study is continued.

    Args:
        problem: space, device and budget.
        cost: estimates the candidates.
        trials: number of trials of the sampler, those of earlier runs included; None to evaluate
            every point if that is quick, and else ``DEFAULT_TRIALS``.
        seed: seed of the sampler.
        study_name: name of the study in the storage.
        storage: SQLAlchemy URL; None for ``studies/NAME.db``.
        kept_rows: selects results that a study of every point keeps beside the front.
        stop: rule that ends the search early; None for no such rule.
        on_trial: called after each trial with (trials done, trials requested).
        on_profile: called with (workload being profiled, fraction done).

    Raises:
        InputError: the storage cannot be used, or its study belongs to another problem.
        InfeasibleError: not even the placement that stores least can be made.
    """
    if trials is not None:
        check_whole_number("trials", trials, least=1)
    url = storage or default_storage(study_name)
    check_storage(url)
    with (
        closing(StudyLock(url, study_name)) as lock,
        opened_storage(url, study_name, lock) as database,
    ):
        with lock.held():
            study = open_study(problem, study_name, url, database)
            with storage_errors(url):
                write_ahead(database, url)
            records = TrialRecords(study, problem.space, url=url, rates_version=cost.rates_version)
            sampler = PointSampler(problem.space, records.stored, seed=seed)
        evaluator = PointEvaluator(problem, cost, on_profile, cost_unit=records.cost_unit)
        if trials is None:
            found = evaluate_all(evaluator, on_trial=on_trial)
            if found is not None:
                with lock.held():
                    records.read_new()
                    store_kept(records, database, evaluator, found, kept_rows)
                return _all_points(study_name, url, evaluator, found)
            trials = DEFAULT_TRIALS
        growth, stopped = _HypervolumeHistory(problem), None
        while stopped is None:
            with lock.held():
                sampler.add_stored(records.read_new())
                if records.count < trials and not sampler.is_exhausted:
                    _run_trial(sampler, evaluator, records)
                    on_trial(records.count, trials)
            if sampler.is_exhausted:
                stopped = "every point of the space was evaluated"
            elif records.count >= trials:
                break
            elif stop is not None and stop.should_stop(growth.after_each(records.results)):
                stopped = f"the front did not grow in {stop.window} trials"
    return SearchResult(
        study=study_name,
        storage=mask_url(url),
        results=tuple(records.results),
        failures=tuple(records.failures),
        trials=records.count,
        cost_unit=evaluator.cost_unit,
        stopped=stopped,
    )


def _all_points(
    study_name: str, url: str, evaluator: PointEvaluator, found: ExhaustiveResults
) -> SearchResult:
    return SearchResult(
        study=study_name,
        storage=mask_url(url),
        results=found.results,
        failures=found.failures,
        trials=found.points,
        cost_unit=evaluator.cost_unit,
    )


def _run_trial(sampler: PointSampler, evaluator: PointEvaluator, records: TrialRecords) -> None:
    """Evaluate the next point and append its trial; a refused point becomes a failed trial."""
    trial, point = sampler.propose()
    try:
        result = evaluator.evaluate(point, dict(trial.params))
    except InfeasibleError:
        raise
    except BudgetplanError as error:
        failure = records.failure(error)
        records.append_failure(sampler.fail(trial, failure), failure)
    else:
        records.write_cost_unit(evaluator.cost_unit)
        excess_bytes = result.device_bytes - evaluator.problem.limit_bytes
        records.append_result(sampler.complete(trial, result, excess_bytes), result)


class _HypervolumeHistory:
    """The hypervolume of the feasible front after each trial."""

    def __init__(self, problem: SearchProblem) -> None:
        self._limit_bytes = problem.limit_bytes
        self._starting_points = len(problem.space.starting_points())
        self._volumes: list[float] = []

    def after_each(self, results: Sequence[TrialResult]) -> list[float]:
        """Return [trials - starting points + 1] volumes; none before the starting points.

        The starting points fix the reference point, so that all volumes are comparable.
        """
        first = self._starting_points
        if len(results) < first:
            return []
        points = [result.objectives for result in results]
        corner = reference_point(points[:first], directions=OBJECTIVES)
        for end in range(first + len(self._volumes), len(results) + 1):
            excess = [result.device_bytes - self._limit_bytes for result in results[:end]]
            front = non_dominated(points[:end], directions=OBJECTIVES, violations=excess)
            best = [points[i] for i in front]
            self._volumes.append(hypervolume(best, reference=corner, directions=OBJECTIVES))
        return self._volumes
