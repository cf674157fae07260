"""The search problem: objectives, constraint, and what evaluates a point."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from planner.search.pareto import (
    Direction,
    non_dominated,
)
from planner.search.space import Space
from profiler.workload import Candidate, Workload

if TYPE_CHECKING:
    pass

OBJECTIVES: tuple[Direction, Direction, Direction] = ("maximise", "minimise", "minimise")

CONSTRAINT = "budget"

IMAGES = 1000  # the cost of a candidate is that of this many images

SGD_STEP = 0.1
"""By how much SGD ranks below AdamW, in log-odds. The sign is published: AdamW does substantially
better on Vision Transformers and ConvNeXts (arXiv 2211.09359), and every accuracy used here is of
AdamW. The size is assumed: less than most differences between methods."""


class TrialEstimate(Protocol):
    """What a composed prediction says of a step (``planner.cost.step_estimate.Quick``)."""

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
    """What the search asks of a cost model (``planner.cost.model.CostModel``)."""

    def prepare(self, workload: Workload, on_progress: Callable[[str, float], None]) -> object:
        """Profile the family of a workload."""

    def quick(self, candidate: Candidate) -> TrialEstimate:
        """Price a candidate in microseconds."""

    def learns_in_units(self, workload: Workload) -> bool:
        """Say whether backward runs through the units at all."""

    def place(self, workload: Workload, policy: str, budget_bytes: int) -> Candidate:
        """Let a policy decide the placement."""


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


def point_key(answers: dict[str, Any]) -> str:
    return json.dumps(answers, sort_keys=True)


def _distinct(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Keep each run once: policies may agree, and then the plainest name is kept."""
    found: dict[str, Evaluation] = {}
    for evaluation in sorted(evaluations, key=lambda e: e.candidate.policy.name != "none"):
        run = evaluation.candidate.to_json()
        run["placement"] = dict(evaluation.candidate.placement.decisions)
        found.setdefault(point_key(run), evaluation)
    return list(found.values())
