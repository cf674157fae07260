"""Replay a deep network as a shallow one, and write down what the deep one would have done.

Most backbones are rows of units that are alike, and replay is slow in proportion to their number.
Of such a row three units run: the first, the second and the last. The others hand on what they are
given. In the log their part is empty, and is filled with copies of the second unit's.

    find_rows    which units are alike, and how a placement leaves them so
    skip_units    make the units between the second and the last of each row hand on their input
    expand_log the log of a step in which they did not

A copy of a storage dies in its own unit's part where the original dies in the second unit's. What
is handed from unit to unit (an output, a gradient) dies in the part of the unit it is handed to:
where, is told by what the first unit hands to the second. If the parts do not line up so, the
answer is None and the step has to be replayed whole. ``tests/profiler/test_abridged.py`` holds
logs against those of whole replays, storage by storage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from profiler.arrays import Ints, Mask
from profiler.models.layers import is_stochastic_depth
from profiler.models.unit_runs import modules_of
from profiler.placement import Placement
from profiler.replay.event_log import EventLog, Mark, MarkKind, OperationRecord, Phase
from profiler.replay.unit_spans import StepSpan, unit_spans

_RUNNING = 3
"""Units of a row that run: the first has another unit before it, the last another behind it."""


@dataclass(frozen=True, slots=True)
class UnitRow:
    """Units in a row that are alike.

    Attributes:
        first: index of the first.
        count: how many there are, more than three.
    """

    first: int
    count: int

    @property
    def template(self) -> int:
        """The unit that those who do not run are copies of."""
        return self.first + 1

    @property
    def last(self) -> int:
        """The last unit, which runs."""
        return self.first + self.count - 1

    @property
    def skipped(self) -> range:
        """The units that do not run."""
        return range(self.template + 1, self.last)


# --- which units are alike ------------------------------------------------------------------------


def find_rows(
    backbone: nn.Module, units: Sequence[str], placement: Placement
) -> tuple[UnitRow, ...]:
    """Return the rows of more than three units that are alike and treated alike.

    Two units are alike if their modules have the same classes, settings, shapes and trainable
    parameters under the same names. One that has a hook is like no other: the hook may do anything.
    """
    looks = [_look(unit, modules_of(backbone, unit), placement) for unit in units]
    rows, first = [], 0
    for _, group in groupby(looks):
        row = UnitRow(first, len(list(group)))
        if row.count > _RUNNING:
            rows.append(row)
        first += row.count
    return tuple(rows)


def _look(unit: str, modules: Sequence[nn.Module], placement: Placement) -> object:
    if len(modules) > 1 or modules[0]._forward_pre_hooks or modules[0]._forward_hooks:
        return unit
    decisions = [
        (name.removeprefix(unit), decision)
        for name, decision in placement.decisions.items()
        if name == unit or name.startswith(f"{unit}/")
    ]
    return decisions, [(name, *_settings(m)) for name, m in modules[0].named_modules()]


def _settings(module: nn.Module) -> Iterator[object]:
    yield type(module)
    if is_stochastic_depth(module):  # how often it drops makes no difference to what it stores
        yield module.drop_prob > 0
        return
    yield module.extra_repr()
    for name, value in sorted(vars(module).items()):
        if isinstance(value, bool | int | float | str | tuple | None):
            yield name, value
    for name, parameter in module._parameters.items():
        yield name, parameter is not None and (parameter.shape, parameter.requires_grad)


def skip_units(backbone: nn.Module, units: Sequence[str], rows: Sequence[UnitRow]) -> None:
    """Let the idle units of some rows hand on their input; their hooks are still called."""
    for row in rows:
        for index in row.skipped:
            (module,) = modules_of(backbone, units[index])
            module.__dict__["forward"] = _identity


def _identity(features: Tensor, *_: Any, **__: Any) -> Tensor:
    handed: Tensor = _Identity.apply(features)
    return handed


class _Identity(torch.autograd.Function):
    """A node of its own in the graph, so that a hook has a turn; it hands on the gradient itself.

    A view of it would not do: autograd adds in place only to what nobody else holds.
    """

    @staticmethod
    def forward(_: Any, features: Tensor) -> Tensor:
        return features.view_as(features)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient


# --- the log of the deep network ------------------------------------------------------------------


class _UnevenError(Exception):
    """The units of a row do not line up."""


def expand_log(log: EventLog, rows: Sequence[UnitRow]) -> EventLog | None:
    """Return the log as it would be if the idle units had run; None if that cannot be told."""
    try:
        for row in rows:
            log = _expand_row(log, row)
    except _UnevenError:
        return None
    return log


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A stretch of time: the ticks after ``begin``, up to ``end``."""

    begin: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.begin

    def holds(self, ticks: Ints) -> Mask:
        inside: Mask = (ticks > self.begin) & (ticks <= self.end)
        return inside


