"""Output of the commands: one JSON object, tables on a console, progress on stderr.

rich is imported when a command prints, so that ``--help`` stays fast.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from planner.recommendation.request import Notify

SECONDS_BETWEEN_LINES = 20


_PRINTED = "budgetplan.json"
"""Key in click's context: whether the command has printed its object."""


def json_text(data: Mapping[str, Any]) -> str:
    """Return a JSON object as text of several lines."""
    return json.dumps(dict(data), indent=1, allow_nan=False)


def print_json(data: Mapping[str, Any]) -> None:
    """Print the one JSON object of a command on stdout."""
    click.echo(json_text(data))
    context = click.get_current_context(silent=True)
    if context is not None:
        context.meta[_PRINTED] = True


def has_printed_json() -> bool:
    """Return whether the running command has printed its object."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_PRINTED))


def console() -> Console:
    """Return the console for tables, on stdout."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


@contextmanager
def progress_bar(*, silent: bool) -> Iterator[Notify]:
    """Show progress on stderr: a bar on a terminal, else a line every 20 seconds.

    Args:
        silent: whether to show nothing.
    """
    if silent:
        yield lambda stage, text, fraction: None
        return
    if not sys.stderr.isatty():
        yield _ProgressLines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.fields[stage]:>8}"),
        BarColumn(bar_width=20),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        tasks: dict[str, TaskID] = {}

        def notify(stage: str, text: str, fraction: float) -> None:
            if stage not in tasks:
                for done in tasks.values():
                    bar.update(done, completed=1.0, visible=False)
                tasks[stage] = bar.add_task(text, total=1.0, stage=stage)
            bar.update(tasks[stage], description=text, completed=fraction)

        yield notify


class _ProgressLines:
    """Prints the stage and its progress every ``SECONDS_BETWEEN_LINES``."""

    def __init__(self) -> None:
        self._last_line_seconds = time.monotonic()

    def __call__(self, stage: str, text: str, fraction: float) -> None:
        now = time.monotonic()
        if now - self._last_line_seconds >= SECONDS_BETWEEN_LINES:
            click.echo(f"budgetplan: {stage}: {text}, {fraction:.0%}", err=True)
            self._last_line_seconds = now
