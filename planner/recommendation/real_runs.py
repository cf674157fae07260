"""The validation stage: runs candidates for a few training steps under the budget.

If the planned GPU is not in this machine, a candidate runs on the CPU. Its measured peak is then
compared with a replay of the same candidate for the CPU. The memory, time and energy on the GPU
remain predictions. An fp16 candidate runs there in fp32 under the same placement
(``as_run_on_cpu``): the run shows that the candidate learns, and its measurement names fp32. The
memory in fp16 is that of the replay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from planner.cost.budget import needed_bytes
from planner.plan import Plan
from planner.recommendation.answer import candidate_summary
from planner.recommendation.build_entry import plan_scores
from planner.recommendation.checks import CheckedCandidate, CheckOutcome
from planner.recommendation.named_rows import answer_rows
from planner.recommendation.provenance import run_provenance
from planner.recommendation.ranking import Question
from planner.recommendation.request import Notify, Request
from planner.training.run_options import RunOptions
from profiler.errors import MeasurementError, OutOfMemoryError
from profiler.records import Report
from profiler.units import format_bytes
from profiler.workload import Candidate

if TYPE_CHECKING:
    from planner.recipe import Recipe
    from planner.training.validation import Validation
    from profiler.workload import Workload

HOST_CAP_RATIO = 1.05
"""Memory cap of a run on a CPU in place of the GPU, as a ratio of its replayed peak (>= 1)."""

FP16_NOTE = (
    "the fp16 plan ran in fp32 on the CPU, under the same placement: the run shows that it learns; "
    "its memory in fp16 is replayed, and the gradient scaler was not tried"
)


def run_best(
    request: Request,
    candidates: Sequence[CheckedCandidate],
    notify: Notify,
    *,
    in_order: bool = False,
    recipe_of: Callable[[Workload], Recipe] | None = None,
) -> CheckOutcome:
    """Run the best candidates until as many as requested have passed.

    Args:
        request: the request.
        candidates: candidates that passed the replay.
        notify: called with (stage, current work, fraction of the stage done).
        in_order: whether they are run in their order, and not by their expected accuracy.
        recipe_of: function that returns the recipe of a workload's plan; None for default recipes.

    Returns:
        All candidates but those whose run failed; those that ran have their validation.

    Raises:
        MeasurementError: every run failed.
    """
    kept, dropped, runs = list(candidates), list[str](), 0
    question = Question.of(request)
    waiting = list(candidates)
    last: MeasurementError | None = None
    while waiting and runs < request.validations:
        index = 0 if in_order else _next_to_run(kept, waiting, question)
        candidate = waiting.pop(index)
        try:
            ran = _run_one(
                request,
                candidate,
                runs,
                notify,
                recipe=None if recipe_of is None else recipe_of(candidate.candidate.workload),
            )
        except MeasurementError as error:
            kept.remove(candidate)
            dropped.append(f"{candidate_summary(candidate.candidate)}: {error}")
            last = error
        else:
            kept[kept.index(candidate)] = ran
            runs += 1
    if last is not None and runs == 0:
        raise last
    return CheckOutcome(passed=tuple(kept), dropped=tuple(dropped))


def _next_to_run(
    kept: Sequence[CheckedCandidate], waiting: Sequence[CheckedCandidate], question: Question
) -> int:
    """Return the index of the recommended candidate, then of methods that did not run yet."""
    rows = answer_rows([candidate.result for candidate in waiting], question)
    done = {c.candidate.workload.method for c in kept if c.validation is not None}
    row = next((r for r in rows if r.candidate.workload.method not in done), rows[0])
    return next(i for i, candidate in enumerate(waiting) if candidate.result is row)


def _run_one(
    request: Request,
    candidate: CheckedCandidate,
    index: int,
    notify: Notify,
    *,
    recipe: Recipe | None,
) -> CheckedCandidate:
    title = f"{index + 1} of {request.validations}: {candidate_summary(candidate.candidate)}"
    ran = run_for_real(
        candidate.candidate,
        prediction=candidate.prediction,
        budget_bytes=request.budget_bytes,
        run=request.run,
        recipe=recipe,
        on_progress=lambda text, fraction: notify(
            "validate", f"{title}: {text}", (index + fraction) / request.validations
        ),
    )
    return replace(candidate, validation=ran.validation, host_prediction=ran.host_prediction)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """A real run.

    Attributes:
        validation: memory, time, energy and accuracy of the run.
        host_prediction: replay for the CPU, if the run was on a CPU in place of the GPU.
    """

    validation: Validation
    host_prediction: Report | None


def run_for_real(
    candidate: Candidate,
    *,
    prediction: Report,
    budget_bytes: int,
    run: RunOptions,
    recipe: Recipe | None = None,
    on_progress: Callable[[str, float], None],
) -> FinishedRun:
    """Run a candidate for a few steps, on the CPU if the planned GPU is not in this machine.

    Raises:
        OutOfMemoryError: the run needs more than the budget.
        MeasurementError: the run failed for another reason.
    """
    from planner.training.validation import time_limit, validate
    from profiler.devices.table import CPU
    from profiler.prediction.report import predict

    host, cap_bytes, notes = None, budget_bytes, tuple[str, ...]()
    if run.device == "cpu" and prediction.device.kind != "cpu":
        on_progress("replaying for the CPU", 0.0)
        planned, candidate = candidate, as_run_on_cpu(candidate)
        notes = () if candidate == planned else (FP16_NOTE,)
        host = predict(candidate, device=CPU)
        # The budget is that of the GPU. The CPU's kernels may need more for the same candidate.
        cap_bytes = max(budget_bytes, math.ceil(HOST_CAP_RATIO * host.memory.peak_bytes))
    validation = validate(
        candidate,
        run,
        recipe=recipe,
        budget_bytes=cap_bytes,
        timeout_seconds=time_limit((host or prediction).step_seconds, steps=run.steps),
        on_progress=on_progress,
    )
    used_bytes = needed_bytes(validation.report)
    if host is None and used_bytes > budget_bytes:
        raise OutOfMemoryError(cap_bytes=budget_bytes, detail=f"it used {format_bytes(used_bytes)}")
    validation = replace(validation, notes=(*validation.notes, *notes))
    return FinishedRun(validation=validation, host_prediction=host)


def as_run_on_cpu(candidate: Candidate) -> Candidate:
    """Return the candidate that a CPU runs in place of the planned GPU: fp32 instead of fp16.

    A matrix product in fp16 takes 28 times as long on a CPU as in fp32 (an MLP of ViT-S on a Xeon
    with AVX-512, torch 2.15). The placement and everything else stay.
    """
    if candidate.workload.precision != "fp16":
        return candidate
    return replace(candidate, workload=candidate.workload.replace(precision="fp32"))


def validate_plan(plan: Plan, *, run: RunOptions, notify: Notify) -> Plan:
    """Run a plan for a few steps and return it with its measurement.

    Raises:
        InputError: the plan no longer matches its model, or the data cannot be used.
        OutOfMemoryError: the run needs more than the plan's budget.
    """
    from planner.training.plan_check import check_against_model

    check_against_model(plan)
    ran = run_for_real(
        plan.candidate,
        prediction=plan.prediction,
        budget_bytes=plan.budget_bytes,
        run=run,
        recipe=plan.recipe,
        on_progress=lambda text, fraction: notify("validate", text, fraction),
    )
    accuracy = ran.validation.accuracy
    return replace(
        plan,
        measurement=ran.validation.report,
        accuracy=accuracy,
        scores=plan_scores(accuracy, plan.prediction, ran.validation),
        provenance={
            **plan.provenance,
            **run_provenance(ran.validation, ran.host_prediction),
        },
    )