@dataclass(frozen=True, slots=True)
class _TemplateSpans:
    """When three units run: before the model unit, the model unit itself, after it.

    Attributes:
        forward: in this order.
        backward: likewise (though time runs the other way); empty parts where there is none.
    """

    forward: tuple[_Stretch, _Stretch, _Stretch]
    backward: tuple[_Stretch, _Stretch, _Stretch]


def _expand_row(log: EventLog, row: UnitRow) -> EventLog:
    parts = _template_spans(log, row)
    copies = len(row.skipped)
    time = _Time(parts, copies)
    fates = _fates(log, parts)
    columns = [(time.moved(log.birth), _moved_deaths(log, time, fates), log.unit)]
    sources = [np.arange(len(log.birth))]
    copied = np.flatnonzero(fates.copied)
    for copy in range(1, copies + 1):
        birth = time.in_copy(log.birth[copied], copy)
        death = _copied_deaths(log, time, fates, copy)[copied]
        unit = np.where(log.unit[copied] == row.template, row.template + copy, log.unit[copied])
        columns.append((birth, death, unit))
        sources.append(copied)
    births, deaths, units = (np.concatenate(column) for column in zip(*columns, strict=True))
    order = np.argsort(births, kind="stable")
    source = np.concatenate(sources)[order]
    return replace(
        log,
        nbytes=log.nbytes[source],
        birth=births[order],
        death=deaths[order],
        owner=log.owner[source],
        phase=log.phase[source],
        unit=units[order],
        operation=log.operation[source],
        reduction=log.reduction[source],
        ticks=log.ticks + time.added(log.ticks),
        marks=tuple(_expanded_marks(log, row, time)),
        operations=tuple(_expanded_operations(log, row)),
    )


def _template_spans(log: EventLog, row: UnitRow) -> _TemplateSpans:
    """Return the parts of the first, the second and the last unit of a row.

    Raises:
        _UnevenError: something happens in an idle unit (a hook works there), or not all have a
            backward.
    """
    spans = unit_spans(log)
    forwards = _one_span_each([s for s in spans if s.phase is Phase.FORWARD])
    if any(index not in forwards for index in range(row.first, row.last + 1)):
        raise _UnevenError
    end = forwards[row.skipped[0]].begin
    if any((forwards[i].begin, forwards[i].end) != (end, end) for i in row.skipped):
        raise _UnevenError
    # up to the next unit's entry, or birth: a caller lets go of the input after the unit's exit
    later = log.birth[log.birth > forwards[row.last].end]
    forward = (
        _Stretch(forwards[row.first].begin, forwards[row.template].begin),
        _Stretch(forwards[row.template].begin, end),
        _Stretch(end, int(later.min(initial=log.ticks + 1)) - 1),
    )
    backwards = _one_span_each([s for s in spans if s.phase is Phase.BACKWARD])
    return _TemplateSpans(forward, _backward_stretches(log, row, backwards))


def _one_span_each(spans: Sequence[StepSpan]) -> dict[int, StepSpan]:
    """Return the spans by unit.

    Raises:
        _UnevenError: a unit runs more than once.
    """
    by_unit = {span.unit: span for span in spans}
    if len(by_unit) != len(spans):
        raise _UnevenError
    return by_unit


def _backward_stretches(
    log: EventLog, row: UnitRow, spans: Mapping[int, StepSpan]
) -> tuple[_Stretch, _Stretch, _Stretch]:
    has_backward = [index in spans for index in range(row.first, row.last + 1)]
    if not any(has_backward):
        never = _Stretch(log.ticks + 1, log.ticks + 1)
        return never, never, never
    if not all(has_backward):
        raise _UnevenError
    begin, turn = spans[row.template].begin, spans[row.first].begin
    if any(spans[index].begin != begin for index in row.skipped):
        raise _UnevenError
    return (
        _Stretch(turn, spans[row.first].end),
        _Stretch(begin, turn),
        _Stretch(spans[row.last].begin, begin),
    )


class _Time:
    """Where moments of the shallow step lie in the deep one.

    The forward of the model unit is followed by those of the copies, its backward is preceded by
    theirs, the last one's first. What goes between the two (autocast's copies of weights) goes at
    one moment for the model unit and its copies, where in truth each has a moment of its own.

    Args:
        parts: of the shallow step.
        copies: how many there are.
    """

    def __init__(self, parts: _TemplateSpans, copies: int) -> None:
        self.copies = copies
        self.forward, self.backward = parts.forward[1], parts.backward[1]

    def added(self, tick: int) -> int:
        """Return by how much a moment moves."""
        return int(self.moved(np.array([tick]))[0]) - tick

    def moved(self, ticks: Ints) -> Ints:
        """Return the same moments in the deep step."""
        moved = ticks.copy()
        for part in (self.forward, self.backward):
            turn = part.begin if part is self.backward else part.end
            moved += self.copies * part.length * (ticks > turn)
        return moved

    def in_copy(self, ticks: Ints, copy: int) -> Ints:
        """Return the moments of a copy (0 is the model) that correspond to the model's own."""
        moved = self.moved(ticks)
        for part in (self.forward, self.backward):
            later = -copy if part is self.backward else copy
            moved += later * part.length * part.holds(ticks)
        return moved


