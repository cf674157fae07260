"""The first screen of an answer: the plan to run, a few named alternatives, unknown facts.

It has at most ``MOST_LINES`` lines of 80 columns. Everything else is behind ``--notes`` and
``--verbose``, and in JSON. One memory number is shown, in the unit that the budget was given in:
the device memory that is held against the budget (on a CPU, the peak of its allocator).
"""

from __future__ import annotations

import math
import shlex
import textwrap
from collections.abc import Iterator, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from planner.cli.cell_text import (
    alias_of,
    joules_text,
    levers_of,
    optimizer_of,
    probability_text,
    seconds_text,
    training_command,
)
from planner.cost.budget import needed_bytes
from planner.plan import Plan
from planner.recommendation.answer import Alternative, Recommendation
from planner.recommendation.ranking_accuracy import ranks_candidates
from planner.recommendation.request import EnergyRates
from profiler.units import (
    format_bytes_in,
    format_count,
    format_seconds,
    unit_as_asked,
)

MOST_LINES = 25

LABEL_COLUMNS = 11
"""Columns of the labels on the left: ``  memory   ``."""

USAGE_CELLS = 20

TEXT_LINES = 2
"""Most lines of a fact that is a sentence, such as the reason."""

LEAST_TABLE = 4
"""Lines of an empty one, the heading and two alternatives. Where they do not fit, as under a long
command, sentences take one line in place of ``TEXT_LINES``."""

MOST_PLANLESS = 3
"""Alternatives without a plan file: rows that do not fit, and smaller images."""

MOST_ROWS = 5
"""Alternatives that are shown, the most useful first."""

_EIGHTHS = " ▏▎▍▌▋▊▉█"

_SHOWN_FIRST = (
    "backbone", "fastest", "full", "paper", "smallest", "most accurate", "safest",
    "smaller images",
)  # fmt: skip
"""Names of alternatives by descending use for a decision."""


def show_first_screen(answer: Recommendation, console: Console) -> None:
    """Print the first screen of an answer."""
    width = max(console.width, 40)
    above, below, used = _around(answer, width, most=TEXT_LINES)
    if used > MOST_LINES - LEAST_TABLE:
        above, below, used = _around(answer, width, most=1)
    rows = _alternative_lines(answer, width, most=MOST_LINES - used - 1)
    for line, style in (*above, *((row, "") for row in ["", *rows] if rows), *below):
        console.print(Text(line, style=style), soft_wrap=True)


def _around(
    answer: Recommendation, width: int, *, most: int
) -> tuple[list[tuple[str, str]], list[tuple[str, str]], int]:
    """Return everything above and below the alternatives, and the lines that it takes.

    Args:
        answer: the answer.
        width: columns of the terminal.
        most: most lines of a sentence.
    """
    above, below = list(_above(answer, width, most)), list(_below(answer, width, most))
    used = sum(math.ceil(max(1, cell_len(line)) / width) for line, _ in (*above, *below))
    return above, below, used


def _above(answer: Recommendation, width: int, most: int) -> Iterator[tuple[str, str]]:
    """Yield (line, style) of everything above the alternatives."""
    entry = answer.front[answer.recommended]
    for line in _header(answer, width):
        yield line, "bold"
    yield "", ""
    for number, line in enumerate(textwrap.wrap(_summary(entry.plan), width - LABEL_COLUMNS)):
        yield ("RUN THIS" if number == 0 else "").ljust(LABEL_COLUMNS) + line, "bold green"
    for label, text in _facts(answer):
        for line in _labelled(label, text, width=width, most=most):
            yield line, ""
    if answer.recommended_training_free is not None:
        yield from _winner(answer, width, most)
    command = training_command(entry.file, weights=answer.weights_of(entry))
    is_short = LABEL_COLUMNS + len(command) <= width
    # a long command has a line of its own, unbroken, so that it can be copied
    yield (f"  {'start':<9}{command}" if is_short else command), "green"


def _winner(answer: Recommendation, width: int, most: int) -> Iterator[tuple[str, str]]:
    """Yield (line, style) of the model without fine-tuning that wins, and its command."""
    assert answer.training_free is not None and answer.recommended_training_free is not None
    option = answer.training_free[answer.recommended_training_free]
    assert option.accuracy is not None
    text = (
        f"{option.model.name} without fine-tuning: {100 * option.accuracy.value:.1f} % published, "
        f"{option.model.parameters_millions:.0f} M parameters"
    )
    for line in _labelled("better", text, width=width, most=most):
        yield line, "bold green"
    command = "train" if option.model.kind == "features" else "evaluate --weights FOLDER"
    yield f"budgetplan {command} {shlex.quote(str(option.plan_file))}", "green"


