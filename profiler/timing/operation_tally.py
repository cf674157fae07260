"""Counts the operations of a real run as a replay counts those on fake tensors."""

from __future__ import annotations

from collections.abc import Mapping

from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from profiler.checkpointing.recompute import recomputing
from profiler.operations import only_allocates, only_views
from profiler.replay.event_log import OperationRecord, Phase
from profiler.replay.operation_counter import OperationCounter


class OperationTally(TorchDispatchMode):
    """Counts the operations that run while the mode is active, all in a single unit.

    Args:
        phase: phase of the first operations.

    Attributes:
        phase: phase of the next operations, except those of a recomputation.
        count: number of operations.
    """

    def __init__(self, phase: Phase) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = phase
        self.count = 0
        self._counter = OperationCounter(batch=1)

    @property
    def records(self) -> list[OperationRecord]:
        """Records of the operations that compute or move something, in order."""
        return self._counter.records

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Run an operation and count it."""
        out = func(*args, **(kwargs or {}))
        if not (only_views(func) or only_allocates(func)):
            self.count += 1
            phase = Phase.RECOMPUTE if recomputing() else self.phase
            self._counter.count(func, args, dict(kwargs or {}), out, phase=phase, unit=0)
        return out
