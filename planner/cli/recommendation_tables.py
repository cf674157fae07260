"""Tables behind the first screen of an answer: all rows, the baselines, the notes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console

from planner.cli.cell_text import (
    alias_of,
    difference,
    levers_of,
    optimizer_of,
    placement_of,
    shown_accuracy,
    shown_score,
)
from planner.cli.table_layout import Column, Page, tables
from planner.cost.budget import needed_bytes
from planner.plan import Plan
from planner.recommendation.answer import FrontEntry, Recommendation
from planner.recommendation.baselines import Baseline
from profiler.records import Report
from profiler.units import format_bytes_as, format_joules, format_seconds


def show_all_rows(answer: Recommendation, console: Console) -> None:
    """Print every row of the front with all its numbers, and the paper's defaults."""
    page = Page(console)
    page.heading("All rows")
    chosen = {answer.recommended: "green"}
    page.block(*tables(front_columns(answer), keys=2, width=page.width, styles=chosen))
    recommended = answer.front[answer.recommended]
    page.heading("Reason")
    page.sentences([answer.reason])
    if recommended.plan.recipe is not None:
        page.sentences([f"trains by {recommended.plan.recipe.describe()}"])
    if answer.baselines:
        page.heading("Defaults of arXiv 2607.02158 on this device (batch 32, fp32, AdamW)")
        page.block(
            *tables(
                baseline_columns(answer.baselines, answer.request.budget_bytes),
                keys=1,
                width=page.width,
            )
        )


def show_notes(answer: Recommendation, console: Console) -> None:
    """Print the candidates that were dropped, and every note."""
    page = Page(console)
    if answer.dropped:
        page.heading("Dropped")
        page.sentences(answer.dropped)
    page.heading("Notes")
    page.sentences([*answer.notes, *_closing(answer)])


def _closing(answer: Recommendation) -> Iterator[str]:
    yield (
        "expected order is the rank by accuracy: 1 for the best and for all that published "
        "comparisons cannot distinguish from the best; * marks the recommended row; batch is "
        "micro-batch x accumulation; r is the rank, for adapters the width, for prompts and "
        "prefixes their number, for side networks a divisor"
    )
    yield f"a plan file for each row is in {answer.request.out}/; `budgetplan show PLAN` prints it"
    yield (
        f"{answer.trials} trials, {format_seconds(answer.seconds)} in all; study {answer.study}: "
        f"`recommend --study {answer.request.question_study}` continues it, `budgetplan dashboard` "
        "shows it"
    )


def _methods(plans: Sequence[Plan]) -> list[str]:
    """Return the method of each plan, with its backbone if there are several."""
    workloads = [plan.candidate.workload for plan in plans]
    if len({workload.model for workload in workloads}) == 1:
        return [workload.method_text for workload in workloads]
    return [f"{alias_of(workload.model)} {workload.method_text}" for workload in workloads]


def front_columns(answer: Recommendation) -> list[Column]:
    """Return the columns of the front, with a star at the recommended row."""
    entries = answer.front
    plans = [entry.plan for entry in entries]
    workloads = [plan.candidate.workload for plan in plans]
    on_host = any(entry.host_prediction is not None for entry in entries)
    names = [f"{i + 1}{'*' if i == answer.recommended else ' '}" for i, _ in enumerate(entries)]
    return [
        Column(header="#", cells=names),
        Column(header="method", cells=_methods(plans), justify="left"),
        Column(header="batch", cells=[w.batch_text for w in workloads], justify="left"),
        Column(
            header="precision",
            cells=[w.precision for w in workloads],
            justify="left",
        ),
        Column(
            header="optimizer",
            cells=[", ".join([optimizer_of(p.candidate), *levers_of(p.candidate)]) for p in plans],
            justify="left",
        ),
        Column(
            header="checkpointing",
            cells=[placement_of(p.candidate) for p in plans],
            justify="left",
        ),
        *_cost_columns(plans, on_host=on_host),
        *(_host_columns(entries) if on_host else ()),
        Column(header="expected\norder", cells=[str(place) for place in answer.expected_order]),
        Column(header="accuracy", cells=[shown_accuracy(p) for p in plans]),
        Column(header="NetScore", cells=[shown_score(p, "netscore") for p in plans]),
        Column(header="NS-M", cells=[shown_score(p, "ns_m") for p in plans]),
    ]


def _cost_columns(plans: Sequence[Plan], *, on_host: bool) -> list[Column]:
    runs = [None if on_host else plan.measurement for plan in plans]
    kinds = {plan.prediction.rung for plan in plans}
    needs = [format_bytes_as(needed_bytes(p.prediction), p.budget_bytes) for p in plans]
    used = [
        format_bytes_as(None if run is None else needed_bytes(run), plan.budget_bytes)
        for run, plan in zip(runs, plans, strict=True)
    ]
    rung = kinds.pop() if len(kinds) == 1 else "predicted"
    return [
        Column(
            header=f"memory\n{rung}",
            cells=needs,
        ),
        Column(
            header="memory\nmeasured",
            cells=used,
        ),
        Column(
            header="step\npredicted",
            cells=[format_seconds(plan.prediction.step_seconds) for plan in plans],
        ),
        Column(
            header="step\nmeasured",
            cells=["-" if run is None else format_seconds(run.step_seconds) for run in runs],
        ),
        Column(
            header="energy/step\npredicted",
            cells=[format_joules(plan.prediction.energy_joules) for plan in plans],
        ),
        Column(
            header="energy/step\nmeasured",
            cells=["-" if run is None else format_joules(run.energy_joules) for run in runs],
        ),
    ]


def _host_columns(entries: Sequence[FrontEntry]) -> list[Column]:
    hosts = [entry.host_prediction for entry in entries]
    runs = [entry.plan.measurement for entry in entries]
    budget = entries[0].plan.budget_bytes
    peaks = [(_peak(host), _peak(run)) for host, run in zip(hosts, runs, strict=True)]
    return [
        Column(header="CPU peak\npredicted", cells=[format_bytes_as(p, budget) for p, _ in peaks]),
        Column(header="CPU peak\nmeasured", cells=[format_bytes_as(m, budget) for _, m in peaks]),
        Column(header="error", cells=[difference(p, m) for p, m in peaks]),
        Column(
            header="CPU step\nmeasured",
            cells=["-" if run is None else format_seconds(run.step_seconds) for run in runs],
        ),
    ]


def _peak(report: Report | None) -> int | None:
    return None if report is None else report.memory.peak_bytes


def baseline_columns(baselines: Mapping[str, Baseline], budget_bytes: int) -> list[Column]:
    """Return the columns of the paper's defaults; sizes are in the unit of the budget."""
    rows = list(baselines.values())
    reports = [row.prediction for row in rows]
    return [
        Column(
            header="method",
            cells=[report.candidate.workload.method_text for report in reports],
            justify="left",
        ),
        Column(
            header="checkpointing",
            cells=[placement_of(report.candidate) for report in reports],
            justify="left",
        ),
        Column(
            header="memory\ncomposed",
            cells=[format_bytes_as(needed_bytes(r), budget_bytes) for r in reports],
        ),
        Column(
            header="step\npredicted",
            cells=[format_seconds(report.step_seconds) for report in reports],
        ),
        Column(
            header="energy/step\npredicted",
            cells=[format_joules(report.energy_joules) for report in reports],
        ),
        Column(header="fits", cells=["yes" if row.fits else "no" for row in rows], justify="left"),
    ]
