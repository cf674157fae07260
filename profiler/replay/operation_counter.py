"""FLOPs, memory traffic and launches of the operations of a replay."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Protocol

from torch import Tensor
from torch._ops import OpOverload

from profiler.checkpointing.recompute import RecomputableCall, running_call
from profiler.device_rules.cuda_dispatch import is_imitating_cuda
from profiler.devices.host_link import HOST_WORK_LAUNCHES, HostWork
from profiler.models.backbones.scan_loop_work import loop_work
from profiler.operations import operation_kind, read_arguments
from profiler.replay.event_log import OperationRecord, Phase
from profiler.replay.flops import elementwise_flops, operation_flops, published_flops
from profiler.replay.kernel_shapes import kernel_shape
from profiler.replay.known_results import OperationKey


class OperationTimer(Protocol):
    """Times the operations of a replay (``profiler.timing.cpu_rates``)."""

    def time(
        self,
        kind: str,
        func: OpOverload,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        *,
        flops: int,
        moved_bytes: int,
        phase: Phase,
    ) -> None:
        """Time one operation on real tensors of the same shapes as the given fake ones.

        Args:
            kind: the operation's kind (``OperationRecord.kind``).
            func: the operation.
            args: positional arguments, fake tensors among them.
            kwargs: keyword arguments.
            flops: FLOPs of the operation.
            moved_bytes: bytes read and written.
            phase: the phase it runs in.
        """


_records_by_key: dict[tuple[object, OperationKey], OperationRecord] = {}
"""Records by the options of a counter and by operation. Forked processes inherit them."""

_MOST_RECORDS = 100_000
"""Records that are stored; with more, all are dropped."""


def _no_call() -> None:
    return None


class OperationCounter:
    """Makes an ``OperationRecord`` of each operation that computes or moves something.

    Args:
        batch: micro-batch size; it separates activations from weights in the traffic.
        published_flops: whether FLOPs are counted as in arXiv 2507.23536.
        scans_as_loops: whether a selective scan counts as the loop of kernels that it is on a GPU.
        timer: times each operation; None for no timing.

    Attributes:
        records: records so far, in order.
    """

    def __init__(
        self,
        *,
        batch: int,
        published_flops: bool = False,
        scans_as_loops: bool = False,
        timer: OperationTimer | None = None,
    ) -> None:
        self.records: list[OperationRecord] = []
        self._batch = batch
        self._published = published_flops
        self._scans_as_loops = scans_as_loops
        self._timer = timer
        self._last_call: Callable[[], RecomputableCall | None] = _no_call
        self._forward: Counter[int] = Counter()
        # the layout of a result, and so its kernel, depends on the imitated device
        self._options = (batch, published_flops, scans_as_loops, is_imitating_cuda())

    def count(
        self,
        func: OpOverload,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        out: object,
        *,
        phase: Phase,
        unit: int,
        key: OperationKey | None = None,
    ) -> None:
        """Count one operation.

        Args:
            func: the operation.
            args: positional arguments.
            kwargs: keyword arguments.
            out: its result.
            phase: the phase it runs in.
            unit: index of the unit it runs in, -1 outside all units.
            key: key of operations that are counted alike (``run_with_key``); None for none.
        """
        known = None if key is None else _records_by_key.get((self._options, key))
        record = known or self._record(func, args, kwargs, out, phase)
        if key is not None and known is None:
            if len(_records_by_key) >= _MOST_RECORDS:
                _records_by_key.clear()
            _records_by_key[self._options, key] = record
        if not (record.moved_bytes or record.flops):
            return
        begins_refill = self._begins_refill(phase)
        if phase is Phase.FORWARD:
            self._forward[unit] += 1
        intercepted = self._forward.pop(unit, 0) if begins_refill else 0
        if self._timer is not None:
            self._timer.time(
                record.kind,
                func,
                args,
                kwargs,
                flops=record.flops,
                moved_bytes=record.moved_bytes,
                phase=phase,
            )
        self.records.append(
            record._replace(
                phase=phase, unit=unit, begins_refill=begins_refill, intercepted=intercepted
            )
        )

    def count_on_host(
        self, touched: Iterable[object], work: HostWork, *, phase: Phase, unit: int
    ) -> None:
        """Count a copy between host and device, or an operation of the host's update.

        Args:
            touched: tensors whose bytes count: the copy, or all that the update reads.
            work: kind of work.
            phase: phase that it is added to.
            unit: index of the unit that it belongs to, -1 outside all units.
        """
        moved, batched = self._traffic(touched)
        if moved:
            record = OperationRecord(
                phase=phase, unit=unit, flops=0, moved_bytes=moved, batched_bytes=batched,
                kind=work, kernel=work, launches=HOST_WORK_LAUNCHES,
            )  # fmt: skip
            self.records.append(record)

    def _record(
        self,
        func: OpOverload,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        out: object,
        phase: Phase,
    ) -> OperationRecord:
        """Return the record of an operation, as one outside all units."""
        read, batched_read = self._traffic(read_arguments(func, args))
        written, batched_written = self._traffic((out,))
        shape = kernel_shape(func, args, out)
        loops = loop_work(func, args) if self._scans_as_loops else None
        extra = 0 if loops is None else loops.moved_bytes
        return OperationRecord(
            phase=phase,
            unit=-1,
            flops=self._flops(func, args, kwargs, out, phase),
            moved_bytes=read + written + extra,
            batched_bytes=batched_read + batched_written + extra,
            kind=operation_kind(func, args),
            launches=1 if loops is None else loops.launches,
            kernel=shape.name,
            dims=shape.dims,
        )

    def _begins_refill(self, phase: Phase) -> bool:
        """Return whether a recomputation runs that is not the one of the operation before."""
        before = self._last_call()
        now = running_call() if phase is Phase.RECOMPUTE else None
        # a weak reference: the counter must not keep recomputed tensors alive
        self._last_call = _no_call if now is None else weakref.ref(now)
        return now is not None and now is not before

    def _traffic(self, values: Iterable[object]) -> tuple[int, int]:
        """Return the bytes of all tensors, and of the tensors with a multiple of the batch."""
        moved = batched = 0
        for item in values:
            if isinstance(item, Tensor):
                elements = item.numel()
                nbytes = elements * item.element_size()
                moved += nbytes
                if elements % self._batch == 0:
                    batched += nbytes
            elif isinstance(item, tuple | list):
                inner, inner_batched = self._traffic(item)
                moved += inner
                batched += inner_batched
        return moved, batched

    def _flops(
        self,
        func: OpOverload,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        out: object,
        phase: Phase,
    ) -> int:
        if self._published:
            return published_flops(func, args, out)
        flops = operation_flops(func, args, kwargs, out)
        return elementwise_flops(out) if flops == 0 and phase is Phase.OPTIMIZER else flops
