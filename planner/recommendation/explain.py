"""Explains a plan: the use of its memory, the effect of each choice, and its neighbours.

    steps        from the plain default (every parameter learns, fp32, AdamW, the whole batch at
                 once, no recomputation) to the plan, one choice after the other
    neighbours   the plan with one choice changed
    peak         the owners of the live bytes at the peak, and the moment of the peak

Every row is a replayed training step, so the numbers are exact for the planned device. The
effect of a choice depends on the choices before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from planner.cost.budget import needed_bytes
from planner.cost.fit_probability import BudgetMargin, fits_within, margin_of, planned_risk
from planner.plan import Plan
from profiler.devices.table import DeviceSpec, cuda_context
from profiler.errors import UsageError
from profiler.placement import Decision, Placement, PolicyChoice
from profiler.prediction.allocator_steps import BLOCK_BYTES
from profiler.prediction.module_estimate import LiveTensor, live_tensors
from profiler.records import OwnerBytes, Report
from profiler.units import DeviceBytes
from profiler.workload import Candidate, Workload

if TYPE_CHECKING:
    from profiler.replay.event_log import EventLog

EXPLANATION_SCHEMA = "budgetplan.explanation/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedRow:
    """A candidate with its needs.

    Attributes:
        change: the choice, such as ``precision fp32 -> fp16``.
        need_bytes: device bytes (on a CPU, the peak); None if the candidate does not run.
        step_seconds: time of an optimizer step; None if not known.
        fits: whether it fits the plan's budget at the plan's risk.
        reason: reason why it does not run; None if it does.
    """

    change: str
    need_bytes: DeviceBytes | None
    step_seconds: float | None
    fits: bool
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakTensors:
    """Tensors of the same kind that are alive at the peak.

    Attributes:
        owner: one of ``profiler.records.OWNERS``.
        operation: aten operation that made them; empty for tensors from before the step.
        shape: shape of each tensor.
        count: number of tensors.
        nbytes: bytes of all.
        units: first and last unit in which they were made; empty outside all units.
    """

    owner: str
    operation: str
    shape: tuple[int, ...]
    count: int
    nbytes: int
    units: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The explanation of a plan.

    Attributes:
        budget_bytes: device bytes of the plan's budget.
        steps: rows from the plain default to the plan.
        neighbours: rows with one choice of the plan changed.
        at_peak: live bytes at the peak by owner.
        peak_phase: phase of the step in which the peak is.
        peak_unit: unit at the peak.
        outside_bytes: bytes outside of live tensors: rounding, free blocks, CUDA context.
        context_bytes: the CUDA context in ``outside_bytes``; 0 on a CPU.
        margin: bytes of the budget that are kept for a larger context and a larger need.
        tensors: tensors alive at the peak by kind, the largest kind first.
    """

    budget_bytes: int
    steps: tuple[ExplainedRow, ...]
    neighbours: tuple[ExplainedRow, ...]
    at_peak: OwnerBytes
    peak_phase: str
    peak_unit: str
    outside_bytes: int
    context_bytes: int
    margin: BudgetMargin
    tensors: tuple[PeakTensors, ...] = ()

    @property
    def need_bytes(self) -> int:
        """Device bytes of the plan; the peak on a CPU."""
        return self.at_peak.total + self.outside_bytes

    @property
    def free_bytes(self) -> int:
        """Bytes of the budget beside the need and its margin; negative if they exceed it."""
        return self.budget_bytes - self.need_bytes - self.margin.total_bytes

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``explain --json`` prints."""
        return {"schema": EXPLANATION_SCHEMA, **asdict(self), "free_bytes": self.free_bytes}


def explain_plan(
    plan: Plan, device: DeviceSpec, *, notify: Callable[[str, float], None]
) -> Explanation:
    """Return the explanation of a plan.

    Args:
        plan: the plan.
        device: device that it is for.
        notify: called with (current replay, fraction done).

    Raises:
        InputError: the plan does not fit this installation.
    """
    from profiler.prediction.report import report_of
    from profiler.prediction.timeline import Timeline
    from profiler.replay.step_replay import replay_step

    steps = list(_from_plain_default(plan.candidate))
    near = list(_neighbours_of(plan.candidate))
    rows: list[ExplainedRow] = []
    for number, (change, candidate) in enumerate([*steps, *near]):
        notify(change, number / (len(steps) + len(near) + 1))
        rows.append(_replayed_row(change, candidate, device, plan))
    notify("the plan's peak", 0.95)
    log = replay_step(plan.candidate, device=device)
    report, timeline = report_of(plan.candidate, log, device=device), Timeline.of(log)
    phase, unit = timeline.place(timeline.peak_tick)
    at_peak = report.memory.at_peak
    assert at_peak is not None, "a replay knows the owners"
    return Explanation(
        budget_bytes=plan.budget_bytes,
        steps=tuple(rows[: len(steps)]),
        neighbours=tuple(rows[len(steps) :]),
        at_peak=at_peak,
        peak_phase=phase,
        peak_unit=unit,
        outside_bytes=needed_bytes(report) - at_peak.total,
        context_bytes=cuda_context(device).nbytes,
        margin=margin_of(report, risk=planned_risk(plan)),
        tensors=_tensors_by_kind(log.rounded(BLOCK_BYTES) if device.is_cuda else log),
    )


def _tensors_by_kind(log: EventLog) -> tuple[PeakTensors, ...]:
    """Return the tensors alive at the peak, those of the same owner, operation and shape as one."""
    kinds: dict[tuple[str, str, tuple[int, ...]], list[LiveTensor]] = {}
    for tensor in live_tensors(log, log.peak_tick):
        kinds.setdefault((tensor.owner, tensor.operation, tensor.shape), []).append(tensor)
    order = {unit: number for number, unit in enumerate(log.units)}
    found = []
    for (owner, operation, shape), tensors in kinds.items():
        units = sorted({t.module for t in tensors if t.module}, key=lambda unit: order[unit])
        found.append(
            PeakTensors(
                owner=owner,
                operation=operation,
                shape=shape,
                count=len(tensors),
                nbytes=sum(t.nbytes for t in tensors),
                units=" to ".join(dict.fromkeys((units[0], units[-1]))) if units else "",
            )
        )
    return tuple(sorted(found, key=lambda kind: -kind.nbytes))


def _replayed_row(
    change: str, candidate: Candidate, device: DeviceSpec, plan: Plan
) -> ExplainedRow:
    from profiler.prediction.report import predict

    try:
        report: Report = predict(
            candidate, device=device, power_limit_watts=plan.prediction.power_limit_watts
        )
    except UsageError as error:
        return ExplainedRow(
            change=change, need_bytes=None, step_seconds=None, fits=False, reason=str(error)
        )
    need = needed_bytes(report)
    return ExplainedRow(
        change=change,
        need_bytes=need,
        step_seconds=report.step_seconds,
        fits=fits_within(report, plan.budget_bytes, risk=planned_risk(plan)),
    )


def _from_plain_default(planned: Candidate) -> Iterator[tuple[str, Candidate]]:
    """Yield the plain default, then the candidate after each choice that differs from it."""
    workload = planned.workload
    plain = workload.replace(
        method="full", rank=None, alpha=None, targets=None, dropout=0.0, precision="fp32",
        optimizer="adamw", micro_batch=workload.effective_batch, accumulation=1, levers=(),
    )  # fmt: skip
    yield f"full, fp32, batch {workload.effective_batch}, adamw", Candidate(workload=plain)
    method = {
        name: getattr(workload, name) for name in ("method", "rank", "alpha", "targets", "dropout")
    }
    batch = {"micro_batch": workload.micro_batch, "accumulation": workload.accumulation}
    for change, values in (
        (f"method {workload.method_text}", method),
        (f"precision {workload.precision}", {"precision": workload.precision}),
        (f"optimizer {workload.optimizer}", {"optimizer": workload.optimizer}),
        (f"batch {workload.batch_text}", batch),
        (f"levers {', '.join(workload.levers)}", {"levers": workload.levers}),
    ):
        changed = plain.replace(**values)
        if changed != plain:
            yield change, Candidate(workload=changed)
        plain = changed
    if not planned.placement.is_none:
        yield f"{planned.policy.display_name} checkpointing", planned


def _neighbours_of(planned: Candidate) -> Iterator[tuple[str, Candidate]]:
    """Yield the plan with one choice changed, candidates with less memory before the others."""
    workload = planned.workload
    if workload.micro_batch % 2 == 0:
        yield "half the micro-batch", replace(planned, workload=_with_batch(workload, 0.5))
    if planned.placement.is_none:
        if "compile" not in workload.levers:
            yield from _all_recomputed(planned)
    else:
        yield "without checkpointing", Candidate(workload=workload)
    if workload.accumulation % 2 == 0:
        yield "double the micro-batch", replace(planned, workload=_with_batch(workload, 2))
    if workload.precision != "fp32":
        yield "fp32", replace(planned, workload=workload.replace(precision="fp32"))
    if workload.method != "full":
        everything = workload.replace(
            method="full", rank=None, alpha=None, targets=None, dropout=0.0
        )
        yield "every parameter learns", replace(planned, workload=everything)


def _with_batch(workload: Workload, factor: float) -> Workload:
    return workload.replace(
        micro_batch=int(workload.micro_batch * factor),
        accumulation=int(workload.accumulation / factor),
    )


def _all_recomputed(planned: Candidate) -> Iterator[tuple[str, Candidate]]:
    """Yield the plan with every unit recomputed, if the backbone has units."""
    from profiler.models.build import build_model

    units = list(build_model(planned.workload, device="meta").units)
    if units:
        placement = Placement(dict.fromkeys(units, Decision.RECOMPUTE))
        yield (
            "static checkpointing",
            replace(planned, placement=placement, policy=PolicyChoice("static")),
        )
