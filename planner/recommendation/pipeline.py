"""From a question to an answer: what should I run in this budget?

    recommend   profile -> search -> front -> replay -> validate -> score -> choose -> plans

Each stage checks the one before: what the search composed is replayed, what was replayed is really
run. A candidate that exceeds the budget at any stage is dropped, and the answer says so.

Without a GPU of the planned kind the real run is on the CPU. Its measured peak is then held against
the replay of the same candidate *for the CPU*, which is what can be compared; what the GPU needs
stays a prediction, under that name.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from planner.cost.place_within_budget import needed_bytes, place_checked
from planner.json_files import check_folder
from planner.plan import Accuracy, Plan, plan_file_name, versions, write_plan
from planner.recommendation.answer import CheckedCandidate, Entry, Recommendation, describe
from planner.recommendation.baselines import baselines
from planner.recommendation.choose import best_of, choose
from planner.recommendation.infeasible import nothing_fits
from planner.recommendation.notes import images_seen, notes_of
from planner.recommendation.request import Notify, Request
from planner.scoring.accuracy_prior import AccuracyEstimate, estimate
from planner.scoring.netscore import Scores, scores
from planner.search.pareto import hypervolume, reference_point
from planner.search.problem import OBJECTIVES, Evaluation, Problem, SearchResult
from planner.search.study import search
from profiler.errors import MeasurementError, OutOfMemoryError
from profiler.records import Report
from profiler.store import Store
from profiler.units import MIB, format_bytes
from profiler.workload import Candidate

if TYPE_CHECKING:
    from planner.cost.model import CostModel
    from planner.training.run_options import RunOptions
    from planner.training.validation import Validation

FRONT_SIZE = 6
"""Candidates shown, replayed and written: as many as a person compares."""

HOST_MARGIN = 1.05
"""Of the replayed peak: the cap of a run on the CPU in a GPU's stead."""


# ---- the flow ------------------------------------------------------------------------------------


def recommend(request: Request, *, notify: Notify = lambda *_: None) -> Recommendation:
    """Answer a request and write its plan files.

    Args:
        request: the question.
        notify: called with (stage, what it does, fraction of the stage done).

    Raises:
        InfeasibleError: nothing fits; names the smallest budget that would, and what helps most.
        InputError: the study, the weights or the data cannot be used.
        MeasurementError: every real run failed.
    """
    from planner.cost.model import CostModel
    from profiler.devices.table import device_spec

    began = time.perf_counter()
    check_folder(request.out)
    cost = CostModel(device_spec(request.device.name), Store.default())
    found = _search(request, cost, notify)
    front = found.front(request.budget_bytes)
    replayed, dropped = _replay(request, front, cost, notify)
    if not replayed:
        raise nothing_fits(
            request.space,
            cost,
            budget_bytes=request.budget_bytes,
            device=request.device.name,
            found=[evaluation.candidate for evaluation in found.evaluations],
        )
    checked, failed = _validate(request, replayed, notify)
    entries = [_entry(request, found, row) for row in checked]
    recommended, reason = choose(entries)
    for entry in entries:
        write_plan(entry.plan, entry.file)
    return Recommendation(
        request=request,
        study=found.study,
        storage=found.storage,
        trials=found.trials,
        seconds=time.perf_counter() - began,
        front=tuple(entries),
        recommended=recommended,
        reason=reason,
        baselines=baselines(request.space, cost, request.budget_bytes),
        dropped=(*dropped, *failed),
        notes=notes_of(request, found, checked),
    )


# ---- search --------------------------------------------------------------------------------------


def problem_of(request: Request) -> Problem:
    """Return what is searched."""
    return Problem(
        space=request.space,
        device=request.device.name,
        budget_bytes=request.budget_bytes,
        data=request.run.data,
        # a plan is for fine-tuning: weights that cannot be loaded here do not change the order
        pretrained=request.run.pretrained or request.run.weights is not None,
    )


def _search(request: Request, cost: CostModel, notify: Notify) -> SearchResult:
    from planner.cost.warm_up import prefetch

    prefetch(
        cost,
        request.space.workloads(),
        on_progress=lambda text, fraction: notify("profile", text, fraction),
    )
    done = 0.0

    def on_trial(trials: int, total: int) -> None:
        nonlocal done
        done = trials / total
        notify("search", f"trial {trials} of {total}", done)

    return search(
        problem_of(request),
        cost,
        trials=request.trials,
        seed=request.run.seed,
        study_name=request.study,
        storage=request.storage,
        stop=request.stop,
        on_trial=on_trial,
        on_profile=lambda text, _: notify("search", text, done),
    )


# ---- replay --------------------------------------------------------------------------------------