def _below(answer: Recommendation, width: int, most: int) -> Iterator[tuple[str, str]]:
    """Yield (line, style) of everything below the alternatives."""
    yield "", ""
    lines = [*_unknown(answer, width, most), *_other_backbone(answer, width)]
    for line in [*lines, *textwrap.wrap(_closing_line(answer), width)]:
        yield line, ""


def _header(answer: Recommendation, width: int) -> Iterator[str]:
    request, plan = answer.request, answer.front[answer.recommended].plan
    workload, device = plan.candidate.workload, plan.prediction.device
    budget = format_bytes_in(plan.budget_bytes, unit_as_asked(plan.budget_bytes))
    images = f"{request.train_images:,}"
    if request.source is not None:  # of a folder, the user knows the number of all images
        held_out = request.source.held_out_images + (request.source.selection_images or 0)
        images += f" + {held_out:,}"
    facts = (
        f"({images} images, {workload.num_classes:,} classes), {workload.image_size} px; {budget}"
    )
    first = f"{workload.model} on {request.run.data}"
    if cell_len(f"{first} {facts}") <= width:
        yield f"{first} {facts}"
    else:
        data_cells = max(20, width - cell_len(f"{workload.model} on "))
        yield f"{workload.model} on {_without_middle(request.run.data, data_cells)}"
        yield facts
    if request.source is not None and request.source.skipped_files:
        yield textwrap.shorten(request.source.skipped_text(), width, placeholder=" ...")
    where = ""
    if device.note:
        is_here = request.run.device == device.name
        none = "no GPU here; " if "no GPU was found" in device.note else ""
        where = " (this machine's GPU)" if is_here else f" ({none}--device names another)"
    yield from textwrap.wrap(
        f"planned for {device.full_name.removeprefix('NVIDIA ')}{where}", width
    )


