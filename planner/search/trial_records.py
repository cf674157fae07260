"""The trials of a durable study: appends finished ones and reads stored ones.

A stored trial may have been edited, or may be somebody else's. ``usable_trial`` reads it as a file
of unknown origin is read, and makes it anew from the checked parts, so that no other part reaches
the sampler. Trials that cannot be used are ignored with one warning.

A failed trial has its reason and the versions that it failed with. With other versions its point is
evaluated again: a method that was refused may work after an upgrade.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any

from planner.plan import versions
from planner.search.insert_trials import insert_trials
from planner.search.problem import CONSTRAINT, COST_IMAGES, CostUnit, TrialResult
from planner.search.space import Assignment, Space
from planner.search.storage import storage_errors
from profiler.errors import (
    BudgetplanError,
    BudgetplanWarning,
    InputError,
    printable_line,
    warn_caller,
)
from profiler.json_records import ByteCount, JsonObject, NonNegativeFloat, read_record, shortened
from profiler.units import DeviceBytes
from profiler.workload import Candidate

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

LEGACY_CONSTRAINT = "constraints"
"""System attribute with the constraints in Optuna 4; optuna-dashboard 0.21 reads no other."""

COST_UNIT = "cost_unit"
"""User attribute of a study with the unit of the cost objective."""


EXHAUSTIVE = "exhaustive"
"""User attribute of a study with the numbers of points of an exhaustive evaluation."""

LARGEST_SCORE = 1e6
"""Magnitude of a score, in log-odds."""

LARGEST_COST = 1e18
"""Joules or seconds of ``COST_IMAGES`` images."""


class ForeignTrialWarning(BudgetplanWarning):
    """Trials of a study were not written by budgetplan, and were ignored."""


class OutdatedTrialWarning(BudgetplanWarning):
    """Trials of a study are of other rates or versions, and are evaluated again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialFailure:
    """A point that could not be evaluated.

    Attributes:
        reason: the error, one printable line.
        rates_version: version of the rates that it would have been computed from.
        versions: version of each package that it failed with, by name.
    """

    reason: str
    rates_version: str = ""
    versions: JsonObject = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", printable_line(self.reason))


