"""What people see: tables with predicted beside measured, in 80 columns and in 160.

Nothing here computes: every number comes from a report, a plan or a recommendation, and is printed
by ``profiler.units``. A table that is wider than the terminal is cut into several below each other,
each with the row's key, so no column is ever squeezed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from planner.cost.place_within_budget import needed_bytes
from planner.plan import Accuracy, Plan
from planner.recommendation.baselines import Baseline
from planner.scoring.netscore import Scores
from profiler.errors import InputError
from profiler.placement import Decision, Placement
from profiler.records import OWNERS, Report, Rung, UnitReport
from profiler.units import format_bytes, format_count, format_joules, format_seconds
from profiler.workload import Candidate

if TYPE_CHECKING:
    from planner.methods.describe import MethodFacts
    from planner.methods.matrix import MethodMatrix
    from planner.placement import PlacementRow
    from planner.recommendation.answer import Entry, Recommendation
    from profiler.devices.table import DeviceSpec
    from profiler.models.methods import MethodInfo

Justify = Literal["left", "right"]

INDENT = 2

SENTENCE = 28
"""Columns that a cell which wraps gets at least."""

MOST_PARTS_NAMED = 3
"""Parts that a unit's decision names; of the others it says how many."""


# ---- tables that fit -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column: its header may have two lines; an empty one (all ``-``) is not shown.

    Attributes:
        header: of one or two lines.
        cells: one a row.
        justify: numbers right, words left.
        wraps: whether a cell may take several lines, for sentences.
    """

    header: str
    cells: Sequence[str]
    justify: Justify = "right"
    wraps: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known in it."""
        return all(cell in ("", "-") for cell in self.cells)


def tables(
    columns: Sequence[Column], *, keys: int, width: int, styles: Mapping[int, str] | None = None
) -> list[Table]:
    """Arrange columns in as few tables as fit the width, the first ``keys`` columns in each.

    Args:
        columns: all of the same length.
        keys: how many name the row.
        width: of the terminal.
        styles: of rows, by index.
    """
    shown = [c for i, c in enumerate(columns) if i < keys or not c.is_empty]
    lead, rest = shown[:keys], shown[keys:]
    groups: list[list[Column]] = [[]]
    for column in rest:
        if groups[-1] and _width([*lead, *groups[-1], column]) > width:
            groups.append([])
        groups[-1].append(column)
    return [_table([*lead, *group], styles or {}) for group in groups]


