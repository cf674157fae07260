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

import json
import random
import sqlite3
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from planner.accuracy import relative_score
from planner.front import (
    Direction,
    HypervolumeStagnation,
    hypervolume,
    non_dominated,
    reference_point,
)
from planner.plan import versions
from planner.space import Choice, Space
from profiler.errors import BudgetplanError, InfeasibleError, InputError, UsageError
from profiler.placement import NONE, Placement
from profiler.workload import Candidate, Workload

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial, Trial

T = TypeVar("T", bound=str | int)

OBJECTIVES: tuple[Direction, Direction, Direction] = ("maximise", "minimise", "minimise")
CONSTRAINT = "budget"
LEGACY_CONSTRAINT = "constraints"  # what optuna-dashboard 0.21 reads
PROBLEM = "budgetplan.problem"
IMAGES = 1000  # the cost of a candidate is that of this many images
STUDY_FOLDER = Path("studies")
SGD_STEP = 0.1
"""By how much SGD ranks below AdamW, in log-odds. The sign is published: AdamW does substantially
better on Vision Transformers and ConvNeXts (arXiv 2211.09359), and every accuracy used here is of
AdamW. The size is assumed: less than most differences between methods."""


class Quick(Protocol):
    """What a composed prediction says of a step (``planner.cost.Quick``)."""

    @property
    def peak_bytes(self) -> int:
        """Highest live bytes."""

    @property
    def device_bytes(self) -> int:
        """What a budget is held against."""

    @property
    def step_seconds(self) -> float | None:
        """Time of an optimizer step."""

    @property
    def energy_joules(self) -> float | None:
        """Its energy."""


