"""Births and deaths of storages during a replay.

A storage, not a tensor, is the unit of memory: views share one. PyTorch frees a storage when its
last reference goes, and a finalizer on the storage object records exactly that moment.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from profiler.arrays import Ints
from profiler.device_rules.cuda_reductions import PartialSums, Reduction
from profiler.records import OWNERS
from profiler.replay.event_log import Phase
from profiler.replay.step_clock import StepClock
from profiler.replay.unit_spans import StepSpan

OWNER_CODE = {name: code for code, name in enumerate(OWNERS)}

UNKNOWN_OWNER = -1
"""Owner code of a storage that nobody has claimed; ``_resolve_owners`` replaces it at the end."""

NO_REDUCTION, REDUCTION_OF_THIS_BATCH = -1, -2

_COLUMNS = 8
NBYTES, BIRTH, DEATH, OWNER, PHASE, UNIT, OPERATION, REDUCTION = range(_COLUMNS)
"""Columns of ``StorageTable.rows``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageColumns:
    """The storages of a steady step, as columns of an event log.

    Attributes:
        table: [storages, 8] values in the order of ``NBYTES`` to ``REDUCTION``.
        reductions: reductions that the last column refers to.
        shapes: shape of the tensor that each storage was made for.
    """

    table: Ints
    reductions: tuple[Reduction, ...]
    shapes: tuple[tuple[int, ...], ...]


class StorageTable:
    """One row per storage, in order of birth.

    Args:
        clock: gives ticks, phase and unit, and is advanced by every birth and death.

    Attributes:
        rows: size, birth, death (-1 while alive), owner, phase, unit, operation, reduction.
        live_bytes: bytes alive now.
        warming_up: whether births belong to the optimizer's first update (``Recorder.warm_up``).
    """

    def __init__(self, clock: StepClock) -> None:
        self._clock = clock
        self.rows: list[list[int]] = []
        self.shapes: list[tuple[int, ...]] = []
        self.live_bytes = 0
        self.warming_up = False
        self._warm_rows: set[int] = set()
        self._alive: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}
        self._reductions: dict[Reduction, int] = {}

    def follow(
        self,
        tensor: Tensor,
        *,
        owner: int = UNKNOWN_OWNER,
        operation: int = 0,
        nbytes: int | None = None,
    ) -> None:
        """Record the birth of a tensor's storage, unless the storage is followed already.

        Args:
            tensor: a fake tensor.
            owner: owner code.
            operation: index of the operation that made the tensor.
            nbytes: size of the storage on the device; None for the fake tensor's own size.
        """
        storage = tensor.untyped_storage()
        if storage._cdata in self._alive:
            return
        if nbytes is None:
            nbytes = max(storage.nbytes(), _padded_bytes(tensor))
        if nbytes > 0:
            shape = tuple(tensor.shape)
            row = self.birth(nbytes, owner=owner, operation=operation, shape=shape)
            self._watch(storage, row)

    def _watch(self, storage: torch.UntypedStorage, row: int) -> None:
        key = storage._cdata

        def died(_: object) -> None:
            # the address may belong to another storage by now (``move``)
            if self._alive.pop(key, (None, -1))[1] == row:
                self.death(row)

        self._alive[key] = (weakref.ref(storage, died), row)

    def move(self, source: Tensor, target: Tensor) -> None:
        """Let a target tensor live in the row of a source: the operation wrote it there."""
        _, row = self._alive.pop(source.untyped_storage()._cdata, (None, -1))
        if row >= 0:
            self._watch(target.untyped_storage(), row)

    def birth(self, nbytes: int, *, owner: int, operation: int, shape: tuple[int, ...] = ()) -> int:
        """Record a birth and return its row."""
        tick = self._clock.next_birth()
        row = len(self.rows)
        self.live_bytes += nbytes
        phase, unit = self._clock.phase, self._clock.unit
        reduction = self._reduction_code(nbytes)
        self.shapes.append(shape)
        self.rows.append([int(nbytes), tick, -1, owner, phase, unit, operation, reduction])
        if self.warming_up:
            self._warm_rows.add(row)
        return row

    def _reduction_code(self, nbytes: int) -> int:
        if not isinstance(nbytes, PartialSums):
            return NO_REDUCTION
        if nbytes.reduction is None:
            return REDUCTION_OF_THIS_BATCH
        return self._reductions.setdefault(nbytes.reduction, len(self._reductions))

    def death(self, row: int) -> None:
        """Record the death of a row's storage."""
        self.live_bytes -= self.rows[row][NBYTES]
        self.rows[row][DEATH] = self._clock.next_death()

    def set_owner(self, tensor: Tensor, owner: int) -> None:
        """Set the owner of a tensor's storage."""
        entry = self._alive.get(tensor.untyped_storage()._cdata)
        if entry is not None:
            self.rows[entry[1]][OWNER] = owner

    def leave_out(self, tensor: Tensor) -> None:
        """Leave out a storage that the device does not hold."""
        entry = self._alive.get(tensor.untyped_storage()._cdata)
        if entry is not None:
            self.live_bytes -= self.rows[entry[1]][NBYTES]
            self.rows[entry[1]][NBYTES] = 0

    def steady_state(self, forwards: Sequence[StepSpan]) -> StorageColumns:
        """Return the storages of a steady step.

        A steady step finds the optimizer's state in place. Therefore storages that the first
        update made and kept are born at tick 0, and its temporaries are left out. Storages of the
        setup (parameters, buffers) are born at tick 0 as well. Survivors die after the last tick.

        Args:
            forwards: the forward phases of all micro-batches.
        """
        ticks = self._clock.tick
        table = np.array(self.rows, dtype=np.int64).reshape(-1, _COLUMNS)
        warm = np.zeros(len(table), dtype=bool)
        warm[list(self._warm_rows)] = True
        survived = table[:, DEATH] < 0
        # a partial-sums buffer may be of no bytes at this batch and of some at another
        has_bytes = (table[:, NBYTES] > 0) | (table[:, REDUCTION] != NO_REDUCTION)
        keep = ~(warm & ~survived) & has_bytes
        table[warm & survived, BIRTH] = 0
        table[warm & survived, OWNER] = OWNER_CODE["optimizer"]
        table[table[:, PHASE] == Phase.SETUP, BIRTH] = 0
        table[survived, DEATH] = ticks + 1
        table[:, OWNER] = _resolve_owners(table, forwards, ticks)
        shapes = tuple(self.shapes[row] for row in np.flatnonzero(keep).tolist())
        return StorageColumns(table=table[keep], reductions=tuple(self._reductions), shapes=shapes)


