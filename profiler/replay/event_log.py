"""The event log of a training step: every storage's birth and death, marks, and operations.

Time is counted in ticks: each birth and each death is one tick, in program order. Tick 0 is the
state before the step. The peak, the bytes by owner, the units' profiles, the timeline and the input
of the caching allocator's model are all computed from this log.
"""

from __future__ import annotations

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
    mark of its own, but storages and operations of a recomputation carry its code. So do copies
    between host and device (``profiler.devices.host_link``), also those in the forward: all that a
    placement adds to a step.
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


class OperationRecord(NamedTuple):
    """An operation that computed or moved something.

    Attributes:
        phase: the phase it runs in.
        unit: index of the unit it runs in, -1 outside all units.
        flops: FLOPs, 0 for an operation that only moves bytes.
        moved_bytes: bytes of inputs read plus outputs written.
        batched_bytes: part of ``moved_bytes`` in tensors with a multiple of the micro-batch.
        kind: kind of operation, for kinds with rates of their own: the aten name, with a suffix for
            depthwise and pointwise convolutions and for batch normalisation with given statistics.
        begins_refill: whether it is the first operation of a recomputable call in backward.
        intercepted: at the first recomputation of a unit, the operations of its forward; Python
            intercepts each, to pack what it saves. 0 for all other operations.
        launches: number of kernels on a GPU; 1 unless the operation is a loop of known length.
        kernel: name of the kernel shape (``profiler.replay.kernel_shapes``).
        dims: dimensions of the kernel shape.
    """

    phase: Phase
    unit: int
    flops: int
    moved_bytes: int
    batched_bytes: int = 0
    kind: str = ""
    begins_refill: bool = False
    intercepted: int = 0
    launches: int = 1
    kernel: str = "other"
    dims: tuple[int, ...] = (0,) * 6


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLog:
    """Storages, marks and operations of a step.

    Attributes:
        nbytes: [storages] bytes.
        birth: [storages] tick of birth, 0 for storages that exist before the step.
        death: [storages] tick of death, ``ticks + 1`` for storages alive at the end.
        owner: [storages] index into ``OWNERS``.
        phase: [storages] phase of birth.
        unit: [storages] unit of birth, -1 outside all units.
        operation: [storages] index into ``operation_names``.
        reduction: [storages] index into ``reductions`` for a buffer of partial sums, -2 for one
            whose size is only known at this batch, -1 for all other storages.
        reductions: reductions with a buffer of partial sums.
        shapes: shape of the tensor that each storage was made for, ``()`` for blocks inside an
            operation; empty in a log that was expanded from a few units.
        operation_names: aten names of the operations that made the storages.
        ticks: length of the step.
        marks: marks in order of time (read them through ``profiler.replay.unit_spans``).
        units: unit names in forward order.
        boundary_bytes: [units] bytes of each unit's output, 0 for a unit that was not called.
        operations: operations in order of time.
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
    shapes: tuple[tuple[int, ...], ...] = ()

    def rounded(self, multiple: int) -> EventLog:
        """Return the log with every size rounded up to a multiple, as allocators do."""
        sizes = -(-self.nbytes // multiple) * multiple
        return replace(self, nbytes=sizes)

    def live_bytes(self, *, select: Mask | None = None) -> Ints:
        """Return [ticks + 1] live bytes after each tick.

        Args:
            select: [storages] storages that count; None for all.
        """
        chosen = slice(None) if select is None else select
        delta = np.zeros(self.ticks + 2, dtype=np.int64)
        np.add.at(delta, self.birth[chosen], self.nbytes[chosen])
        np.subtract.at(delta, self.death[chosen], self.nbytes[chosen])
        return np.cumsum(delta)[: self.ticks + 1]

    @property
    def peak_tick(self) -> int:
        """First tick with the highest live bytes."""
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
        """Return each owner's highest live bytes, each at its own moment."""
        highest = {
            name: int(self.live_bytes(select=self.owner == code).max(initial=0))
            for code, name in enumerate(OWNERS)
        }
        return OwnerBytes(**highest)

    def allocator_events(self, *, select: Mask | None = None) -> tuple[Ints, Ints]:
        """Return the mallocs and frees in order of time, and their ticks.

        A malloc is the index of its storage, a free is -1 minus the index. At one tick, mallocs
        come before frees. Storages alive at the end are not freed.

        Args:
            select: [storages] storages that count; None for all.
        """
        chosen = np.full(len(self.nbytes), fill_value=True) if select is None else select
        born = np.flatnonzero(chosen)
        died = np.flatnonzero(chosen & (self.death <= self.ticks))
        ticks = np.concatenate([self.birth[born], self.death[died]])
        order = np.argsort(ticks, kind="stable")
        return np.concatenate([born, -1 - died])[order], ticks[order]

    def flops(self, phase: Phase, *, unit: int | None = None) -> int:
        """Return the FLOPs of a phase.

        Args:
            phase: the phase.
            unit: index of the unit that counts; None for the whole phase.
        """
        return sum(
            op.flops
            for op in self.operations
            if op.phase == phase and (unit is None or op.unit == unit)
        )