class TrialRecords:
    """A durable study and the results of its trials.

    Args:
        study: the study.
        space: space of its problem.
        url: its storage, for error messages.
        rates_version: version of the rates that new trials are computed from. Trials of another
            version are not comparable with them, so they are ignored and evaluated again.

    Attributes:
        stored: usable trials that were stored when the study was opened, oldest first.
        count: number of usable trials, failed ones included.
        results: one result per trial that did not fail, oldest first.
        failures: reason of each trial that failed with these rates and versions, oldest first.

    Raises:
        InputError: the trials or the cost unit cannot be read.
    """

    def __init__(self, study: Study, space: Space, *, url: str, rates_version: str) -> None:
        self._study, self._space, self._url = study, space, url
        self._rates_version, self._versions = rates_version, versions()
        self._read = self._outdated = 0
        self.count = 0
        self.results: list[TrialResult] = []
        self.failures: list[str] = []
        self.stored = self.read_new()
        with storage_errors(url, study.study_name):
            unit = study.user_attrs.get(COST_UNIT)
        self._report_ignored(self._read)
        self.cost_unit = self._checked_unit(unit)

    def read_new(self) -> list[FrozenTrial]:
        """Return the usable trials that others have appended since the last call."""
        with storage_errors(self._url, self._study.study_name):
            new = self._study.get_trials(deepcopy=False)[self._read :]
        found = []
        for trial in new:
            try:
                usable, outcome = usable_trial(trial, self._space)
            except BudgetplanError:
                continue
            if self._is_outdated(outcome):
                self._outdated += 1
                continue
            found.append(usable)
            if isinstance(outcome, TrialFailure):
                self.failures.append(outcome.reason)
            else:
                self.results.append(outcome)
        self._read += len(new)
        self.count += len(found)
        return found

    def _is_outdated(self, outcome: TrialResult | TrialFailure) -> bool:
        if outcome.rates_version != self._rates_version:
            return True
        return isinstance(outcome, TrialFailure) and outcome.versions != self._versions

    def _report_ignored(self, trials: int) -> None:
        """Warn of trials that cannot be used; refuse the study if it has no other."""
        study = shortened(self._study.study_name)
        reason = "not written by budgetplan, or changed since"
        if self._outdated:
            warn_caller(
                f"{self._outdated} of {trials} trials of study {study} are of other rates or "
                "packages: another version, calibration or processor; their points are evaluated "
                "again",
                OutdatedTrialWarning,
            )
        foreign = trials - self.count - self._outdated
        if trials and foreign == trials:
            raise InputError(f"all {trials} trials of study {study} are {reason}; use another one")
        if foreign:
            warn_caller(
                f"{foreign} of {trials} trials of study {study} are {reason}; they are ignored",
                ForeignTrialWarning,
            )

    def _checked_unit(self, unit: object) -> CostUnit | None:
        """Return the unit of the cost objective; None before the first result."""
        match unit:
            case "joules" | "seconds":
                return unit
            case None if not self.results:
                return None
        raise InputError(
            f"study {shortened(self._study.study_name)} has the cost unit {shortened(unit)}, not "
            "joules or seconds; use another --study"
        )

    def write_cost_unit(self, unit: CostUnit | None) -> None:
        """Store the unit and name the objectives after it, unless they are stored already."""
        if unit is None or self.results:
            return
        from optuna.exceptions import ExperimentalWarning

        names = ["accuracy score", f"{unit} for {COST_IMAGES} images", "device bytes"]
        with storage_errors(self._url, self._study.study_name), warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self._study.set_user_attr(COST_UNIT, unit)
            self._study.set_metric_names(names)

    def write_exhaustive_counts(self, *, points: int, fitting: int, failed: int) -> None:
        """Store how many points were evaluated without a trial of their own."""
        counts = {"points": points, "fitting": fitting, "failed": failed}
        with storage_errors(self._url, self._study.study_name):
            self._study.set_user_attr(EXHAUSTIVE, counts)

    def append_result(self, trial: FrozenTrial, result: TrialResult) -> None:
        """Append a completed trial and its result."""
        self.append(trial)
        self.results.append(result)

    def append_results(
        self, trials: Sequence[FrozenTrial], results: Sequence[TrialResult], storage: BaseStorage
    ) -> None:
        """Append completed trials and their results, at once if the storage allows it.

        Args:
            trials: the trials.
            results: the result of each trial.
            storage: storage of the study.
        """
        stored = [_stored_trial(trial) for trial in trials]
        with storage_errors(self._url, self._study.study_name):
            if not insert_trials(storage, self._study.study_name, stored):
                self._study.add_trials(stored)
        self.count += len(stored)
        self._read += len(stored)
        self.results += results

    def failure(self, error: BudgetplanError) -> TrialFailure:
        """Return the failure that an error is with the rates and versions of new trials."""
        return TrialFailure(
            reason=str(error), rates_version=self._rates_version, versions=self._versions
        )

    def append_failure(self, trial: FrozenTrial, failure: TrialFailure) -> None:
        """Append a failed trial and its reason."""
        self.append(trial)
        self.failures.append(failure.reason)

    def append(self, trial: FrozenTrial) -> None:
        """Append a finished trial in one call: an interruption leaves no part."""
        with storage_errors(self._url, self._study.study_name):
            self._study.add_trial(_stored_trial(trial))
        self.count += 1
        self._read += 1


def _stored_trial(trial: FrozenTrial) -> FrozenTrial:
    """Return a trial with its constraints as Optuna 4 had them, too."""
    from optuna.trial import create_trial

    constraints = dict(trial.constraints) or None
    legacy = {LEGACY_CONSTRAINT: list(constraints.values())} if constraints else None
    return create_trial(
        state=trial.state,
        values=trial.values,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=trial.user_attrs,
        system_attrs=legacy,
        constraints=constraints,
    )