def _without_middle(text: str, cells: int) -> str:
    """Return a text of at most ``cells`` columns; a longer one loses its middle."""
    if cell_len(text) <= cells:
        return text
    kept = cells - len(" ... ")
    begin = set_cell_size(text, kept // 2).rstrip()
    end = text[::-1]
    return f"{begin} ... {set_cell_size(end, kept - kept // 2)[::-1].lstrip()}"


def _summary(plan: Plan) -> str:
    """Return the configuration in one line."""
    workload, placement = plan.candidate.workload, plan.candidate.placement
    batch = f"batch {workload.micro_batch}"
    if workload.accumulation > 1:
        batch += f" x {workload.accumulation}"
    parts = [workload.method_text, workload.precision, batch, optimizer_of(plan.candidate)]
    if not placement.is_none:
        parts.append(f"{plan.candidate.policy.display_name} checkpointing")
    if plan.recipe is not None:
        parts.append(f"lr {plan.recipe.learning_rate:g}")
    parts += levers_of(plan.candidate)
    return ", ".join(parts)


def _epochs(number: int) -> str:
    return f"{number} epoch{'s' * (number > 1)}"


def _facts(answer: Recommendation) -> Iterator[tuple[str, str]]:
    """Yield (label, text) of the recommended plan."""
    plan = answer.front[answer.recommended].plan
    yield "memory", _memory(plan, answer.request.device.memory_bytes)
    if host_bytes := plan.prediction.memory.host_bytes:
        size = format_bytes_in(host_bytes, unit_as_asked(plan.budget_bytes))
        yield "host", f"{size} of its memory"
    yield "time", _time(answer, plan)
    yield "energy", _energy(answer, plan)
    yield from _costs(answer)
    counts = plan.prediction.parameters
    share = f"{format_count(counts.trainable)} of {format_count(counts.total)} parameters"
    yield "trains", share
    checks = "; ".join([*_rehearsal(plan), *_real_run(answer)])
    if checks:
        yield "checked", checks
    yield "why", answer.why or answer.reason


def _memory(plan: Plan, installed_bytes: int | None) -> str:
    need, budget = needed_bytes(plan.prediction), plan.budget_bytes
    unit = unit_as_asked(budget)
    used, limit = format_bytes_in(need, unit), format_bytes_in(budget, unit)
    how = probability_text(plan.fits) or plan.prediction.rung
    text = f"{used} of {limit}  {usage_bar(need / budget)}  fits ({how})"
    if installed_bytes is not None and budget > installed_bytes:
        text += f"; the device has {format_bytes_in(installed_bytes, unit)}"
    return text


def usage_bar(share: float, cells: int = USAGE_CELLS) -> str:
    """Return a bar of ``cells`` characters that is filled to a share, in steps of 1/8 cell."""
    eighths = round(8 * cells * min(1.0, max(0.0, share)))
    full, part = divmod(eighths, 8)
    partial = _EIGHTHS[part] if part else ""
    return ("█" * full + partial).ljust(cells, "░")


def training_steps(answer: Recommendation, plan: Plan) -> int | None:
    """Return the optimizer steps of the whole training; None without a recipe."""
    if plan.recipe is None:
        return None
    batch = plan.candidate.workload.effective_batch
    return plan.recipe.steps(answer.request.images_of(plan.recipe), effective_batch=batch)


def _time(answer: Recommendation, plan: Plan) -> str:
    seconds, steps = plan.prediction.step_seconds, training_steps(answer, plan)
    if seconds is None:
        return "not known"
    rate = plan.candidate.workload.effective_batch / seconds
    step = seconds_text(seconds, plan.prediction.step_seconds_interval)
    text = f"{step} a step, {rate:,.0f} images/s"
    if steps is None or plan.recipe is None:
        return text
    whole = format_seconds(steps * seconds)
    return f"{text}; steps of {_epochs(plan.recipe.epochs)}: {whole}"


def _energy(answer: Recommendation, plan: Plan) -> str:
    joules, steps = plan.prediction.energy_joules, training_steps(answer, plan)
    if joules is None:
        unknown = "time" if plan.prediction.step_seconds is None else "power of this device"
        return f"not known: the {unknown} is not"
    text = f"{joules_text(joules, plan.prediction.energy_joules_interval)} a step"
    if plan.prediction.power_limit_watts is not None:
        text += f" at a limit of {plan.prediction.power_limit_watts:g} W"
    return text if steps is None else f"{text}, {watt_hours(steps * joules)} in all"


def _costs(answer: Recommendation) -> Iterator[tuple[str, str]]:
    """Yield the price and the emissions of the training, if the user gave rates for them."""
    rates = answer.request.energy_rates
    if rates == EnergyRates():
        return
    totals = answer.totals[answer.recommended]
    price = None if totals is None else totals.price
    grams = None if totals is None else totals.grams_co2
    texts = []
    if rates.price_per_kwh is not None:
        texts.append(f"price {'not known' if price is None else f'{price:.2g}'}")
    if rates.grams_per_kwh is not None:
        texts.append(f"{'not known' if grams is None else f'{grams:.2g}'} g CO2")
    yield "costs", f"{', '.join(texts)}, by your rates of a kWh"


def watt_hours(joules: float) -> str:
    """Print an energy in watt-hours with two significant digits."""
    hours = joules / 3600
    if hours >= 1000:
        return f"{hours / 1000:.2g} kWh" if hours < 100_000 else f"{hours / 1000:,.0f} kWh"
    return f"{hours:.2g} Wh" if hours < 100 else f"{hours:.0f} Wh"


def _rehearsal(plan: Plan) -> Iterator[str]:
    """Yield the memory of the whole run on an emulated GPU, if it was rehearsed."""
    if plan.rehearsal is not None:
        whole = plan.rehearsal.memory.run_peak_bytes or needed_bytes(plan.rehearsal)
        size = format_bytes_in(whole, unit_as_asked(plan.budget_bytes))
        yield f"whole run on an emulated GPU: {size}"


def _real_run(answer: Recommendation) -> Iterator[str]:
    """Yield the memory that the real run showed, and the error of its own prediction."""
    entry = answer.front[answer.recommended]
    run = entry.plan.measurement
    if run is None:
        return
    unit = unit_as_asked(entry.plan.budget_bytes)
    measured = run.memory.held_bytes
    expected = entry.host_prediction or entry.plan.prediction
    error = 100 * (expected.memory.held_bytes / measured - 1) if measured else 0.0
    steps = "" if entry.validation is None else f"{len(entry.validation.losses)} steps "
    size = format_bytes_in(measured, unit)
    if entry.host_prediction is None:
        yield f"{steps}really run on {run.device.name}: {size}, prediction {error:+z.1f} %"
    else:  # a CPU takes other bytes than the planned GPU
        yield f"{steps}really run on this CPU: {size} of tensors, predicted for it {error:+z.1f} %"


def _labelled(label: str, text: str, *, width: int, most: int) -> list[str]:
    """Return text after a label, wrapped; beyond the most lines it ends in ``...``."""
    lines = textwrap.wrap(
        text, width - LABEL_COLUMNS, max_lines=most, placeholder=" ...", break_on_hyphens=False
    ) or [""]
    return [f"  {label:<9}{lines[0]}", *(" " * LABEL_COLUMNS + line for line in lines[1:])]


# ---- alternatives --------------------------------------------------------------------------------


def _alternative_lines(answer: Recommendation, width: int, *, most: int) -> list[str]:
    """Return a table of the named rows beside the recommended one, then those without a plan.

    The names of the same row are joined. Columns that do not fit the width are left out, those on
    the right first.
    """
    named: dict[int, list[str]] = {}
    planless: list[Alternative] = []
    for each in sorted(answer.alternatives, key=lambda a: _SHOWN_FIRST.index(a.name)):
        if each.index is None:
            planless.append(each)
        elif each.index != answer.recommended:
            named.setdefault(each.index, []).append(each.name)
    frozen = _frozen_row(answer)
    most = min(most - 1, MOST_ROWS) - (frozen is not None)
    # two rows with a plan come before those without one
    planless = planless[: max(0, min(MOST_PLANLESS, most - min(2, len(named))))]
    shown = dict(list(named.items())[: max(0, most - len(planless))])
    rows = [["OR", "method", "batch", "prec", "memory", "img/s", "energy", "accuracy"]]
    rows += [_row(answer, index, names) for index, names in shown.items()]
    if frozen is not None and most >= 0:
        rows.append(frozen)
    lines = _aligned(rows, width) if len(rows) > 1 else (["OR"] if planless else [])
    label = max([len(row[0]) for row in rows[1:]], default=8)
    for each in planless:
        text = f"  {each.name:<{label}}  {_too_big(answer, each)}"
        lines += textwrap.wrap(text, width, max_lines=1, placeholder=" ...")
    return lines


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


_RIGHT_ALIGNED = (4, 5, 6)


def _aligned(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Return rows as lines of equal columns, indented below the first."""
    columns = list(range(len(rows[0])))
    widths = [max(len(row[i]) for row in rows) for i in columns]
    dropped = iter((6, 3, 2, 5))
    while sum(widths[i] + 2 for i in columns) > width:
        drop = next(dropped, None)
        if drop is None:
            break
        columns.remove(drop)
    lines = []
    for number, row in enumerate(rows):
        cells = [
            row[i].rjust(widths[i]) if i in _RIGHT_ALIGNED else row[i].ljust(widths[i])
            for i in columns
        ]
        first = cells[0] + "  " if number == 0 else "  " + cells[0]
        lines.append("  ".join([first, *cells[1:]]).rstrip()[:width])
    return lines


# ---- unknown facts -------------------------------------------------------------------------------


def _unknown(answer: Recommendation, width: int, most: int) -> list[str]:
    plan = answer.front[answer.recommended].plan
    if ranks_candidates(plan):
        accuracy = plan.accuracy
        assert accuracy.value is not None
        text = f"Accuracy: {100 * accuracy.value:.1f} % ({accuracy.kind}: {accuracy.source})"
    else:
        text = f"Not known: accuracy ({answer.front[answer.recommended].expected.reason})"
        text += ". `budgetplan train` measures it on test images."
    is_wanted = answer.request.trains_pretrained
    if plan.measurement is not None and is_wanted and not answer.request.has_weights:
        text += " No pretrained weights could be loaded here."
    return textwrap.wrap(text, width, max_lines=most, placeholder=" ...")


def _other_backbone(answer: Recommendation, width: int) -> list[str]:
    """Return one line on a backbone that is expected to be better, if one is known."""
    other = answer.other_backbone
    if other is None:
        return []
    text = (
        f"See also {alias_of(other.model)}: {other.better_at} (ImageNet "
        f"{100 * other.top1_difference:+.1f} points, {other.time_ratio:.2g}x time, "
        f"{other.memory_ratio:.2g}x memory)"
    )
    return textwrap.wrap(text, width, max_lines=1, placeholder=" ...")


def _closing_line(answer: Recommendation) -> str:
    number = len(answer.notes) + len(answer.dropped)
    remarks = f"{number} remark{'s' * (number != 1)}: --notes   " if number else ""
    return f"{remarks}all rows: --verbose   page: --html FILE   machine: --json"
