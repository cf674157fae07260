"""Replay a deep network with fewer units, and expand its log to that of all units.

Most backbones repeat one block many times, and a replay's time grows with the number of operations.
Blocks with equal modules and equal decisions allocate equal storages. So of each *row* of equal
consecutive units only three run: the first, the second and the last. The units between the second
and the last are *skipped*: their forward returns its input. The second is the *template*: its
events (births and deaths of storages, one per tick) are copied once for each skipped unit. The
first and the last run because each has a neighbour that is not an equal unit.

If every other unit is recomputed, pairs of units repeat. A row then has a *period* of two, and all
above holds for its pairs: first, template, last and copy are pairs.

    unit_signatures, find_rows    find the rows of a backbone under a placement
    skip_units   replace the forward of the skipped units
    expand_log   insert the copies into the log of such a step

Example, a row of five units (copies 1 and 2 stand for units 2 and 3):

    ticks of the recorded step   | fwd 0 | fwd 1 | fwd 4 | ... | bwd 4 | bwd 1 | bwd 0 |
    ticks of the expanded step   | fwd 0 | fwd 1 | copy 1 | copy 2 | fwd 4 | ...
                                             ... | bwd 4 | copy 2 | copy 1 | bwd 1 | bwd 0 |

A storage that is born while the template runs is copied. The template's storage determines when its
copies die:

    it dies                       a copy dies
    while the template runs       while the copy's own unit runs, at the same place
    while the next unit runs      (the unit's output) while the unit after the copy runs, at the
                                  place where the template frees the first unit's output
    while the previous unit runs  (backward: the gradient of the unit's input) while the unit before
                                  the copy runs, at the place where the template frees the gradient
                                  that the last unit passes to it
    later                         at the same event (an optimizer step, the end of the step)

So the template itself shows where a unit frees the storages that its neighbours pass to it. If
storages cannot be matched this way, ``expand_log`` returns None and the whole step is replayed.
``tests/profiler/replay/test_repeated_units.py`` compares expanded logs with logs of whole
steps, storage by storage.

Limitation: autocast frees its cached weight casts in an order of its own between forward and
backward. The expanded log frees a template's cast and its copies' casts at one moment. The peak is
the same; live bytes at single ticks may differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn

from profiler.arrays import Ints, Mask
from profiler.models.layers import is_stochastic_depth
from profiler.models.unit_runs import modules_of
from profiler.placement import Decision, Placement
from profiler.replay.event_log import EventLog, Mark, MarkKind, OperationRecord, Phase
from profiler.replay.unit_spans import StepSpan, unit_spans

_RUNNING = 3
"""Repetitions in a row that run: the first, the template and the last."""

_PERIODS = (1, 2)
"""Numbers of units that may repeat together."""


@dataclass(frozen=True, slots=True)
class UnitRow:
    """Consecutive units that repeat, with equal modules and equal decisions.

    Attributes:
        first: index of the first unit.
        count: number of units, more than three periods.
        period: number of units that repeat together.
    """

    first: int
    count: int
    period: int = 1

    @property
    def template(self) -> range:
        """Indices of the units whose events are copied."""
        return range(self.first + self.period, self.first + 2 * self.period)

    @property
    def last(self) -> int:
        """Index of the last unit."""
        return self.first + self.count - 1

    @property
    def skipped(self) -> range:
        """Indices of the units that do not run."""
        return range(self.template.stop, self.last + 1 - self.period)

    @property
    def copies(self) -> int:
        """Number of copies of the template."""
        return len(self.skipped) // self.period


# --- equal units ----------------------------------------------------------------------------------


def unit_signatures(backbone: nn.Module, units: Sequence[str]) -> list[object]:
    """Return a value for each unit; equal units have equal values.

    Two units are equal if their modules have the same classes, settings, shapes and trainable
    parameters under the same names. A unit with a forward hook equals no other, because the hook
    can do anything. Neither does a unit of several modules.

    Args:
        backbone: the model, on any device.
        units: unit names in forward order.
    """
    return [_signature(unit, modules_of(backbone, unit)) for unit in units]


def find_rows(
    signatures: Sequence[object], units: Sequence[str], placement: Placement
) -> tuple[UnitRow, ...]:
    """Return the rows in which a unit, or a pair of units, repeats more than three times.

    Args:
        signatures: the units' signatures (``unit_signatures``).
        units: unit names in forward order.
        placement: decisions by unit. Units with other decisions are not equal.
    """
    decided = [
        (signature, _own_decisions(unit, placement))
        for signature, unit in zip(signatures, units, strict=True)
    ]
    rows, first = list[UnitRow](), 0
    while first < len(decided):
        longest = (_row_at(decided, first, period) for period in _PERIODS)
        row = next((row for row in longest if row.count > _RUNNING * row.period), None)
        if row is not None:
            rows.append(row)
        first += 1 if row is None else row.count
    return tuple(rows)


def _row_at(signatures: Sequence[object], first: int, period: int) -> UnitRow:
    """Return the longest row of a period that begins with a unit; it may be too short to use."""
    end = first + period
    while end < len(signatures) and signatures[end] == signatures[end - period]:
        end += 1
    return UnitRow(first, (end - first) // period * period, period)


def _own_decisions(unit: str, placement: Placement) -> list[tuple[str, Decision]]:
    """Return the decisions on a unit and its parts, by their names inside the unit."""
    return [
        (name.removeprefix(unit), decision)
        for name, decision in placement.decisions.items()
        if name == unit or name.startswith(f"{unit}/")
    ]


def _signature(unit: str, modules: Sequence[nn.Module]) -> object:
    if len(modules) > 1 or modules[0]._forward_pre_hooks or modules[0]._forward_hooks:
        return unit
    return [(name, *_settings(module)) for name, module in modules[0].named_modules()]


def _settings(module: nn.Module) -> Iterator[object]:
    yield type(module)
    if is_stochastic_depth(module):
        # the rate grows with depth, but only zero or not zero changes the stored tensors
        yield module.drop_prob > 0
        return
    yield module.extra_repr()
    for name, value in sorted(vars(module).items()):
        if isinstance(value, bool | int | float | str | tuple | None):
            yield name, value
    for name, parameter in module._parameters.items():
        yield name, parameter is not None and (parameter.shape, parameter.requires_grad)


@contextmanager
def skip_units(
    backbone: nn.Module, units: Sequence[str], rows: Sequence[UnitRow]
) -> Iterator[None]:
    """Make the skipped units of some rows return their input; their hooks still run."""
    replaced = []
    for row in rows:
        for index in row.skipped:
            (module,) = modules_of(backbone, units[index])
            replaced.append((module.__dict__, module.__dict__.get("forward")))
            module.__dict__["forward"] = _identity
    try:
        yield
    finally:
        for attributes, own_forward in replaced:
            if own_forward is None:
                del attributes["forward"]
            else:
                attributes["forward"] = own_forward


def _identity(features: Tensor, *_: object, **__: object) -> Tensor:
    passed: Tensor = _Identity.apply(features)
    return passed


class _Identity(torch.autograd.Function):
    """An identity with a node of its own in the graph.

    The hook on a unit's output marks the start of its backward, so each skipped unit needs a node.
    The backward returns the same gradient tensor, not a view: autograd sums gradients in place
    only if nothing else references the tensor.
    """

    @staticmethod
    def forward(_: object, features: Tensor) -> Tensor:
        return features.view_as(features)  # a new tensor without a new storage

    @staticmethod
    def backward(_: object, gradient: Tensor) -> Tensor:
        return gradient


# --- the log of the whole network -----------------------------------------------------------------


class _UnevenError(Exception):
    """The storages of a row's units cannot be matched."""


