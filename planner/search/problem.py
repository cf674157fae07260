"""The search problem: its three objectives, its constraint, and the records of its trials."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from planner.cost.step_estimate import StepEstimate
from planner.search.pareto import Direction
from planner.search.space import Assignment, Space
from profiler.devices.table import DeviceSpec
from profiler.placement import PolicyChoice
from profiler.units import DeviceBytes
from profiler.workload import Candidate, Workload

OBJECTIVES: tuple[Direction, Direction, Direction] = ("maximize", "minimize", "minimize")
"""Accuracy score, cost of ``COST_IMAGES`` images, device bytes."""

CONSTRAINT = "budget"
"""Name of the constraint in a study: device bytes minus the limit, feasible up to 0."""

COST_IMAGES = 1000
"""Training images that the cost objective is stated for, so that effective batches compare."""

CostUnit = Literal["joules", "seconds"]
"""Unit of the cost objective: joules, or seconds on a device of unknown power."""

SGD_STEP = 0.2
"""Log-odds by which SGD ranks below AdamW. The sign is published: AdamW does substantially better
on Vision Transformers and ConvNeXts (arXiv 2211.09359), and every accuracy used here was reached
with AdamW. The size is an assumption: more than the margin of a tie between methods."""


SearchedPoint = tuple[str, str]
"""Backbone and ``assignment_key``: backbones have equal assignments."""


class CostEstimator(Protocol):
    """The part of ``planner.cost.model.CostModel`` that the search uses."""

    @property
    def rates_version(self) -> str:
        """Version of the rates that seconds and joules are computed from."""

    def prepare(self, workload: Workload, on_progress: Callable[[str, float], None]) -> object:
        """Profile the family of a workload."""

    def estimate(
        self, candidate: Candidate, budget_bytes: DeviceBytes | None = None
    ) -> StepEstimate:
        """Estimate one optimizer step of a candidate; exactly if its bytes are near to a budget."""

    def stored_together(self) -> AbstractContextManager[None]:
        """Return a context in which what new estimates need is stored once, at its end."""

    def learns_in_units(self, workload: Workload) -> bool:
        """Return whether backward runs through the units."""

    def place(
        self, workload: Workload, policy: PolicyChoice, budget_bytes: DeviceBytes
    ) -> Candidate:
        """Return the workload with the placement that a policy makes within a budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchProblem:
    """A search space, a device and a limit of memory.

    Attributes:
        space: the dimensions and their values.
        device: device to plan for.
        limit_bytes: largest device bytes that are feasible, the CUDA context included: a budget
            less the margin for errors of the prediction.
        data: data set whose published accuracies order the methods.
        pretrained: whether training starts from pretrained weights.
        train_images: number of training images, fewer if classes are unequal; None if not known.
    """

    space: Space
    device: DeviceSpec
    limit_bytes: DeviceBytes
    data: str = "digits"
    pretrained: bool = True
    train_images: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain data. A study is continued only if its stored problem is equal to this."""
        return {
            "device": self.device.name,
            # the name in the studies of earlier versions, which can be continued
            "budget_bytes": self.limit_bytes,
            "data": self.data,
            "pretrained": self.pretrained,
            "train_images": self.train_images,
            "space": self.space.to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """A candidate and its composed estimate.

    Attributes:
        candidate: the workload and its placement.
        assignment: the value of each dimension of the space.
        score: relative accuracy in log-odds. It orders candidates and is not an accuracy.
        cost: joules or seconds for ``COST_IMAGES`` images (see ``SearchResult.cost_unit``).
        peak_bytes: composed peak of allocated bytes; live bytes on a CPU.
        device_bytes: composed device memory, which the budget limits.
        step_seconds: composed duration of an optimizer step; None if the speed is not known.
        energy_joules: composed energy of an optimizer step; None if the power is not known.
        reason: origin of the score, one sentence.
        level_reason: the part of ``reason`` on the level of its backbone; empty if the search has
            a single backbone.
        rates_version: version of the rates of ``cost``; empty in trials of earlier versions.
    """

    candidate: Candidate
    assignment: Assignment
    score: float
    cost: float
    peak_bytes: int
    device_bytes: DeviceBytes
    step_seconds: float | None
    energy_joules: float | None
    reason: str
    level_reason: str = ""
    rates_version: str = ""

    @property
    def point(self) -> SearchedPoint:
        """Backbone and point of its space, which name a result and which no replay changes."""
        return self.candidate.workload.model, assignment_key(self.assignment)

    @property
    def objectives(self) -> tuple[float, float, float]:
        """The values in the order of ``OBJECTIVES``."""
        return self.score, self.cost, float(self.device_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The results of a search: the trials of a study, or every point of the space.

    Attributes:
        study: name of the study.
        storage: SQLAlchemy URL of the database.
        results: one result per trial that did not fail.
        trials: number of trials or points, failed ones included.
        cost_unit: unit of ``TrialResult.cost``.
        stopped: why the search ended before the requested number of trials; None if it did not.
        failures: reason of each trial that failed.
    """

    study: str
    storage: str
    results: tuple[TrialResult, ...]
    trials: int
    cost_unit: CostUnit | None
    stopped: str | None = None
    failures: tuple[str, ...] = ()

    def fitting(self, limit_of: Callable[[Workload], DeviceBytes]) -> list[TrialResult]:
        """Return the results within the limit of their backbone, each distinct run once."""
        limits: dict[str, DeviceBytes] = {}
        for result in self.results:
            workload = result.candidate.workload
            if workload.model not in limits:
                limits[workload.model] = limit_of(workload)
        return [
            result
            for result in _distinct_runs(self.results)
            if result.device_bytes <= limits[result.candidate.workload.model]
        ]


OnTrial = Callable[[int, int], None]
"""Called with (trials done, trials in all)."""

OnProgress = Callable[[str, float], None]
"""Called with (current work, fraction done)."""


def assignment_key(assignment: Assignment) -> str:
    """Return a text that does not depend on the order of the keys."""
    return json.dumps(assignment, sort_keys=True)


def _distinct_runs(results: Sequence[TrialResult]) -> list[TrialResult]:
    """Return one result per workload and decisions.

    Two policies can make the same decisions. The result of the policy ``none`` is then kept, or
    else the earliest.
    """
    found: dict[str, TrialResult] = {}
    for result in sorted(results, key=lambda r: r.candidate.policy.name != "none"):
        run = result.candidate.to_json()
        run["placement"] = dict(result.candidate.placement.decisions)
        found.setdefault(json.dumps(run, sort_keys=True), result)
    return list(found.values())
