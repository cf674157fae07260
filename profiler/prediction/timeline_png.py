"""Draws a memory timeline with matplotlib."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from profiler.errors import UsageError
from profiler.prediction.export_files import export_mark
from profiler.prediction.timeline import (
    COLOURS,
    SHADES,
    STACK,
    Timeline,
    labels,
    scale_of,
    unit_label,
)
from profiler.units import format_bytes

NO_MATPLOTLIB = "a .png plot needs matplotlib; install it, or ask for .html"


def png(timeline: Timeline, title: str, caption: str) -> bytes:
    """Return a timeline as the content of a PNG file.

    Raises:
        UsageError: matplotlib (the extra ``plot``) is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(NO_MATPLOTLIB) from error
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    axes, strip = figure.subplots(
        2, 1, sharex=True, height_ratios=(14, 1), gridspec_kw={"hspace": 0.02}
    )
    _draw_areas(axes, timeline)
    _draw_phases(axes, timeline)
    _draw_peak(axes, timeline)
    _draw_units(strip, timeline, caption)
    axes.set_title(title or "Live bytes over one training step", loc="left", fontsize=11, pad=22)
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content, metadata={"Software": export_mark("plot")})
    return content.getvalue()


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
        middle, name = (span.start + span.end) / 2, unit_label(span.name)
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
