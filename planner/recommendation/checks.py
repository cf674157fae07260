"""Records that pass between the stages that check the candidates of the front."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from planner.cost.budget import needed_bytes
from planner.search.problem import TrialResult
from profiler.prediction.lever_effects import LeverEffect
from profiler.records import Report
from profiler.workload import Candidate

if TYPE_CHECKING:
    from planner.training.validation import Validation


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedCandidate:
    """A candidate of the front with the outcome of each check so far.

    Attributes:
        result: the candidate's trial in the search.
        prediction: replay for the planned device.
        effects: predicted effects of its levers.
        rehearsal: the run on an emulated GPU; None if there was none.
        validation: the real run; None if there was none.
        host_prediction: replay for the CPU, if the real run was on a CPU in place of the GPU.
        worker: worker of another process that ran it, as text; empty without one.
    """

    result: TrialResult
    prediction: Report
    effects: tuple[LeverEffect, ...] = ()
    rehearsal: Report | None = None
    validation: Validation | None = None
    host_prediction: Report | None = None
    worker: str = ""

    @property
    def candidate(self) -> Candidate:
        """The workload and its placement."""
        return self.result.candidate

    @property
    def replayed_result(self) -> TrialResult:
        """The trial with the numbers of the replay, which the answer shows and compares."""
        prediction = self.prediction
        seconds, joules = prediction.step_seconds, prediction.energy_joules
        return replace(
            self.result,
            peak_bytes=prediction.memory.peak_bytes,
            device_bytes=needed_bytes(prediction),
            step_seconds=self.result.step_seconds if seconds is None else seconds,
            energy_joules=self.result.energy_joules if joules is None else joules,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOutcome:
    """Outcome of a stage.

    Attributes:
        passed: candidates that passed.
        dropped: one sentence per candidate that did not.
        notes: sentences on the stage for the reader of the answer.
        refused: rows of the search that a replay dropped.
    """

    passed: tuple[CheckedCandidate, ...]
    dropped: tuple[str, ...]
    notes: tuple[str, ...] = ()
    refused: tuple[TrialResult, ...] = ()