class Pricer(Protocol):
    """What the search asks of a cost model (``planner.cost.CostModel``)."""

    def prepare(self, workload: Workload, on_progress: Callable[[str, float], None]) -> object:
        """Profile the family of a workload."""

    def quick(self, candidate: Candidate) -> Quick:
        """Price a candidate in microseconds."""

    def learns_in_units(self, workload: Workload) -> bool:
        """Say whether backward runs through the units at all."""

    def place(self, workload: Workload, policy: str, budget_bytes: int) -> Placement:
        """Let a policy decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is searched.

    Attributes:
        space: the choices.
        device: what is planned for.
        budget_bytes: of device memory.
        data: data set, for the accuracy that is published of it.
        pretrained: whether the backbone has its weights.
        train_images: size of the training set, where known.
    """

    space: Space
    device: str
    budget_bytes: int
    data: str = "digits"
    pretrained: bool = True
    train_images: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what makes two studies comparable."""
        return {
            "device": self.device,
            "budget_bytes": self.budget_bytes,
            "data": self.data,
            "pretrained": self.pretrained,
            "train_images": self.train_images,
            "space": self.space.to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One trial.

    Attributes:
        candidate: what was evaluated.
        answers: the choices that lead to it.
        score: relative accuracy, an ordering only.
        cost: joules for 1000 images, or seconds (see ``SearchResult.cost_unit``).
        peak_bytes: composed.
        device_bytes: composed.
        step_seconds: composed, of an optimizer step.
        energy_joules: likewise.
        reason: how the score came about.
    """

    candidate: Candidate
    answers: dict[str, Any]
    score: float
    cost: float
    peak_bytes: int
    device_bytes: int
    step_seconds: float | None
    energy_joules: float | None
    reason: str

    @property
    def objectives(self) -> tuple[float, float, float]:
        """The values, in the order of ``OBJECTIVES``."""
        return self.score, self.cost, float(self.device_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """What a search found.

    Attributes:
        study: its name.
        storage: the URL it is kept at.
        evaluations: all trials that could be evaluated.
        trials: how many there are, failed ones included.
        cost_unit: ``joules`` or ``seconds``, of 1000 images.
        stopped: why it ended before the number of trials asked for, or None.
    """

    study: str
    storage: str
    evaluations: tuple[Evaluation, ...]
    trials: int
    cost_unit: str
    stopped: str | None = None

    def front(self, budget_bytes: int) -> list[Evaluation]:
        """Return the non-dominated evaluations that fit, each candidate once."""
        distinct = _distinct(self.evaluations)
        chosen = non_dominated(
            [e.objectives for e in distinct],
            directions=OBJECTIVES,
            violations=[e.device_bytes - budget_bytes for e in distinct],
        )
        return [distinct[i] for i in chosen]


OnTrial = Callable[[int, int], None]
OnProgress = Callable[[str, float], None]


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
    study = _open(problem, study_name, url)
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


def default_storage(study_name: str) -> str:
    """Return the URL of ``studies/NAME.db`` in the current directory.

    Raises:
        UsageError: the name cannot be a file name.
    """
    if not study_name or any(c in study_name for c in "/\\\0") or study_name.startswith("."):
        raise UsageError(f"a study's name must be usable as a file name, got {study_name!r}")
    return f"sqlite:///{STUDY_FOLDER / study_name}.db"


def newest_storage() -> str:
    """Return the URL of the newest file in ``studies/``.

    Raises:
        InputError: there is none.
    """
    files = sorted(STUDY_FOLDER.glob("*.db"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise InputError(f"there is no study in {STUDY_FOLDER}/; name one with --storage")
    return f"sqlite:///{files[-1]}"


def serve_dashboard(
    url: str, *, host: str, port: int, on_ready: Callable[[], None] = lambda: None
) -> None:
    """Show a storage in a browser until interrupted.

    Args:
        url: of the storage.
        host: to listen at.
        port: likewise.
        on_ready: called when the storage is open.

    Raises:
        InputError: the storage cannot be used.
        UsageError: the address is taken.
    """
    import optuna
    from optuna_dashboard import run_server
    from sqlalchemy.exc import SQLAlchemyError

    path = sqlite_path(url)
    if path is not None and not path.exists():
        raise InputError(f"{path} does not exist; `budgetplan recommend` makes studies")
    _check_file(url)
    try:
        storage = optuna.storages.get_storage(url)
    except (SQLAlchemyError, ImportError, RuntimeError, ValueError) as error:
        raise _unusable(url, error) from error
    on_ready()
    try:
        run_server(storage, host=host, port=port)
    except OSError as error:
        raise UsageError(f"cannot serve at {host}:{port} ({error.strerror or error})") from error


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
        self._seen = {_key(t.params) for t in stored}
        # a resumed run must not draw the first run's random points again
        self._rng = random.Random(f"{seed}/{self.trials}")
        self._sampler = _sampler(stored, seed=seed + self.trials)
        self._prepared: set[Workload] = set()
        self._volumes: list[float] = []
        self._unseen: list[dict[str, Any]] | None = None
        for answers in problem.space.baselines():
            if _key(answers) not in self._seen:
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
        if _key(trial.params) in self._seen:
            from optuna.trial import TrialState

            self._sampler.tell(trial, state=TrialState.FAIL)
            self._sampler.enqueue_trial(self._next_unseen())
            trial = self._sampler.ask()
            choice = self.problem.space.draw(_Suggest(trial))
        self._seen.add(_key(trial.params))
        if self._unseen is not None or len(self._seen) >= 2 * len(self.problem.space.methods):
            self._drop_seen()
        return trial, choice

    def _drop_seen(self) -> None:
        if self._unseen is None:
            self._unseen = list(self.problem.space.choices())
            self._rng.shuffle(self._unseen)
        while self._unseen and _key(self._unseen[-1]) in self._seen:
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
        candidate = Candidate(workload=load, placement=self._place(choice))
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

    def _place(self, choice: Choice) -> Placement:
        if not self.cost.learns_in_units(choice.workload):
            return NONE  # without a backward through the units there is nothing to recompute
        budget = self.problem.budget_bytes
        try:
            placed = self.cost.place(choice.workload, choice.checkpoint, budget)
        except InfeasibleError:
            # nothing fits, which the constraint will say of the placement that stores least
            placed = self.cost.place(choice.workload, "static", budget)
        # a policy that recomputes nothing is the policy none
        return NONE if placed.is_none else placed

    def _cost(self, quick: Quick, load: Workload) -> float:
        if not self.cost_unit:
            self.cost_unit = "seconds" if quick.energy_joules is None else "joules"
            self.study.set_user_attr("cost_unit", self.cost_unit)
            _name_objectives(self.study, self.cost_unit)
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
        from profiler.predict import count_parameters

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


def _key(answers: dict[str, Any]) -> str:
    return json.dumps(answers, sort_keys=True)


def _distinct(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Keep each run once: policies may agree, and then the plainest name is kept."""
    found: dict[str, Evaluation] = {}
    for evaluation in sorted(evaluations, key=lambda e: e.candidate.placement.policy != "none"):
        run = evaluation.candidate.to_json()
        run["placement"] = dict(evaluation.candidate.placement.decisions)
        found.setdefault(_key(run), evaluation)
    return list(found.values())


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


def _open(problem: Problem, name: str, url: str) -> Study:
    """Open the durable study, or make it.

    Raises:
        InputError: the storage cannot be used, or the study is of another problem.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    _check_file(url)
    try:
        study = optuna.create_study(
            study_name=name,
            storage=_storage(url),
            directions=[d.replace("ise", "ize") for d in OBJECTIVES],  # type: ignore[misc]
            load_if_exists=True,
        )
        known = study.user_attrs
        if not known and not study.get_trials(deepcopy=False):
            _describe(study, problem)
            return study
    except (SQLAlchemyError, ImportError, OSError, RuntimeError, ValueError) as error:
        raise _unusable(url, error) from error
    except optuna.exceptions.OptunaError as error:
        raise _unusable(url, error) from error
    _check_same(problem, known.get(PROBLEM), name)
    return study


class _Unhurried(sqlite3.Connection):
    """Leaves it to the system when to write to the disk.

    To wait for the disk takes longer than a trial. A process that is killed loses nothing by it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execute("PRAGMA synchronous=OFF")


def _storage(url: str) -> RDBStorage | str:
    from optuna.storages import RDBStorage

    if sqlite_path(url) is None:
        return url
    return RDBStorage(url, engine_kwargs={"connect_args": {"factory": _Unhurried}})


def _unusable(url: str, error: Exception) -> InputError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return InputError(f"the study storage {_without_password(url)} cannot be used ({reason[0]})")


def _name_objectives(study: Study, cost_unit: str) -> None:
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(
            ["accuracy score", f"{cost_unit} for {IMAGES} images", "device bytes"]
        )


def _describe(study: Study, problem: Problem) -> None:
    # one attribute decides whether a study can go on; the others are for people
    study.set_user_attr("model", problem.space.base.model)
    study.set_user_attr("budget_bytes", problem.budget_bytes)
    study.set_user_attr("device", problem.device)
    study.set_user_attr("versions", versions())
    study.set_user_attr(PROBLEM, problem.to_json())


def _check_same(problem: Problem, stored: object, name: str) -> None:
    if not isinstance(stored, dict):
        raise InputError(f"study {name!r} is not one of budgetplan's; use another --study")
    wanted = json.loads(json.dumps(problem.to_json()))
    if stored == wanted:
        return
    for key in wanted:
        if stored.get(key) != wanted[key] and key != "space":
            raise InputError(
                f"study {name!r} is of another problem: its {key.replace('_', ' ')} is "
                f"{stored.get(key)!r}, not {wanted[key]!r}; use another --study"
            )
    space = stored.get("space")
    changed = next(
        (k for k, v in wanted["space"].items() if not isinstance(space, dict) or space.get(k) != v),
        "space",
    )
    raise InputError(
        f"study {name!r} is of another problem: its {changed.replace('_', ' ')} differ; "
        "use the options it was started with, or another --study"
    )


def sqlite_path(url: str) -> Path | None:
    """Return the file of an SQLite URL, or None for another storage."""
    scheme, _, rest = url.partition(":///")
    if not scheme.startswith("sqlite") or not rest:
        return None
    return Path(rest.partition("?")[0])


def _check_file(url: str) -> None:
    """Refuse a file that is no database of Optuna's, and make the folder of a new one."""
    if "://" not in url:
        raise InputError(f"{url!r} is not a storage URL; write it as sqlite:///studies/NAME.db")
    path = sqlite_path(url)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.stat().st_size == 0:
            return
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master")}
    except (OSError, sqlite3.Error) as error:
        raise InputError(f"{path} is not a study database that can be read ({error})") from error
    if "studies" not in tables or "trials" not in tables:
        raise InputError(f"{path} is an SQLite file, but holds no Optuna studies; name another")


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    user, at, host = rest.rpartition("@")
    if not at:
        return url
    return f"{scheme}{separator}{user.partition(':')[0]}@{host}"
