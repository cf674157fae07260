"""The answer to a request: entries of the front, the recommended one, and the JSON object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.plan import Plan
from planner.recommendation.baselines import Baseline
from planner.recommendation.request import Request
from planner.scoring.accuracy_prior import AccuracyEstimate
from planner.search.problem import SGD_STEP, Evaluation
from profiler.records import Report
from profiler.workload import Candidate

if TYPE_CHECKING:
    from planner.training.validation import Validation

SCHEMA = "budgetplan.recommendation/1"

EQUAL_SCORES = SGD_STEP / 2
"""Relative scores closer than that are called equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One candidate of the answer.

    Attributes:
        plan: what goes into the file.
        file: where it was written.
        evaluation: what the search said of it.
        expected: accuracy after a whole training, where published numbers allow one.
        host_prediction: the replay for the CPU, when the real run was there.
    """

    plan: Plan
    file: Path
    evaluation: Evaluation
    expected: AccuracyEstimate
    host_prediction: Report | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The answer.

    Attributes:
        request: the question.
        study: name of the study.
        storage: URL of the study.
        trials: of the search.
        seconds: the whole took.
        front: candidates that passed, from most to least accurate as expected.
        recommended: index into ``front``.
        reason: why that one, one sentence.
        baselines: the paper's defaults, by name.
        dropped: a sentence for every candidate that a later stage refused.
        notes: what the reader must know.
    """

    request: Request
    study: str
    storage: str
    trials: int
    seconds: float
    front: tuple[Entry, ...]
    recommended: int
    reason: str
    baselines: Mapping[str, Baseline]
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def expected_order(self) -> list[int]:
        """Each row's place by expected accuracy; 1 for all that equal the best."""
        scores = [entry.evaluation.score for entry in self.front]
        return [1 + sum(other > score + EQUAL_SCORES for other in scores) for score in scores]

    def to_json(self) -> dict[str, Any]:
        """Return the contract's object."""
        return {
            "schema": SCHEMA,
            "budget_bytes": self.request.budget_bytes,
            "device": self.front[0].plan.prediction.to_json()["device"],
            "study": self.study,
            "storage": self.storage,
            "trials": self.trials,
            "seconds": self.seconds,
            "front": [entry.plan.to_json() for entry in self.front],
            "plan_files": [str(entry.file) for entry in self.front],
            "recommended": self.recommended,
            "reason": self.reason,
            "baselines": {name: b.to_json() for name, b in self.baselines.items()},
            "dropped": list(self.dropped),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedCandidate:
    """A candidate on its way through the stages."""

    evaluation: Evaluation
    prediction: Report
    host_prediction: Report | None = None
    validation: Validation | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def candidate(self) -> Candidate:
        return self.evaluation.candidate


def describe(candidate: Candidate) -> str:
    """Say in a few words what a candidate runs."""
    load, placement = candidate.workload, candidate.placement
    method = load.method if load.rank is None else f"{load.method} r{load.rank}"
    text = f"{method}, {load.micro_batch}x{load.accumulation}, {load.precision}, {load.optimizer}"
    return text if placement.is_none else f"{text}, {candidate.policy.display_name} checkpointing"
