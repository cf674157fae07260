"""When each unit ran, read from the marks of an event log."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from profiler.replay.event_log import EventLog

if TYPE_CHECKING:
    pass


class UnitSpan:
    """Ticks at which a unit runs in the first micro-batch."""

    __slots__ = ("backward", "enter", "exit")

    def __init__(self, enter: int) -> None:
        self.enter = enter
        self.exit = enter
        self.backward: tuple[int, int] | None = None


def unit_spans(log: EventLog) -> dict[int, UnitSpan]:
    """Return the first forward and the first backward of every unit that ran, by its index."""
    spans: dict[int, UnitSpan] = {}
    open_backward: int | None = None
    for mark in log.marks:
        ends_backward = mark.kind in {"backward", "phase"}
        if ends_backward and open_backward is not None:
            start, _ = spans[open_backward].backward or (mark.tick, 0)
            spans[open_backward].backward = (start, mark.tick)
            open_backward = None
        if mark.kind == "enter":
            spans.setdefault(mark.value, UnitSpan(mark.tick))
        elif mark.kind == "exit" and spans[mark.value].exit == spans[mark.value].enter:
            spans[mark.value].exit = mark.tick
        elif mark.kind == "backward" and spans[mark.value].backward is None:
            spans[mark.value].backward = (mark.tick, log.ticks)
            open_backward = mark.value
    return spans


def highest_by_unit(log: EventLog) -> dict[int, tuple[int, int]]:
    """Return the highest live bytes of each unit's forwards and backwards, by its index."""
    live = log.live_bytes()
    forward, backward = defaultdict[int, int](int), defaultdict[int, int](int)
    entered: dict[int, int] = {}
    running: tuple[int, int] | None = None
    for mark in log.marks:
        if running is not None and mark.kind in {"backward", "phase"}:
            unit, start = running
            backward[unit] = max(backward[unit], int(live[start : mark.tick + 1].max()))
            running = None
        if mark.kind == "enter":
            entered[mark.value] = mark.tick
        elif mark.kind == "exit" and mark.value in entered:
            start = entered.pop(mark.value)
            forward[mark.value] = max(forward[mark.value], int(live[start : mark.tick + 1].max()))
        elif mark.kind == "backward":
            running = mark.value, mark.tick
    if running is not None:
        unit, start = running
        backward[unit] = max(backward[unit], int(live[start:].max()))
    return {unit: (forward[unit], backward[unit]) for unit in forward if unit in backward}
