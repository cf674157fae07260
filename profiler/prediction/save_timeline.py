"""Writes the memory timeline of a step to a .png or .html file."""

from __future__ import annotations

import contextlib
from importlib.util import find_spec
from pathlib import Path

from profiler.errors import InputError, UsageError
from profiler.prediction.timeline import Timeline
from profiler.prediction.timeline_png import NO_MATPLOTLIB, png
from profiler.replay.event_log import EventLog

SUFFIXES = (".png", ".html")

PLOT_MARK = b"budgetplan"
"""Text near the beginning of each plot, by which a later plot may replace it."""

MARK_WITHIN_BYTES = 1024


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
    draft = path.with_name(f".{path.name}.budgetplan-draft")
    try:
        draft.write_bytes(content)
        draft.replace(path)
    except OSError as error:
        raise InputError(f"the plot {path} cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def check_plot_file(path: Path) -> None:
    """Refuse a file that cannot be drawn to; called before the step is replayed.

    Raises:
        UsageError: the file ends in neither ``.png`` nor ``.html``, or matplotlib is missing.
        InputError: there is a file that is no plot of this program.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"a plot is written as .png or .html, got {path.name!r}")
    if path.suffix.lower() == ".png" and find_spec("matplotlib") is None:
        raise UsageError(NO_MATPLOTLIB)
    if not path.parent.is_dir():
        raise InputError(f"the plot {path} cannot be written: there is no folder {path.parent}")
    if not path.exists():
        return
    try:
        with path.open("rb") as file:
            is_ours = PLOT_MARK in file.read(MARK_WITHIN_BYTES)
    except OSError as error:
        raise InputError(f"the plot {path} cannot be written: {error.strerror}") from error
    if not is_ours:
        raise InputError(f"{path} exists and is no plot of budgetplan; give another file")
