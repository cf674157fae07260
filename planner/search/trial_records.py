"""The trials of a durable study: appends finished ones and reads stored ones."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, cast

from planner.search.problem import COST_IMAGES, CostUnit, TrialResult
from profiler.errors import InputError
from profiler.units import DeviceBytes
from profiler.workload import Candidate

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

LEGACY_CONSTRAINT = "constraints"
"""System attribute with the constraints in Optuna 4; optuna-dashboard 0.21 reads no other."""

COST_UNIT = "cost_unit"
"""User attribute of a study with the unit of the cost objective."""


class TrialRecords:
    """A durable study and the results of its trials.

    Attributes:
        count: number of stored trials, failed ones included.
        results: one result per trial that did not fail, oldest first.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        stored = self.stored_trials()
        self.count = len(stored)
        self.results = [result_of(trial) for trial in stored if trial.values]

    def stored_trials(self) -> list[FrozenTrial]:
        """Return all trials of the study, oldest first."""
        return self._study.get_trials(deepcopy=False)

    @property
    def cost_unit(self) -> CostUnit | None:
        """Unit of the cost objective; None before the first trial."""
        return cast("CostUnit | None", self._study.user_attrs.get(COST_UNIT))

    def write_cost_unit(self, unit: CostUnit | None) -> None:
        """Store the unit and name the objectives after it, unless they are stored already."""
        if unit is None or self.results:
            return
        from optuna.exceptions import ExperimentalWarning

        self._study.set_user_attr(COST_UNIT, unit)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self._study.set_metric_names(
                ["accuracy score", f"{unit} for {COST_IMAGES} images", "device bytes"]
            )

    def append_result(self, trial: FrozenTrial, result: TrialResult) -> None:
        """Append a completed trial and its result."""
        self.append(trial)
        self.results.append(result)

    def append(self, trial: FrozenTrial) -> None:
        """Append a finished trial in one call: an interruption leaves all of it or nothing."""
        from optuna.trial import create_trial

        constraints = dict(trial.constraints) or None
        legacy = {LEGACY_CONSTRAINT: list(constraints.values())} if constraints else None
        self._study.add_trial(
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
        self.count += 1


def user_attributes(result: TrialResult) -> dict[str, Any]:
    """Return the user attributes of a trial: all of a result that Optuna itself does not store."""
    return {
        "candidate": result.candidate.to_json(),
        "peak_bytes": result.peak_bytes,
        "device_bytes": result.device_bytes,
        "step_seconds": result.step_seconds,
        "energy_joules": result.energy_joules,
        "reason": result.reason,
    }


def result_of(trial: FrozenTrial) -> TrialResult:
    """Read a stored trial.

    Raises:
        InputError: the trial was not written by budgetplan.
    """
    attributes = trial.user_attrs
    try:
        score, cost, _ = trial.values
        return TrialResult(
            candidate=Candidate.from_json(attributes["candidate"]),
            assignment=dict(trial.params),
            score=score,
            cost=cost,
            peak_bytes=int(attributes["peak_bytes"]),
            device_bytes=DeviceBytes(int(attributes["device_bytes"])),
            step_seconds=attributes["step_seconds"],
            energy_joules=attributes["energy_joules"],
            reason=str(attributes["reason"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"trial {trial.number} of the study was not written by budgetplan ({error!r}); "
            "use another --study"
        ) from error