@dataclass(frozen=True, slots=True)
class _Fates:
    """What becomes of storages.

    Attributes:
        copied: [storages] those born in a part of the model unit.
        own: [storages] those that die in a part of the model unit.
        handed_up: what the model unit hands to the next one, and the same things that it was given.
        handed_down: in backward, what it hands to the unit before, and what it was given.
    """

    copied: Mask
    own: Mask
    handed_up: tuple[Ints, Ints]
    handed_down: tuple[Ints, Ints]


def _fates(log: EventLog, parts: _TemplateSpans) -> _Fates:
    before, model, after = parts.forward
    first, own, last = parts.backward
    in_forward, in_backward = model.holds(log.birth), own.holds(log.birth)
    up = [
        _match(
            log,
            in_forward & theirs.holds(log.death),
            before.holds(log.birth) & ours.holds(log.death),
        )
        for theirs, ours in ((after, model), (last, own))
    ]
    down = _match(
        log,
        in_backward & first.holds(log.death),
        last.holds(log.birth) & own.holds(log.death),
    )
    later = (log.birth > model.end) & ~in_backward & ~last.holds(log.birth)
    lost = later & own.holds(log.death)
    lost |= in_forward & (log.death > own.end) & (log.death <= log.ticks)
    lost |= in_backward & (log.death > first.end) & (log.death <= log.ticks)
    if lost.any():
        raise _UnevenError
    return _Fates(
        copied=in_forward | in_backward,
        own=model.holds(log.death) | own.holds(log.death),
        handed_up=(np.concatenate([p[0] for p in up]), np.concatenate([p[1] for p in up])),
        handed_down=down,
    )


def _match(log: EventLog, given: Mask, received: Mask) -> tuple[Ints, Ints]:
    """Pair what the model unit gives with what it is given, in order of birth."""
    ours, theirs = np.flatnonzero(given), np.flatnonzero(received)
    if len(ours) != len(theirs) or (log.nbytes[ours] != log.nbytes[theirs]).any():
        raise _UnevenError
    return ours, theirs


def _moved_deaths(log: EventLog, time: _Time, fates: _Fates) -> Ints:
    """Return [storages] when the storages of the shallow step die in the deep one."""
    death = time.moved(log.death)
    ours, theirs = fates.handed_up
    death[ours] = time.in_copy(log.death[theirs], 1)
    _, given = fates.handed_down
    death[given] = time.in_copy(log.death[given], time.copies)
    return death


def _copied_deaths(log: EventLog, time: _Time, fates: _Fates, copy: int) -> Ints:
    """Return [storages] when the storages of one copy die."""
    death = np.where(fates.own, time.in_copy(log.death, copy), time.moved(log.death))
    ours, theirs = fates.handed_up
    if copy < time.copies:
        death[ours] = time.in_copy(log.death[theirs], copy + 1)
    ours, theirs = fates.handed_down
    death[ours] = time.in_copy(log.death[theirs], copy - 1)
    return death


def _expanded_marks(log: EventLog, row: UnitRow, time: _Time) -> Iterator[Mark]:
    """Yield the marks, those of the copies behind the model unit's (before it, in backward)."""
    forward, backward = time.forward.length, time.backward.length
    entered = shift = 0
    for mark in log.marks:
        of_unit = mark.kind is not MarkKind.PHASE
        if of_unit and mark.value in row.skipped:
            continue
        if mark.kind is MarkKind.BACKWARD and mark.value == row.template:
            for copy in range(time.copies, 0, -1):
                yield Mark(mark.tick + shift, MarkKind.BACKWARD, row.template + copy)
                shift += backward
        yield Mark(mark.tick + shift, mark.kind, mark.value)
        if mark.kind is MarkKind.ENTER and mark.value == row.template:
            entered = mark.tick
        if mark.kind is MarkKind.EXIT and mark.value == row.template:
            for copy in range(1, time.copies + 1):
                yield Mark(entered + copy * forward, MarkKind.ENTER, row.template + copy)
                yield Mark(mark.tick + copy * forward, MarkKind.EXIT, row.template + copy)
            shift += time.copies * forward


def _expanded_operations(log: EventLog, row: UnitRow) -> Iterator[OperationRecord]:
    for is_model, group in groupby(log.operations, lambda op: op.unit == row.template):
        block = list(group)
        units = [row.template]
        if is_model:
            goes_back = block[0].phase in (Phase.BACKWARD, Phase.RECOMPUTE)
            all_units = [row.template, *row.skipped]
            units = all_units[::-1] if goes_back else all_units
        for unit in units:
            yield from (replace(op, unit=unit) if is_model else op for op in block)
