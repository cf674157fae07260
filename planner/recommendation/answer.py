"""The answer to a request: the entries of the front, the recommended one, and the JSON object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from planner.plan import Plan
from planner.recommendation.baselines import Baseline
from planner.recommendation.request import Request
from planner.recommendation.run_totals import RunTotals, run_totals
from planner.scoring.accuracy_prior import AccuracyEstimate
from planner.scoring.backbone_facts import OtherBackbone, other_backbone
from planner.scoring.backbone_level import BackboneLevel
from planner.search.problem import SGD_STEP, TrialResult
from profiler.records import Report
from profiler.workload import Candidate

if TYPE_CHECKING:
    from planner.recommendation.probe_front import ProbeOutcome
    from planner.training.validation import Validation
    from planner.training_free.options import TrainingFreeOption

RECOMMENDATION_SCHEMA = "budgetplan.recommendation/1"

EQUAL_SCORES = SGD_STEP / 2
"""Accuracy scores (log-odds) that differ by less count as equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontEntry:
    """One candidate of the answer.

    Attributes:
        plan: content of the plan file.
        file: path of the plan file.
        result: the candidate's trial in the search, with the numbers of its replay.
        expected: accuracy expected after a full training, without a value if no published number
            allows one.
        validation: the real run; None if there was none.
        host_prediction: replay for the CPU, if the real run was on a CPU in place of the GPU.
    """

    plan: Plan
    file: Path
    result: TrialResult
    expected: AccuracyEstimate
    validation: Validation | None = None
    host_prediction: Report | None = None


AlternativeName = Literal[
    "fastest", "most accurate", "smallest", "safest", "backbone", "full", "paper", "smaller images"
]
"""Name of a row beside the recommended one (``Alternative.name``)."""

DecidedBy = Literal["published", "probe", "learned", "cost"]
"""The evidence that distinguishes the recommended entry from the others: published comparisons of
methods, short trainings here, or nothing but cost. No answer has ``learned`` (``EstimateKind``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """A named row beside the recommended one.

    Attributes:
        name: property in which the row is best, ``backbone`` for the best row of another backbone,
            ``full`` for training every parameter, ``paper`` for the default of arXiv 2607.02158, or
            ``smaller images``.
        index: index into ``front``; None if the row does not fit, and for smaller images.
        note: one clause: the difference to other rows, or the memory that it needs.
    """

    name: AlternativeName
    index: int | None
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The answer.

    Attributes:
        request: the request.
        study: name of the study.
        storage: SQLAlchemy URL of the study.
        trials: number of trials in the study.
        seconds: duration of all stages.
        front: candidates that passed all checks, the highest accuracy score first.
        recommended: index of the recommended entry in ``front``.
        reason: one sentence: why this entry is recommended.
        why: the cause in ``reason``, without the configuration and its cost.
        baselines: the paper's defaults, by name.
        decided_by: the evidence that distinguishes the recommended entry.
        ties: indices of the other entries that are expected to be as accurate as the recommended
            one.
        alternatives: named rows of ``front``, and those that do not fit.
        dropped: one sentence per candidate that exceeded the budget or failed in a later stage, and
            per method that is not expected to be accurate enough.
        notes: one sentence per fact that limits or explains the answer (``notes.py``).
        probe: short trainings of the front; None if none were requested.
        training_free: published models that need no fine-tuning; None if they were not listed.
        recommended_training_free: index of the one that wins over the recommended plan; None if
            none may or does.
    """

    request: Request
    study: str
    storage: str
    trials: int
    seconds: float
    front: tuple[FrontEntry, ...]
    recommended: int
    reason: str
    baselines: Mapping[str, Baseline]
    decided_by: DecidedBy = "cost"
    why: str = ""
    ties: tuple[int, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    probe: ProbeOutcome | None = None
    training_free: tuple[TrainingFreeOption, ...] | None = None
    recommended_training_free: int | None = None

    @property
    def recommended_file(self) -> Path:
        """File of the recommended plan: of the option that wins, else of the front's entry."""
        if self.training_free is not None and self.recommended_training_free is not None:
            file = self.training_free[self.recommended_training_free].plan_file
            assert file is not None, "an option that fits has a plan file"
            return file
        return self.front[self.recommended].file

    def weights_of(self, entry: FrontEntry) -> Path | None:
        """Return the weights file that the question named for the backbone of an entry."""
        return self.request.of_backbone(entry.plan.candidate.workload.model).run.weights

    @property
    def expected_order(self) -> list[int]:
        """Rank of each entry by its accuracy score, 1 for the best and for all equal to it."""
        scores = [entry.result.score for entry in self.front]
        return [1 + sum(other > score + EQUAL_SCORES for other in scores) for score in scores]

    @property
    def totals(self) -> list[RunTotals | None]:
        """Duration and energy of the whole training of each entry."""
        return [run_totals(entry.plan, self.request) for entry in self.front]

    @property
    def backbone_levels(self) -> Mapping[str, BackboneLevel]:
        """The expected level of each backbone of the question, the recommended one first."""
        return self.request.backbone_levels

    @property
    def other_backbone(self) -> OtherBackbone | None:
        """A backbone that is expected to be better than the only one of the question.

        None if its weights are from a file, because their accuracy is not known.
        """
        request = self.request
        if request.others or not request.trains_pretrained or request.run.weights is not None:
            return None
        return other_backbone(request.space.base.model, budget_bytes=request.budget_bytes)

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``recommend --json`` prints."""
        other = self.other_backbone
        return {
            "schema": RECOMMENDATION_SCHEMA,
            "budget_bytes": self.request.budget_bytes,
            "device": self.front[0].plan.prediction.to_json()["device"],
            "study": self.study,
            "storage": self.storage,
            "trials": self.trials,
            "seconds": self.seconds,
            "front": [entry.plan.to_json() for entry in self.front],
            "totals": [None if each is None else asdict(each) for each in self.totals],
            "plan_files": [str(entry.file) for entry in self.front],
            "recommended": self.recommended,
            "recommended_plan_file": str(self.recommended_file),
            "expected_order": self.expected_order,
            "reason": self.reason,
            "decided_by": self.decided_by,
            "ties": list(self.ties),
            "alternatives": [asdict(each) for each in self.alternatives],
            "objective": self.request.objective,
            "backbones": [each.to_json() for each in self.backbone_levels.values()],
            "other_backbone": None if other is None else other.to_json(),
            "baselines": {name: b.to_json() for name, b in self.baselines.items()},
            "dropped": list(self.dropped),
            "notes": list(self.notes),
            "probe": None
            if self.probe is None
            else self.probe.to_json([e.plan.candidate.workload for e in self.front]),
            "training_free": None
            if self.training_free is None
            else [option.to_json() for option in self.training_free],
            "recommended_training_free": self.recommended_training_free,
        }


def candidate_summary(candidate: Candidate) -> str:
    """Return a candidate in a few words, such as ``lora r8, 8x4, bf16, adamw``."""
    workload = candidate.workload
    facts = [workload.method_text, workload.batch_text, workload.precision, workload.optimizer]
    if not candidate.placement.is_none:
        facts.append(f"{candidate.policy.display_name} checkpointing")
    return ", ".join(facts)
