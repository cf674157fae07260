"""The search, and the one door to Optuna.

    Problem      what is searched: a space, a device, a budget, the data
    search       run it: returns every evaluation, and the front of those that fit
    Evaluation   one trial: a candidate, what it needs and costs, how far it breaks the budget

Three objectives: accuracy up (a relative score, an ordering only), energy for 1000 images down
(or their time, on a device whose power is not known; the study says which), device memory down.
The budget is a constraint of every trial, never a penalty. The sampler is Optuna's TPE, which at
a few hundred trials of this kind is as good as NSGA-II and 200 times faster than GPSampler.

The sampler works on a study in memory, and every finished trial is copied into the durable one in
one call: an interrupted search leaves no half-written trial and no waiting one. The first trials
are the baselines of the space, so a search never ends worse than they are. A proposal that was
evaluated before is replaced by a random point that was not; when none is left the search ends.

optuna-dashboard 0.21 knows only the constraint attribute of Optuna 4, so that is written as well.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from planner.scoring.accuracy_prior import relative_score
from planner.search.pareto import (
    HypervolumeStagnation,
    hypervolume,
    non_dominated,
    reference_point,
)
from planner.search.problem import (
    CONSTRAINT,
    IMAGES,
    OBJECTIVES,
    SGD_STEP,
    Evaluation,
    OnProgress,
    OnTrial,
    Pricer,
    Problem,
    SearchResult,
    TrialEstimate,
    point_key,
)
from planner.search.space import Choice
from planner.search.storage import LEGACY_CONSTRAINT, default_storage, name_objectives, open_study
from profiler.errors import BudgetplanError, InfeasibleError, InputError, UsageError
from profiler.workload import Candidate, Workload

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

T = TypeVar("T", bound=str | int)


def search(
    problem: Problem,
    cost: Pricer,
    *,
    trials: int,
    seed: int,
    study_name: str,
    storage: str | None = None,
    stop: HypervolumeStagnation | None = None,
    on_trial: OnTrial = lambda done, total: None,
    on_profile: OnProgress = lambda text, fraction: None,
) -> SearchResult:
    """Search a problem, or go on with a study of it, until it has so many trials.

    Args:
        problem: what to search.
        cost: prices candidates.
        trials: how many there shall be in all, those of earlier runs included.
        seed: of the sampler.
        study_name: in the storage.
        storage: an SQLAlchemy URL; ``studies/NAME.db`` when None.
        stop: ends the search early when the front no longer grows.
        on_trial: called with (trials there are, trials asked for).
        on_profile: called with (what is being profiled, fraction done).

    Raises:
        InputError: the storage cannot be used, or its study is of another problem.
    """
    if trials < 1:
        raise UsageError(f"trials must be a positive integer, got {trials!r}")
    url = storage or default_storage(study_name)
    study = open_study(problem, study_name, url)
    run = _Run(problem, cost, study, seed=seed, on_profile=on_profile)
    stopped = None
    while run.trials < trials and stopped is None:
        run.one_trial()
        on_trial(run.trials, trials)
        if run.is_exhausted:
            stopped = "every point of the space was evaluated"
        elif stop is not None and stop.should_stop(run.hypervolumes()):
            stopped = f"the front did not grow in {stop.window} trials"
    return SearchResult(
        study=study_name,
        storage=url,
        evaluations=tuple(run.evaluations),
        trials=run.trials,
        cost_unit=run.cost_unit,
        stopped=stopped,
    )


# ---- one run -------------------------------------------------------------------------------------


class _Run:
    """The state of a search: what was evaluated, and the sampler."""

    def __init__(
        self, problem: Problem, cost: Pricer, study: Study, *, seed: int, on_profile: OnProgress
    ) -> None:
        self.problem = problem
        self.cost = cost
        self.study = study
        self.on_profile = on_profile
        stored = study.get_trials(deepcopy=False)
        self.trials = len(stored)
        self.evaluations = [_evaluation_of(trial) for trial in stored if trial.values]
        self.cost_unit = str(study.user_attrs.get("cost_unit", ""))
        self._seen = {point_key(t.params) for t in stored}
        # a resumed run must not draw the first run's random points again
        self._rng = random.Random(f"{seed}/{self.trials}")
        self._sampler = _sampler(stored, seed=seed + self.trials)
        self._prepared: set[Workload] = set()
        self._volumes: list[float] = []
        self._unseen: list[dict[str, Any]] | None = None
        for answers in problem.space.baselines():
            if point_key(answers) not in self._seen:
                self._sampler.enqueue_trial(answers, skip_if_exists=True)

    def one_trial(self) -> None:
        """Evaluate the next point and store it."""
        trial, choice = self._propose()
        try:
            evaluation = self._evaluate(choice, dict(trial.params))
        except InfeasibleError:
            raise
        except BudgetplanError as error:
            self._store_failure(trial, str(error))
            return
        self._store(trial, evaluation)

    @property
    def is_exhausted(self) -> bool:
        """Whether every point was evaluated."""
        return self._unseen is not None and not self._unseen

    def hypervolumes(self) -> list[float]:
        """Return the volume of the front after each evaluation, from the baselines on."""
        start = 2 * len(self.problem.space.methods)
        if len(self.evaluations) < start:
            return []
        rows = [(e.objectives, e.device_bytes) for e in self.evaluations]
        corner = reference_point([o for o, _ in rows[:start]], directions=OBJECTIVES)
        for end in range(start + len(self._volumes), len(rows) + 1):
            fitting = [o for o, need in rows[:end] if need <= self.problem.budget_bytes]
            best = [fitting[i] for i in non_dominated(fitting, directions=OBJECTIVES)]
            self._volumes.append(hypervolume(best, reference=corner, directions=OBJECTIVES))
        return self._volumes

    def _propose(self) -> tuple[Trial, Choice]:
        trial = self._sampler.ask()
        choice = self.problem.space.draw(_Suggest(trial))
        if point_key(trial.params) in self._seen:
            from optuna.trial import TrialState

            self._sampler.tell(trial, state=TrialState.FAIL)
            self._sampler.enqueue_trial(self._next_unseen())
            trial = self._sampler.ask()
            choice = self.problem.space.draw(_Suggest(trial))
        self._seen.add(point_key(trial.params))
        if self._unseen is not None or len(self._seen) >= 2 * len(self.problem.space.methods):
            self._drop_seen()
        return trial, choice

    def _drop_seen(self) -> None:
        if self._unseen is None:
            self._unseen = list(self.problem.space.choices())
            self._rng.shuffle(self._unseen)
        while self._unseen and point_key(self._unseen[-1]) in self._seen:
            self._unseen.pop()

    def _next_unseen(self) -> dict[str, Any]:
        self._drop_seen()
        assert self._unseen, "an exhausted search was asked to go on"
        return self._unseen[-1]

    def _evaluate(self, choice: Choice, answers: dict[str, Any]) -> Evaluation:
        load = choice.workload
        # one image at a time: the family is the same, and equal keys are found at once
        family = load.replace(micro_batch=1, accumulation=1)
        if family not in self._prepared:
            self.cost.prepare(load, self.on_profile)
            self._prepared.add(family)
        candidate = self._place(choice)
        quick = self.cost.quick(candidate)
        score = relative_score(
            model=load.model,
            method=load.method,
            data=self.problem.data,
            rank=load.rank,
            pretrained=self.problem.pretrained,
            train_images=self.problem.train_images,
            trainable_parameters=self._trainable(load),
        )
        return Evaluation(
            candidate=candidate,
            answers=answers,
            score=score.value - (SGD_STEP if load.optimizer == "sgd" else 0.0),
            cost=self._cost(quick, load),
            peak_bytes=quick.peak_bytes,
            device_bytes=quick.device_bytes,
            step_seconds=quick.step_seconds,
            energy_joules=quick.energy_joules,
            reason=score.reason,
        )

    def _place(self, choice: Choice) -> Candidate:
        if not self.cost.learns_in_units(choice.workload):
            return Candidate(
                workload=choice.workload
            )  # without a backward through the units there is nothing to recompute
        budget = self.problem.budget_bytes
        try:
            placed = self.cost.place(choice.workload, choice.checkpoint, budget)
        except InfeasibleError:
            # nothing fits, which the constraint will say of the placement that stores least
            placed = self.cost.place(choice.workload, "static", budget)
        # a policy that recomputes nothing is the policy none
        return Candidate(workload=choice.workload) if placed.placement.is_none else placed

    def _cost(self, quick: TrialEstimate, load: Workload) -> float:
        if not self.cost_unit:
            self.cost_unit = "seconds" if quick.energy_joules is None else "joules"
            self.study.set_user_attr("cost_unit", self.cost_unit)
            name_objectives(self.study, self.cost_unit)
        spent = quick.energy_joules if self.cost_unit == "joules" else quick.step_seconds
        if spent is None:
            raise UsageError(
                f"nothing is known of the speed of {self.problem.device}; plan for a device of "
                "`budgetplan devices`"
            )
        return spent / load.effective_batch * IMAGES

    def _trainable(self, load: Workload) -> int | None:
        """Count what learns; only random weights are ordered by it."""
        if self.problem.pretrained:
            return None
        from profiler.models.parameter_count import count_parameters

        # equal for all of these, and the count is cached by workload
        plain = {"micro_batch": 1, "accumulation": 1, "precision": "fp32", "optimizer": "adamw"}
        return count_parameters(load.replace(**plain)).trainable

    def _store(self, trial: Trial, evaluation: Evaluation) -> None:
        violation = float(evaluation.device_bytes - self.problem.budget_bytes)
        trial.set_constraint(CONSTRAINT, violation)
        for name, value in _attributes(evaluation).items():
            trial.set_user_attr(name, value)
        finished = self._sampler.tell(trial, list(evaluation.objectives))
        self._copy(finished, constraints={CONSTRAINT: violation})
        self.evaluations.append(evaluation)

    def _store_failure(self, trial: Trial, reason: str) -> None:
        from optuna.trial import TrialState

        trial.set_user_attr("reason", reason)
        self._copy(self._sampler.tell(trial, state=TrialState.FAIL), constraints=None)

    def _copy(self, trial: FrozenTrial, *, constraints: dict[str, float] | None) -> None:
        from optuna.trial import create_trial

        legacy = {LEGACY_CONSTRAINT: list(constraints.values())} if constraints else None
        self.study.add_trial(
            create_trial(
                state=trial.state,
                values=trial.values,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs=trial.user_attrs,
                system_attrs=legacy,
                constraints=constraints,
            )
        )
        self.trials += 1


class _Suggest:
    """Chooses what the sampler proposes for a trial."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial

    def __call__(self, name: str, options: Sequence[T]) -> T:
        return cast("T", self._trial.suggest_categorical(name, list(options)))


