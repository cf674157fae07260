"""Turns a point of the search space into a candidate with its composed estimate."""

from __future__ import annotations

from planner.cost.step_estimate import StepEstimate
from planner.placement.policies import STATIC
from planner.scoring.method_evidence import relative_score
from planner.search.problem import (
    COST_IMAGES,
    SGD_STEP,
    CostEstimator,
    CostUnit,
    OnProgress,
    SearchProblem,
    TrialResult,
)
from planner.search.space import Assignment, SearchPoint
from profiler.errors import InfeasibleError, UsageError
from profiler.workload import Candidate, Workload


class PointEvaluator:
    """Places and estimates the points of a search problem.

    Args:
        problem: space, device and limit of memory.
        cost: the cost model.
        on_profile: called with (workload being profiled, fraction done).
        cost_unit: unit of the cost objective in the stored trials; None if there are none. The
            first estimate then decides it: joules if the power of the device is known.
    """

    def __init__(
        self,
        problem: SearchProblem,
        cost: CostEstimator,
        on_profile: OnProgress = lambda text, fraction: None,
        *,
        cost_unit: CostUnit | None = None,
    ) -> None:
        self.problem = problem
        self.cost = cost
        self.cost_unit = cost_unit
        self._on_profile = on_profile
        self._prepared: set[Workload] = set()

    def evaluate(self, point: SearchPoint, assignment: Assignment) -> TrialResult:
        """Return the candidate at a point with its estimate and score.

        Raises:
            InfeasibleError: the policy ``static`` cannot be placed.
            BudgetplanError: the method refuses the backbone, or the speed is not known.
        """
        workload = point.workload
        self._prepare(workload)
        candidate = self._place(point)
        step = self.cost.estimate(candidate, self.problem.limit_bytes)
        score = relative_score(
            model=workload.model,
            method=workload.method,
            data=self.problem.data,
            rank=workload.rank,
            pretrained=self.problem.pretrained,
            train_images=self.problem.train_images,
            trainable_parameters=self._trainable_parameters(workload),
        )
        return TrialResult(
            candidate=candidate,
            assignment=assignment,
            score=score.value - (SGD_STEP if workload.optimizer == "sgd" else 0.0),
            cost=self._cost(step, workload),
            peak_bytes=step.peak_bytes,
            device_bytes=step.device_bytes,
            step_seconds=step.step_seconds,
            energy_joules=step.energy_joules,
            reason=score.reason,
            rates_version=self.cost.rates_version,
        )

    def _prepare(self, workload: Workload) -> None:
        # All batches of a family share its profile, so one micro-batch of 1 stands for all.
        family = workload.replace(micro_batch=1, accumulation=1)
        if family not in self._prepared:
            self.cost.prepare(workload, self._on_profile)
            self._prepared.add(family)

    def _place(self, point: SearchPoint) -> Candidate:
        nothing_recomputed = Candidate(workload=point.workload)
        if not self.cost.learns_in_units(point.workload):
            return nothing_recomputed  # no backward runs through the units, so they store nothing
        budget = self.problem.limit_bytes
        try:
            placed = self.cost.place(point.workload, point.policy, budget)
        except InfeasibleError:
            # No placement fits. The one that stores least shows the constraint by how much.
            placed = self.cost.place(point.workload, STATIC, budget)
        # Without a recomputed unit, the placement is the same as that of the policy none.
        return nothing_recomputed if placed.placement.is_none else placed

    def _cost(self, step: StepEstimate, workload: Workload) -> float:
        if self.cost_unit is None:
            self.cost_unit = "seconds" if step.energy_joules is None else "joules"
        spent = step.energy_joules if self.cost_unit == "joules" else step.step_seconds
        if spent is None:
            raise UsageError(
                f"the speed of {self.problem.device.name} is not known; plan for a device of "
                "`budgetplan devices`"
            )
        return spent / workload.effective_batch * COST_IMAGES

    def _trainable_parameters(self, workload: Workload) -> int | None:
        """Return the number of trainable parameters, by which random weights are ordered."""
        if self.problem.pretrained:
            return None
        from profiler.models.parameter_count import count_parameters

        # The count does not depend on these four, and it is cached by workload.
        return count_parameters(
            workload.replace(micro_batch=1, accumulation=1, precision="fp32", optimizer="adamw")
        ).trainable
