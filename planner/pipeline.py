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
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.accuracy import AccuracyEstimate, estimate
from planner.advice import Baseline, baselines, nothing_fits
from planner.checked import needed_bytes, place_checked
from planner.data import load_data
from planner.front import (
    BestScore,
    HypervolumeStagnation,
    hypervolume,
    reference_point,
)
from planner.netscore import Scores, scores, train_score
from planner.plan import Accuracy, Plan, check_folder, plan_file_name, versions, write_plan
from planner.search import OBJECTIVES, SGD_STEP, Evaluation, Problem, SearchResult, search
from planner.space import Space
from profiler.errors import MeasurementError, OutOfMemoryError
from profiler.records import DeviceLabel, Report
from profiler.store import Store
from profiler.units import MIB, format_bytes, format_joules, format_seconds
from profiler.workload import Candidate, Workload

if TYPE_CHECKING:
    from planner.cost import CostModel
    from planner.validate import Validation

SCHEMA = "budgetplan.recommendation/1"
FRONT_SIZE = 6
"""Candidates shown, replayed and written: as many as a person compares."""
CLASSES = {"digits": 10, "cifar100": 100, "dtd": 47}
HOST_MARGIN = 1.05
"""Of the replayed peak: the cap of a run on the CPU in a GPU's stead."""
TELLING_STEPS = 50
TELLING_IMAGES = 200
"""Below these an accuracy shows that training works, and cannot tell candidates apart: with 200
images its standard error is up to 3.5 %."""
EQUAL_SCORES = SGD_STEP / 2
"""Relative scores closer than that are called equal."""

Notify = Callable[[str, str, float], None]


# ---- what is asked and answered ------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RealRun:
    """How candidates are really run.

    Attributes:
        device: ``cpu``, or the planned GPU when it is in this machine.
        data: data set name or folder.
        steps: of a run; None for as many as validation thinks right.
        seed: of new weights, images and the search.
        weights: file of weights.
        pretrained: whether to try timm's hub.
    """

    device: str
    data: str
    steps: int | None = None
    seed: int = 0
    weights: Path | None = None
    pretrained: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked.

    Attributes:
        space: what may be chosen.
        budget_bytes: of device memory, the CUDA context included.
        device: what is planned for.
        run: how candidates are really run.
        validations: how many are; 0 for none.
        has_weights: whether the backbone has its pretrained weights, here or where it will run.
        trials: of the search.
        study: name of the study.
        storage: URL, or None for a file under ``studies/``.
        stop: rule to end the search early.
        out: folder of the plan files.
        left_out: methods and precisions that are not searched, and why.
    """

    space: Space
    budget_bytes: int
    device: DeviceLabel
    run: RealRun
    study: str
    trials: int
    storage: str | None = None
    validations: int = 3
    has_weights: bool = True
    stop: HypervolumeStagnation | None = None
    out: Path = Path("plans")
    left_out: Mapping[str, str] = field(default_factory=dict)


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
    from planner.cost import CostModel

    began = time.perf_counter()
    check_folder(request.out)
    cost = CostModel(request.device.name, Store.default())
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
        notes=_notes(request, found, checked),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A candidate on its way through the stages."""

    evaluation: Evaluation
    prediction: Report
    host_prediction: Report | None = None
    validation: Validation | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def candidate(self) -> Candidate:
        return self.evaluation.candidate


# ---- the question --------------------------------------------------------------------------------


def classes_of(data: str, *, image_size: int) -> int:
    """Return the width of the classifier for some data, without downloading any.

    Raises:
        InputError: the folder cannot be read.
    """
    if data in CLASSES:
        return CLASSES[data]
    flat = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return load_data(data, image_size=image_size, mean=flat[0], std=flat[1]).num_classes


def check_weights(base: Workload, weights: Path) -> None:
    """Refuse a file of weights before anything is computed.

    Raises:
        InputError: it cannot be read, or holds another model's weights.
    """
    from profiler import backbones

    model = backbones.build(
        base.model, num_classes=base.num_classes, image_size=base.image_size, device="meta"
    )
    with warnings.catch_warnings():
        # loading into a model that allocates nothing copies nothing, and torch says so
        warnings.simplefilter("ignore", UserWarning)
        backbones.load_weights(model, base.model, weights=weights, pretrained=False)


def study_name(model: str, device: DeviceLabel, budget_bytes: int) -> str:
    """Return a name for a new study: readable, and another one each second."""
    budget = f"{budget_bytes / 1e6:.0f}MB"
    moment = datetime.now().strftime("%Y%m%d-%H%M%S")
    return f"{model.replace('/', '_')}-{device.name}-{budget}-{moment}"


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
    from planner.prefetch import prefetch

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
) -> tuple[list[_Row], list[str]]:
    """Replay what would be recommended and what adds most to it; return what fits, and why not."""
    waiting = list(front)
    passed: list[_Row] = []
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
            passed.append(_Row(evaluation=placed, prediction=report))
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
    from planner.forked import forked

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
    from profiler.predict import predict

    load, device = candidate.workload, request.device.name
    if candidate.placement.policy != "optimal" or candidate.placement.is_none:
        report = predict(candidate, device=device)
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
        return _best(waiting, values if len(values) == len(waiting) else [], spent)
    points = [found.objectives for found in (*done, *waiting)]
    corner = reference_point(points, directions=OBJECTIVES)
    known = [found.objectives for found in done]

    def gain(index: int) -> float:
        more = [*known, waiting[index].objectives]
        return hypervolume(more, reference=corner, directions=OBJECTIVES)

    return max(range(len(waiting)), key=gain)


