"""The first screen of an answer: the plan to run, a few named alternatives, unknown facts.

Texts wrap and are never cut. Alternatives are left out beyond ``MOST_LINES`` lines of 80 columns,
but for a few. Everything else is behind ``--notes`` and ``--verbose``, and in JSON. One memory
number is shown, in the unit that the budget was given in: the device memory that is held against
the budget (on a CPU, the peak of its allocator).
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from planner.cli.alternative_rows import alternative_lines
from planner.cli.cell_text import (
    alias_of,
    joules_text,
    levers_of,
    optimizer_of,
    probability_text,
    seconds_text,
    training_command,
    training_steps,
    watt_hours,
)
from planner.cli.table_layout import wrapped_lines
from planner.cost.budget import needed_bytes
from planner.cost.fit_probability import margin_of, planned_risk
from planner.plan import Plan
from planner.recommendation.answer import Recommendation
from planner.recommendation.ranking_accuracy import ranks_candidates
from planner.recommendation.request import EnergyRates
from profiler.units import (
    format_bytes_in,
    format_count,
    format_seconds,
    parts_in,
    unit_as_asked,
)

MOST_LINES = 25

LABEL_COLUMNS = 11
"""Columns of the labels on the left: ``  memory   ``."""

USAGE_CELLS = 20

FAR_OFF = 0.3
"""Relative difference of a measured step from the predicted one above which it is shown, also
within the predicted interval."""

LEAST_WIDTH, FULL_WIDTH = 40, 80
"""Narrowest terminal that is laid out for, and the one that ``MOST_LINES`` are for. A terminal
between them may have more lines, for as many characters."""

_EIGHTHS = " ▏▎▍▌▋▊▉█"


def show_first_screen(answer: Recommendation, console: Console) -> None:
    """Print the first screen of an answer."""
    width = max(console.width, LEAST_WIDTH)
    above, below = list(_above(answer, width)), list(_below(answer, width))
    used = sum(math.ceil(max(1, cell_len(line)) / width) for line, _ in (*above, *below))
    most = math.ceil(MOST_LINES * max(1.0, FULL_WIDTH / width))
    rows = alternative_lines(answer, width, most=most - used - 1)
    for line, style in (*above, *((row, "") for row in ["", *rows] if rows), *below):
        console.print(Text(line, style=style), soft_wrap=True)


def _above(answer: Recommendation, width: int) -> Iterator[tuple[str, str]]:
    """Yield (line, style) of everything above the alternatives."""
    entry = answer.front[answer.recommended]
    for line in _header(answer, width):
        yield line, "bold"
    yield "", ""
    for number, line in enumerate(wrapped_lines(_summary(entry.plan), width - LABEL_COLUMNS)):
        yield ("RUN THIS" if number == 0 else "").ljust(LABEL_COLUMNS) + line, "bold green"
    for label, text in _facts(answer):
        for line in _labelled(label, text, width=width):
            yield line, ""
    if answer.recommended_training_free is not None:
        yield from _winner(answer, width)
    command = training_command(entry.file, weights=answer.weights_of(entry))
    is_short = LABEL_COLUMNS + len(command) <= width
    # a long command has a line of its own, unbroken, so that it can be copied
    yield (f"  {'start':<9}{command}" if is_short else command), "green"


def _winner(answer: Recommendation, width: int) -> Iterator[tuple[str, str]]:
    """Yield (line, style) of the model without fine-tuning that wins, and its command."""
    assert answer.training_free is not None and answer.recommended_training_free is not None
    option = answer.training_free[answer.recommended_training_free]
    assert option.accuracy is not None
    text = (
        f"{option.model.name} without fine-tuning: {100 * option.accuracy.value:.1f} % published, "
        f"{option.model.parameters_millions:.0f} M parameters"
    )
    for line in _labelled("better", text, width=width):
        yield line, "bold green"
    command = "train" if option.model.kind == "features" else "evaluate --weights FOLDER"
    yield f"budgetplan {command} {shlex.quote(str(option.plan_file))}", "green"


def _below(answer: Recommendation, width: int) -> Iterator[tuple[str, str]]:
    """Yield (line, style) of everything below the alternatives."""
    yield "", ""
    for text in (_unknown(answer), *_other_backbone(answer), _closing_line(answer)):
        for line in wrapped_lines(text, width):
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
    parts = [f"{first} {facts}"] if cell_len(f"{first} {facts}") <= width else [first, facts]
    if request.source is not None and request.source.skipped_files:
        parts.append(request.source.skipped_text())
    where = ""
    if device.note:
        is_here = request.runs_on == device.name
        none = "no GPU here; " if "no GPU was found" in device.note else ""
        where = " (this machine's GPU)" if is_here else f" ({none}--device names another)"
    parts.append(f"planned for {device.full_name.removeprefix('NVIDIA ')}{where}")
    for part in parts:
        yield from wrapped_lines(part, width)


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
    yield from _margin(plan)
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
    yield from _measured_time(answer)
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


def _margin(plan: Plan) -> Iterator[tuple[str, str]]:
    """Yield the rest of the budget and its parts, if most of it is the margin of the prediction."""
    need, unit = needed_bytes(plan.prediction), unit_as_asked(plan.budget_bytes)
    margin, rest = margin_of(plan.prediction, risk=planned_risk(plan)), plan.budget_bytes - need
    if margin.total_bytes <= rest / 2:
        return
    sizes = {
        "for a larger CUDA context": margin.context_bytes,
        "for errors of the prediction": margin.error_bytes,
        "free": rest - margin.total_bytes,
    }
    _, *parts = parts_in([need, *sizes.values()], unit)
    whole = parts_in([need, rest], unit)[1]
    none = format_bytes_in(0, unit)
    listed = (f"{part} {name}" for part, name in zip(parts, sizes, strict=True) if part != none)
    yield "margin", f"{whole}: {', '.join(listed)}"


def usage_bar(share: float, cells: int = USAGE_CELLS) -> str:
    """Return a bar of ``cells`` characters that is filled to a share, in steps of 1/8 cell."""
    eighths = round(8 * cells * min(1.0, max(0.0, share)))
    full, part = divmod(eighths, 8)
    partial = _EIGHTHS[part] if part else ""
    return ("█" * full + partial).ljust(cells, "░")


def _time(answer: Recommendation, plan: Plan) -> str:
    seconds, steps = plan.prediction.step_seconds, training_steps(answer, plan)
    if seconds is None:
        return "not known"
    rate = plan.candidate.workload.effective_batch / seconds
    step = seconds_text(seconds, plan.prediction.step_seconds_interval)
    text = f"{step} a step, {rate:,.0f} images/s"
    if plan.prediction.host_decides:
        text += " (the host's launches decide, assumed)"
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


def _measured_time(answer: Recommendation) -> Iterator[tuple[str, str]]:
    """Yield the measured step and its training, if it is far from the predicted one.

    A run on the CPU in place of the planned GPU says nothing about the plan's time.
    """
    entry = answer.front[answer.recommended]
    plan, run = entry.plan, entry.plan.measurement
    if run is None or entry.host_prediction is not None:
        return
    measured, predicted = run.step_seconds, plan.prediction.step_seconds
    interval, steps = plan.prediction.step_seconds_interval, training_steps(answer, plan)
    if measured is None or not predicted:
        return
    is_outside = interval is not None and not interval.low <= measured <= interval.high
    if not is_outside and abs(measured / predicted - 1) <= FAR_OFF:
        return
    text = (
        f"measured {format_seconds(measured)} a step, predicted {seconds_text(predicted, interval)}"
    )
    if steps is not None and plan.recipe is not None:
        whole, before = format_seconds(steps * measured), format_seconds(steps * predicted)
        text += f": {_epochs(plan.recipe.epochs)} take {whole}, not {before}"
    yield ("slower" if measured > predicted else "faster"), text


def _labelled(label: str, text: str, *, width: int) -> list[str]:
    """Return text after a label, wrapped."""
    first, *rest = wrapped_lines(text, width - LABEL_COLUMNS)
    return [f"  {label:<9}{first}", *(" " * LABEL_COLUMNS + line for line in rest)]


# ---- unknown facts -------------------------------------------------------------------------------


def _unknown(answer: Recommendation) -> str:
    plan = answer.front[answer.recommended].plan
    if ranks_candidates(plan):
        accuracy = plan.accuracy
        assert accuracy.value is not None
        text = f"Accuracy: {100 * accuracy.value:.1f} % ({accuracy.kind}: {accuracy.source})"
    else:
        text = f"Not known: accuracy ({answer.front[answer.recommended].expected.reason})"
        if answer.probe is not None and answer.probe.setting is None:
            text = f"Not known: accuracy ({answer.probe.notes[0]})"
        text += ". `budgetplan train` measures it on test images."
    is_wanted = answer.request.trains_pretrained
    if plan.measurement is not None and is_wanted and not answer.request.has_weights:
        text += " No pretrained weights could be loaded here."
    return text


def _other_backbone(answer: Recommendation) -> Iterator[str]:
    """Yield a sentence on a backbone that is expected to be better, if one is known."""
    other = answer.other_backbone
    if other is None:
        return
    yield (
        f"See also {alias_of(other.model)}: {other.better_at} (ImageNet "
        f"{100 * other.top1_difference:+.1f} points, {other.time_ratio:.2g}x time, "
        f"{other.memory_ratio:.2g}x memory)"
    )


def _closing_line(answer: Recommendation) -> str:
    number = len(answer.notes) + len(answer.dropped)
    remarks = f"{number} remark{'s' * (number != 1)}: --notes   " if number else ""
    return f"{remarks}all rows: --verbose   page: --html FILE   machine: --json"
