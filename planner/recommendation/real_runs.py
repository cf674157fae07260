"""The validation stage: runs candidates for a few training steps under the budget.

The runs are orders in the queue of the study (``planner.workers``). Without workers this process
takes them itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from planner.plan import Plan
from planner.recommendation.answer import candidate_summary
from planner.recommendation.build_entry import accuracy_after_run, plan_scores
from planner.recommendation.checks import CheckedCandidate, CheckOutcome
from planner.recommendation.named_rows import answer_rows
from planner.recommendation.provenance import run_provenance
from planner.recommendation.ranking import Question
from planner.recommendation.request import Notify, Request
from planner.training.run_options import RunOptions
from planner.workers.orders import RunOrder
from planner.workers.outcomes import DefectError, Finished, FinishedRun
from planner.workers.real_run import other_limit_note, run_for_real
from planner.workers.run_pool import RunPool, run_by_worker
from profiler.errors import BudgetplanError, DeviceError, InputError, MeasurementError
from profiler.running.sandbox import Progress

if TYPE_CHECKING:
    from planner.recipe import Recipe
    from profiler.workload import Workload


def run_best(
    request: Request,
    candidates: Sequence[CheckedCandidate],
    pool: RunPool,
    notify: Notify,
    *,
    in_order: bool = False,
    recipe_of: Callable[[Workload], Recipe] | None = None,
) -> CheckOutcome:
    """Run the best candidates until as many as requested have passed, or the time is over.

    Args:
        request: the request.
        candidates: candidates that passed the replay.
        pool: runs them.
        notify: called with (stage, current work, fraction of the stage done).
        in_order: whether they are run in their order, and not by their expected accuracy.
        recipe_of: function that returns the recipe of a workload's plan; None for default recipes.

    Returns:
        All candidates but those whose run failed; those that ran have their validation. A note
        names each run that ended in a defect of a worker.

    Raises:
        MeasurementError: every run failed.
        InputError: every run failed, for lack of data or weights.
        DeviceError: every run failed, for lack of a device.
    """
    kept, dropped, notes, runs = list(candidates), list[str](), list[str](), 0
    question = Question.of(request)
    waiting, pending = list(candidates), dict[str, CheckedCandidate]()
    last: BudgetplanError | None = None
    began = time.monotonic()
    while (waiting or pending) and _goes_on(request, runs, time.monotonic() - began):
        while waiting and len(pending) < min(pool.at_once, request.validations - runs):
            tried = [c for c in kept if c.validation is not None or c in pending.values()]
            index = 0 if in_order else _next_to_run(tried, waiting, question)
            candidate = waiting.pop(index)
            recipe = None if recipe_of is None else recipe_of(candidate.candidate.workload)
            pending[pool.submit(_order_of(request, candidate, recipe))] = candidate
        title = "; ".join(candidate_summary(each.candidate) for each in pending.values())
        key, found = pool.next_finished(_progress(request, runs, title, notify))
        candidate, outcome = pending.pop(key), _outcome_of(found, request)
        if isinstance(outcome, FinishedRun):
            kept[kept.index(candidate)] = _with_run(candidate, outcome, request)
            runs += 1
            continue
        name, last = candidate_summary(candidate.candidate), outcome
        kept.remove(candidate)
        dropped.append(f"{name}: {outcome}")
        if isinstance(outcome, DefectError):
            notes.append(
                f"{name} was left out because of a defect of budgetplan on a worker, which says "
                "nothing about the plan"
            )
    if last is not None and runs == 0:
        raise last
    return CheckOutcome(passed=tuple(kept), dropped=tuple(dropped), notes=tuple(notes))


def _outcome_of(
    found: Finished | BudgetplanError, request: Request
) -> FinishedRun | BudgetplanError:
    """Return a finished run, or the error that ends this run alone.

    A worker may lack the images, the weights or the device, which another may have.

    Raises:
        BudgetplanError: the error ends all runs.
    """
    if isinstance(found, FinishedRun | MeasurementError):
        return found
    if request.uses_workers and isinstance(found, InputError | DeviceError):
        return found
    if isinstance(found, BudgetplanError):
        raise found
    raise MeasurementError("the outcome of a validation is that of another kind of run")


def _with_run(candidate: CheckedCandidate, run: FinishedRun, request: Request) -> CheckedCandidate:
    return replace(
        candidate,
        validation=run.validation,
        host_prediction=run.host_prediction,
        worker=run.worker if request.uses_workers else "",
    )


def _goes_on(request: Request, runs: int, seconds: float) -> bool:
    """Return whether another candidate is run after some that have passed.

    Args:
        request: the request.
        runs: number of candidates that have passed.
        seconds: time since the first one began.
    """
    if runs == 0 or request.validation_seconds is None:
        return runs < request.validations
    next_end = seconds * (runs + 1) / runs
    return runs < request.validations and next_end <= request.validation_seconds


def _progress(request: Request, done: int, title: str, notify: Notify) -> Progress:
    def report(text: str, fraction: float) -> None:
        shown = f"{done + 1} of {request.validations}: {title}: {text}"
        notify("validate", shown, (done + fraction) / request.validations)

    return report


def _next_to_run(
    tried: Sequence[CheckedCandidate], waiting: Sequence[CheckedCandidate], question: Question
) -> int:
    """Return the index of the recommended candidate, then of methods that did not run yet."""
    results = [candidate.replayed_result for candidate in waiting]
    rows = answer_rows(results, question)
    done = {each.candidate.workload.method for each in tried}
    row = next((r for r in rows if r.candidate.workload.method not in done), rows[0])
    return next(i for i, result in enumerate(results) if result is row)


def _order_of(request: Request, candidate: CheckedCandidate, recipe: Recipe | None) -> RunOrder:
    """Return the order to run a candidate.

    A CPU may run it in place of the planned GPU where this machine would do so. Workers do so only
    if the user has not named the GPU.
    """
    runs_on_cpu = request.runs_on == "cpu"
    part = request.of_backbone(candidate.candidate.workload.model)
    pretrained = part.pretrained_model
    return RunOrder.of(
        candidate.candidate,
        prediction=candidate.prediction,
        budget_bytes=request.budget_bytes,
        run=part.run,
        allows_cpu=runs_on_cpu and (not request.uses_workers or bool(request.device.note)),
        recipe=recipe,
        pretrained_models=() if pretrained is None else (pretrained,),
    )


def validate_plan(
    plan: Plan,
    *,
    run: RunOptions,
    runs_on: str,
    notify: Notify,
    queue: tuple[str, str] | None = None,
) -> Plan:
    """Run a plan for a few steps and return it with its measurement.

    Args:
        plan: the plan.
        run: options of the run.
        runs_on: ``cpu``, or the name of this machine's GPU; the device of a worker is its own.
        notify: called with (stage, current work, fraction of the stage done).
        queue: storage URL and name of the study whose workers make the run; None to run it here.

    Raises:
        InputError: the plan no longer matches its model, or the data cannot be used.
        OutOfMemoryError: the run needs more than the plan's budget.
    """
    from planner.training.plan_check import check_against_model

    check_against_model(plan)
    order = RunOrder.of(
        plan.candidate,
        prediction=plan.prediction,
        budget_bytes=plan.budget_bytes,
        run=run,
        allows_cpu=queue is None,
        recipe=plan.recipe,
    )

    def report(text: str, fraction: float) -> None:
        notify("validate", text, fraction)

    if queue is None:
        ran = run_for_real(order, device=runs_on, on_progress=report)
    else:
        url, study = queue
        ran = run_by_worker(order, FinishedRun, url=url, study_name=study, on_progress=report)
    validation = ran.validation
    note = other_limit_note(plan.prediction, validation)
    if note is not None:
        validation = replace(validation, notes=(*validation.notes, note))
    accuracy = accuracy_after_run(plan.accuracy, validation)
    return replace(
        plan,
        measurement=validation.report,
        accuracy=accuracy,
        scores=plan_scores(accuracy, plan.prediction, validation),
        provenance={
            **plan.provenance,
            **run_provenance(validation, ran.host_prediction, worker=ran.worker),
        },
    )
