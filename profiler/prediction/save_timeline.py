"""Writes the memory timeline of a step to a .png or .html file."""

from __future__ import annotations

from pathlib import Path

from profiler.errors import InputError, UsageError
from profiler.prediction.timeline import Timeline
from profiler.prediction.timeline_png import save_png
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
        InputError: the file cannot be written.
    """
    check_suffix(path)
    timeline = Timeline.of(log)
    try:
        if path.suffix.lower() == ".png":
            save_png(timeline, path, title, caption)
        else:
            from profiler.prediction.timeline_html import page

            path.write_text(page(timeline, title=title, caption=caption), encoding="utf-8")
    except OSError as error:
        raise InputError(f"the plot {path} cannot be written: {error.strerror}") from error


def check_suffix(path: Path) -> None:
    """Refuse a file of another format; called before the step is replayed.

    Raises:
        UsageError: the file ends in neither ``.png`` nor ``.html``.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"a plot is written as .png or .html, got {path.name!r}")
