"""A grid as text: terminal, CSV, Markdown, LaTeX.

CSV has full precision and units in its headers. The other layouts share their cells and footnotes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console

from planner.cli.cell_text import alias_of
from planner.cli.table_layout import Column, Justify, Page, tables
from planner.cost.budget import needed_bytes
from planner.cost.comparison_grid import (
    PAPER_RANGES,
    Grid,
    GridCell,
    InferenceRow,
    PublishedRange,
)
from profiler.records import DeviceLabel
from profiler.units import format_bytes_in, format_joules, format_seconds, unit_as_asked
from profiler.workload import Workload

_CSV_HEADER = (
    "device", "model", "method", "rank", "checkpoint", "micro_batch", "accumulation", "precision",
    "optimizer", "image_size", "num_classes", "device_bytes", "fits", "step_seconds",
    "energy_joules", "memory_change", "time_change", "energy_change", "published_accuracy",
    "published_source", "refusal", "kind",
)  # fmt: skip

_LATEX_ESCAPES = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$"}


def show_grid(grid: Grid, console: Console) -> None:
    """Print a grid in as few tables as fit the terminal, then the footnotes."""
    page = Page(console)
    columns, footnotes = grid_columns(grid)
    keys = 3 + (len({device.name for device in _devices(grid)}) > 1)
    page.block(*tables(columns, keys=keys, width=page.width))
    page.sentences(footnotes)


def csv_text(grid: Grid) -> str:
    """Return a grid as CSV, one row for each cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_HEADER)
    for row in (*map(_csv_row, grid.cells), *map(_csv_row_without_tuning, grid.training_free)):
        writer.writerow(["" if value is None else value for value in row])
    return text.getvalue()


def _csv_row(cell: GridCell) -> list[object]:
    workload, report, published = cell.workload, cell.report, cell.published
    return [
        cell.device.name, workload.model, workload.method, workload.rank, cell.checkpoint,
        workload.micro_batch, workload.accumulation, workload.precision, workload.optimizer,
        workload.image_size, workload.num_classes,
        None if report is None else needed_bytes(report), cell.fits,
        None if report is None else report.step_seconds,
        None if report is None else report.energy_joules,
        cell.memory_change, cell.time_change, cell.energy_change,
        None if published is None else published.value,
        None if published is None else published.source, cell.refusal, "tuned",
    ]  # fmt: skip


def _csv_row_without_tuning(row: InferenceRow) -> list[object]:
    return [
        row.device.name, row.model, None, None, None, row.batch, None, row.precision, None,
        row.image_size, row.num_classes, row.device_bytes, row.fits, row.step_seconds,
        row.energy_joules, None, None, None, row.published, row.published_source, None, row.kind,
    ]  # fmt: skip


def markdown_text(grid: Grid) -> str:
    """Return a grid as a Markdown table with footnotes below."""
    columns, footnotes = grid_columns(grid)
    lines = [
        "| " + " | ".join(_one_line(column.header) for column in columns) + " |",
        "|" + "|".join("---" if c.justify == "left" else "---:" for c in columns) + "|",
    ]
    lines += ["| " + " | ".join(row) + " |" for row in _table_rows(columns)]
    return "\n".join([*lines, "", *(f"{note}  " for note in footnotes), ""])


def latex_text(grid: Grid) -> str:
    """Return a grid as a LaTeX ``tabular`` (with booktabs) with footnotes below."""
    columns, footnotes = grid_columns(grid)
    alignment = "".join("l" if column.justify == "left" else "r" for column in columns)
    lines = [
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        " & ".join(_escaped(_one_line(column.header)) for column in columns) + r" \\",
        r"\midrule",
        *(" & ".join(map(_escaped, row)) + r" \\" for row in _table_rows(columns)),
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par {_escaped(note)}" for note in footnotes),
    ]
    return "\n".join([*lines, ""])


_GRID_COLUMNS: tuple[tuple[str, Justify], ...] = (
    ("device", "left"),
    ("backbone", "left"),
    ("method", "left"),
    ("checkpoints", "left"),
    ("memory", "right"),
    ("fits", "left"),
    ("step", "right"),
    ("energy", "right"),
    ("memory\nchange", "right"),
    ("time\nchange", "right"),
    ("accuracy\npublished", "right"),
)
"""Header and alignment of each column."""


def grid_columns(grid: Grid) -> tuple[list[Column], list[str]]:
    """Return the columns that have content, and the footnotes.

    The device has a column only if there are several.
    """
    unit, numbers = unit_as_asked(grid.budget_bytes), _footnote_numbers(grid.cells)
    rows = [_cell_row(cell, unit, numbers) for cell in grid.cells]
    rows += [_row_without_tuning(row, unit) for row in grid.training_free]
    columns = [
        Column(header=header, cells=[row[i] for row in rows], justify=justify)
        for i, (header, justify) in enumerate(_GRID_COLUMNS)
    ]
    if len({row[0] for row in rows}) <= 1:
        del columns[0]
    shown = [column for column in columns if not column.is_empty]
    return shown, list(_footnotes(grid, numbers))


