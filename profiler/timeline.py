"""A picture of one step: live bytes by owner over time, with phases, units and the peak marked.

    Timeline       what is drawn, read from a log: a few hundred columns, each the moment of highest
                   live bytes in its stretch of ticks, so that the peak is never smoothed away
    save_timeline  writes it as PNG (matplotlib, the extra ``plot``) or as one HTML file without
                   anything from elsewhere (profiler/timeline_html.py)

Time runs in ticks, one for each birth and each death of a storage; it is an order, not a duration.
Ticks of the log at which nothing that is shown happens (setting up) are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from profiler.errors import InputError, UsageError
from profiler.event_log import PHASES, RECOMPUTE, EventLog, Ints
from profiler.records import OWNERS, OwnerBytes
from profiler.units import GIB, MIB, format_bytes

COLUMNS = 900
STACK = ("parameter", "buffer", "optimizer", "gradient", "input", "activation", "temporary")
"""From the bottom: what lives through the step first, so that what comes and goes is on top."""
COLOURS = {
    "parameter": "#0072B2",
    "buffer": "#56B4E9",
    "optimizer": "#009E73",
    "gradient": "#E69F00",
    "input": "#999999",
    "activation": "#CC79A7",
    "temporary": "#D55E00",
}
"""Okabe and Ito's palette, told apart by colour-blind readers too."""
SHADES = {"forward": "#C9D6E8", "recompute": "#8FA8C8", "backward": "#EBD9C3"}
OUTSIDE = "outside units"
SUFFIXES = (".png", ".html")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of the step.

    Attributes:
        start: first tick.
        end: first tick after it.
        name: a phase or a unit.
        kind: ``forward``, ``backward`` or ``recompute`` for a unit, ``phase`` for a phase.
    """

    start: int
    end: int
    name: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """What is drawn of a step.

    Attributes:
        ticks: [columns] moments shown, in order.
        owners: [owners, columns] live bytes by owner, in the order of ``STACK``.
        total_ticks: length of the step.
        phases: in order of time, without empty ones.
        units: forward, recompute and backward of each unit.
        peak_tick: the first moment of highest live bytes; one of ``ticks``.
        highest: the most each owner ever holds, shown or not.
    """

    ticks: Ints
    owners: Ints
    total_ticks: int
    phases: tuple[Span, ...]
    units: tuple[Span, ...]
    peak_tick: int
    highest: OwnerBytes

    @classmethod
    def of(cls, log: EventLog, *, columns: int = COLUMNS) -> Timeline:
        """Read a log."""
        log = _without_idle_ticks(log)
        ticks = _highest_of_each_stretch(log.live_bytes(), columns)
        owners = [log.live_bytes(select=log.owner == OWNERS.index(name))[ticks] for name in STACK]
        return cls(
            ticks=ticks,
            owners=np.stack(owners),
            total_ticks=log.ticks,
            phases=tuple(_phases(log)),
            units=tuple(_units(log)),
            peak_tick=log.peak_tick,
            highest=log.max_by_owner(),
        )

    @property
    def peak_column(self) -> int:
        """Index of the peak in ``ticks``."""
        return int(np.searchsorted(self.ticks, self.peak_tick))

    @property
    def peak_bytes(self) -> int:
        """Live bytes at the peak."""
        return int(self.owners[:, self.peak_column].sum())

    def at_peak(self) -> dict[str, int]:
        """Return live bytes at the peak by owner, in the order of ``STACK``."""
        return {name: int(self.owners[row, self.peak_column]) for row, name in enumerate(STACK)}

    def place(self, tick: int) -> tuple[str, str]:
        """Return the phase and the unit at a tick."""
        phase = next((s.name for s in self.phases if s.start <= tick < s.end), PHASES[0])
        inside = [s for s in self.units if s.start <= tick < s.end]
        # a recomputation lies within its unit's backward, and says more
        inside.sort(key=lambda span: span.kind != "recompute")
        if not inside:
            return phase, OUTSIDE
        return ("recompute" if inside[0].kind == "recompute" else phase), inside[0].name

    @property
    def peak_label(self) -> str:
        """The peak in words."""
        phase, unit = self.place(self.peak_tick)
        return f"peak {format_bytes(self.peak_bytes)} in {phase}, {unit}"


def _without_idle_ticks(log: EventLog) -> EventLog:
    """Number the ticks anew, leaving out those without a birth or a death."""
    moments = np.unique(np.concatenate([log.birth, log.death[log.death < log.ticks]]))
    moments = moments[moments > 0]
    last = len(moments)

    def renumbered(ticks: Ints) -> Ints:
        return np.searchsorted(moments, ticks, side="right").astype(np.int64)

    marks = [
        m._replace(tick=int(t))
        for m, t in zip(
            log.marks,
            renumbered(np.array([m.tick for m in log.marks], dtype=np.int64)).tolist(),
            strict=True,
        )
    ]
    return replace(
        log,
        birth=renumbered(log.birth),
        death=np.where(log.death >= log.ticks, last + 1, renumbered(log.death)),
        ticks=last + 1,
        marks=tuple(marks),
    )


def _highest_of_each_stretch(live: Ints, columns: int) -> Ints:
    edges = np.unique(np.linspace(0, len(live), min(columns, len(live)) + 1).astype(np.int64))
    pairs = zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    ticks = [start + int(np.argmax(live[start:end])) for start, end in pairs]
    return np.unique(np.array(ticks, dtype=np.int64))


def _phases(log: EventLog) -> Iterator[Span]:
    marks = [m for m in log.marks if m.kind == "phase"]
    ends = [*(m.tick for m in marks[1:]), log.ticks]
    for mark, end in zip(marks, ends, strict=True):
        if end > mark.tick:
            yield Span(start=mark.tick, end=end, name=PHASES[mark.value], kind="phase")


def _units(log: EventLog) -> Iterator[Span]:
    """Yield forwards (enter to exit), backwards (until the next mark), recomputations (births)."""
    entered: dict[int, int] = {}
    backward: tuple[int, int] | None = None
    for mark in log.marks:
        if backward is not None and mark.kind in ("backward", "phase"):
            unit, start = backward
            yield Span(start=start, end=mark.tick, name=log.units[unit], kind="backward")
            backward = None
        if mark.kind == "enter":
            entered[mark.value] = mark.tick
        elif mark.kind == "exit" and mark.value in entered:
            start = entered.pop(mark.value)
            yield Span(start=start, end=mark.tick, name=log.units[mark.value], kind="forward")
        elif mark.kind == "backward":
            backward = mark.value, mark.tick
    if backward is not None:
        yield Span(start=backward[1], end=log.ticks, name=log.units[backward[0]], kind="backward")
    yield from _recomputations(log)


def _recomputations(log: EventLog) -> Iterator[Span]:
    born = np.flatnonzero(log.phase == RECOMPUTE)
    if not len(born):
        return
    order = born[np.argsort(log.birth[born])]
    changes = np.flatnonzero(np.diff(log.unit[order])) + 1
    for run in np.split(order, changes):
        unit = int(log.unit[run[0]])
        yield Span(
            start=int(log.birth[run[0]]),
            end=int(log.birth[run[-1]]) + 1,
            name=log.units[unit] if unit >= 0 else OUTSIDE,
            kind="recompute",
        )


# --- writing --------------------------------------------------------------------------------------


def save_timeline(log: EventLog, path: Path, *, title: str = "", caption: str = "") -> None:
    """Draw a step to a file.

    Args:
        log: of the step; rounded beforehand if sizes should be an allocator's.
        path: ends in ``.png`` or ``.html``.
        title: above the picture.
        caption: what the numbers leave out, or another remark below it.

    Raises:
        UsageError: another ending, or matplotlib is not installed.
        InputError: the file cannot be written.
    """
    check_suffix(path)
    timeline = Timeline.of(log)
    try:
        if path.suffix.lower() == ".png":
            _save_png(timeline, path, title, caption)
        else:
            from profiler.timeline_html import page

            path.write_text(page(timeline, title=title, caption=caption), encoding="utf-8")
    except OSError as error:
        raise InputError(f"the plot {path} cannot be written: {error.strerror}") from error


def check_suffix(path: Path) -> None:
    """Refuse what cannot be drawn, before any work is done for it.

    Raises:
        UsageError: the file ends in neither ``.png`` nor ``.html``.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"a plot is written as .png or .html, got {path.name!r}")


