"""Tables of a report: memory by owner, units of the backbone, placement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console

from planner.cli.cell_text import (
    candidate_facts,
    decision_of,
    joules_text,
    probability_text,
    seconds_text,
)
from planner.cli.table_layout import Column, Page, tables
from planner.cost.budget import needed_bytes
from planner.cost.fit_probability import DEFAULT_RISK, fit_of, fits_within
from planner.placement.placement_table import PlacementRow
from profiler.placement import Placement
from profiler.records import OWNERS, Report, Rung, UnitReport
from profiler.units import (
    format_asked,
    format_bytes,
    format_bytes_as,
    format_count,
    format_seconds,
)


def show_report(report: Report, console: Console, *, budget_bytes: int | None = None) -> None:
    """Print a prediction or a measurement."""
    page = Page(console)
    page.heading(f"{report.candidate.workload.model}, {report.rung} for {report.device.name}")
    page.facts(_report_facts(report, budget_bytes))
    owners = owner_columns(report, budget_bytes)
    if owners:
        page.heading("Memory by owner")
        page.block(*tables(owners, keys=1, width=page.width))
    notes = [*([report.device.note] if report.device.note else []), *report.notes]
    if notes:
        page.heading("Notes")
        page.sentences(notes)


def _report_facts(report: Report, budget_bytes: int | None) -> Iterator[tuple[str, str]]:
    yield from candidate_facts(report.candidate)
    memory, flops = report.memory, report.flops
    yield "peak", format_bytes_as(memory.peak_bytes, budget_bytes)
    yield "reserved", format_bytes_as(memory.reserved_bytes, budget_bytes)
    if report.device.kind == "cuda":
        need = format_bytes_as(memory.device_bytes, budget_bytes)
        yield "device memory", f"{need}{_against(report, budget_bytes)}"
        if needed_bytes(report) > (memory.device_bytes or 0):
            size = format_bytes_as(needed_bytes(report), budget_bytes)
            yield "runs within", f"{size}: PyTorch checks whole blocks against a limit"
        if (memory.comfortable_bytes or 0) > needed_bytes(report):
            size = format_bytes_as(memory.comfortable_bytes, budget_bytes)
            yield "comfortable", f"{size} with cuDNN's workspaces, fitted on others' runs"
        if memory.host_bytes:
            size = format_bytes_as(memory.host_bytes, budget_bytes)
            yield "host memory", size
    elif budget_bytes is not None:
        yield "budget", _against(report, budget_bytes).strip(", ")
    kind = "measured" if report.rung == Rung.MEASURED else "predicted"
    yield f"step, {kind}", seconds_text(report.step_seconds, report.step_seconds_interval)
    joules = joules_text(report.energy_joules, report.energy_joules_interval)
    yield f"energy per step, {kind}", joules
    if (limit := power_limit_text(report)) is not None:
        yield "power limit", limit
    parameters = report.parameters
    yield (
        "parameters",
        f"{format_count(parameters.total)}, {format_count(parameters.trainable)} trainable",
    )
    if flops is not None:
        again = f", {format_count(flops.recompute)} of it recomputed" if flops.recompute else ""
        yield "FLOPs per step", f"{format_count(flops.total)}{again}"


def power_limit_text(report: Report) -> str | None:
    """Return the power limit of a prediction, or the one that saves energy; None without either."""
    if report.power_limit_watts is not None:
        return f"{report.power_limit_watts:g} W, for which time and energy are predicted"
    saving, seconds, joules = report.power_saving, report.step_seconds, report.energy_joules
    if saving is None or not seconds or not joules:
        return None
    slower, saved = saving.step_seconds / seconds - 1, 1 - saving.energy_joules / joules
    return (
        f"{saving.watts:g} W would save {100 * saved:.0f} % of the energy for {100 * slower:.0f} % "
        "more time, predicted"
    )


def _against(report: Report, budget_bytes: int | None) -> str:
    if budget_bytes is None:
        return ""
    fits, known = fits_within(report, budget_bytes), fit_of(report, budget_bytes)
    verb, how = "fits" if fits else "does not fit", probability_text(known)
    if not fits and known is not None and known.probability >= 1 - DEFAULT_RISK:
        how = "it leaves less than 2 MiB of room"
    return f", {verb} a budget of {format_asked(budget_bytes)}{how and f' ({how})'}"


def owner_columns(report: Report, budget_bytes: int | None = None) -> list[Column]:
    """Return memory by owner, at the peak and at its highest; no columns if unknown."""
    at_peak, highest = report.memory.at_peak, report.memory.max_by_group
    if at_peak is None:
        return []
    shown = [o for o in OWNERS if getattr(at_peak, o) or (highest and getattr(highest, o))]
    return [
        Column(header="owner", cells=shown, justify="left"),
        Column(
            header="at the peak",
            cells=[format_bytes_as(getattr(at_peak, o), budget_bytes) for o in shown],
        ),
        Column(
            header="highest",
            cells=[
                format_bytes_as(getattr(highest, o) if highest else None, budget_bytes)
                for o in shown
            ],
        ),
    ]


def show_profile(
    report: Report, console: Console, *, placement_rows: Sequence[PlacementRow] | None = None
) -> None:
    """Print the table of units, and with ``placement_rows`` the cost of each decision."""
    page = Page(console)
    workload, placement = report.candidate.workload, report.candidate.placement
    page.heading(
        f"{workload.model}, {workload.method_text}: one micro-batch of {workload.micro_batch} "
        f"for {report.device.name}"
    )
    if not report.units:
        page.block("this backbone has no units that can be recomputed")
    else:
        columns = unit_columns(
            report.units, placement, with_decisions=placement_rows is None and not placement.is_none
        )
        page.block(*tables(columns, keys=1, width=page.width))
    if placement_rows is not None:
        _placement_section(placement_rows, placement, page)
    page.heading("The whole step")
    page.facts(_report_facts(report, None))
    owners = owner_columns(report)
    if owners:
        page.block("", *tables(owners, keys=1, width=page.width))
    notes = [*([report.device.note] if report.device.note else []), *report.notes]
    if notes:
        page.heading("Notes")
        page.sentences(notes)


def unit_columns(
    units: Sequence[UnitReport], placement: Placement, *, with_decisions: bool = True
) -> list[Column]:
    """Return the columns of a profile."""
    decisions = Column(
        header="decision", cells=[decision_of(u.name, placement) for u in units], justify="left"
    )
    return [
        Column(header="unit", cells=[u.name for u in units], justify="left"),
        *([decisions] if with_decisions else []),
        Column(header="stored", cells=[format_bytes(u.stored_bytes) for u in units]),
        Column(header="boundary", cells=[format_bytes(u.boundary_bytes) for u in units]),
        Column(header="working", cells=[format_bytes(u.working_bytes) for u in units]),
        Column(header="forward\nFLOPs", cells=[format_count(u.forward_flops) for u in units]),
        Column(
            header="forward\npredicted", cells=[format_seconds(u.forward_seconds) for u in units]
        ),
        Column(
            header="recompute\npredicted",
            cells=[format_seconds(u.recompute_seconds or None) for u in units],
        ),
    ]


def _placement_section(rows: Sequence[PlacementRow], placement: Placement, page: Page) -> None:
    """Print the bytes that each decision frees and its recomputation time."""
    page.heading("Placement, composed")
    page.block(*tables(placement_columns(rows, placement), keys=2, width=page.width))
    peaks = [f"{row.unit} ({row.binding})" for row in rows if row.binding is not None]
    page.sentences(
        [
            f"the peak is set by {', '.join(peaks)}"
            if peaks
            else "the peak is set by the optimizer's step, which no placement changes",
            "freed bytes and recomputation time are relative to keeping the unit",
        ]
    )


def placement_columns(rows: Sequence[PlacementRow], placement: Placement) -> list[Column]:
    """Return the columns of a placement table."""
    decisions = [decision_of(r.unit, placement) for r in rows]
    return [
        Column(header="unit", cells=[r.unit for r in rows], justify="left"),
        Column(header="decision", cells=decisions, justify="left"),
        Column(header="stored", cells=[format_bytes(r.stored_bytes) for r in rows]),
        Column(header="freed", cells=[format_bytes(r.freed_bytes or None) for r in rows]),
        Column(
            header="recompute\npredicted",
            cells=[format_seconds(r.recompute_seconds or None) for r in rows],
        ),
        Column(
            header="recompute\nper MiB",
            cells=[format_seconds(r.seconds_per_freed_mib) for r in rows],
        ),
        Column(header="live,\nforward", cells=[format_bytes(r.forward_bytes) for r in rows]),
        Column(header="live,\nbackward", cells=[format_bytes(r.backward_bytes) for r in rows]),
    ]
