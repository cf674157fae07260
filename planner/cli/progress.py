"""Progress of a command on stderr: one bar for the whole command, lines, or JSON events.

A command has stages with shares of its time. The bar shows the stage ("2 of 5"), the elapsed time
and the time that remains, and never runs backwards. It is ``BAR_CELLS`` wide; the description
is cut to the columns that remain. Messages are printed above it.

The remaining time is extrapolated from the time of the whole command so far, so it is shown only
from ``EARLIEST_ESTIMATE`` of the command on.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

ProgressKind = Literal["bar", "events", "none"]

BAR_CELLS = 20

SECONDS_BETWEEN_LINES = 20

EARLIEST_ESTIMATE = 0.02
"""Share of a command after which the remaining time is estimated."""

RECOMMEND_STAGES = {
    "start": 1,
    "profile": 4,
    "search": 3,
    "replay": 2,
    "rehearse": 4,
    "validate": 6,
}
"""Stages of ``recommend`` with their shares of its time, in the order in which they run."""

TRAINING_FREE_SHARE = 1
"""Share of the last stage, which is left out where nothing is at hand for it."""

PROBE_SHARE = 12
"""Share of the stage ``probe``, which comes after ``replay``, if it was requested."""


def recommend_stages(
    *,
    probes: bool,
    validates: bool,
    rehearses: bool,
    finds_rate: bool = False,
    lists_training_free: bool = True,
) -> dict[str, float]:
    """Return the stages of a ``recommend`` with their shares of its time.

    Args:
        probes: whether candidates are trained for a short time.
        validates: whether candidates are really run.
        rehearses: whether they may be run on an emulated GPU.
        finds_rate: whether learning rates are tried.
        lists_training_free: whether models without fine-tuning may be looked at.
    """
    stages = dict[str, float]()
    for name, share in RECOMMEND_STAGES.items():
        if name == "rehearse" and probes:
            stages["probe"] = PROBE_SHARE
        if {"rehearse": rehearses, "validate": validates}.get(name, True):
            stages[name] = share
    if finds_rate:
        stages["learning rate"] = PROBE_SHARE
    if lists_training_free:
        stages["training-free"] = TRAINING_FREE_SHARE
    return stages


class ProgressDisplay(Protocol):
    """Shows progress; called with (stage, current work, fraction of the stage done)."""

    def __call__(self, stage: str, text: str, fraction: float) -> None:
        """Show the state of a stage."""

    def message(self, text: str) -> None:
        """Print a line above the bar."""


class StageClock:
    """Progress of a whole command, from the progress of its stages.

    Args:
        stages: share of the command's time by stage. A stage that is not among them is one of its
            own, with the share 1.
        now: clock in seconds.

    Attributes:
        stage: the current stage.
        fraction: fraction of the command that is done; it never falls.
        number: number of the latest stage in order, from 1; it never falls.
    """

    def __init__(
        self, stages: Mapping[str, float], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._shares = dict(stages)
        self._now = now
        self._began = now()
        self.stage = ""
        self.fraction = 0.0
        self.number = 1

    def update(self, stage: str, fraction: float) -> None:
        """Set the progress of a stage; stages before it count as done.

        A stage that runs again, as the replay does after a probe, counts as done.
        """
        self._shares.setdefault(stage, 1)
        self.stage = stage
        names = list(self._shares)
        self.number = max(self.number, 1 + names.index(stage))
        before = sum(self._shares[name] for name in names[: names.index(stage)])
        done = before + self._shares[stage] * min(1.0, max(0.0, fraction))
        self.fraction = max(self.fraction, done / sum(self._shares.values()))

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self._shares)

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since the command began."""
        return self._now() - self._began

    @property
    def remaining_seconds(self) -> float | None:
        """Estimated seconds until the end; None near the beginning."""
        if self.fraction < EARLIEST_ESTIMATE:
            return None
        return self.elapsed_seconds * (1 - self.fraction) / self.fraction