def scale_of(peak_bytes: int) -> tuple[int, str]:
    """Return the unit of the vertical axis."""
    return (GIB, "GiB") if peak_bytes >= 2 * GIB else (MIB, "MiB")


def labels(spans: tuple[Span, ...], total_ticks: int, *, per_letter: float) -> list[Span]:
    """Return the spans that are wide enough for their label, recomputations apart.

    Args:
        spans: phases or units.
        total_ticks: length of the step.
        per_letter: share of the picture's width that a letter takes.
    """
    return [
        span
        for span in spans
        if span.kind != "recompute"
        and span.end - span.start >= (len(short_name(span.name)) + 1) * per_letter * total_ticks
    ]


def _save_png(timeline: Timeline, path: Path, title: str, caption: str) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("a .png plot needs matplotlib; install it, or ask for .html") from error
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    axes, strip = figure.subplots(
        2, 1, sharex=True, height_ratios=(14, 1), gridspec_kw={"hspace": 0.02}
    )
    _draw_areas(axes, timeline)
    _draw_phases(axes, timeline)
    _draw_peak(axes, timeline)
    _draw_units(strip, timeline, caption)
    axes.set_title(title or "Live bytes over one training step", loc="left", fontsize=11, pad=22)
    FigureCanvasAgg(figure).print_png(path)


