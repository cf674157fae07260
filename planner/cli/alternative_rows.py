"""The alternatives on the first screen of an answer: a table, or paragraphs if that is too wide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from planner.cli.cell_text import alias_of, training_steps, watt_hours
from planner.cli.table_layout import wrapped_lines
from planner.cost.budget import needed_bytes
from planner.recommendation.answer import Alternative, Recommendation
from planner.recommendation.ranking_accuracy import ranks_candidates
from profiler.units import format_bytes_in, unit_as_asked

MOST_PLANLESS = 3
"""Alternatives without a plan file: rows that do not fit, and smaller images."""

MOST_ROWS = 5
"""Alternatives that are shown, the most useful first."""

LEAST_ROWS = 2
"""Alternatives that are shown however many lines the answer has without them."""

_SHOWN_FIRST = (
    "backbone", "fastest", "full", "paper", "smallest", "most accurate", "safest",
    "smaller images",
)  # fmt: skip
"""Names of alternatives by descending use for a decision."""

_HEADINGS = ("OR", "method", "batch", "prec", "memory", "img/s", "energy", "accuracy")

_RIGHT_ALIGNED = (4, 5, 6)
"""Columns of numbers."""

_DROPPED_FIRST = (6, 3, 2, 5)
"""Columns that are left out where the table is too wide, the least useful first."""


def alternative_lines(answer: Recommendation, width: int, *, most: int) -> list[str]:
    """Return a table of the named rows beside the recommended one, then those without a plan.

    The names of the same row are joined.

    Args:
        answer: the answer.
        width: columns of the terminal.
        most: lines from which on alternatives are left out, but for the first ``LEAST_ROWS``.
    """
    named: dict[int, list[str]] = {}
    planless: list[Alternative] = []
    for each in sorted(answer.alternatives, key=lambda a: _SHOWN_FIRST.index(a.name)):
        if each.index is None:
            planless.append(each)
        elif each.index != answer.recommended:
            named.setdefault(each.index, []).append(each.name)
    frozen = _frozen_row(answer)
    shown = min(max(most - 1, LEAST_ROWS), MOST_ROWS) - (frozen is not None)
    # two rows with a plan come before those without one
    planless = planless[: max(0, min(MOST_PLANLESS, shown - min(LEAST_ROWS, len(named))))]
    rows = [_row(answer, i, names) for i, names in list(named.items())[: shown - len(planless)]]
    rows += [] if frozen is None else [frozen]
    heading, blocks = _row_blocks(rows, width) if rows else ("OR", [])
    label = max([len(row[0]) for row in rows], default=8)
    blocks += [_hanging(f"{p.name:<{label}}  {_too_big(answer, p)}", width) for p in planless]
    return [heading, *_first_blocks(blocks, most - 1)] if blocks else []


def _first_blocks(blocks: Sequence[Sequence[str]], most: int) -> Iterator[str]:
    """Yield the lines of the blocks that fit in ``most`` lines, and of ``LEAST_ROWS`` anyway."""
    used = 0
    for number, block in enumerate(blocks):
        used += len(block)
        if used > most and number >= LEAST_ROWS:
            return
        yield from block


def _too_big(answer: Recommendation, alternative: Alternative) -> str:
    """Return the need of a row that does not fit, in the unit that the budget was given in."""
    baseline = answer.baselines.get("lora") if alternative.name == "paper" else None
    if baseline is None:
        return alternative.note
    prediction = baseline.prediction
    workload = prediction.candidate.workload
    need = format_bytes_in(needed_bytes(prediction), unit_as_asked(answer.request.budget_bytes))
    facts = f"{workload.method_text}, {workload.precision}, batch {workload.micro_batch}"
    return f"{facts}: needs {need}, does not fit"


def _row(answer: Recommendation, index: int, names: Sequence[str]) -> list[str]:
    plan = answer.front[index].plan
    unit = unit_as_asked(plan.budget_bytes)
    prediction, steps = plan.prediction, training_steps(answer, plan)
    workload = plan.candidate.workload
    seconds, joules = prediction.step_seconds, prediction.energy_joules
    method = workload.method_text
    if answer.request.others:
        method = f"{alias_of(workload.model)} {method}"
    if not plan.candidate.placement.is_none:
        method += f", {plan.candidate.policy.display_name}"
    return [
        ", ".join(names[:2]),
        method,
        workload.batch_text,
        workload.precision,
        format_bytes_in(needed_bytes(prediction), unit),
        "-" if seconds is None else f"{workload.effective_batch / seconds:,.0f}",
        "-" if joules is None or steps is None else watt_hours(steps * joules),
        _accuracy(answer, index),
    ]


def _frozen_row(answer: Recommendation) -> list[str] | None:
    """Return the row of the best model without fine-tuning that fits; None if none is listed.

    Its energy is that of the features of all training images; a zero-shot model spends none.
    """
    option = next((o for o in answer.training_free or () if o.fits), None)
    if option is None:
        return None
    seconds = None if option.cost is None else option.cost.image["step_seconds"]
    joules = None if option.probe is None else option.probe.extraction_joules
    no_energy = "-" if option.model.kind == "features" else "none"
    known = option.accuracy
    return [
        "no tuning",
        option.model.name,
        str(option.batch),
        "4 bits" if option.is_four_bit else {"float16": "fp16"}.get(option.dtype, "fp32"),
        format_bytes_in(option.device_bytes, unit_as_asked(answer.request.budget_bytes)),
        "-" if not seconds else f"{1 / seconds:,.0f}",
        no_energy if joules is None else watt_hours(joules),
        "not known" if known is None else f"{100 * known.value:.1f} % publ.",
    ]


def _accuracy(answer: Recommendation, index: int) -> str:
    """Return an accuracy that can rank, else its place relative to the recommended row."""
    plan = answer.front[index].plan
    if ranks_candidates(plan) and plan.accuracy.value is not None:
        value = f"{100 * plan.accuracy.value:.1f} %"
        if plan.accuracy.low is None or plan.accuracy.high is None:
            return value
        return f"{100 * plan.accuracy.low:.0f}-{100 * plan.accuracy.high:.0f} %"
    if index in answer.ties:
        return "same tier"
    order = answer.expected_order
    return "lower tier" if order[index] > order[answer.recommended] else "not known"


def _row_blocks(rows: Sequence[Sequence[str]], width: int) -> tuple[str, list[list[str]]]:
    """Return the heading and the lines of each row.

    Columns that do not fit the width are left out. If those that stay do not fit either, each row
    is a paragraph with all its cells.
    """
    columns = list(range(len(_HEADINGS)))
    widths = [max(len(row[i]) for row in (_HEADINGS, *rows)) for i in columns]
    dropped = iter(_DROPPED_FIRST)
    while sum(widths[i] + 2 for i in columns) > width:
        drop = next(dropped, None)
        if drop is None:
            return "OR", [_hanging(_in_words(row), width) for row in rows]
        columns.remove(drop)

    def line(row: Sequence[str]) -> str:
        cells = [
            row[i].rjust(widths[i]) if i in _RIGHT_ALIGNED else row[i].ljust(widths[i])
            for i in columns
        ]
        return "  ".join(cells).rstrip()

    # the heading begins two columns left of its rows
    heading = f"OR{line(('', *_HEADINGS[1:]))}"
    return heading, [[f"  {line(row)}"] for row in rows]


def _in_words(row: Sequence[str]) -> str:
    """Return a row as a paragraph: the name, then each cell that needs one with its heading."""
    name, method, batch, precision, memory, speed, energy, accuracy = row
    cells = (
        method, f"batch {batch}", precision, memory,
        "" if speed == "-" else f"{speed} images/s", "" if energy == "-" else energy,
        "accuracy not known" if accuracy == "not known" else accuracy,
    )  # fmt: skip
    return f"{name}: {', '.join(cell for cell in cells if cell)}"


def _hanging(text: str, width: int) -> list[str]:
    """Return an indented paragraph, whose lines after the first are indented further."""
    first, *rest = wrapped_lines(text, width - 4)
    return [f"  {first}", *(f"    {line}" for line in rest)]
