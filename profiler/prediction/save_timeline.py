"""Writes the memory timeline of a step to a .png or .html file."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from profiler.errors import UsageError
from profiler.prediction.export_files import check_export, write_export
from profiler.prediction.timeline import Timeline
from profiler.prediction.timeline_png import NO_MATPLOTLIB, png
from profiler.replay.event_log import EventLog

SUFFIXES = (".png", ".html")


def save_timeline(log: EventLog, path: Path, *, title: str = "", caption: str = "") -> None:
    """Draw a step to a file.

    Args:
        log: log of the step; round it first (``EventLog.rounded``) to show an allocator's sizes.
        path: a file that ends in ``.png`` or ``.html``.
        title: text above the picture.
        caption: text below the picture.

    Raises:
        UsageError: the file has another ending, or matplotlib is not installed.
        InputError: the file cannot be written, or there is another file.
    """
    check_plot_file(path)
    timeline = Timeline.of(log)
    if path.suffix.lower() == ".png":
        content = png(timeline, title, caption)
    else:
        from profiler.prediction.timeline_html import page

        content = page(timeline, title=title, caption=caption).encode()
    write_export(path, content, "plot")


def check_plot_file(path: Path) -> None:
    """Refuse a file that cannot be drawn to; called before the step is replayed.

    Raises:
        UsageError: the file ends in neither ``.png`` nor ``.html``, or matplotlib is missing.
        InputError: there is no such folder, or a file that is no plot of this program.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"a plot is written as .png or .html, got {path.name!r}")
    if path.suffix.lower() == ".png" and find_spec("matplotlib") is None:
        raise UsageError(NO_MATPLOTLIB)
    check_export(path, "plot")