# ---- validation ----------------------------------------------------------------------------------


def _validate(
    request: Request, rows: Sequence[_Row], notify: Notify
) -> tuple[list[_Row], list[str]]:
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


def _really_run(request: Request, row: _Row, index: int, notify: Notify) -> _Row:
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
    run: RealRun,
    on_progress: Callable[[str, float], None],
) -> tuple[Report | None, Validation]:
    """Run a candidate for a few steps; on the CPU in a GPU's stead, with a replay for the CPU.

    Raises:
        OutOfMemoryError: it needs more than the budget.
        MeasurementError: it failed in another way.
    """
    from planner.validate import DEFAULT_STEPS, validate
    from profiler.predict import predict

    host, cap_bytes = None, budget_bytes
    if run.device == "cpu" and prediction.device.kind != "cpu":
        on_progress("replaying for the CPU", 0.0)
        host = predict(candidate, device="cpu")
        # the budget is the GPU's: on the CPU other kernels need more or less
        cap_bytes = max(budget_bytes, math.ceil(HOST_MARGIN * host.memory.peak_bytes))
    validation = validate(
        candidate,
        device=run.device,
        budget_bytes=cap_bytes,
        data=run.data,
        steps=run.steps or DEFAULT_STEPS,
        seed=run.seed,
        weights=run.weights,
        pretrained=run.pretrained,
        on_progress=on_progress,
    )
    used = needed_bytes(validation.report)
    if host is None and used > budget_bytes:
        raise OutOfMemoryError(cap_bytes=budget_bytes, detail=f"it used {format_bytes(used)}")
    return host, validation


def validate_plan(plan: Plan, *, run: RealRun, notify: Notify) -> Plan:
    """Really run a plan and return it with what was measured.

    Raises:
        InputError: the plan no longer fits its model, or the data cannot be used.
        OutOfMemoryError: it needs more than its budget.
    """
    from planner.train import check_against_model

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
        provenance={**plan.provenance, **_seen(validation, host)},
    )


# ---- score and answer ----------------------------------------------------------------------------


def _entry(request: Request, found: SearchResult, row: _Row) -> Entry:
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
    if expected.value is None:
        return Accuracy(value=None, source=expected.reason, kind="none")
    source = f"{expected.reason} ({expected.source})"
    return Accuracy(value=expected.value, source=source, kind=str(expected.kind))


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


def choose(entries: Sequence[Entry]) -> tuple[int, str]:
    """Return the entry to recommend and one sentence that says why.

    Only what was really run is eligible, if anything was. Where every eligible entry has an
    accuracy that means something (measured in a long enough run, or expected from published
    numbers) the best training score wins. Else the highest in the order of expected accuracy does,
    and among its equals the cheapest: memory within the budget is no cost.
    """
    pool = [i for i, e in enumerate(entries) if e.plan.measurement is not None]
    pool = pool or list(range(len(entries)))
    chosen = [entries[i] for i in pool]
    among = "really run" if chosen[0].plan.measurement is not None else "replayed"
    basis, values = _known_accuracies(chosen)
    predictions = [entry.plan.prediction for entry in chosen]
    spent = [(needed_bytes(report), report.energy_joules) for report in predictions]
    best = _best([entry.evaluation for entry in chosen], values, spent)
    how = (
        f"best {basis} for its memory and energy among the {len(pool)} {among}"
        if values
        else f"none of the {len(pool)} {among} is expected to be more accurate (by published "
        "comparisons of methods; no accuracy is known here), and of those this is the cheapest"
    )
    return pool[best], _because(chosen[best], how)


def _best(
    found: Sequence[Evaluation],
    accuracies: Sequence[float],
    spent: Sequence[tuple[int, float | None]],
) -> int:
    """Return the index of the best.

    Args:
        found: to choose from.
        accuracies: fraction of each; empty where they are not all known.
        spent: bytes of each, and joules of its step.
    """
    if not accuracies:
        highest = max(one.score for one in found)
        equals = [i for i, one in enumerate(found) if one.score > highest - EQUAL_SCORES]
        return min(equals, key=lambda i: found[i].cost)
    ranking = [
        train_score(accuracy_percent=100 * value, train_peak_bytes=size, step_joules=joules)
        for value, (size, joules) in zip(accuracies, spent, strict=True)
    ]
    return BestScore(scores=ranking).choose(
        [one.objectives for one in found], directions=OBJECTIVES
    )