def _cell_row(cell: GridCell, unit: str, numbers: Mapping[str, int]) -> tuple[str, ...]:
    """Return the text of each column for a fine-tuned cell.

    Args:
        cell: the cell.
        unit: unit of memory.
        numbers: number of the footnote of each reason of a refusal.
    """
    report, published = cell.report, cell.published
    memory, step, energy = f"({numbers[cell.refusal]})" if cell.refusal else "-", "-", "-"
    if report is not None:
        memory = format_bytes_in(needed_bytes(report), unit)
        step, energy = format_seconds(report.step_seconds), format_joules(report.energy_joules)
    return (
        cell.device.name,
        alias_of(cell.workload.model),
        cell.workload.method_text,
        cell.checkpoint,
        memory,
        _yes_or_no(cell.fits),
        step,
        energy,
        _percent_change(cell.memory_change),
        _percent_change(cell.time_change),
        _percent(None if published is None else published.value),
    )


def _row_without_tuning(row: InferenceRow, unit: str) -> tuple[str, ...]:
    """Return the text of each column for a model without fine-tuning."""
    return (
        row.device.name,
        row.model,
        row.kind,
        "-",
        format_bytes_in(row.device_bytes, unit),
        _yes_or_no(row.fits),
        format_seconds(row.step_seconds),
        format_joules(row.energy_joules),
        "-",
        "-",
        _percent(row.published),
    )


def _devices(grid: Grid) -> list[DeviceLabel]:
    """Return the device of each row of the table."""
    return [cell.device for cell in grid.cells] + [row.device for row in grid.training_free]


def _footnote_numbers(cells: Sequence[GridCell]) -> dict[str, int]:
    """Return the number of each reason of a refusal."""
    reasons = dict.fromkeys(cell.refusal for cell in cells if cell.refusal is not None)
    return {reason: number for number, reason in enumerate(reasons, start=1)}


def _footnotes(grid: Grid, numbers: dict[str, int]) -> Iterator[str]:
    for reason, number in numbers.items():
        yield f"({number}) refused: {reason}"
    budget = format_bytes_in(grid.budget_bytes, unit_as_asked(grid.budget_bytes))
    devices = ", ".join(dict.fromkeys(device.full_name for device in _devices(grid)))
    if grid.cells:
        yield _workload_note(grid.cells[0].workload, devices, budget)
    else:
        yield f"predictions for {devices}; fits refers to {budget}"
    yield from _batch_texts(grid.training_free)
    sources = {cell.published.source: None for cell in grid.cells if cell.published is not None}
    sources |= {row.published_source: None for row in grid.training_free if row.published}
    if sources:
        yield f"published accuracies on {grid.data}: {'; '.join(map(str, sources))}"
    yield from _ranges(grid)


def _workload_note(workload: Workload, devices: str, budget: str) -> str:
    return (
        f"composed predictions for {devices}: batch {workload.micro_batch} x "
        f"{workload.accumulation}, {workload.precision}, {workload.optimizer}, "
        f"{workload.num_classes} classes; fits and the policies with a budget refer to {budget}; "
        "changes are relative to no checkpointing"
    )


def _batch_texts(rows: Sequence[InferenceRow]) -> Iterator[str]:
    """Yield a sentence on the inference of a batch, by images at once and precision."""
    forms: dict[tuple[int, str], list[str]] = {}
    for row in rows:
        models = forms.setdefault((row.batch, row.precision), [])
        if row.model not in models:
            models.append(row.model)
    for (batch, precision), models in forms.items():
        images = "one image" if batch == 1 else f"{batch} images"
        yield (
            f"without fine-tuning, replayed: a step is the inference of {images} in {precision} "
            f"({', '.join(models)})"
        )


def _ranges(grid: Grid) -> Iterator[str]:
    """Yield a sentence for each published range with the predicted range of the same cells."""
    for each in PAPER_RANGES:
        found = list(_changes_in(grid.cells, each))
        if not found:
            continue
        remark = f" ({each.remark})" if each.remark else ""
        of_model = "" if each.model is None else f" on {alias_of(each.model)}"
        yield (
            f"{each.quantity} of {each.applies_to}{of_model} relative to {each.relative_to}: "
            f"published {each.low:+.0%} to {each.high:+.0%}{remark}, {each.source}; predicted here "
            f"{min(found):+.0%} to {max(found):+.0%}"
        )


def _changes_in(cells: Sequence[GridCell], published: PublishedRange) -> Iterator[float]:
    """Yield the predicted changes that a published range is about."""
    cells = [c for c in cells if published.model in (None, c.workload.model)]
    if published.relative_to == "none":
        for cell in cells:
            change = cell.memory_change if published.quantity == "memory" else cell.energy_change
            if cell.checkpoint == published.applies_to and change is not None:
                yield change
        return
    plain = {
        (c.device.name, c.workload.model, c.workload.method): c.report.energy_joules
        for c in cells
        if c.checkpoint == "none" and c.report is not None
    }
    for (device, model, method), joules in plain.items():
        before = plain.get((device, model, published.relative_to))
        if method == published.applies_to and joules is not None and before:
            yield joules / before - 1


def _yes_or_no(fits: bool | None) -> str:
    return "-" if fits is None else "yes" if fits else "no"


def _percent_change(change: float | None) -> str:
    return "-" if change is None else f"{change:+z.0%}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _table_rows(columns: Sequence[Column]) -> Iterator[tuple[str, ...]]:
    yield from zip(*(column.cells for column in columns), strict=True)


def _one_line(header: str) -> str:
    return header.replace("\n", " ")


def _escaped(text: str) -> str:
    return "".join(_LATEX_ESCAPES.get(letter, letter) for letter in text)
