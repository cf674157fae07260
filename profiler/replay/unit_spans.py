"""Stretches of a step, read from the marks of an event log: its phases, and each unit's runs.

Marks are moments. Other modules work with the stretches between them, which only this module
computes:

    phase     from its mark to the next phase's mark, or to the end of the log
    forward   from a unit's ``ENTER`` mark to its ``EXIT`` mark
    backward  from a unit's ``BACKWARD`` mark to the next ``BACKWARD`` or ``PHASE`` mark, or to the
              end of the log. The mark is set when the gradient of the unit's output is computed,
              so the stretch includes the operations between this unit and the unit before it

A unit has one forward and one backward in each micro-batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from profiler.replay.event_log import EventLog, Mark, MarkKind, Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSpan:
    """A phase of the step, or one run of a unit.

    Attributes:
        phase: the phase; ``FORWARD`` or ``BACKWARD`` for a unit's run.
        unit: the unit's index, -1 for a whole phase.
        begin: last tick before the first event inside.
        end: tick of the last event inside.
    """

    phase: Phase
    unit: int = -1
    begin: int
    end: int


def phase_spans(marks: Sequence[Mark], ticks: int) -> tuple[StepSpan, ...]:
    """Return the phases of a step in order of time, empty ones included.

    Args:
        marks: marks of the step, in order of time.
        ticks: length of the step.
    """
    starts = [mark for mark in marks if mark.kind is MarkKind.PHASE]
    ends = [*(mark.tick for mark in starts[1:]), ticks]
    return tuple(
        StepSpan(phase=Phase(mark.value), begin=mark.tick, end=end)
        for mark, end in zip(starts, ends, strict=True)
    )


def unit_spans(log: EventLog) -> tuple[StepSpan, ...]:
    """Return the forwards and backwards of all units, in the order in which they end."""
    return tuple(_unit_spans(log))


def _unit_spans(log: EventLog) -> Iterator[StepSpan]:
    entered: dict[int, int] = {}
    backward: Mark | None = None
    for mark in log.marks:
        if backward is not None and mark.kind in (MarkKind.BACKWARD, MarkKind.PHASE):
            yield _backward_span(backward, mark.tick)
            backward = None
        if mark.kind is MarkKind.ENTER:
            entered[mark.value] = mark.tick
        elif mark.kind is MarkKind.EXIT and mark.value in entered:
            begin = entered.pop(mark.value)
            yield StepSpan(phase=Phase.FORWARD, unit=mark.value, begin=begin, end=mark.tick)
        elif mark.kind is MarkKind.BACKWARD:
            backward = mark
    if backward is not None:
        yield _backward_span(backward, log.ticks)


def _backward_span(mark: Mark, end: int) -> StepSpan:
    return StepSpan(phase=Phase.BACKWARD, unit=mark.value, begin=mark.tick, end=end)


def first_spans(log: EventLog, phase: Phase) -> dict[int, StepSpan]:
    """Return the first forward or backward of each unit that has one, by the unit's index.

    Args:
        log: a step of any number of micro-batches.
        phase: ``FORWARD`` or ``BACKWARD``.
    """
    found: dict[int, StepSpan] = {}
    for span in unit_spans(log):
        if span.phase is phase:
            found.setdefault(span.unit, span)
    return found


def highest_by_unit(log: EventLog) -> dict[int, tuple[int, int]]:
    """Return the peaks of each unit's forwards and backwards, by the unit's index.

    The peak is the highest number of live bytes over all micro-batches. Units without a forward
    or without a backward are left out.
    """
    live = log.live_bytes()
    highest = defaultdict[tuple[Phase, int], int](int)
    for span in unit_spans(log):
        key = (span.phase, span.unit)
        highest[key] = max(highest[key], int(live[span.begin : span.end + 1].max()))
    return {
        unit: (peak, highest[Phase.BACKWARD, unit])
        for (phase, unit), peak in list(highest.items())
        if phase is Phase.FORWARD and (Phase.BACKWARD, unit) in highest
    }
