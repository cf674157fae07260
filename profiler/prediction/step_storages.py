"""Storages of a replayed step in the arrays that a profile stores, at any micro-batch and rank.

The live bytes of a profile (``OptionProfile.stored``, envelopes) need no order of events. The
reserved bytes of the caching allocator do: they depend on every malloc and free. ``StepStorages``
therefore has each storage with its birth and death, and ``profiler.prediction.placed_steps`` puts
the step of a placement together from those of its options.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from profiler.arrays import Floats, Ints
from profiler.replay.event_log import EventLog, Mark, MarkKind

_MARK_KINDS = tuple(MarkKind)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepStorages:
    """Storages of a step without an optimizer, in order of birth.

    Attributes:
        sizes: [storages, 4] coefficients of the bytes, zeros for partial sums of reductions.
        birth: [storages] tick of birth, 0 for storages that exist before the step.
        death: [storages] tick of death, ``ticks + 1`` for storages alive at the end.
        owner: [storages] index into ``profiler.records.OWNERS``.
        phase: [storages] phase of birth.
        operation: [storages] index into ``operation_names``.
        operation_names: aten names of the operations that made the storages.
        reduction: [storages] index of the reduction for a buffer of partial sums, negative for all
            other storages.
        marks: [marks, 3] tick, kind (position in ``MarkKind``) and value of each mark.
        ticks: length of the step.
    """

    sizes: Floats
    birth: Ints
    death: Ints
    owner: Ints
    phase: Ints
    operation: Ints
    operation_names: npt.NDArray[np.str_]
    reduction: Ints
    marks: Ints
    ticks: Ints

    @classmethod
    def of(cls, log: EventLog, sizes: Floats) -> Self:
        """Return the storages of a log, with their sizes as coefficients."""

        def small(values: Ints) -> Ints:
            packed: Ints = values.astype(np.int32)
            return packed

        marks = [(mark.tick, _MARK_KINDS.index(mark.kind), int(mark.value)) for mark in log.marks]
        return cls(
            sizes=sizes,
            birth=small(log.birth),
            death=small(log.death),
            owner=small(log.owner),
            phase=small(log.phase),
            operation=small(log.operation),
            operation_names=np.array(log.operation_names, dtype=np.str_),
            reduction=small(log.reduction),
            marks=small(np.array(marks, dtype=np.int64).reshape(-1, 3)),
            ticks=np.array(log.ticks),
        )

    def nbytes(self, point: Floats, partial_sums: Floats) -> Ints:
        """Return [storages] bytes at a point.

        Args:
            point: [4] the monomials (``terms``).
            partial_sums: [reductions + 1] bytes of each reduction's partial sums, then a 0.
        """
        # storages that are no partial sums (-1, -2) take the 0 at the end
        sizes = self.sizes @ point + partial_sums[np.maximum(self.reduction, -1)]
        found: Ints = np.rint(sizes).astype(np.int64)
        return found


def marks_of(rows: Sequence[tuple[int, int, int]]) -> tuple[Mark, ...]:
    """Return marks from their (tick, kind, value)."""
    return tuple(Mark(tick, _MARK_KINDS[kind], value) for tick, kind, value in rows)