def user_attributes(outcome: TrialResult | TrialFailure) -> dict[str, Any]:
    """Return the user attributes of a trial: everything that Optuna itself does not store."""
    if isinstance(outcome, TrialFailure):
        return asdict(outcome)
    result = outcome
    return {
        "candidate": result.candidate.to_json(),
        "peak_bytes": result.peak_bytes,
        "device_bytes": result.device_bytes,
        "step_seconds": result.step_seconds,
        "energy_joules": result.energy_joules,
        "reason": result.reason,
        "rates_version": result.rates_version,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialAttributes:
    """The user attributes of a completed trial."""

    candidate: JsonObject
    peak_bytes: ByteCount
    device_bytes: ByteCount
    step_seconds: NonNegativeFloat | None
    energy_joules: NonNegativeFloat | None
    reason: str
    rates_version: str = ""


def usable_trial(
    trial: FrozenTrial, space: Space
) -> tuple[FrozenTrial, TrialResult | TrialFailure]:
    """Return a stored trial, made anew of its checked parts, and its result or its failure.

    Raises:
        InputError: the trial is not finished, is no point of the space, or was not written by
            budgetplan.
    """
    from optuna.trial import TrialState, create_trial

    if trial.state not in (TrialState.COMPLETE, TrialState.FAIL):
        raise InputError(f"trial {trial.number} is not finished")
    try:
        assignment, distributions = _checked_point(trial, space)
        if trial.state == TrialState.FAIL:
            failed = create_trial(
                state=trial.state, params=dict(assignment), distributions=distributions
            )
            part = f"trial {trial.number}"
            return failed, read_record(TrialFailure, trial.user_attrs, part=part, dropped=[])
        result = _result_of(trial, assignment)
        if result.candidate.workload != space.point(assignment).workload:
            raise InputError(f"trial {trial.number} has the workload of another point")
        excess_bytes = trial.constraints[CONSTRAINT]
        if not isfinite(excess_bytes):
            raise InputError(f"trial {trial.number} has the constraint {excess_bytes!r}")
        usable = create_trial(
            values=list(result.objectives),
            params=dict(assignment),
            distributions=distributions,
            constraints={CONSTRAINT: excess_bytes},
        )
    except BudgetplanError:
        raise
    except Exception as error:  # Optuna compares and converts any content of the database
        raise InputError(f"trial {trial.number} was not written by budgetplan") from error
    return usable, result


def _checked_point(
    trial: FrozenTrial, space: Space
) -> tuple[Assignment, dict[str, BaseDistribution]]:
    """Return the values and distributions of a trial; refuse those that the space does not have."""
    values = _choices_of(trial.params, space)
    expected = point_distributions(trial.params, space)
    if trial.distributions != expected or trial.params.keys() != expected.keys():
        raise InputError(f"trial {trial.number} is of another search space")
    for name, choices in values.items():
        if trial.params[name] not in choices:
            raise InputError(f"trial {trial.number} has {name} {shortened(trial.params[name])}")
    return dict(trial.params), expected


def _choices_of(assignment: Mapping[str, Any], space: Space) -> dict[str, Sequence[str | int]]:
    method = space.method(str(assignment["method"]))
    return {"method": tuple(m.name for m in space.methods), **space.dimensions(method)}


def point_distributions(assignment: Mapping[str, Any], space: Space) -> dict[str, BaseDistribution]:
    """Return the distribution of every dimension that a point has, by name."""
    from optuna.distributions import CategoricalDistribution

    values = _choices_of(assignment, space)
    return {name: CategoricalDistribution(tuple(choices)) for name, choices in values.items()}


def _result_of(trial: FrozenTrial, assignment: Assignment) -> TrialResult:
    part = f"trial {trial.number}"
    stored = read_record(TrialAttributes, trial.user_attrs, part=part, dropped=[])
    score, cost, device_bytes = trial.values
    if not (abs(score) <= LARGEST_SCORE and 0 <= cost <= LARGEST_COST):
        raise InputError(f"{part} has the objectives {score!r}, {cost!r}")
    if device_bytes != stored.device_bytes:
        raise InputError(f"{part} has the objective {device_bytes!r}, not its device bytes")
    return TrialResult(
        candidate=Candidate.from_json(stored.candidate, part=part),
        assignment=assignment,
        score=score,
        cost=cost,
        peak_bytes=stored.peak_bytes,
        device_bytes=DeviceBytes(stored.device_bytes),
        step_seconds=stored.step_seconds,
        energy_joules=stored.energy_joules,
        reason=stored.reason,
        rates_version=stored.rates_version,
    )
