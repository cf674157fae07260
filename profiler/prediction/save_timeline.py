"""Writes the memory timeline of a step to a .png or .html file."""

from __future__ import annotations

from pathlib import Path

from profiler.errors import InputError, UsageError
from profiler.prediction.timeline import Timeline
from profiler.prediction.timeline_png import save_png
from profiler.replay.event_log import EventLog

SUFFIXES = (".png", ".html")


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
            save_png(timeline, path, title, caption)
        else:
            from profiler.prediction.timeline_html import page

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