@contextmanager
def progress_bar(
    chosen: ProgressKind | None, *, as_json: bool, stages: Mapping[str, float] | None = None
) -> Iterator[ProgressDisplay]:
    """Show progress on stderr: a bar on a terminal, else a line every 20 seconds.

    Args:
        chosen: ``events`` prints a JSON object for each change, ``none`` nothing; None for a bar,
            and for nothing with ``--json``.
        as_json: whether the command prints JSON.
        stages: share of the command's time by stage.
    """
    kind = chosen or ("none" if as_json else "bar")
    clock = StageClock(stages or {})
    if kind == "events":
        yield _Events(clock)
    elif kind == "none":
        yield _Silent()
    elif not sys.stderr.isatty():
        yield _ProgressLines(clock)
    else:
        from rich.console import Console

        with _Bar(clock, Console(stderr=True)) as bar:
            yield bar


class _Silent:
    def __call__(self, stage: str, text: str, fraction: float) -> None:
        """Show nothing."""

    def message(self, text: str) -> None:
        click.echo(text, err=True)


class _ProgressLines:
    """Prints the stage and its progress every ``SECONDS_BETWEEN_LINES``."""

    def __init__(self, clock: StageClock) -> None:
        self._clock = clock
        self._last_line_seconds = time.monotonic()

    def __call__(self, stage: str, text: str, fraction: float) -> None:
        self._clock.update(stage, fraction)
        now = time.monotonic()
        if now - self._last_line_seconds >= SECONDS_BETWEEN_LINES:
            clock = self._clock
            place = f"{clock.number} of {clock.stages} {stage}" if clock.stages > 1 else stage
            click.echo(f"budgetplan: {place}: {text}, {fraction:.0%}", err=True)
            self._last_line_seconds = now

    def message(self, text: str) -> None:
        click.echo(text, err=True)


class _Events:
    """Prints one JSON object a line on stderr."""

    def __init__(self, clock: StageClock) -> None:
        self._clock = clock

    def __call__(self, stage: str, text: str, fraction: float) -> None:
        self._clock.update(stage, fraction)
        remaining = self._clock.remaining_seconds
        self._print(
            {
                "event": "progress",
                "stage": stage,
                "stage_number": self._clock.number,
                "stages": self._clock.stages,
                "text": text,
                "fraction": round(self._clock.fraction, 4),
                "elapsed_seconds": round(self._clock.elapsed_seconds, 2),
                "remaining_seconds": None if remaining is None else round(remaining, 2),
            }
        )

    def message(self, text: str) -> None:
        self._print({"event": "message", "text": text})

    @staticmethod
    def _print(data: Mapping[str, Any]) -> None:
        click.echo(json.dumps(data), err=True)


class _Bar:
    """One bar of rich; its columns are fixed, and the description takes the rest."""

    def __init__(self, clock: StageClock, console: Console) -> None:
        self._clock, self._console = clock, console
        self._progress = _rich_progress(console)
        self._task = self._progress.add_task("", total=1.0, place="", times="")

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, stage: str, text: str, fraction: float) -> None:
        self._clock.update(stage, fraction)
        place, times = place_text(self._clock), times_text(self._clock)
        room = self._console.width - BAR_CELLS - len(place) - len(times) - 4
        self._progress.update(
            self._task,
            completed=self._clock.fraction,
            place=place,
            times=times,
            description=text if len(text) <= room else text[: max(0, room - 3)] + "...",
        )

    def message(self, text: str) -> None:
        self._progress.print(text, markup=False, highlight=False)


def _rich_progress(console: Console) -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    def fixed() -> Column:
        return Column(no_wrap=True)

    return Progress(
        TextColumn("{task.fields[place]}", table_column=fixed()),
        BarColumn(bar_width=BAR_CELLS, table_column=Column(no_wrap=True, min_width=BAR_CELLS)),
        TextColumn("{task.fields[times]}", table_column=fixed()),
        TextColumn("{task.description}", table_column=fixed(), markup=False),
        console=console,
        transient=True,
    )


def place_text(clock: StageClock) -> str:
    """Return the stage and its number, such as ``2 of 5 profile``."""
    return f"{clock.number} of {clock.stages} {clock.stage}" if clock.stages > 1 else clock.stage


def times_text(clock: StageClock) -> str:
    """Return the elapsed time and the remaining one, such as ``0:12, 0:40 left``."""
    elapsed, remaining = _clock_time(clock.elapsed_seconds), clock.remaining_seconds
    return elapsed if remaining is None else f"{elapsed}, {_clock_time(remaining)} left"


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
