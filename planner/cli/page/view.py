"""The content of the page: rows of plans, the headline, notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from planner.cli.cell_text import batch_of, difference, method_of, placement_of, shown_accuracy
from planner.cost.budget import needed_bytes
from planner.plan import Plan
from profiler.units import (
    format_bytes_in,
    format_count,
    format_joules,
    format_seconds,
    unit_as_asked,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """A plan in the page.

    Attributes:
        name: label in charts, such as ``1`` or the name of its file.
        plan: the plan.
        file: path of its file.
        roles: names under which it stands in the answer, such as ``fastest``.
        is_recommended: whether it is the recommended one.
    """

    name: str
    plan: Plan
    file: str
    roles: tuple[str, ...] = ()
    is_recommended: bool = False

    @property
    def cells(self) -> tuple[str, ...]:
        """Texts of the table's row."""
        prediction, load = self.plan.prediction, self.plan.candidate.workload
        unit = unit_as_asked(self.plan.budget_bytes)
        seconds = prediction.step_seconds
        rate = "-" if seconds is None else f"{load.effective_batch / seconds:,.0f}"
        return (
            method_of(self.plan.candidate),
            batch_of(self.plan.candidate),
            load.precision,
            load.optimizer,
            placement_of(self.plan.candidate),
            format_bytes_in(needed_bytes(prediction), unit),
            format_seconds(seconds),
            rate,
            format_joules(prediction.energy_joules),
            shown_accuracy(self.plan),
        )


HEADERS = (
    "method", "batch", "precision", "optimizer", "checkpointing", "memory", "step", "images/s",
    "energy/step", "accuracy",
)  # fmt: skip
"""Headers of the table of plans, for ``PlanRow.cells``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageView:
    """The content of the page.

    Attributes:
        title: title of the page.
        rows: plans, at least one; the headline is of the first recommended one, else of the first.
        why: reason of the recommendation; empty without one.
        baselines: (name, device bytes, step seconds) of the paper's defaults.
        notes: sentences.
    """

    title: str
    rows: Sequence[PlanRow]
    why: str = ""
    baselines: Sequence[tuple[str, int, float | None]] = ()
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def main(self) -> PlanRow:
        """Row of the headline."""
        return next((row for row in self.rows if row.is_recommended), self.rows[0])

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Name and value of the headline's numbers."""
        plan = self.main.plan
        prediction, unit = plan.prediction, unit_as_asked(plan.budget_bytes)
        counts = prediction.parameters
        used = format_bytes_in(needed_bytes(prediction), unit)
        facts = [
            ("device", prediction.device.full_name),
            ("memory", f"{used} of {format_bytes_in(plan.budget_bytes, unit)}"),
            ("step", f"{format_seconds(prediction.step_seconds)} ({prediction.rung})"),
            ("energy per step", format_joules(prediction.energy_joules)),
            (
                "trains",
                f"{format_count(counts.trainable)} of {format_count(counts.total)} parameters",
            ),
        ]
        if plan.recipe is not None:
            facts.append(("recipe", plan.recipe.describe()))
        return facts

    @property
    def measured(self) -> list[tuple[str, str, str, str]]:
        """Plan, predicted and measured memory, and the error, of each plan that was really run."""
        rows = []
        for row in self.rows:
            run = row.plan.measurement
            if run is None:
                continue
            is_same = run.device.kind == row.plan.prediction.device.kind
            host = (row.plan.provenance.get("host_prediction") or {}).get("peak_bytes")
            expected = needed_bytes(row.plan.prediction) if is_same else host
            unit = unit_as_asked(row.plan.budget_bytes)
            measured = needed_bytes(run)
            rows.append(
                (
                    f"{row.name}: {method_of(row.plan.candidate)} on {run.device.name}",
                    "-" if expected is None else format_bytes_in(expected, unit),
                    format_bytes_in(measured, unit),
                    difference(expected, measured),
                )
            )
        return rows
