"""Reports of the composed rung: a candidate's FLOPs and its table of units, from the profile."""

from __future__ import annotations

from collections.abc import Mapping

from planner.cost.step_estimate import StepEstimate
from planner.cost.unit_costs import UnitCosts
from profiler.arrays import Floats
from profiler.devices.host_link import HostWork, host_state_bytes, page_locked_bytes
from profiler.devices.table import DeviceSpec, device_label
from profiler.models.method_notes import method_notes
from profiler.models.parameter_count import count_parameters
from profiler.prediction.profile_records import OptionProfile, UpdateProfile, Work, terms
from profiler.prediction.report import lever_notes
from profiler.records import Flops, Memory, Report, Rung, UnitReport
from profiler.replay.event_log import Phase
from profiler.timing.predicted_cost import predicted_cost, time_note
from profiler.timing.roofline import Rates
from profiler.unit_options import HOST_OPTIONS, KEPT, UnitOption
from profiler.workload import Candidate


def composed_report(
    candidate: Candidate,
    estimate: StepEstimate,
    *,
    device: DeviceSpec,
    unit_options: Mapping[str, UnitOption],
    options: Mapping[UnitOption, OptionProfile],
    update: UpdateProfile,
    costs: UnitCosts,
    rates: Rates | None,
    with_remarks: bool = True,
) -> Report:
    """Return the report of a candidate; bytes by owner are known to the replayed rung alone.

    Args:
        candidate: candidate of the report.
        estimate: its memory, time and energy.
        device: device of the estimate.
        unit_options: option of each unit, by unit name in forward order.
        options: profiles of these options and of ``keep``.
        update: profile of the optimizer step.
        costs: costs of these options.
        rates: rates of the device; None if its speed is unknown.
        with_remarks: whether the notes have the method's remarks, which need a built model.
    """
    workload = candidate.workload
    point = terms(workload.micro_batch, workload.rank)
    cost = predicted_cost(estimate.load, rates)
    return Report(
        candidate=candidate,
        device=device_label(device.name),
        rung=Rung.COMPOSED,
        memory=Memory(
            peak_bytes=estimate.peak_bytes,
            reserved_bytes=estimate.reserved_bytes,
            device_bytes=estimate.device_bytes,
            host_bytes=(
                _composed_host_bytes(unit_options, options, update, point)
                if device.is_cuda
                else None
            ),
        ),
        flops=_step_flops(unit_options, options, update, point, workload.accumulation),
        **cost,
        parameters=count_parameters(workload),
        units=_unit_reports(unit_options, options, costs, point, has_rates=rates is not None),
        notes=(
            "composed from the family's profile",
            *([] if rates is None else [time_note(cost, rates.source)]),
            *lever_notes(workload),
            *(
                method_notes(workload.replace(micro_batch=2, accumulation=1))
                if with_remarks
                else ()
            ),
        ),
    )


def _composed_host_bytes(
    unit_options: Mapping[str, UnitOption],
    options: Mapping[UnitOption, OptionProfile],
    update: UpdateProfile,
    point: Floats,
) -> int:
    """Return the page-locked memory of the host, and that of an optimizer there."""

    def copied(work: Work, index: int = -1) -> list[float]:
        chosen = (work.unit == index) & (work.kernels[work.kernel] == HostWork.TO_HOST)
        sizes: list[float] = (work.moved_bytes[chosen] @ point).tolist()
        return sizes

    saved: list[float] = []
    for index, option in enumerate(unit_options.values()):
        if option in HOST_OPTIONS:
            saved += copied(options[option].recompute_work, index)
    return page_locked_bytes(saved) + host_state_bytes(copied(update.work))


def _step_flops(
    unit_options: Mapping[str, UnitOption],
    options: Mapping[UnitOption, OptionProfile],
    update: UpdateProfile,
    point: Floats,
    accumulation: int,
) -> Flops:
    kept = options[KEPT].work
    recompute = 0.0
    for index, option in enumerate(unit_options.values()):
        if option != KEPT:
            work = options[option].work.of(Phase.RECOMPUTE)
            recompute += float((work.flops[work.unit == index] @ point).sum())
    return Flops(
        forward=round(float((kept.of(Phase.FORWARD).flops @ point).sum()) * accumulation),
        backward=round(float((kept.of(Phase.BACKWARD).flops @ point).sum()) * accumulation),
        recompute=round(recompute * accumulation),
        optimizer=round(float((update.work.flops @ point).sum())),
    )


def _unit_reports(
    unit_options: Mapping[str, UnitOption],
    options: Mapping[UnitOption, OptionProfile],
    costs: UnitCosts,
    point: Floats,
    *,
    has_rates: bool,
) -> tuple[UnitReport, ...]:
    rows = []
    for index, (name, option) in enumerate(unit_options.items()):

        def flops(work: Work, index: int = index) -> int:
            return round(float((work.flops[work.unit == index] @ point).sum()))

        profile, kept = options[option], options[KEPT].work
        forward, recompute = costs.forward_seconds[index], costs.recompute_seconds(option)[index]
        rows.append(
            UnitReport(
                name=name,
                decision=option.key,
                stored_bytes=round(float(costs.stored[option][index])),
                boundary_bytes=round(float(profile.boundary[index] @ point)),
                working_bytes=round(float(costs.backward[option][index])),
                forward_flops=flops(kept.of(Phase.FORWARD)),
                backward_flops=flops(kept.of(Phase.BACKWARD)),
                recompute_flops=flops(profile.work.of(Phase.RECOMPUTE)),
                forward_seconds=float(forward) if has_rates else None,
                recompute_seconds=float(recompute) if has_rates else None,
            )
        )
    return tuple(rows)
