"""The record of one replayed or real training step: every storage's birth and death.

Time is counted in ticks: each birth and each death is one tick, in program order. Everything
else (peak, owners, units, timeline, the allocator's input) is computed from this log.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from typing import NamedTuple

import numpy as np

from profiler.arrays import Ints, Mask
from profiler.device_rules.cuda_reductions import Reduction
from profiler.records import OWNERS, OwnerBytes


class Phase(IntEnum):
    """Phases of a training step, by their codes in the columns of an event log.

    ``SETUP`` lasts until the first micro-batch. ``RECOMPUTE`` lies inside ``BACKWARD``: it has no
    mark of its own, but storages and operations of a recomputation carry its code.
    """

    SETUP = 0
    INPUT = 1
    FORWARD = 2
    BACKWARD = 3
    RECOMPUTE = 4
    OPTIMIZER = 5

    @property
    def label(self) -> str:
        """The phase's name in lower case, as ``TrainingStep`` calls it."""
        return self.name.lower()


class MarkKind(Enum):
    """Moments that a recorder marks.

    ``PHASE`` starts a phase, ``ENTER`` and ``EXIT`` enclose a unit's forward, and ``BACKWARD``
    starts a unit's backward. Nothing marks the end of a unit's backward
    (``profiler.replay.unit_spans``).
    """

    PHASE = "phase"
    ENTER = "enter"
    EXIT = "exit"
    BACKWARD = "backward"


class Mark(NamedTuple):
    """A marked moment of the step.

    Attributes:
        tick: last tick before the moment.
        kind: the kind of moment.
        value: the phase for ``PHASE``, a unit's index for the other kinds.
    """

    tick: int
    kind: MarkKind
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationRecord:
    """One kind of operation in one place of the step.

    Attributes:
        phase: the phase it runs in.
        unit: index of the unit it belongs to, -1 outside.
        flops: 0 for work that only moves bytes.
        moved_bytes: inputs read plus outputs written.
        batched_bytes: the part of them in tensors whose size is a multiple of the micro-batch.
        kind: what it computes, for rates of its own: the aten name, and of a convolution whether it
            is depthwise or pointwise, of batch normalisation whether the statistics are given.
        begins_refill: True for the first operation of a recomputable call in backward.
        launches: how many kernels it is on a GPU, if that is known to be more than one.
    """

    phase: Phase
    unit: int
    flops: int
    moved_bytes: int
    batched_bytes: int = 0
    kind: str = ""
    begins_refill: bool = False
    launches: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLog:
    """Storages and marks of one step.

    Attributes:
        nbytes: [storages] size of each.
        birth: [storages] tick; storages that outlive the step on both sides are born at 0.
        death: [storages] tick, or ``ticks + 1`` for those alive at the end.
        owner: [storages] index into ``OWNERS``.
        phase: [storages] phase of birth.
        unit: [storages] unit of birth, -1 outside units.
        operation: [storages] index into ``operation_names``.
        reduction: [storages] index into ``reductions`` of what is a buffer of partial sums; -2 for
            one that is only known at this batch, -1 for all other storages.
        reductions: all that partial sums are of.
        operation_names: aten names.
        ticks: length of the step.
        marks: in order of time.
        units: unit names.
        boundary_bytes: [units] bytes of each unit's output, 0 for a unit that was not called.
        operations: every operation that computed or moved something, in order.
    """

    nbytes: Ints
    birth: Ints
    death: Ints
    owner: Ints
    phase: Ints
    unit: Ints
    operation: Ints
    reduction: Ints
    reductions: tuple[Reduction, ...]
    operation_names: tuple[str, ...]
    ticks: int
    marks: tuple[Mark, ...]
    units: tuple[str, ...]
    boundary_bytes: tuple[int, ...]
    operations: tuple[OperationRecord, ...]

    def rounded(self, multiple: int) -> EventLog:
        """Return the log with every size rounded up, as an allocator rounds."""
        sizes = -(-self.nbytes // multiple) * multiple
        return replace(self, nbytes=sizes)

    def live_bytes(self, *, select: Mask | None = None) -> Ints:
        """Return [ticks + 1] live bytes after each tick, of all or of the selected storages."""
        chosen = slice(None) if select is None else select
        delta = np.zeros(self.ticks + 2, dtype=np.int64)
        np.add.at(delta, self.birth[chosen], self.nbytes[chosen])
        np.subtract.at(delta, self.death[chosen], self.nbytes[chosen])
        return np.cumsum(delta)[: self.ticks + 1]

    @property
    def peak_tick(self) -> int:
        """The first tick at which live bytes are highest."""
        return int(np.argmax(self.live_bytes()))

    @property
    def peak_bytes(self) -> int:
        """Highest live bytes."""
        return int(self.live_bytes().max(initial=0))

    def owners_at(self, tick: int) -> OwnerBytes:
        """Return live bytes by owner after a tick."""
        alive = (self.birth <= tick) & (self.death > tick)
        sums = np.bincount(self.owner[alive], weights=self.nbytes[alive], minlength=len(OWNERS))
        return OwnerBytes(**{name: int(sums[code]) for code, name in enumerate(OWNERS)})

    def max_by_owner(self) -> OwnerBytes:
        """Return the highest live bytes of each owner, at whatever moment."""
        highest = {
            name: int(self.live_bytes(select=self.owner == code).max(initial=0))
            for code, name in enumerate(OWNERS)
        }
        return OwnerBytes(**highest)

    def allocator_events(self) -> Iterator[tuple[str, int, int]]:
        """Yield ("malloc" | "free", storage index, bytes) in order of time."""
        births = zip(self.birth.tolist(), range(len(self.birth)), strict=True)
        deaths = ((int(t), -1 - i) for i, t in enumerate(self.death) if t <= self.ticks)
        for _, code in sorted([*births, *deaths], key=lambda event: event[0]):
            if code >= 0:
                yield "malloc", code, int(self.nbytes[code])
            else:
                yield "free", -1 - code, int(self.nbytes[-1 - code])

    def flops(self, phase: Phase, *, unit: int | None = None) -> int:
        """Return the FLOPs of a phase, of one unit or of everything."""
        return sum(
            op.flops
            for op in self.operations
            if op.phase == phase and (unit is None or op.unit == unit)
        )