def _known_accuracies(entries: Sequence[Entry]) -> tuple[str, list[float]]:
    """Return what the accuracies are and a fraction for every entry, or none at all."""
    measured = [v for v in (_long_run_accuracy(entry) for entry in entries) if v is not None]
    if len(measured) == len(entries):
        return "measured accuracy", measured
    expected = [e.expected.value for e in entries if e.expected.value is not None]
    if len(expected) == len(entries):
        return "published or derived accuracy", expected
    return "", []


def _long_run_accuracy(entry: Entry) -> float | None:
    """Return the measured accuracy of a run that was long enough to tell candidates apart."""
    seen, value = entry.plan.provenance.get("run"), entry.plan.accuracy.value
    if seen is None or value is None or value <= 0.01:
        return None
    is_long = len(seen["losses"]) >= TELLING_STEPS and seen["accuracy_images"] >= TELLING_IMAGES
    return value if is_long else None


def _because(entry: Entry, how: str) -> str:
    prediction = entry.plan.prediction
    cost = format_joules(prediction.energy_joules)
    if prediction.energy_joules is None:
        cost = format_seconds(prediction.step_seconds)
    return (
        f"{describe(entry.plan.candidate)}: {how}; it is predicted to need "
        f"{format_bytes(needed_bytes(prediction))} of {format_bytes(entry.plan.budget_bytes)} "
        f"and {cost} a step."
    )


def describe(candidate: Candidate) -> str:
    """Say in a few words what a candidate runs."""
    load, placement = candidate.workload, candidate.placement
    method = load.method if load.rank is None else f"{load.method} r{load.rank}"
    text = f"{method}, {load.micro_batch}x{load.accumulation}, {load.precision}, {load.optimizer}"
    return text if placement.is_none else f"{text}, {placement.policy} checkpointing"


def _provenance(
    request: Request, found: SearchResult, row: _Row, expected: AccuracyEstimate
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
        **_seen(row.validation, row.host_prediction),
    }


def _seen(validation: Validation | None, host: Report | None) -> dict[str, Any]:
    """Return where the numbers of a real run come from."""
    if validation is None:
        return {"weights": {"kind": "none", "detail": "nothing was run"}}
    peak = None if host is None else {"peak_bytes": host.memory.peak_bytes}
    return {
        "weights": {"kind": validation.weights.kind, "detail": validation.weights.detail},
        "run": {
            "images": dict(validation.data),
            "losses": list(validation.losses),
            "accuracy_images": validation.accuracy_images,
            "inference_seconds": validation.inference_seconds,
            "inference_peak_bytes": validation.inference_peak_bytes,
            "inference_watts": validation.inference_watts,
            "notes": list(validation.notes),
        },
        "host_prediction": peak,
    }


def _notes(request: Request, found: SearchResult, rows: Sequence[_Row]) -> tuple[str, ...]:
    notes = []
    if request.device.note:
        notes.append(request.device.note)
    device, room = request.device, request.device.memory_bytes
    if room is not None and request.budget_bytes > room:
        notes.append(
            f"the budget is more than the {format_bytes(room)} that {device.full_name} has"
        )
    if found.stopped is not None:
        notes.append(f"the search ended early: {found.stopped}")
    if found.cost_unit == "seconds":
        notes.append("the power of this device is not known: time stands for energy")
    notes += _left_out(request.left_out)
    ran = [row for row in rows if row.validation is not None]
    if any(row.host_prediction is not None for row in ran):
        notes.append(
            "the runs were on the CPU, as there is no such GPU here: memory, time and energy on "
            "the GPU are predicted"
        )
    if ran and not request.has_weights:
        notes.append(
            "the runs began with random weights"
            + (", as no pretrained ones can be loaded here" if request.run.pretrained else "")
            + ": no accuracy is that of a pretrained model"
            + (
                "; the order of methods is for pretrained ones, --no-pretrained asks for the other"
                if request.run.pretrained
                else ""
            )
        )
    steps = [len(row.validation.losses) for row in ran if row.validation is not None]
    if steps and max(steps) < TELLING_STEPS:
        notes.append(
            f"an accuracy after {_span(steps)} steps, and the NetScores made of it, "
            "say that training works, not how good a model gets"
        )
    for row in ran:
        notes += _findings(request, row)
    seen = [note for row in rows for note in row.prediction.notes]
    return (*notes, *dict.fromkeys(seen))


def _left_out(reasons: Mapping[str, str]) -> list[str]:
    """Return a line for every reason."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return [
        f"{', '.join(each)} {'was' if len(each) == 1 else 'were'} left out: {reason}"
        for reason, each in names.items()
    ]


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _findings(request: Request, row: _Row) -> list[str]:
    assert row.validation is not None
    compared = row.host_prediction or row.prediction
    # a run on the CPU in a GPU's stead is not held against the GPU's budget
    needed = needed_bytes(row.validation.report)
    budget = request.budget_bytes if row.host_prediction is None else needed
    found = row.validation.findings(compared, budget_bytes=budget)
    return [f"{describe(row.candidate)}: {text}" for text in found]