def _replay(
    request: Request, front: Sequence[Evaluation], cost: CostModel, notify: Notify
) -> tuple[list[CheckedCandidate], list[str]]:
    """Replay what would be recommended and what adds most to it; return what fits, and why not."""
    waiting = list(front)
    passed: list[CheckedCandidate] = []
    dropped: list[str] = []
    ahead = _replay_ahead(request, front, cost, notify)
    while waiting and len(passed) < FRONT_SIZE and len(dropped) < 2 * FRONT_SIZE:
        found = waiting.pop(_most_wanted(request, waiting, [row.evaluation for row in passed]))
        notify("replay", describe(found.candidate), len(passed) / FRONT_SIZE)
        report = ahead.get(found.candidate) or _replayed(request, found.candidate, cost)
        need = needed_bytes(report)
        if need <= request.budget_bytes:
            # a placement made again has the same score and much the same cost
            placed = replace(found, candidate=report.candidate)
            passed.append(CheckedCandidate(evaluation=placed, prediction=report))
        else:
            dropped.append(
                f"{describe(found.candidate)}: composed "
                f"{format_bytes(found.device_bytes)}, but its replay needs {format_bytes(need)}"
            )
    passed.sort(key=lambda row: (-row.evaluation.score, needed_bytes(row.prediction)))
    return passed, dropped


def _replay_ahead(
    request: Request, front: Sequence[Evaluation], cost: CostModel, notify: Notify
) -> dict[Candidate, Report]:
    """Replay, in parallel, what will be asked for if all of it fits.

    Not for a CPU: its kernels are really run there to see what they take, on threads of OpenMP,
    which a forked process waits for in vain.
    """
    from planner.parallel import forked

    if not cost.spec.is_cuda:
        return {}
    waiting, wanted = list(front), list[Evaluation]()
    while waiting and len(wanted) < FRONT_SIZE:
        wanted.append(waiting.pop(_most_wanted(request, waiting, wanted)))
    candidates = [found.candidate for found in wanted]
    reports = forked(
        lambda candidate: _replayed(request, candidate, cost),
        candidates,
        lambda candidate, done: notify("replay", describe(candidate), done),
    )
    return {candidates[index]: report for index, report in reports.items()}


def _replayed(request: Request, candidate: Candidate, cost: CostModel) -> Report:
    """Replay a candidate; an optimal placement is made again, with every option of the units.

    The search places by the short menu, which costs fewer replays.
    """
    from profiler.devices.table import device_spec
    from profiler.prediction.report import predict

    load, device = candidate.workload, request.device.name
    if candidate.policy.name != "optimal" or candidate.placement.is_none:
        report = predict(candidate, device=device_spec(device))
    else:
        report = place_checked(
            load,
            "optimal",
            cost,
            device=device,
            budget_bytes=request.budget_bytes,
            options=cost.menu(load),
        )
    return replace(report, device=request.device)


def _most_wanted(
    request: Request, waiting: Sequence[Evaluation], done: Sequence[Evaluation]
) -> int:
    """Return what to check next: what would be recommended, then what adds most to the front."""
    if not done:
        expected = [_expected(request, found).value for found in waiting]
        values = [value for value in expected if value is not None]
        spent = [(found.device_bytes, found.energy_joules) for found in waiting]
        return best_of(waiting, values if len(values) == len(waiting) else [], spent)
    points = [found.objectives for found in (*done, *waiting)]
    corner = reference_point(points, directions=OBJECTIVES)
    known = [found.objectives for found in done]

    def gain(index: int) -> float:
        more = [*known, waiting[index].objectives]
        return hypervolume(more, reference=corner, directions=OBJECTIVES)

    return max(range(len(waiting)), key=gain)


# ---- validation ----------------------------------------------------------------------------------


def _validate(
    request: Request, rows: Sequence[CheckedCandidate], notify: Notify
) -> tuple[list[CheckedCandidate], list[str]]:
    """Really run the best few; return all rows that were not refused, and why others were."""
    kept, failed, validated = list(rows), [], 0
    waiting = list(rows)
    last: MeasurementError | None = None
    while waiting and validated < request.validations:
        done = [row.evaluation for row in kept if row.validation is not None]
        row = waiting.pop(_most_wanted(request, [r.evaluation for r in waiting], done))
        try:
            kept[kept.index(row)] = _really_run(request, row, validated, notify)
            validated += 1
        except MeasurementError as error:
            kept.remove(row)
            failed.append(f"{describe(row.candidate)}: {error}")
            last = error
    if last is not None and validated == 0:
        raise last
    return kept, failed


def _really_run(
    request: Request, row: CheckedCandidate, index: int, notify: Notify
) -> CheckedCandidate:
    title = f"{index + 1} of {request.validations}: {describe(row.candidate)}"
    host, validation = run_for_real(
        row.candidate,
        prediction=row.prediction,
        budget_bytes=request.budget_bytes,
        run=request.run,
        on_progress=lambda text, fraction: notify(
            "validate", f"{title}: {text}", (index + fraction) / request.validations
        ),
    )
    return replace(row, validation=validation, host_prediction=host)


