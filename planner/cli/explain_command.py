"""The command explain: the use of a plan's memory, and the effect of each choice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner import api
from planner.cli.options import (
    SIZES,
    json_option,
    plan_argument,
    planned_device_option,
    progress_option,
    size_option,
)
from planner.cli.output import console, print_json
from planner.cli.progress import ProgressKind, progress_bar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from planner.cli.table_layout import Column
    from planner.recommendation.explain import ExplainedRow, Explanation


MOST_TENSORS = 8
"""Kinds of tensors that are listed."""

SMALLEST_SHARE = 0.005
"""Share of the memory from which an owner is shown."""


@click.command(epilog=SIZES)
@plan_argument
@planned_device_option
@size_option(
    "--vram",
    text="Another budget to compare with; the tensors alive at the peak are listed if the plan "
    "exceeds it.",
)
@progress_option
@json_option
def explain(
    plan: Path, *, device: str, vram: int | None, progress: ProgressKind | None, as_json: bool
) -> None:
    """Explain a plan's memory, and what each choice costs.

    The choices are compared with full fine-tuning in fp32 with the whole batch at once; each row
    is a replayed training step.
    """
    with progress_bar(progress, as_json=as_json) as notify:
        found = api.explain(plan, device=device, vram=vram, on_progress=notify)
    if as_json:
        print_json(found.to_json())
    else:
        _show_explanation(found, console())


def _show_explanation(found: Explanation, screen: Console) -> None:
    from planner.cli.table_layout import Page, tables
    from profiler.prediction.timeline import OUTSIDE
    from profiler.units import format_bytes_in, unit_as_asked

    page, unit = Page(screen), unit_as_asked(found.budget_bytes)
    page.heading("Memory at the peak")
    page.block(*tables(_owner_columns(found, unit), keys=1, width=page.width))
    place = f"of {found.peak_unit}"
    if found.peak_unit == OUTSIDE:
        place = "of layers outside the units"
    page.sentences([f"the peak is in the {found.peak_phase} {place}"])
    if found.need_bytes > found.budget_bytes:
        need, budget = (format_bytes_in(n, unit) for n in (found.need_bytes, found.budget_bytes))
        page.sentences([f"the plan needs {need} and does not fit {budget}"])
        page.heading("Tensors alive at the peak")
        page.block(*tables(_tensor_columns(found, unit), keys=1, width=page.width))
    page.heading("The budget")
    page.block(*tables(_budget_columns(found, unit), keys=1, width=page.width))
    page.heading("From the plain default to this plan")
    page.block(*tables(_columns(found.steps, unit, adds_up=True), keys=1, width=page.width))
    if found.neighbours:
        page.heading("This plan with one change")
        last = replace(found.steps[-1], change="this plan")
        columns = _columns([last, *found.neighbours], unit, adds_up=False)
        page.block(*tables(columns, keys=1, width=page.width))


def _owner_columns(found: Explanation, unit: str) -> list[Column]:
    """Return the parts of the need; owners with a small share are one row."""
    from profiler.records import OWNERS

    sizes = {name: getattr(found.at_peak, name) for name in OWNERS}
    sizes["allocator's free and rounded bytes"] = found.outside_bytes - found.context_bytes
    sizes["CUDA context"] = found.context_bytes
    total = sum(sizes.values())
    shown = {name: size for name, size in sizes.items() if size / total >= SMALLEST_SHARE}
    if rest := total - sum(shown.values()):
        shown["others"] = rest
    columns = _summed_columns(shown, unit, header="owner", total="the plan needs")
    shares = [f"{size / total:.0%}" for size in (*shown.values(), total)]
    return [*columns, replace(columns[1], header="share", cells=shares)]


def _budget_columns(found: Explanation, unit: str) -> list[Column]:
    """Return the parts of the budget: the need, its margin and the rest."""
    sizes = {"the plan needs": found.need_bytes}
    if found.margin.context_bytes:
        sizes["kept for a larger CUDA context"] = found.margin.context_bytes
    if found.margin.error_bytes:
        sizes["kept for errors of the prediction"] = found.margin.error_bytes
    sizes["free" if found.free_bytes >= 0 else "over the budget"] = found.free_bytes
    return _summed_columns(sizes, unit, header="part", total="budget")


def _summed_columns(
    sizes: Mapping[str, int], unit: str, *, header: str, total: str
) -> list[Column]:
    """Return the columns of parts and of their sum, to which the printed parts add up."""
    from planner.cli.table_layout import Column
    from profiler.units import format_bytes_in, parts_in

    cells = [*parts_in([*sizes.values()], unit), format_bytes_in(sum(sizes.values()), unit)]
    return [
        Column(header=header, cells=[*sizes, total], justify="left"),
        Column(header="size", cells=cells),
    ]


def _tensor_columns(found: Explanation, unit: str) -> list[Column]:
    """Return the largest kinds of tensors at the peak, and the number of the others."""
    from planner.cli.table_layout import Column
    from profiler.units import format_bytes_in

    shown, rest = found.tensors[:MOST_TENSORS], found.tensors[MOST_TENSORS:]
    sizes = [each.nbytes for each in shown] + [sum(each.nbytes for each in rest)]
    others = f"{sum(each.count for each in rest)} others"
    return [
        Column(header="size", cells=[format_bytes_in(size, unit) for size in sizes]),
        Column(header="owner", cells=[*(t.owner for t in shown), others], justify="left"),
        Column(header="made by", cells=[*(t.operation or "-" for t in shown), "-"], justify="left"),
        Column(
            header="tensors",
            cells=[*(f"{t.count} x {'x'.join(map(str, t.shape)) or '-'}" for t in shown), "-"],
            justify="left",
        ),
        Column(header="in", cells=[*(t.units or "-" for t in shown), "-"], justify="left"),
    ]


def _columns(rows: Sequence[ExplainedRow], unit: str, *, adds_up: bool) -> list[Column]:
    """Return memory and time of each row, and the difference to the row before or to the first."""
    from planner.cli.table_layout import Column
    from profiler.units import format_bytes_in, format_seconds

    def relative(values: list[float | None]) -> list[str]:
        cells = ["-"]
        for i in range(1, len(values)):
            value, before = values[i], values[i - 1 if adds_up else 0]
            cells.append("-" if value is None or not before else f"{value / before - 1:+.0%}")
        return cells

    sizes = [None if r.need_bytes is None else float(r.need_bytes) for r in rows]
    seconds = [r.step_seconds for r in rows]
    return [
        Column(header="choice", cells=[r.change for r in rows], justify="left"),
        Column(
            header="memory",
            cells=["-" if s is None else format_bytes_in(s, unit) for s in sizes],
        ),
        Column(header="", cells=relative(sizes)),
        Column(header="step", cells=[format_seconds(s) for s in seconds]),
        Column(header="", cells=relative(seconds)),
        Column(
            header="fits",
            cells=["yes" if r.fits else r.reason or "no" for r in rows],
            justify="left",
            wraps=True,
        ),
    ]
