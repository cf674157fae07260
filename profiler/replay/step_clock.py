"""The recorder's position in a step: tick, phase, unit, and the marks set so far."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from profiler.replay.event_log import Mark, MarkKind, Phase

OUTSIDE_UNITS = -1
"""Unit index outside all units."""


class StepClock:
    """Counts ticks: each birth and each death of a storage is one tick.

    Attributes:
        tick: number of births and deaths so far.
        phase: the phase that runs.
        unit: index of the unit that runs, ``OUTSIDE_UNITS`` for none.
        marks: marks set so far.
    """

    def __init__(self) -> None:
        self.tick = 0
        self.phase = Phase.SETUP
        self.unit = OUTSIDE_UNITS
        self.marks: list[Mark] = []
        self._pending_exit = OUTSIDE_UNITS

    def next_birth(self) -> int:
        """Advance by a birth and return its tick."""
        self._mark_exit()
        self.tick += 1
        return self.tick

    def next_death(self) -> int:
        """Advance by a death and return its tick."""
        self.tick += 1
        return self.tick

    def mark(self, kind: MarkKind, value: int) -> None:
        """Set a mark at this moment."""
        self._mark_exit()
        self.marks.append(Mark(self.tick, kind, value))

    def enter(self, unit: int) -> None:
        """Mark the start of a unit's forward."""
        self.unit = unit
        self.mark(MarkKind.ENTER, unit)

    def begin_backward(self, unit: int) -> None:
        """Mark the start of a unit's backward."""
        self.unit = unit
        self.mark(MarkKind.BACKWARD, unit)

    def leave(self, unit: int, *, is_sequence: bool) -> None:
        """Mark the end of a unit's forward.

        Args:
            unit: the unit's index.
            is_sequence: whether the unit is a sequence of several modules. Its caller still holds
                the last module's input when the hook runs. The exit is then marked at the next
                birth or mark, after these tensors are freed.
        """
        self.unit, self._pending_exit = OUTSIDE_UNITS, unit
        if not is_sequence:
            self._mark_exit()

    def _mark_exit(self) -> None:
        if self._pending_exit >= 0:
            self.marks.append(Mark(self.tick, MarkKind.EXIT, self._pending_exit))
            self._pending_exit = OUTSIDE_UNITS

    @contextmanager
    def in_phase(self, name: str) -> Iterator[None]:
        """Mark the start of a phase; ``TrainingStep`` calls this around each phase.

        Args:
            name: the phase's label.
        """
        self.phase = Phase[name.upper()]
        self.unit = OUTSIDE_UNITS
        self.mark(MarkKind.PHASE, self.phase)
        yield
