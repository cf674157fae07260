"""The table of a plan without fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from planner.cli.cell_text import accuracy_of, joules_text, probability_text, seconds_text
from planner.cli.table_layout import Page
from profiler.units import format_asked, format_bytes_as

if TYPE_CHECKING:
    from rich.console import Console

    from planner.training_free.plan_file import FrozenPlan


def show_frozen_plan(plan: FrozenPlan, console: Console) -> None:
    """Print a plan without fine-tuning."""
    page = Page(console)
    page.heading(f"Plan: {plan.candidate.model} within {format_asked(plan.budget_bytes)}")
    page.facts(list(_candidate_facts(plan)))
    page.heading(f"Predicted for {plan.prediction.device.name}")
    page.facts(list(_predicted_facts(plan)))
    page.heading("Accuracy and provenance")
    page.facts(
        [
            ("accuracy", accuracy_of(plan.accuracy)),
            ("source", plan.accuracy.source),
            ("data", str(plan.provenance.get("data", "-"))),
            ("made at", str(plan.provenance.get("made_at", "-"))),
        ]
    )


def _candidate_facts(plan: FrozenPlan) -> Iterator[tuple[str, str]]:
    candidate, model = plan.candidate, plan.model
    does = {
        "features": "a linear probe is fitted on the features of the frozen backbone",
        "zero_shot": "images are compared with class names",
        "prompted": "a language model that sees the image is asked for the class",
    }
    yield "kind", f"{candidate.kind}: {does[model.kind]}"
    yield "checkpoint", model.checkpoint
    yield "parameters", f"{model.parameters_millions:g} M, none of them trained"
    yield "weights", "4 bits" if candidate.four_bit else candidate.dtype
    yield "images at once", str(candidate.batch)
    yield "classes", str(candidate.num_classes)
    if candidate.prompts:
        yield "prompts", "; ".join(candidate.prompts)


def _predicted_facts(plan: FrozenPlan) -> Iterator[tuple[str, str]]:
    found = plan.prediction
    yield "device memory", f"{format_bytes_as(found.device_bytes, plan.budget_bytes)} (replayed)"
    if plan.fits is not None:
        yield "fits the budget", f"{probability_text(plan.fits)} ({plan.fits.compared} steps)"
    yield "peak of tensors", format_bytes_as(found.peak_bytes, plan.budget_bytes)
    seconds = seconds_text(found.image_seconds, found.image_seconds_interval)
    if found.image_seconds_origin is not None:
        seconds += f", {found.image_seconds_origin.value}"
    yield "an image", seconds
    yield "energy", joules_text(found.image_joules, found.image_joules_interval)