def expand_log(log: EventLog, rows: Sequence[UnitRow]) -> EventLog | None:
    """Return the log as it would be if the skipped units had run; None if it cannot be inferred.

    Args:
        log: log of a single micro-batch without an optimizer step.
        rows: rows whose skipped units did not run.
    """
    try:
        for row in rows:
            log = _expand_row(log, row)
    except _UnevenError:
        return None
    return log


@dataclass(frozen=True, slots=True)
class _Stretch:
    """The ticks after ``begin``, up to and including ``end``."""

    begin: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.begin

    def holds(self, ticks: Ints) -> Mask:
        inside: Mask = (ticks > self.begin) & (ticks <= self.end)
        return inside


@dataclass(frozen=True, slots=True)
class _RowStretches:
    """When the three running repetitions of a row run.

    Attributes:
        forward: stretches of the first repetition, the template and the last repetition.
        backward: stretches of the same three in the same order, which is the reverse order of time;
            empty stretches after the end of the log if the units have no backward.
    """

    forward: tuple[_Stretch, _Stretch, _Stretch]
    backward: tuple[_Stretch, _Stretch, _Stretch]


def _expand_row(log: EventLog, row: UnitRow) -> EventLog:
    stretches = _row_stretches(log, row)
    copies = row.copies
    ticks = _TickMap(stretches, copies)
    lifetimes = _lifetimes(log, stretches)
    # columns of the recorded storages first, then those of each copy
    columns = [(ticks.expanded(log.birth), _expanded_deaths(log, ticks, lifetimes), log.unit)]
    sources = [np.arange(len(log.birth))]
    copied = np.flatnonzero(lifetimes.copied)
    for copy in range(1, copies + 1):
        birth = ticks.in_copy(log.birth[copied], copy)
        death = _copied_deaths(log, ticks, lifetimes, copy)[copied]
        in_template = np.isin(log.unit[copied], row.template)
        unit = log.unit[copied] + copy * row.period * in_template
        columns.append((birth, death, unit))
        sources.append(copied)
    births, deaths, units = (np.concatenate(column) for column in zip(*columns, strict=True))
    order = np.argsort(births, kind="stable")
    source = np.concatenate(sources)[order]
    return replace(
        log,
        shapes=(),
        nbytes=log.nbytes[source],
        birth=births[order],
        death=deaths[order],
        owner=log.owner[source],
        phase=log.phase[source],
        unit=units[order],
        operation=log.operation[source],
        reduction=log.reduction[source],
        ticks=int(ticks.expanded(np.array([log.ticks]))[0]),
        marks=tuple(_expanded_marks(log, row, ticks)),
        operations=tuple(_expanded_operations(log, row)),
    )