def _sampler(stored: Sequence[FrozenTrial], *, seed: int) -> Study:
    """Return a study in memory that knows the stored trials."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        directions=[d.replace("ise", "ize") for d in OBJECTIVES],  # type: ignore[misc]
        sampler=optuna.samplers.TPESampler(seed=seed),
    )
    study.add_trials(stored)
    return study


# ---- what is stored ------------------------------------------------------------------------------


def _attributes(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "candidate": evaluation.candidate.to_json(),
        "peak_bytes": evaluation.peak_bytes,
        "device_bytes": evaluation.device_bytes,
        "step_seconds": evaluation.step_seconds,
        "energy_joules": evaluation.energy_joules,
        "reason": evaluation.reason,
    }


def _evaluation_of(trial: FrozenTrial) -> Evaluation:
    attributes = trial.user_attrs
    try:
        score, cost, _ = trial.values
        return Evaluation(
            candidate=Candidate.from_json(attributes["candidate"]),
            answers=dict(trial.params),
            score=score,
            cost=cost,
            peak_bytes=int(attributes["peak_bytes"]),
            device_bytes=int(attributes["device_bytes"]),
            step_seconds=attributes["step_seconds"],
            energy_joules=attributes["energy_joules"],
            reason=str(attributes["reason"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"trial {trial.number} of the study is not one of budgetplan's ({error!r}); "
            "use another --study"
        ) from error