def _table(columns: Sequence[Column], styles: Mapping[int, str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(
            Text(column.header),
            justify=column.justify,
            no_wrap=not column.wraps,
            overflow="fold",
            # only headers have several lines, unless a cell wraps
            vertical="top" if any(c.wraps for c in columns) else "bottom",
        )
    for index, cells in enumerate(zip(*(c.cells for c in columns), strict=True)):
        table.add_row(*(Text(cell) for cell in cells), style=styles.get(index, ""))
    return table


def _width(columns: Sequence[Column]) -> int:
    """Return the width that columns need, those that wrap in a narrow shape."""
    console = Console(width=10_000)
    narrow = [
        replace(c, cells=[cell[:SENTENCE] for cell in c.cells]) if c.wraps else c for c in columns
    ]
    return Measurement.get(console, console.options, _table(narrow, {})).maximum + INDENT


def _facts(rows: Iterable[tuple[str, str]]) -> Table:
    """Name and value, one a line; a long value wraps under itself."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        if value not in ("", "-"):
            table.add_row(name, Text(value))
    return table


class Page:
    """Prints to a console: headings, indented blocks, sentences that wrap."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @property
    def width(self) -> int:
        """Columns of the terminal."""
        return self._console.width

    def heading(self, text: str) -> None:
        """Print the head of a block."""
        self._console.print(Text(f"\n{text}", style="bold"))

    def block(self, *parts: RenderableType) -> None:
        """Print parts, indented, with a line between them."""
        for index, part in enumerate(parts):
            if index:
                self._console.print()
            self._console.print(Padding(part, (0, 0, 0, INDENT), expand=False))

    def line(self, text: str) -> None:
        """Print a line that may be copied: it is not wrapped."""
        self._console.print(Text(f"{' ' * INDENT}{text}"), soft_wrap=True)

    def sentences(self, lines: Iterable[str], *, style: str = "") -> None:
        """Print each as a wrapped paragraph with a dash."""
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for line in lines:
            table.add_row("-", Text(line, style=style))
        self.block(table)


# ---- words for records ---------------------------------------------------------------------------


def method_of(candidate: Candidate) -> str:
    """Return ``lora r8``."""
    load = candidate.workload
    return load.method if load.rank is None else f"{load.method} r{load.rank}"


def batch_of(candidate: Candidate) -> str:
    """Return ``8x4``: micro-batch times accumulation."""
    load = candidate.workload
    return f"{load.micro_batch}x{load.accumulation}"


def placement_of(candidate: Candidate, units: int | None = None) -> str:
    """Return the policy and what it does: ``optimal: 2 cheap, 1 in parts, 3 recompute of 12``."""
    placement, policy = candidate.placement, candidate.policy.display_name
    if placement.is_none:
        return "none" if policy == "none" else f"{policy}: nothing"
    split = {name.partition("/")[0] for name in placement.decisions if "/" in name}
    whole = {u: d for u, d in placement.decisions.items() if "/" not in u and u not in split}
    counts = Counter(whole.values()) + Counter({"in parts": len(split)})
    said = ", ".join(f"{count} {decision}" for decision, count in sorted(counts.items()))
    return f"{policy}: {said}" + (f" of {units}" if units else "")


def accuracy_of(accuracy: Accuracy) -> str:
    """Return the value with its kind."""
    if accuracy.value is None:
        return "-"
    kind = {"measured": "short run"}.get(accuracy.kind, accuracy.kind)
    return f"{100 * accuracy.value:.1f} % ({kind})"


def netscore_of(scores: Scores | None, name: str) -> str:
    """Return a score with two decimals."""
    value = None if scores is None else getattr(scores, name)
    return "-" if value is None else f"{value:.2f}"


def difference(predicted: float | None, measured: float | None) -> str:
    """Return by how much the prediction was off, in percent of what was measured."""
    if predicted is None or not measured:
        return "-"
    return f"{100 * (predicted / measured - 1):+.2f} %"


# ---- recommendation ------------------------------------------------------------------------------


def show_recommendation(answer: Recommendation, console: Console) -> None:
    """Print the whole answer."""
    page = Page(console)
    request = answer.request
    device = answer.front[0].plan.prediction.device
    load = answer.front[0].plan.candidate.workload
    page.heading(
        f"{load.model} on {request.run.data}, {load.image_size} px, in "
        f"{format_bytes(request.budget_bytes)} of {device.name}"
    )
    chosen = {answer.recommended: "green"}
    page.block(*tables(front_columns(answer), keys=2, width=page.width, styles=chosen))
    page.heading("Recommended")
    page.block(Text(answer.reason, style="green"))
    page.line(f"budgetplan train {answer.front[answer.recommended].file}")
    if answer.baselines:
        page.heading("The paper's defaults here (batch 32, fp32, AdamW)")
        page.block(*tables(baseline_columns(answer.baselines), keys=1, width=page.width))
    if answer.dropped:
        page.heading("Dropped")
        page.sentences(answer.dropped)
    page.heading("Notes")
    page.sentences([*answer.notes, *_closing(answer)])


def _closing(answer: Recommendation) -> Iterator[str]:
    yield (
        "expected order: of accuracy, 1 for the best and for all that published comparisons do not"
        " tell from it; * is recommended; batch: micro-batch x accumulation; r: the rank, of"
        " adapters the width, of prompts and prefixes their number, of side networks a divisor"
    )
    yield f"a plan file for each row is in {answer.request.out}/; `budgetplan show PLAN` prints it"
    yield (
        f"{answer.trials} trials, {format_seconds(answer.seconds)} in all; study {answer.study}: "
        "`recommend --study` goes on with it, `budgetplan dashboard` shows it"
    )


def front_columns(answer: Recommendation) -> list[Column]:
    """Return the columns of the front, the recommended row starred."""
    entries = answer.front
    plans = [entry.plan for entry in entries]
    on_host = any(entry.host_prediction is not None for entry in entries)
    names = [f"{i + 1}{'*' if i == answer.recommended else ' '}" for i, _ in enumerate(entries)]
    return [
        Column(header="#", cells=names),
        Column(header="method", cells=[method_of(p.candidate) for p in plans], justify="left"),
        Column(header="batch", cells=[batch_of(p.candidate) for p in plans], justify="left"),
        Column(
            header="precision",
            cells=[p.candidate.workload.precision for p in plans],
            justify="left",
        ),
        Column(
            header="optimizer",
            cells=[p.candidate.workload.optimizer for p in plans],
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
        Column(header="accuracy", cells=[accuracy_of(p.accuracy) for p in plans]),
        Column(header="NetScore", cells=[netscore_of(p.scores, "netscore") for p in plans]),
        Column(header="NS-M", cells=[netscore_of(p.scores, "ns_m") for p in plans]),
    ]


def _cost_columns(plans: Sequence[Plan], *, on_host: bool) -> list[Column]:
    runs = [None if on_host else plan.measurement for plan in plans]
    kinds = {plan.prediction.rung for plan in plans}
    rung = kinds.pop() if len(kinds) == 1 else "predicted"
    return [
        Column(
            header=f"memory\n{rung}",
            cells=[format_bytes(needed_bytes(plan.prediction)) for plan in plans],
        ),
        Column(
            header="memory\nmeasured",
            cells=["-" if run is None else format_bytes(needed_bytes(run)) for run in runs],
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


def _host_columns(entries: Sequence[Entry]) -> list[Column]:
    hosts = [entry.host_prediction for entry in entries]
    runs = [entry.plan.measurement for entry in entries]
    peaks = [(_peak(host), _peak(run)) for host, run in zip(hosts, runs, strict=True)]
    return [
        Column(header="CPU peak\npredicted", cells=[format_bytes(p) for p, _ in peaks]),
        Column(header="CPU peak\nmeasured", cells=[format_bytes(m) for _, m in peaks]),
        Column(header="off by", cells=[difference(p, m) for p, m in peaks]),
        Column(
            header="CPU step\nmeasured",
            cells=["-" if run is None else format_seconds(run.step_seconds) for run in runs],
        ),
    ]


def baseline_columns(baselines: Mapping[str, Baseline]) -> list[Column]:
    """Return the columns of the paper's defaults."""
    rows = list(baselines.values())
    reports = [row.prediction for row in rows]
    return [
        Column(
            header="method",
            cells=[method_of(report.candidate) for report in reports],
            justify="left",
        ),
        Column(
            header="checkpointing",
            cells=[placement_of(report.candidate) for report in reports],
            justify="left",
        ),
        Column(
            header="memory\ncomposed",
            cells=[format_bytes(needed_bytes(report)) for report in reports],
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


# ---- one report ----------------------------------------------------------------------------------


def show_report(report: Report, console: Console, *, budget_bytes: int | None = None) -> None:
    """Print a prediction or a measurement."""
    page = Page(console)
    page.heading(f"{report.candidate.workload.model}, {report.rung} for {report.device.name}")
    page.block(_facts(_report_facts(report, budget_bytes)))
    owners = owner_columns(report)
    if owners:
        page.heading("Memory by owner")
        page.block(*tables(owners, keys=1, width=page.width))
    notes = [*([report.device.note] if report.device.note else []), *report.notes]
    if notes:
        page.heading("Notes")
        page.sentences(notes)


def _report_facts(report: Report, budget_bytes: int | None) -> Iterator[tuple[str, str]]:
    yield from candidate_facts(report.candidate)
    memory, flops = report.memory, report.flops
    yield "peak", format_bytes(memory.peak_bytes)
    yield "reserved", format_bytes(memory.reserved_bytes)
    if report.device.kind == "cuda":
        need = format_bytes(memory.device_bytes)
        yield "device memory", f"{need}{_against(report, budget_bytes)}"
    elif budget_bytes is not None:
        yield "budget", _against(report, budget_bytes).strip(", ")
    kind = "measured" if report.rung == Rung.MEASURED else "predicted"
    yield f"step, {kind}", format_seconds(report.step_seconds)
    yield f"energy a step, {kind}", format_joules(report.energy_joules)
    parameters = report.parameters
    yield (
        "parameters",
        f"{format_count(parameters.total)}, {format_count(parameters.trainable)} trainable",
    )
    if flops is not None:
        again = f", {format_count(flops.recompute)} of it again" if flops.recompute else ""
        yield "FLOPs a step", f"{format_count(flops.total)}{again}"


def _against(report: Report, budget_bytes: int | None) -> str:
    if budget_bytes is None:
        return ""
    need = needed_bytes(report)
    verb = "fits" if need <= budget_bytes else "does not fit"
    return f", {verb} a budget of {format_bytes(budget_bytes)}"


def candidate_facts(candidate: Candidate) -> Iterator[tuple[str, str]]:
    """Yield what a candidate runs, name and value."""
    load = candidate.workload
    yield "method", method_of(candidate)
    yield "batch", f"{load.micro_batch} x {load.accumulation} = {load.effective_batch} images"
    yield "precision", load.precision
    yield "optimizer", load.optimizer
    yield "input", f"{load.image_size} px, {load.num_classes} classes"
    yield "checkpointing", placement_of(candidate)


def owner_columns(report: Report) -> list[Column]:
    """Return memory by owner, at the peak and each one's highest; empty where not known."""
    at_peak, highest = report.memory.at_peak, report.memory.max_by_group
    if at_peak is None:
        return []
    shown = [o for o in OWNERS if getattr(at_peak, o) or (highest and getattr(highest, o))]
    return [
        Column(header="owner", cells=shown, justify="left"),
        Column(header="at the peak", cells=[format_bytes(getattr(at_peak, o)) for o in shown]),
        Column(
            header="at most",
            cells=[format_bytes(getattr(highest, o) if highest else None) for o in shown],
        ),
    ]


def show_profile(
    report: Report, console: Console, *, placement_rows: Sequence[PlacementRow] | None = None
) -> None:
    """Print the table of units, and with ``placement_rows`` why each does what it does."""
    page = Page(console)
    placement = report.candidate.placement
    page.heading(
        f"{report.candidate.workload.model}, {method_of(report.candidate)}: one micro-batch of "
        f"{report.candidate.workload.micro_batch} for {report.device.name}"
    )
    if not report.units:
        page.block("this backbone has no checkpointable units")
    else:
        columns = unit_columns(
            report.units, placement, with_decisions=placement_rows is None and not placement.is_none
        )
        page.block(*tables(columns, keys=1, width=page.width))
    if placement_rows is not None:
        _placement_section(placement_rows, placement, page)
    page.heading("The whole step")
    page.block(_facts(_report_facts(report, None)))
    owners = owner_columns(report)
    if owners:
        page.block("", *tables(owners, keys=1, width=page.width))
    notes = [*([report.device.note] if report.device.note else []), *report.notes]
    if notes:
        page.heading("Notes")
        page.sentences(notes)


def decision_of(unit: str, placement: Placement) -> str:
    """Return what is done with a unit, its parts included: ``light, recompute qkv proj fc1``."""
    parts: dict[str, list[str]] = {}
    for name, decision in placement.decisions.items():
        if name.startswith(f"{unit}/"):
            parts.setdefault(decision, []).append(name.removeprefix(f"{unit}/"))
    beside = placement.decision(unit)
    said = [str(beside)] if beside != Decision.KEEP or not parts else []
    said += [f"{decision} {_shortened(names)}" for decision, names in sorted(parts.items())]
    return ", ".join(said)


def _shortened(parts: Sequence[str]) -> str:
    """Return what parts are called within theirs, and no more of them than a table has room for."""
    last = [_last_word(part) for part in parts]
    names = last if len({*last}) == len(last) else list(parts)
    more = len(names) - MOST_PARTS_NAMED
    return " ".join(names if more <= 0 else [*names[:MOST_PARTS_NAMED], f"+{more}"])


def _last_word(part: str) -> str:
    """Return the last name of a dotted one, with the one before where it is but a number."""
    names = part.split(".")
    return ".".join(names[-2:] if names[-1].isdigit() else names[-1:])


def unit_columns(
    units: Sequence[UnitReport], placement: Placement, *, with_decisions: bool = True
) -> list[Column]:
    """Return the columns of a profile."""
    decisions = Column(
        header="decision", cells=[decision_of(u.name, placement) for u in units], justify="left"
    )
    return [
        Column(header="unit", cells=[u.name for u in units], justify="left"),
        *([decisions] if with_decisions else []),
        Column(header="stored", cells=[format_bytes(u.stored_bytes) for u in units]),
        Column(header="boundary", cells=[format_bytes(u.boundary_bytes) for u in units]),
        Column(header="working", cells=[format_bytes(u.working_bytes) for u in units]),
        Column(header="forward\nFLOPs", cells=[format_count(u.forward_flops) for u in units]),
        Column(
            header="forward\npredicted", cells=[format_seconds(u.forward_seconds) for u in units]
        ),
        Column(
            header="recompute\npredicted",
            cells=[format_seconds(u.recompute_seconds or None) for u in units],
        ),
    ]


def _placement_section(rows: Sequence[PlacementRow], placement: Placement, page: Page) -> None:
    """Print why each unit is kept or recomputed: what that frees and what it costs."""
    page.heading("Placement, composed")
    page.block(*tables(placement_columns(rows, placement), keys=2, width=page.width))
    peaks = [f"{row.unit} ({row.binding})" for row in rows if row.binding is not None]
    page.sentences(
        [
            f"the peak is set by {', '.join(peaks)}"
            if peaks
            else "the peak is set by the optimizer's step, which no placement changes",
            "freed and price are against keeping the unit",
        ]
    )


def placement_columns(rows: Sequence[PlacementRow], placement: Placement) -> list[Column]:
    """Return the columns of a placement table."""
    decisions = [decision_of(r.unit, placement) for r in rows]
    return [
        Column(header="unit", cells=[r.unit for r in rows], justify="left"),
        Column(header="decision", cells=decisions, justify="left"),
        Column(header="stored", cells=[format_bytes(r.stored_bytes) for r in rows]),
        Column(header="freed", cells=[format_bytes(r.freed_bytes or None) for r in rows]),
        Column(
            header="recompute\npredicted",
            cells=[format_seconds(r.recompute_seconds or None) for r in rows],
        ),
        Column(
            header="price\nper MiB", cells=[format_seconds(r.seconds_per_freed_mib) for r in rows]
        ),
        Column(header="live,\nforward", cells=[format_bytes(r.forward_bytes) for r in rows]),
        Column(header="live,\nbackward", cells=[format_bytes(r.backward_bytes) for r in rows]),
    ]


# ---- plans ---------------------------------------------------------------------------------------


def show_plan(plan: Plan, console: Console) -> None:
    """Print a plan file."""
    page = Page(console)
    load = plan.candidate.workload
    page.heading(f"Plan: {load.model} in {format_bytes(plan.budget_bytes)}")
    page.block(_facts(candidate_facts(plan.candidate)))
    page.heading("Predicted beside measured")
    page.block(*tables(comparison_columns(plan), keys=1, width=page.width))
    page.heading("Accuracy and scores")
    page.block(_facts(_score_facts(plan)))
    if not plan.candidate.placement.is_none:
        page.heading("Placement")
        page.block(_facts(sorted(plan.candidate.placement.decisions.items())))
    page.heading("Where it comes from")
    page.block(_facts(_provenance_facts(plan)))


def comparison_columns(plan: Plan) -> list[Column]:
    """Return predicted beside measured; a run on another device has columns of its own."""
    prediction, run = plan.prediction, plan.measurement
    same = run is not None and run.device.kind == prediction.device.kind
    names = ["peak", "reserved", "device memory", "step", "energy a step"]
    predicted, measured = _quantities(prediction), _quantities(run if same else None)
    off = [difference(p, m) for p, m in zip(predicted, measured, strict=True)]
    columns = [
        Column(header="", cells=names, justify="left"),
        Column(
            header=f"{prediction.rung} for\n{prediction.device.name}", cells=_printed(predicted)
        ),
        Column(header="measured", cells=_printed(measured)),
        Column(header="off by", cells=off),
    ]
    if run is not None and not same:
        expected = (plan.provenance.get("host_prediction") or {}).get("peak_bytes")
        columns += [
            Column(
                header=f"replayed for\n{run.device.name}",
                cells=_printed([expected, None, None, None, None]),
            ),
            Column(
                header=f"measured on\n{run.device.name}",
                cells=_printed([run.memory.peak_bytes, None, None, *_quantities(run)[3:]]),
            ),
        ]
    return columns


def _quantities(report: Report | None) -> list[float | None]:
    if report is None:
        return [None] * 5
    memory = report.memory
    return [
        memory.peak_bytes,
        memory.reserved_bytes,
        needed_bytes(report),
        report.step_seconds,
        report.energy_joules,
    ]


def _printed(quantities: Sequence[float | None]) -> list[str]:
    *sizes, seconds, joules = quantities
    return [*map(format_bytes, sizes), format_seconds(seconds), format_joules(joules)]


def _peak(report: Report | None) -> int | None:
    return None if report is None else report.memory.peak_bytes


def _score_facts(plan: Plan) -> Iterator[tuple[str, str]]:
    yield "accuracy", accuracy_of(plan.accuracy) if plan.accuracy.value is not None else "not known"
    yield "source", plan.accuracy.source
    for name, label in (
        ("netscore", "NetScore"),
        ("ns_e", "NS-E"),
        ("ns_m", "NS-M"),
        ("ns_sharp", "NS#"),
        ("ppt", "PPT"),
    ):
        yield label, netscore_of(plan.scores, name)


def _provenance_facts(plan: Plan) -> Iterator[tuple[str, str]]:
    for name, value in plan.provenance.items():
        if isinstance(value, str | int | float):
            yield name.replace("_", " "), str(value)
        elif name == "versions" and isinstance(value, Mapping):
            yield "versions", ", ".join(f"{k} {v}" for k, v in value.items())
        elif name == "weights" and isinstance(value, Mapping):
            detail = value.get("detail")
            yield "weights", f"{value.get('kind')}" + (f" ({detail})" if detail else "")
        elif name == "origin" and isinstance(value, list):
            for note in value:
                yield "note", str(note)


# ---- lists ---------------------------------------------------------------------------------------


def show_table(columns: Sequence[Column], console: Console, *, keys: int = 1) -> None:
    """Print a plain list."""
    page = Page(console)
    if not columns or not columns[0].cells:
        raise InputError("there is nothing to list")
    page.block(*tables(columns, keys=keys, width=page.width))


def score_columns(scores: Scores) -> list[Column]:
    """Return the scores that the given numbers allow, one a row."""
    known = {name: value for name, value in scores.to_json().items() if value is not None}
    return [
        Column(header="score", cells=list(known), justify="left"),
        Column(header="value", cells=[f"{value:.4f}" for value in known.values()]),
    ]


def method_columns(infos: Sequence[MethodInfo], refused: Mapping[str, str]) -> list[Column]:
    """Return the list of methods; with refusals where a backbone was named."""
    return [
        Column(header="method", cells=[info.name for info in infos], justify="left"),
        Column(header="family", cells=[info.family for info in infos], justify="left"),
        Column(
            header="default",
            cells=[
                "-" if info.default_rank is None else f"{info.default_rank} {info.rank_means}"
                for info in infos
            ],
            justify="left",
        ),
        Column(
            header="what learns",
            cells=[info.summary for info in infos],
            justify="left",
            wraps=True,
        ),
        Column(
            header="works",
            cells=[
                f"no: {refused[info.name]}" if info.name in refused else "yes" if refused else "-"
                for info in infos
            ],
            justify="left",
            wraps=True,
        ),
    ]


def show_matrix(matrix: MethodMatrix, console: Console) -> None:
    """Print which method works on which backbone, and why not."""
    page = Page(console)
    columns = [
        Column(header="method", cells=matrix.methods, justify="left"),
        *(
            Column(header=SHORT_NAMES.get(name, name), cells=matrix.column(name), justify="left")
            for name in matrix.backbones
        ),
    ]
    page.block(*tables(columns, keys=1, width=page.width))
    page.heading("Not possible (-)")
    page.sentences(str(reason) for reason in matrix.reasons())
    page.heading("Columns")
    page.block(Text(", ".join(_in_full(matrix))))


SHORT_NAMES = {
    "vit_s": "vit\ns",
    "tiny_vit": "tiny\nvit",
    "tiny_vit_5m": "t-vit\n5m",
    "resnet18": "res\n18",
    "mobilenetv2": "mob\nv2",
    "mobilenetv3": "mob\nv3",
    "dinov2_s": "dino\ns",
    "siglip_b": "sig\nlip",
    "vim_s": "vim\ns",
    "mambavision_t": "mam\nvis",
}
"""Backbones over columns that leave room for all of them in 80 columns."""


def _in_full(matrix: MethodMatrix) -> Iterator[str]:
    for name, model in matrix.backbones.items():
        yield f"{SHORT_NAMES.get(name, name).replace(chr(10), ' ')} is {model}"


def show_method(facts: MethodFacts, console: Console) -> None:
    """Print one method, and what it does on a backbone."""
    page = Page(console)
    info = facts.info
    page.heading(f"{info.name}: {info.summary}")
    page.block(_facts(_method_facts(facts)))
    if facts.notes:
        page.heading("Notes")
        page.sentences(facts.notes)


def _method_facts(facts: MethodFacts) -> Iterator[tuple[str, str]]:
    info = facts.info
    yield "family", info.family
    yield "source", info.source
    if info.default_rank is not None:
        yield "default", f"{info.default_rank} {info.rank_means}"
    if facts.model is None:
        return
    yield "on", facts.model
    yield "works", "yes" if facts.refused is None else f"no: {facts.refused}"
    yield "learn there", ", ".join(f"{count} {name}" for name, count in facts.layers.items())
    if facts.trainable_parameters is not None:
        yield "parameters", f"{format_count(facts.trainable_parameters)} learn"


def device_columns(specs: Sequence[DeviceSpec], *, here: str | None) -> list[Column]:
    """Return the list of devices."""
    watts = ["-" if s.tdp_watts is None else f"{s.tdp_watts:g} W" for s in specs]
    return [
        Column(
            header="device",
            cells=[s.name + (" (here)" if s.name == here else "") for s in specs],
            justify="left",
        ),
        Column(header="memory", cells=[format_bytes(s.memory_bytes) for s in specs]),
        Column(
            header="bandwidth",
            cells=[_rate(s.memory_bandwidth_bytes_per_second, 1e9, "GB/s") for s in specs],
        ),
        Column(header="fp32", cells=[_rate(s.fp32_flops, 1e12, "TFLOPS") for s in specs]),
        Column(
            header="half precision",
            cells=[
                _rate(s.bf16_tensor_flops or s.fp16_tensor_flops, 1e12, "TFLOPS") for s in specs
            ],
        ),
        Column(header="power", cells=watts),
        Column(header="full name", cells=[s.full_name for s in specs], justify="left"),
    ]


def _rate(value: float | None, unit: float, name: str) -> str:
    return "-" if value is None else f"{value / unit:.4g} {name}"