def _row_stretches(log: EventLog, row: UnitRow) -> _RowStretches:
    """Return when the first repetition, the template and the last repetition of a row run.

    Raises:
        _UnevenError: a skipped unit allocates something (a hook in it), a unit runs twice, or only
            some units have a backward.
    """
    spans = unit_spans(log)
    forwards = _one_span_each([s for s in spans if s.phase is Phase.FORWARD])
    if any(index not in forwards for index in range(row.first, row.last + 1)):
        raise _UnevenError
    end = forwards[row.skipped[0]].begin
    # a skipped unit must have no event of its own
    if any((forwards[i].begin, forwards[i].end) != (end, end) for i in row.skipped):
        raise _UnevenError
    # The caller frees a unit's input only after the unit's exit. So the last unit's stretch extends
    # to the next birth, and includes these deaths.
    later = log.birth[log.birth > forwards[row.last].end]
    forward = (
        _Stretch(forwards[row.first].begin, forwards[row.template.start].begin),
        _Stretch(forwards[row.template.start].begin, end),
        _Stretch(end, int(later.min(initial=log.ticks + 1)) - 1),
    )
    backwards = _one_span_each([s for s in spans if s.phase is Phase.BACKWARD])
    return _RowStretches(forward, _backward_stretches(log, row, backwards))


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
    # order of time: the last repetition, the skipped units (no events), the template, the first;
    # within a repetition, backward begins with its last unit
    begin, turn = spans[row.template[-1]].begin, spans[row.template.start - 1].begin
    if any(spans[index].begin != begin for index in row.skipped):
        raise _UnevenError
    return (
        _Stretch(turn, spans[row.first].end),
        _Stretch(begin, turn),
        _Stretch(spans[row.last].begin, begin),
    )