def _draw_areas(axes: Any, timeline: Timeline) -> None:
    factor, unit = scale_of(timeline.peak_bytes)
    at_peak = timeline.at_peak()
    axes.stackplot(
        [*timeline.ticks, timeline.total_ticks],
        np.concatenate([timeline.owners, timeline.owners[:, -1:]], axis=1) / factor,
        step="post",
        colors=[COLOURS[name] for name in STACK],
        labels=[f"{name}  {format_bytes(at_peak[name])}" for name in STACK],
        linewidth=0,
    )
    axes.set_axisbelow(True)
    axes.set_xlim(0, timeline.total_ticks)
    axes.set_ylim(0, timeline.peak_bytes / factor * 1.12)
    axes.set_ylabel(f"live bytes, {unit}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#000000", alpha=0.12, linewidth=0.6)
    axes.tick_params(axis="x", bottom=False, labelbottom=False)
    handles, texts = axes.get_legend_handles_labels()
    shown = [row for row, _ in enumerate(STACK) if timeline.owners[row].any()]
    axes.legend(
        [handles[row] for row in reversed(shown)],
        [texts[row] for row in reversed(shown)],
        title="at the peak",
        loc="upper left",
        bbox_to_anchor=(1.005, 1.0),
        frameon=False,
        fontsize=9,
        alignment="left",
    )


def _draw_phases(axes: Any, timeline: Timeline) -> None:
    for span in timeline.phases:
        axes.axvline(span.start, color="#333333", linewidth=0.7, linestyle=(0, (4, 3)))
    for span in labels(timeline.phases, timeline.total_ticks, per_letter=0.006):
        axes.text(
            (span.start + span.end) / 2,
            1.01,
            span.name,
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=9,
        )


def _draw_peak(axes: Any, timeline: Timeline) -> None:
    factor, _ = scale_of(timeline.peak_bytes)
    height = timeline.peak_bytes / factor
    on_the_left = timeline.peak_tick < timeline.total_ticks / 2
    axes.plot([timeline.peak_tick], [height], marker="o", color="#111111", markersize=4)
    axes.annotate(
        timeline.peak_label,
        (timeline.peak_tick, height),
        xytext=(8 if on_the_left else -8, 7),
        textcoords="offset points",
        ha="left" if on_the_left else "right",
        fontsize=9,
        fontweight="bold",
    )


def _draw_units(strip: Any, timeline: Timeline, caption: str) -> None:
    recomputes = any(span.kind == "recompute" for span in timeline.units)
    for span in timeline.units:
        strip.axvspan(
            span.start, span.end, facecolor=SHADES[span.kind], edgecolor="#FFFFFF", linewidth=0.6
        )
    for span in labels(timeline.units, timeline.total_ticks, per_letter=0.006):
        middle, name = (span.start + span.end) / 2, short_name(span.name)
        strip.text(middle, 0.5, name, ha="center", va="center", fontsize=7.5)
    strip.set_ylim(0, 1)
    strip.set_yticks([])
    strip.set_xticks([])
    strip.spines[:].set_visible(False)
    strip.set_ylabel("units", rotation=0, ha="right", va="center")
    strip.set_xlabel(
        "from left to right storages are born and freed, in order"
        + ("; units recomputed in dark blue" if recomputes else "")
        + (f"\n{caption}" if caption else "")
    )


def short_name(name: str) -> str:
    """Return the numbers in a unit's name (``stages.2.blocks.1``: 2.1), or its last part."""
    parts = name.split(".")
    return ".".join(part for part in parts if part.isdigit()) or parts[-1]