def run_for_real(
    candidate: Candidate,
    *,
    prediction: Report,
    budget_bytes: int,
    run: RunOptions,
    on_progress: Callable[[str, float], None],
) -> tuple[Report | None, Validation]:
    """Run a candidate for a few steps; on the CPU in a GPU's stead, with a replay for the CPU.

    Raises:
        OutOfMemoryError: it needs more than the budget.
        MeasurementError: it failed in another way.
    """
    from planner.training.validation import validate
    from profiler.devices.table import CPU
    from profiler.prediction.report import predict

    host, cap_bytes = None, budget_bytes
    if run.device == "cpu" and prediction.device.kind != "cpu":
        on_progress("replaying for the CPU", 0.0)
        host = predict(candidate, device=CPU)
        # the budget is the GPU's: on the CPU other kernels need more or less
        cap_bytes = max(budget_bytes, math.ceil(HOST_MARGIN * host.memory.peak_bytes))
    validation = validate(candidate, run, budget_bytes=cap_bytes, on_progress=on_progress)
    used = needed_bytes(validation.report)
    if host is None and used > budget_bytes:
        raise OutOfMemoryError(cap_bytes=budget_bytes, detail=f"it used {format_bytes(used)}")
    return host, validation


def validate_plan(plan: Plan, *, run: RunOptions, notify: Notify) -> Plan:
    """Really run a plan and return it with what was measured.

    Raises:
        InputError: the plan no longer fits its model, or the data cannot be used.
        OutOfMemoryError: it needs more than its budget.
    """
    from planner.training.plan_check import check_against_model

    check_against_model(plan)
    host, validation = run_for_real(
        plan.candidate,
        prediction=plan.prediction,
        budget_bytes=plan.budget_bytes,
        run=run,
        on_progress=lambda text, fraction: notify("validate", text, fraction),
    )
    return replace(
        plan,
        measurement=validation.report,
        accuracy=validation.accuracy,
        scores=_scores(validation.accuracy, plan.prediction, validation),
        provenance={**plan.provenance, **images_seen(validation, host)},
    )


# ---- score and answer ----------------------------------------------------------------------------


def _entry(request: Request, found: SearchResult, row: CheckedCandidate) -> Entry:
    expected = _expected(request, row.evaluation)
    accuracy = _accuracy(expected, row.validation)
    plan = Plan(
        candidate=row.candidate,
        prediction=row.prediction,
        measurement=None if row.validation is None else row.validation.report,
        scores=_scores(accuracy, row.prediction, row.validation),
        accuracy=accuracy,
        budget_bytes=request.budget_bytes,
        provenance=_provenance(request, found, row, expected),
    )
    return Entry(
        plan=plan,
        file=request.out / plan_file_name(row.candidate),
        evaluation=row.evaluation,
        expected=expected,
        host_prediction=row.host_prediction,
    )


def _expected(request: Request, found: Evaluation) -> AccuracyEstimate:
    """Return the accuracy after a whole training, where published numbers allow one."""
    load = found.candidate.workload
    expected = estimate(
        model=load.model,
        method=load.method,
        data=request.run.data,
        rank=load.rank,
        pretrained=request.has_weights,
    )
    if expected.kind == "published" and load.optimizer == "sgd":
        return replace(expected, kind="prior", reason=f"{expected.reason}, but with AdamW")
    return expected


def _accuracy(expected: AccuracyEstimate, validation: Validation | None) -> Accuracy:
    if validation is not None:
        return validation.accuracy
    if expected.value is None or expected.kind is None:
        return Accuracy(value=None, source=expected.reason, kind="none")
    source = f"{expected.reason} ({expected.source})"
    return Accuracy(value=expected.value, source=source, kind=expected.kind)


def _scores(accuracy: Accuracy, prediction: Report, validation: Validation | None) -> Scores | None:
    """Return the scores that the known numbers allow; None below 1 %, where there are none."""
    if accuracy.value is None or accuracy.value <= 0.01:
        return None
    flops, images = prediction.flops, prediction.candidate.workload.effective_batch
    forward = None if flops is None else flops.forward / images
    seconds = watts = peak_mib = None
    if validation is not None:
        seconds, watts = validation.inference_seconds, validation.inference_watts
        peak_mib = validation.inference_peak_bytes / MIB
    return scores(
        accuracy_percent=100 * accuracy.value,
        parameters=prediction.parameters.total,
        macs=None if forward is None else forward / 2,
        flops=forward,
        inference_seconds=seconds,
        inference_watts=watts,
        inference_peak_mib=peak_mib,
        trainable_parameters=prediction.parameters.trainable,
    )


def _provenance(
    request: Request, found: SearchResult, row: CheckedCandidate, expected: AccuracyEstimate
) -> dict[str, Any]:
    return {
        "versions": versions(),
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "study": found.study,
        "storage": found.storage,
        "seed": request.run.seed,
        "data": request.run.data,
        "expected_accuracy": expected.to_json(),
        "composed": {
            "device_bytes": row.evaluation.device_bytes,
            "peak_bytes": row.evaluation.peak_bytes,
            "step_seconds": row.evaluation.step_seconds,
            "energy_joules": row.evaluation.energy_joules,
        },
        "origin": list(row.prediction.notes),
        **images_seen(row.validation, row.host_prediction),
    }