class _TickMap:
    """Maps ticks of the recorded step to ticks of the expanded step.

    The copies' forwards follow the template's. Their backwards precede the template's, in reverse
    order.

    Args:
        stretches: stretches of the recorded step.
        copies: number of skipped units.
    """

    def __init__(self, stretches: _RowStretches, copies: int) -> None:
        self.copies = copies
        self.forward, self.backward = stretches.forward[1], stretches.backward[1]

    def expanded(self, ticks: Ints) -> Ints:
        """Return the ticks of the same events in the expanded step."""
        expanded = ticks.copy()
        # copies are inserted after the template's forward and before its backward
        for stretch, insertion in (
            (self.forward, self.forward.end),
            (self.backward, self.backward.begin),
        ):
            expanded += self.copies * stretch.length * (ticks > insertion)
        return expanded

    def in_copy(self, ticks: Ints, copy: int) -> Ints:
        """Return the ticks of a copy's events, given the template's; copy 0 is the template."""
        # expanded() places the template's forward before all copies and its backward after them
        expanded = self.expanded(ticks)
        for stretch, direction in ((self.forward, 1), (self.backward, -1)):
            expanded += direction * copy * stretch.length * stretch.holds(ticks)
        return expanded


@dataclass(frozen=True, slots=True)
class _Lifetimes:
    """How the storages around the template live.

    ``to_next`` and ``to_previous`` are pairs of equally long arrays of storage indices. Entry k of
    both arrays has the same role, once as the template's storage and once as a neighbour's.

    Attributes:
        copied: [storages] whether the storage is born while the template runs.
        own: [storages] whether it dies while the template runs.
        to_next: storages that the template passes to the next unit, and those that the first unit
            passes to the template.
        to_previous: gradients that the template passes to the previous unit, and those that the
            last unit passes to the template.
    """

    copied: Mask
    own: Mask
    to_next: tuple[Ints, Ints]
    to_previous: tuple[Ints, Ints]


def _lifetimes(log: EventLog, stretches: _RowStretches) -> _Lifetimes:
    first, template, last = stretches.forward
    first_back, template_back, last_back = stretches.backward
    in_forward, in_backward = template.holds(log.birth), template_back.holds(log.birth)
    # [born in forward] freed in the next unit's forward, or saved and freed in its backward
    up = [
        _match(
            log,
            in_forward & next_unit.holds(log.death),
            first.holds(log.birth) & own_unit.holds(log.death),
        )
        for next_unit, own_unit in ((last, template), (last_back, template_back))
    ]
    # [born in backward] freed in the previous unit's backward
    down = _match(
        log,
        in_backward & first_back.holds(log.death),
        last_back.holds(log.birth) & template_back.holds(log.death),
    )
    # [unexplained] Copies would be wrong in two cases: the template frees a later storage that
    # neither it nor the last unit made, or a storage of the template dies after its neighbour's
    # stretch but within the step.
    elsewhere = (log.birth > template.end) & ~in_backward & ~last_back.holds(log.birth)
    unexplained = elsewhere & template_back.holds(log.death)
    unexplained |= in_forward & (log.death > template_back.end) & (log.death <= log.ticks)
    unexplained |= in_backward & (log.death > first_back.end) & (log.death <= log.ticks)
    if unexplained.any():
        raise _UnevenError
    return _Lifetimes(
        copied=in_forward | in_backward,
        own=template.holds(log.death) | template_back.holds(log.death),
        to_next=(np.concatenate([p[0] for p in up]), np.concatenate([p[1] for p in up])),
        to_previous=down,
    )


