"""Functions for one workload: predict it, measure it, profile its units."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

from planner.api.arguments import (
    WorkloadOptions,
    candidate_of,
    device_name,
    device_of_run,
    no_progress,
    optional_size,
    parse_size,
)
from planner.api.early_checks import check_names, check_workers
from profiler.errors import BudgetplanError, UsageError
from profiler.units import format_bytes

if TYPE_CHECKING:
    from planner.placement.placement_table import PlacementRow
    from planner.plan import FitProbability
    from planner.recommendation.request import Notify
    from profiler.devices.table import DeviceSpec
    from profiler.records import Report
    from profiler.replay.event_log import EventLog
    from profiler.workload import Candidate


def predict(
    model: str,
    method: str = "full",
    *,
    device: str | DeviceSpec = "auto",
    vram: int | str | None = None,
    rung: Literal["composed", "replayed"] = "replayed",
    published_flops: bool = False,
    power_limit: float | None = None,
    snapshot: str | Path | None = None,
    perfetto: str | Path | None = None,
    on_progress: Notify | None = None,
    **workload: Unpack[WorkloadOptions],
) -> Report:
    """Predict memory, time and energy of a training step. Nothing is run.

    Args:
        model: timm name or alias of the backbone.
        method: fine-tuning method.
        device: ``auto`` (this machine's GPU, else the RTX 2060 SUPER), ``cpu``, or a device of the
            table.
        vram: budget in bytes or as text, the CUDA context included, for policies that need one.
            The report may exceed it; see `check_fits`.
        rung: ``replayed`` is exact, ``composed`` is faster.
        published_flops: count FLOPs as arXiv 2507.23536 did, with groups left out of weight
            gradients.
        power_limit: power limit of the GPU in watts; None for the board's own.
        snapshot: file for a memory snapshot of the replay that PyTorch's memory_viz opens.
        perfetto: file for a JSON trace of the replay that Perfetto opens.
        on_progress: called with (stage, description, fraction of the stage done).
        **workload: see `WorkloadOptions`.

    Raises:
        UnknownNameError: no such model, method, policy or device.
        UsageError: an argument out of its domain, or a method that refuses the backbone.
        InfeasibleError: an exact policy, and no placement fits the budget.
        InputError: a file cannot be written, or is not one that this program wrote.
    """
    from planner.target_device import find_target

    check_names(models=[model], methods=[method], device=device_name(device))
    if rung == "composed" and published_flops:
        raise UsageError("FLOPs as published are counted by a replay; use the rung 'replayed'")
    if rung == "composed" and (snapshot or perfetto):
        raise UsageError("a snapshot is one of a replay; use the rung 'replayed'")
    check_replay_files(snapshot=snapshot, perfetto=perfetto)
    notify = on_progress or no_progress
    target = find_target(device_name(device))
    if power_limit is not None:
        from profiler.timing.rates import check_power_limit

        check_power_limit(target.spec, power_limit)
    notify("predict", "building the workload", 0.0)
    candidate = candidate_of(model, method, device=target.label.name, vram=vram, options=workload)
    notify("predict", "replaying" if rung == "replayed" else "profiling", 0.3)
    if rung == "composed":
        from planner.cost.place_by_policy import default_cost_model

        cost = default_cost_model(target.spec, power_limit_watts=power_limit)
        report = cost.predict(candidate)
    else:
        from profiler.prediction.report import report_of
        from profiler.replay.step_replay import ReplayOptions, replay_step

        options = ReplayOptions(published_flops=published_flops)
        log = replay_step(candidate, device=target.spec, options=options)
        report = report_of(candidate, log, device=target.spec, power_limit_watts=power_limit)
        save_replay(log, target.spec, snapshot=snapshot, perfetto=perfetto)
    return replace(report, device=target.label)


def check_replay_files(*, snapshot: str | Path | None, perfetto: str | Path | None) -> None:
    """Refuse files that a replay cannot be written to, before any work; None for no file."""
    from profiler.prediction.export_files import check_replay_exports

    check_replay_exports(
        snapshot=None if snapshot is None else Path(snapshot),
        trace=None if perfetto is None else Path(perfetto),
    )


def save_replay(
    log: EventLog,
    device: DeviceSpec,
    *,
    snapshot: str | Path | None,
    perfetto: str | Path | None,
) -> None:
    """Write a replayed step to files for other viewers; None for no file."""
    from profiler.prediction.memory_snapshot import save_perfetto, save_snapshot

    if snapshot is not None:
        save_snapshot(log, device, Path(snapshot))
    if perfetto is not None:
        save_perfetto(log, Path(perfetto))


def measure(
    model: str,
    method: str = "full",
    *,
    device: str | DeviceSpec = "auto",
    vram: int | str | None = None,
    steps: int = 5,
    warmup: int = 2,
    workers: bool = False,
    study: str | None = None,
    storage: str | None = None,
    on_progress: Notify | None = None,
    **workload: Unpack[WorkloadOptions],
) -> Report:
    """Run one workload in a process of its own and measure memory, time and energy.

    Args:
        model: timm name or alias of the backbone.
        method: fine-tuning method.
        device: ``auto`` (this machine's GPU, else the CPU), ``cpu``, or the name of this machine's
            GPU; with ``workers`` the device of a worker, which must be named.
        vram: hard memory cap in bytes or as text, also the budget of policies that need one.
        steps: timed steps.
        warmup: steps before the first reading.
        workers: leave the run to a worker (``budgetplan worker``) on that study, and wait.
        study: name of the study that the worker takes its runs from; needed with ``workers``.
        storage: URL of its storage; needed with ``workers``.
        on_progress: called with (stage, description, fraction of the stage done).
        **workload: see `WorkloadOptions`.

    Raises:
        UnknownNameError: no such model, method, policy or device.
        UsageError: an argument out of its domain, or a method that refuses the backbone.
        DeviceError: the named GPU is not in this machine.
        InputError: the storage cannot be used.
        OutOfMemoryError: the run exceeded the cap.
        MeasurementError: the run failed in another way.
    """
    name = device_name(device)
    check_names(models=[model], methods=[method], device=name)
    check_workers(workers, study=study, storage=storage)
    if workers and name == "auto":
        raise UsageError("a measurement by a worker needs the name of its device: --device NAME")
    from planner.target_device import find_target
    from profiler.running.measurement import measure as run
    from profiler.timing.measured_runs import record_report

    notify = on_progress or no_progress
    here = find_target(name).label.name if workers else device_of_run(name)
    notify("measure", "building the workload", 0.0)
    candidate = candidate_of(model, method, device=here, vram=vram, options=workload)
    notify("measure", "predicting the time", 0.0)
    prediction = _replay_for(candidate, device=here)
    if workers:
        from planner.workers.orders import MeasureOrder
        from planner.workers.outcomes import FinishedMeasurement
        from planner.workers.run_pool import run_by_worker

        order = MeasureOrder.of(
            candidate,
            planned=find_target(name).label,
            prediction=prediction,
            cap_bytes=optional_size(vram),
            steps=steps,
            warmup=warmup,
        )
        found = run_by_worker(
            order,
            FinishedMeasurement,
            url=storage or "",
            study_name=study or "",
            on_progress=lambda text, done: notify("measure", text, done),
        )
        return replace(
            found.report, notes=(*found.report.notes, f"measured by a worker: {found.worker}")
        )
    report = run(
        candidate,
        device=here,
        cap_bytes=optional_size(vram),
        steps=steps,
        warmup=warmup,
        expected_step_seconds=None if prediction is None else prediction.step_seconds,
        on_progress=lambda text, done: notify("measure", text, done),
    )
    record_report(report, source="measure")
    if name != "auto" or here != "cpu":
        return report
    from profiler.devices.nvml import why_no_gpu

    note = f"{why_no_gpu()}, so it was run on the CPU"
    return replace(report, device=replace(report.device, note=note))


def _replay_for(candidate: Candidate, *, device: str) -> Report | None:
    """Return the replay of a candidate; None if it fails."""
    from profiler.devices.table import device_spec
    from profiler.prediction.report import predict as replay

    try:
        return replay(candidate, device=device_spec(device))
    except BudgetplanError:  # the real run has a message of its own
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitProfile:
    """A replayed step, unit by unit.

    Attributes:
        report: prediction with one row for each unit.
        log: event log of the replay.
        placement_rows: live bytes, freed bytes and recomputation price of each unit; None when
            not requested.
    """

    report: Report
    log: EventLog
    placement_rows: tuple[PlacementRow, ...] | None


def profile_units(
    model: str,
    method: str = "full",
    *,
    device: str | DeviceSpec = "auto",
    vram: int | str | None = None,
    published_flops: bool = False,
    with_placement: bool = False,
    on_progress: Notify | None = None,
    **workload: Unpack[WorkloadOptions],
) -> UnitProfile:
    """Replay one workload and return its units, its event log and the reasons of its placement.

    The arguments and errors are those of `predict`. With ``with_placement`` the cost model also
    returns the price of every unit's decision.
    """
    from planner.target_device import find_target
    from profiler.devices.table import device_spec

    check_names(models=[model], methods=[method], device=device_name(device))
    from profiler.prediction.report import report_of
    from profiler.replay.step_replay import ReplayOptions, replay_step

    notify = on_progress or no_progress
    label = find_target(device_name(device)).label
    notify("profile", "building the workload", 0.0)
    candidate = candidate_of(model, method, device=label.name, vram=vram, options=workload)
    notify("profile", "replaying one step", 0.3)
    spec = device_spec(label.name)
    options = ReplayOptions(published_flops=published_flops)
    log = replay_step(candidate, device=spec, options=options)
    report = replace(report_of(candidate, log, device=spec), device=label)
    rows = None
    if with_placement:
        notify("profile", "composing the cost of every decision", 0.9)
        from planner.cost.place_by_policy import default_cost_model

        rows = default_cost_model(device_spec(label.name)).placement_table(candidate)
    return UnitProfile(report=report, log=log, placement_rows=rows)


def draw_timeline(profile: UnitProfile, path: Path) -> None:
    """Draw the live bytes of a replayed step to a PNG or HTML file.

    On CUDA the sizes are those of the allocator's blocks, without cuBLAS' workspaces.

    Raises:
        InputError: the file cannot be written.
        UsageError: neither ``.png`` nor ``.html``, or matplotlib is not installed.
    """
    from profiler.devices.table import device_spec, workspaces_of
    from profiler.prediction.allocator_steps import BLOCK_BYTES
    from profiler.prediction.save_timeline import save_timeline

    candidate, log, caption = profile.report.candidate, profile.log, ""
    workload, spec = candidate.workload, device_spec(profile.report.device.name)
    if spec.is_cuda:
        log = log.rounded(BLOCK_BYTES)
        caption = f"Without {format_bytes(sum(workspaces_of(spec)))} of cuBLAS' workspaces."
    rank = "" if workload.rank is None else f" rank {workload.rank}"
    title = (
        f"{workload.model}, {workload.method}{rank}, batch {workload.micro_batch}, "
        f"{workload.precision}, checkpointing {candidate.policy.display_name}, {spec.name}"
    )
    save_timeline(log, path, title=title, caption=caption)


def fit_probability(report: Report, vram: int | str) -> FitProbability | None:
    """Return the probability that a predicted training fits a budget; None if it is not known.

    Args:
        report: prediction.
        vram: budget in bytes or as text, the CUDA context included.
    """
    from planner.cost.fit_probability import fit_of

    return fit_of(report, parse_size(vram))


def check_fits(report: Report, vram: int | str) -> None:
    """Compare a prediction with a budget.

    Args:
        report: prediction.
        vram: budget in bytes or as text, the CUDA context included.

    Raises:
        InfeasibleError: the training exceeds the budget with a probability above 1 %. The message
            names the smallest budget that suffices and a change that makes the workload fit.
    """
    from planner.cost.fit_probability import (
        DEFAULT_RISK,
        FitRule,
        context_clause,
        fits_within,
        smallest_budget_of,
    )
    from planner.cost.place_by_policy import default_cost_model
    from planner.recommendation.infeasible import change_that_fits
    from profiler.devices.table import device_spec
    from profiler.errors import InfeasibleError

    budget_bytes, device = parse_size(vram), device_spec(report.device.name)
    if fits_within(report, budget_bytes):
        return
    rule = FitRule.of(report.candidate.workload, device)
    smallest_bytes = smallest_budget_of(report)
    raise InfeasibleError(
        budget_bytes=budget_bytes,
        smallest_bytes=smallest_bytes,
        context=context_clause(device, smallest_bytes, budget_bytes),
        advice=change_that_fits(
            report.candidate,
            default_cost_model(device),
            rule.largest_prediction(budget_bytes, risk=DEFAULT_RISK),
        ),
        subject="it does not fit",
    )
