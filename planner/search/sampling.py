"""Proposes points of a search space with Optuna's TPE sampler, each point once."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from planner.search.problem import CONSTRAINT, OBJECTIVES, TrialResult, assignment_key
from planner.search.space import Assignment, SearchPoint, Space
from planner.search.trial_records import TrialFailure, user_attributes

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, Trial


class PointSampler:
    """A TPE sampler over a study in memory that starts with the trials of the durable study.

    The first proposals are the starting points of the space, so the result of a search is never
    worse than they are. If TPE proposes a point again, it is replaced by a random point that was
    not evaluated yet.

    Args:
        space: the space to sample.
        stored: trials of the durable study, oldest first.
        seed: seed of the search. It is combined with the number of stored trials, because a
            continued search would otherwise draw the same random points again.
        sampler: sampler to use instead of TPE.
    """

    def __init__(
        self,
        space: Space,
        stored: Sequence[FrozenTrial],
        *,
        seed: int,
        sampler: BaseSampler | None = None,
    ) -> None:
        self._space = space
        self._seen = {assignment_key(trial.params) for trial in stored}
        self._random = random.Random(f"{seed}/{len(stored)}")
        self._study = _study_in_memory(stored, sampler=sampler, seed=seed + len(stored))
        self._unseen: list[Assignment] | None = None
        starting_points = space.starting_points()
        # The two points of a method are one and the same in a very small space.
        self._starting_keys = {assignment_key(assignment) for assignment in starting_points}
        for assignment in starting_points:
            if assignment_key(assignment) not in self._seen:
                self._study.enqueue_trial(assignment, skip_if_exists=True)
        self._list_unseen()

    def add_stored(self, trials: Sequence[FrozenTrial]) -> None:
        """Add trials that other processes have evaluated; their points are not proposed again."""
        if not trials:
            return
        self._study.add_trials(trials)
        self._seen |= {assignment_key(trial.params) for trial in trials}
        self._list_unseen()

    @property
    def is_exhausted(self) -> bool:
        """Whether every point was proposed. It is not known before the starting points were."""
        return self._unseen is not None and not self._unseen

    def propose(self) -> tuple[Trial, SearchPoint]:
        """Return a new trial and its point."""
        from optuna.trial import TrialState

        trial, point = self._draw()
        while assignment_key(trial.params) in self._seen:
            self._study.tell(trial, state=TrialState.FAIL)
            # Another process may have evaluated a starting point; the next one is then drawn.
            if not self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                self._study.enqueue_trial(self._next_unseen())
            trial, point = self._draw()
        self._seen.add(assignment_key(trial.params))
        self._list_unseen()
        return trial, point

    def complete(self, trial: Trial, result: TrialResult, excess_bytes: int) -> FrozenTrial:
        """Finish a trial with its result; ``excess_bytes`` is the excess over the budget."""
        trial.set_constraint(CONSTRAINT, float(excess_bytes))
        for name, value in user_attributes(result).items():
            trial.set_user_attr(name, value)
        return self._study.tell(trial, list(result.objectives))

    def fail(self, trial: Trial, failure: TrialFailure) -> FrozenTrial:
        """Finish a trial that could not be evaluated."""
        from optuna.trial import TrialState

        for name, value in user_attributes(failure).items():
            trial.set_user_attr(name, value)
        return self._study.tell(trial, state=TrialState.FAIL)

    def _draw(self) -> tuple[Trial, SearchPoint]:
        trial, space = self._study.ask(), self._space
        names = [method.name for method in space.methods]
        method = space.method(trial.suggest_categorical("method", names))
        for dimension, values in space.dimensions(method).items():
            trial.suggest_categorical(dimension, list(values))
        return trial, space.point(trial.params)

    def _next_unseen(self) -> Assignment:
        self._drop_seen()
        assert self._unseen, "propose was called after the space was exhausted"
        return self._unseen[-1]

    def _list_unseen(self) -> None:
        """List the unseen points, late: most short searches never need the list."""
        if self._unseen is not None or len(self._seen) >= len(self._starting_keys):
            self._drop_seen()

    def _drop_seen(self) -> None:
        """Drop seen points from the end of the shuffled list, so that its last one is unseen."""
        if self._unseen is None:
            self._unseen = list(self._space.assignments())
            self._random.shuffle(self._unseen)
        while self._unseen and assignment_key(self._unseen[-1]) in self._seen:
            self._unseen.pop()


def _study_in_memory(
    stored: Sequence[FrozenTrial], *, sampler: BaseSampler | None, seed: int
) -> Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        directions=list(OBJECTIVES), sampler=default_sampler(seed) if sampler is None else sampler
    )
    study.add_trials(stored)
    return study


def default_sampler(seed: int) -> BaseSampler:
    """Return the sampler of a search: TPE, with one joint density of the dimensions of a method.

    Methods have different dimensions, so it needs ``group``. With a density of its own for each
    dimension, TPE finds less than random sampling on two of four backbones (studies/samplers).
    """
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import TPESampler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(seed=seed, multivariate=True, group=True)
