"""Tables of a plan file: candidate, predicted beside measured, scores, provenance."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console

from planner.cli.cell_text import (
    accuracy_of,
    candidate_facts,
    difference,
    joules_text,
    netscore_of,
    seconds_text,
)
from planner.cli.table_layout import Column, Page, tables
from planner.cost.budget import needed_bytes
from planner.plan import Plan
from planner.recipe import Recipe
from planner.recommendation.ranking_accuracy import ranks_candidates
from planner.training.images.image_set import DataSource
from profiler.errors import InputError
from profiler.records import Report
from profiler.units import format_asked, format_bytes_as, format_joules, format_seconds


def show_plan(plan: Plan, console: Console) -> None:
    """Print a plan file."""
    page = Page(console)
    workload = plan.candidate.workload
    page.heading(f"Plan: {workload.model} within {format_asked(plan.budget_bytes)}")
    page.facts(candidate_facts(plan.candidate))
    page.heading("Recipe")
    page.facts(_recipe_facts(plan.recipe))
    page.heading("Predicted and measured")
    page.block(*tables(comparison_columns(plan), keys=1, width=page.width))
    if (most := plan.prediction.memory.comfortable_bytes or 0) > needed_bytes(plan.prediction):
        page.block(
            f"{format_bytes_as(most, plan.budget_bytes)} of device memory with cuDNN's workspaces"
        )
    if host_bytes := plan.prediction.memory.host_bytes:
        page.block(f"{format_bytes_as(host_bytes, plan.budget_bytes)} of the host's memory")
    page.heading("Accuracy and scores")
    page.facts(_score_facts(plan))
    if not plan.candidate.placement.is_none:
        page.heading("Placement")
        page.facts(sorted(plan.candidate.placement.decisions.items()))
    page.heading("Provenance")
    page.facts(_provenance_facts(plan))


def comparison_columns(plan: Plan) -> list[Column]:
    """Return predicted and measured values. A run on another device has its own columns."""
    prediction, run, budget = plan.prediction, plan.measurement, plan.budget_bytes
    same = run is not None and run.device.kind == prediction.device.kind
    names = ["device memory", "reserved", "peak of tensors", "step", "energy per step"]
    predicted, measured = _quantities(prediction), _quantities(run if same else None)
    off = [difference(p, m) for p, m in zip(predicted, measured, strict=True)]
    columns = [
        Column(header="", cells=names, justify="left"),
        Column(
            header=f"{prediction.rung} for\n{prediction.device.name}",
            cells=_predicted_cells(prediction, budget),
        ),
        Column(header="measured", cells=_printed(measured, budget)),
        Column(header="error", cells=off),
    ]
    if run is not None and not same:
        expected = (plan.provenance.get("host_prediction") or {}).get("peak_bytes")
        columns += [
            Column(
                header=f"replayed for\n{run.device.name}",
                cells=_printed([None, None, expected, None, None], budget),
            ),
            Column(
                header=f"measured on\n{run.device.name}",
                cells=_printed([None, None, *_quantities(run)[2:]], budget),
            ),
        ]
    return columns


def _quantities(report: Report | None) -> list[float | None]:
    if report is None:
        return [None] * 5
    memory = report.memory
    return [
        memory.held_bytes,
        memory.reserved_bytes,
        memory.peak_bytes,
        report.step_seconds,
        report.energy_joules,
    ]


def _printed(quantities: Sequence[float | None], budget_bytes: int) -> list[str]:
    *sizes, seconds, joules = quantities
    printed = [format_bytes_as(size, budget_bytes) for size in sizes]
    return [*printed, format_seconds(seconds), format_joules(joules)]


def _predicted_cells(report: Report, budget_bytes: int) -> list[str]:
    """Return the predicted values, those of time and energy with their intervals."""
    return [
        *_printed(_quantities(report), budget_bytes)[:-2],
        seconds_text(report.step_seconds, report.step_seconds_interval),
        joules_text(report.energy_joules, report.energy_joules_interval),
    ]


def _recipe_facts(recipe: Recipe | None) -> Iterator[tuple[str, str]]:
    """Yield how the plan trains."""
    if recipe is None:
        yield "trains by", "the recipe of the time when the plan was written (it names none)"
        return
    yield "trains by", recipe.describe()
    yield "made for", f"{recipe.weights} weights"
    yield "source", recipe.source


def _score_facts(plan: Plan) -> Iterator[tuple[str, str]]:
    if not ranks_candidates(plan):
        yield "accuracy", "not known"
        ran = plan.accuracy.kind == "measured"
        yield (
            "source",
            "the run was too short to show how accurate the model becomes"
            if ran
            else plan.accuracy.source,
        )
        return
    yield "accuracy", accuracy_of(plan.accuracy)
    yield "source", plan.accuracy.source
    for name, label in (
        ("netscore", "NetScore"),
        ("ns_e", "NS-E"),
        ("ns_m", "NS-M"),
        ("ns_sharp", "NS#"),
        ("ppt", "PPT"),
    ):
        yield label, netscore_of(plan.scores, name)


def _image_facts(plan: Plan) -> Iterator[tuple[str, str]]:
    """Yield the images of the real run, if the plan records a run with such a record."""
    run = plan.provenance.get("run")
    images = run.get("images") if isinstance(run, Mapping) else None
    with contextlib.suppress(InputError):  # a plan's provenance may hold anything
        yield "images", str(DataSource.from_json(images, part="plan.provenance.run.images"))


def _provenance_facts(plan: Plan) -> Iterator[tuple[str, str]]:
    yield from _image_facts(plan)
    for name, value in plan.provenance.items():
        if isinstance(value, str | int | float):
            yield name.replace("_", " "), str(value)
        elif name == "versions" and isinstance(value, Mapping):
            yield "versions", ", ".join(f"{k} {v}" for k, v in value.items())
        elif name == "weights" and isinstance(value, Mapping):
            detail = value.get("detail")
            shown = f"{value.get('kind')}" + (f" ({detail})" if detail else "")
            yield "weights of the run", shown
            for note in value.get("notes") or ():
                yield "note", str(note)
        elif name == "origin" and isinstance(value, list):
            for note in value:
                yield "note", str(note)
