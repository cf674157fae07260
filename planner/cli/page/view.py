"""The content of the page: rows of plans, the headline, notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from planner.cli.cell_text import (
    difference,
    joules_text,
    levers_of,
    optimizer_of,
    placement_of,
    seconds_text,
    shown_accuracy,
)
from planner.cost.budget import needed_bytes
from planner.plan import Plan
from profiler.units import (
    format_bytes_in,
    format_count,
    format_joules,
    format_seconds,
    unit_as_asked,
)

if TYPE_CHECKING:
    from planner.training_free.options import TrainingFreeOption
    from planner.training_free.plan_file import FrozenPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """A plan in the page.

    Attributes:
        name: label in charts, such as ``1`` or the name of its file.
        plan: the plan.
        command: shell command that trains it.
        roles: names under which it stands in the answer, such as ``fastest``.
        is_recommended: whether it is the recommended one.
    """

    name: str
    plan: Plan
    command: str
    roles: tuple[str, ...] = ()
    is_recommended: bool = False

    @property
    def headline(self) -> str:
        """Method, precision and batch."""
        workload = self.plan.candidate.workload
        return f"{workload.method_text}, {workload.precision}, batch {workload.batch_text}"

    @property
    def is_for(self) -> str:
        """Names of the row in the answer."""
        return ", ".join([*(["recommended"] if self.is_recommended else []), *self.roles])

    @property
    def cells(self) -> tuple[str, ...]:
        """Texts of the table's row."""
        prediction, workload = self.plan.prediction, self.plan.candidate.workload
        unit = unit_as_asked(self.plan.budget_bytes)
        seconds = prediction.step_seconds
        rate = "-" if seconds is None else f"{workload.effective_batch / seconds:,.0f}"
        return (
            self.is_for or "-",
            workload.method_text,
            format_bytes_in(needed_bytes(prediction), unit),
            rate,
            format_seconds(seconds),
            format_joules(prediction.energy_joules),
            workload.batch_text,
            workload.precision,
            ", ".join([optimizer_of(self.plan.candidate), *levers_of(self.plan.candidate)]),
            placement_of(self.plan.candidate),
            shown_accuracy(self.plan),
        )


HEADERS = (
    "for", "method", "memory", "images/s", "step", "energy/step", "batch", "precision", "optimizer",
    "checkpointing", "accuracy",
)  # fmt: skip
"""Headers of the table of plans, for ``PlanRow.cells``."""


FROZEN_HEADERS = (
    "model", "how", "parameters", "weights", "memory", "fits", "an image", "energy", "accuracy",
    "published by",
)  # fmt: skip
"""Headers of the table of models without fine-tuning, for ``frozen_cells``."""


def frozen_cells(option: TrainingFreeOption, unit: str) -> tuple[str, ...]:
    """Return the texts of the row of a model without fine-tuning.

    Args:
        option: the model.
        unit: unit of the memory, as the budget was given.
    """
    known, image = option.accuracy, None if option.cost is None else option.cost.image
    return (
        option.model.name,
        option.model.kind.replace("_", "-"),
        f"{option.model.parameters_millions:g} M",
        "4 bits" if option.is_four_bit else option.dtype,
        format_bytes_in(option.device_bytes, unit),
        "yes" if option.fits else "no",
        format_seconds(None if image is None else image["step_seconds"]),
        format_joules(None if image is None else image["energy_joules"]),
        "-" if known is None else f"{100 * known.value:.1f} %",
        "-" if known is None else f"{known.protocol}; {known.source}",
    )


def frozen_plan_cells(plan: FrozenPlan, unit: str) -> tuple[str, ...]:
    """Return the texts of the row of a plan without fine-tuning.

    Args:
        plan: the plan.
        unit: unit of the memory, as the budget was given.
    """
    model, given, known = plan.model, plan.prediction, plan.accuracy
    return (
        model.name,
        model.kind.replace("_", "-"),
        f"{model.parameters_millions:g} M",
        "4 bits" if plan.candidate.four_bit else plan.candidate.dtype,
        format_bytes_in(given.device_bytes, unit),
        "yes" if given.device_bytes <= plan.budget_bytes else "no",
        format_seconds(given.image_seconds),
        format_joules(given.image_joules),
        "-" if known.value is None else f"{100 * known.value:.1f} %",
        "-" if known.value is None else known.source,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineRow:
    """One of the paper's defaults in the page.

    Attributes:
        mark: label in the chart.
        name: method and policy.
        device_bytes: predicted device bytes.
        step_seconds: predicted time of a step; None if it is not known.
        fits: whether it fits the budget.
    """

    mark: str
    name: str
    device_bytes: int
    step_seconds: float | None
    fits: bool

    def cells(self, unit: str) -> tuple[str, ...]:
        """Return the texts of the table's row, with the memory in a unit."""
        return (
            self.mark,
            self.name,
            format_bytes_in(self.device_bytes, unit),
            "yes" if self.fits else "no",
            format_seconds(self.step_seconds),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PageView:
    """The content of the page.

    Attributes:
        title: title of the page.
        rows: plans that fine-tune; the headline is of the first recommended one, else of the first.
            Without any there is no headline.
        why: reason of the recommendation; empty without one.
        baselines: the paper's defaults.
        notes: sentences.
        frozen: rows of models without fine-tuning (``frozen_cells``, ``frozen_plan_cells``).
    """

    title: str
    rows: Sequence[PlanRow]
    why: str = ""
    baselines: Sequence[BaselineRow] = ()
    notes: Sequence[str] = field(default_factory=tuple)
    frozen: Sequence[tuple[str, ...]] = ()

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
        host = prediction.memory.host_bytes
        facts = [
            ("device", prediction.device.full_name),
            ("memory", f"{used} of {format_bytes_in(plan.budget_bytes, unit)}"),
            *([("host's memory", format_bytes_in(host, unit))] if host else []),
            (
                f"step ({prediction.rung})",
                seconds_text(prediction.step_seconds, prediction.step_seconds_interval),
            ),
            (
                "energy per step",
                joules_text(prediction.energy_joules, prediction.energy_joules_interval),
            ),
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
            expected = row.plan.prediction.memory.held_bytes if is_same else host
            unit = unit_as_asked(row.plan.budget_bytes)
            measured = run.memory.held_bytes
            rows.append(
                (
                    f"{row.name}: {row.plan.candidate.workload.method_text} on {run.device.name}",
                    "-" if expected is None else format_bytes_in(expected, unit),
                    format_bytes_in(measured, unit),
                    difference(expected, measured),
                )
            )
        return rows