def _match(log: EventLog, passed: Mask, received: Mask) -> tuple[Ints, Ints]:
    """Pair the storages that the template passes on with those it receives, in order of birth.

    Raises:
        _UnevenError: the two differ in number or in size.
    """
    ours, theirs = np.flatnonzero(passed), np.flatnonzero(received)
    if len(ours) != len(theirs) or (log.nbytes[ours] != log.nbytes[theirs]).any():
        raise _UnevenError
    return ours, theirs


def _expanded_deaths(log: EventLog, ticks: _TickMap, lifetimes: _Lifetimes) -> Ints:
    """Return [storages] when the recorded storages die in the expanded step."""
    death = ticks.expanded(log.death)
    ours, theirs = lifetimes.to_next
    death[ours] = ticks.in_copy(log.death[theirs], 1)  # the template's next unit is copy 1
    _, received = lifetimes.to_previous
    # the last unit's gradient goes to the last copy, no longer to the template
    death[received] = ticks.in_copy(log.death[received], ticks.copies)
    return death


def _copied_deaths(log: EventLog, ticks: _TickMap, lifetimes: _Lifetimes, copy: int) -> Ints:
    """Return [storages] when a copy's storages die; only those born in the template count."""
    own = ticks.in_copy(log.death, copy)
    death = np.where(lifetimes.own, own, ticks.expanded(log.death))
    ours, theirs = lifetimes.to_next
    if copy < ticks.copies:  # the last copy's next unit is the last unit, as in the recorded step
        death[ours] = ticks.in_copy(log.death[theirs], copy + 1)
    ours, theirs = lifetimes.to_previous
    # the unit before copy 1 is the template, copy 0
    death[ours] = ticks.in_copy(log.death[theirs], copy - 1)
    return death


def _expanded_marks(log: EventLog, row: UnitRow, ticks: _TickMap) -> Iterator[Mark]:
    """Yield the marks of the expanded step in order of time."""
    of_template = [mark for mark in log.marks if _is_of_unit(mark, row.template)]
    backwards = [mark for mark in of_template if mark.kind is MarkKind.BACKWARD]
    forwards = [mark for mark in of_template if mark.kind is not MarkKind.BACKWARD]
    skipped, shift = row.skipped, 0
    for mark in log.marks:
        if _is_of_unit(mark, skipped):
            continue
        # copies run after the template in forward, and before it in backward
        if mark == next(iter(backwards), None):
            for copy in range(ticks.copies, 0, -1):
                yield from _copied_marks(backwards, row, copy, shift)
                shift += ticks.backward.length
        yield Mark(mark.tick + shift, mark.kind, mark.value)
        if mark == forwards[-1]:
            for copy in range(1, ticks.copies + 1):
                shift += ticks.forward.length
                yield from _copied_marks(forwards, row, copy, shift)


def _is_of_unit(mark: Mark, units: range) -> bool:
    return mark.kind is not MarkKind.PHASE and mark.value in units


def _copied_marks(marks: Sequence[Mark], row: UnitRow, copy: int, shift: int) -> Iterator[Mark]:
    """Yield the template's marks as those of a copy, later by some ticks."""
    for mark in marks:
        yield Mark(mark.tick + shift, mark.kind, mark.value + copy * row.period)


def _expanded_operations(log: EventLog, row: UnitRow) -> Iterator[OperationRecord]:
    """Yield the operations of the expanded step in order."""
    template = row.template
    for is_template, group in groupby(log.operations, lambda op: op.unit in template):
        block = list(group)
        if not is_template:
            yield from block
            continue
        copies = [*range(row.copies + 1)]  # the template is copy 0
        if block[0].phase in (Phase.BACKWARD, Phase.RECOMPUTE):
            copies.reverse()
        for copy in copies:
            yield from (op._replace(unit=op.unit + copy * row.period) for op in block)
