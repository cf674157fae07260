"""The memory timeline of a step: live bytes by owner over time, with phases, units and the peak.

``Timeline`` holds the data of the picture. It has at most 900 columns; each shows the moment of
highest live bytes in its range of ticks, so the peak is never averaged away. ``save_timeline``
draws it as PNG (``timeline_png``) or HTML (``timeline_html``).

The horizontal axis counts ticks, one for each birth and each death of a storage. It shows an order,
not a duration. Ticks without a birth or a death in the steady step (the setup) are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from profiler.arrays import Ints
from profiler.records import OWNERS, OwnerBytes
from profiler.replay.event_log import EventLog, Phase
from profiler.replay.unit_spans import phase_spans, unit_spans
from profiler.units import GIB, MIB, format_bytes

COLUMNS = 900
"""Largest number of columns."""

STACK = ("parameter", "buffer", "optimizer", "gradient", "input", "activation", "temporary")
"""Owners from the bottom up: first bytes that live through the whole step, then transient ones."""

COLOURS = {
    "parameter": "#0072B2",
    "buffer": "#56B4E9",
    "optimizer": "#009E73",
    "gradient": "#E69F00",
    "input": "#999999",
    "activation": "#CC79A7",
    "temporary": "#D55E00",
}
"""The palette of Okabe and Ito, which colour-blind readers can distinguish."""

SHADES = {"forward": "#C9D6E8", "recompute": "#8FA8C8", "backward": "#EBD9C3"}

OUTSIDE = "outside units"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A labelled range of ticks.

    Attributes:
        start: first tick.
        end: first tick after the range.
        name: name of a phase or a unit.
        kind: ``forward``, ``backward`` or ``recompute`` for a unit, ``phase`` for a phase.
    """

    start: int
    end: int
    name: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Data of the picture.

    Attributes:
        ticks: [columns] tick that each column shows, in order.
        owners: [owners, columns] live bytes by owner, in the order of ``STACK``.
        total_ticks: length of the step.
        phases: phases in order of time, without empty ones.
        units: forwards, recomputations and backwards of the units.
        peak_tick: first tick with the highest live bytes; one of ``ticks``.
        highest: each owner's highest live bytes, also between columns.
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
        """Return the timeline of a log."""
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
        phase = next((s.name for s in self.phases if s.start <= tick < s.end), Phase.SETUP.label)
        inside = [s for s in self.units if s.start <= tick < s.end]
        # a recomputation lies within its unit's backward and is the more precise label
        inside.sort(key=lambda span: span.kind != "recompute")
        if not inside:
            return phase, OUTSIDE
        return ("recompute" if inside[0].kind == "recompute" else phase), inside[0].name

    @property
    def peak_label(self) -> str:
        """Size, phase and unit of the peak, as text."""
        phase, unit = self.place(self.peak_tick)
        return f"peak {format_bytes(self.peak_bytes)} in {phase}, {unit}"


def _without_idle_ticks(log: EventLog) -> EventLog:
    """Return the log with the ticks renumbered, those without a birth or a death left out."""
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
    for span in phase_spans(log.marks, log.ticks):
        if span.end > span.begin:
            yield Span(start=span.begin, end=span.end, name=span.phase.label, kind="phase")


def _units(log: EventLog) -> Iterator[Span]:
    """Yield forwards and backwards in the order of their ends, then recomputations."""
    for span in unit_spans(log):
        name, kind = log.units[span.unit], span.phase.label
        yield Span(start=span.begin, end=span.end, name=name, kind=kind)
    yield from _recomputations(log)


def _recomputations(log: EventLog) -> Iterator[Span]:
    born = np.flatnonzero(log.phase == Phase.RECOMPUTE)
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


def scale_of(peak_bytes: int) -> tuple[int, str]:
    """Return bytes and name of the vertical axis's unit."""
    return (GIB, "GiB") if peak_bytes >= 2 * GIB else (MIB, "MiB")


def labels(spans: tuple[Span, ...], total_ticks: int, *, per_letter: float) -> list[Span]:
    """Return the spans that are wide enough for their label, without recomputations.

    Args:
        spans: phases or units.
        total_ticks: length of the step.
        per_letter: width of a letter as a share of the picture's width.
    """
    return [
        span
        for span in spans
        if span.kind != "recompute"
        and span.end - span.start >= (len(unit_label(span.name)) + 1) * per_letter * total_ticks
    ]


def unit_label(name: str) -> str:
    """Return the numbers in a unit's name (``stages.2.blocks.1``: 2.1), or its last part."""
    parts = name.split(".")
    return ".".join(part for part in parts if part.isdigit()) or parts[-1]