def _resolve_owners(table: Ints, forwards: Sequence[StepSpan], ticks: int) -> Ints:
    """Return [storages] owner codes; unclaimed storages get theirs from birth and death.

    - born in forward and alive when that forward ends: activation (a saved tensor)
    - born in a recomputation: activation, which the unit's backward then uses
    - born in the update and alive at the end: optimizer
    - born with the batch: input
    - everything else: temporary
    """
    owner = table[:, OWNER].copy()
    born, died, phase = table[:, BIRTH], table[:, DEATH], table[:, PHASE]
    unknown = owner == UNKNOWN_OWNER
    owner[unknown] = OWNER_CODE["temporary"]
    owner[unknown & (phase == Phase.INPUT)] = OWNER_CODE["input"]
    for span in forwards:
        inside = unknown & (phase == Phase.FORWARD) & (born > span.begin) & (born <= span.end)
        owner[inside & (died > span.end)] = OWNER_CODE["activation"]
    owner[unknown & (phase == Phase.RECOMPUTE)] = OWNER_CODE["activation"]
    owner[unknown & (phase == Phase.OPTIMIZER) & (died > ticks)] = OWNER_CODE["optimizer"]
    return owner


def _padded_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor with padded rows, the padding after its last row included.

    Fake tensors end at their last value. Kernels allocate whole rows (a padded attention bias). The
    stride of a dimension of size 1 says nothing about rows.
    """
    if tensor.storage_offset():
        return 0
    rows = ((n, step) for n, step in zip(tensor.shape, tensor.stride(), strict=True) if n != 1)
    number, step = next(rows, (0, 0))
    return number * step * tensor.element_size()
