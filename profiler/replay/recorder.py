"""The recorder: a dispatch mode that follows every storage and every operation of a step."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from profiler.checkpointing.apply import recomputing
from profiler.checkpointing.recompute import Frame, running_frame
from profiler.device_rules.cpu_kernels import (
    KernelBytes,
    real_sizes,
)
from profiler.device_rules.cuda_reductions import PartialSums, Reduction
from profiler.models.backbones.scan_loop_work import loop_work
from profiler.operations import only_allocates, only_views, operation_kind, read_arguments
from profiler.records import OWNERS
from profiler.replay.event_log import (
    BACKWARD,
    FORWARD,
    INPUT,
    OPTIMIZER,
    PHASES,
    RECOMPUTE,
    SETUP,
    EventLog,
    Mark,
    OperationRecord,
)
from profiler.replay.flops import elementwise_flops, operation_flops, published_flops

OWNER_CODE = {name: code for code, name in enumerate(OWNERS)}

_UNKNOWN = -1


class OperationTimer(Protocol):
    """What times the operations that a recorder sees (``profiler.timing.cpu_rates``)."""

    def time(
        self,
        kind: str,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        flops: int,
        moved_bytes: int,
    ) -> None:
        """Time one operation on real tensors of the shapes of the given ones."""


def _no_frame() -> None:
    return None


class Recorder(TorchDispatchMode):
    """Follows every storage born under it.

    Args:
        unit_names: of the backbone, for the marks.
        batch: the micro-batch, to tell activations from weights in an operation's traffic.
        kernel_bytes: what the target's kernels take inside an operation.
        as_published: count FLOPs as arXiv 2507.23536 did.
        stopwatch: really runs and times what is replayed.
        in_loops: count a scan as the loops of operations that it is on a GPU.
    """

    def __init__(
        self,
        unit_names: tuple[str, ...],
        *,
        batch: int = 1,
        kernel_bytes: KernelBytes | None = None,
        as_published: bool = False,
        stopwatch: OperationTimer | None = None,
        in_loops: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unit_names = unit_names
        self.batch = batch
        self.kernel_bytes = kernel_bytes
        self.as_published = as_published
        self.stopwatch = stopwatch
        self.in_loops = in_loops
        self.phase = SETUP
        self.unit = -1
        self.tick = 0
        self.live_bytes = 0
        self._left = -1
        self._refilled: Callable[[], Frame | None] = _no_frame
        self.marks: list[Mark] = []
        self.operations: list[OperationRecord] = []
        self.boundary_bytes = [0] * len(unit_names)
        self._names: dict[str, int] = {"(given)": 0}
        self._is_view: dict[Any, bool] = {}
        self._alive: dict[int, tuple[weakref.ref[Any], int]] = {}
        # one row per storage: nbytes, birth, death, owner, phase, unit, operation, reduction
        self.rows: list[list[int]] = []
        self._reductions: dict[Reduction, int] = {}
        self.warming_up = False
        self._warm: set[int] = set()
        _holders_of_a_sum()  # it runs autograd, which an operation under this mode cannot

    # -- storages ----------------------------------------------------------------------------

    def adopt(
        self,
        tensor: Tensor,
        owner: int = _UNKNOWN,
        operation: int = 0,
        nbytes: int | None = None,
    ) -> None:
        """Follow a tensor's storage from now on, unless it is followed already."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        if nbytes is None:
            nbytes = max(storage.nbytes(), _padded_bytes(tensor))
        if nbytes == 0:
            return
        row = self._birth(nbytes, owner, operation)

        self._watch(storage, row)

    def _watch(self, storage: torch.UntypedStorage, row: int) -> None:
        key = storage._cdata

        def died(_: object) -> None:
            if self._alive.pop(key, (None, -1))[1] == row:
                self._death(row)

        self._alive[key] = (weakref.ref(storage, died), row)

    def _take_over(self, tensor: Tensor, result: Tensor) -> None:
        """Let a result live where a tensor does: it was written there."""
        _, row = self._alive.pop(tensor.untyped_storage()._cdata, (None, -1))
        if row >= 0:
            self._watch(result.untyped_storage(), row)

    def _birth(self, nbytes: int, owner: int, operation: int) -> int:
        self._mark_exit()
        row = len(self.rows)
        self.tick += 1
        self.live_bytes += nbytes
        reduction = -1
        if isinstance(nbytes, PartialSums):
            seen = nbytes.reduction
            known = self._reductions
            reduction = -2 if seen is None else known.setdefault(seen, len(known))
        self.rows.append(
            [int(nbytes), self.tick, -1, owner, self.phase, self.unit, operation, reduction]
        )
        if self.warming_up:
            self._warm.add(row)
        return row

    def _death(self, row: int) -> None:
        self.tick += 1
        self.live_bytes -= self.rows[row][0]
        self.rows[row][2] = self.tick

    def own(self, tensor: Tensor, owner: int) -> None:
        """Say whose a storage is."""
        entry = self._alive.get(tensor.untyped_storage()._cdata)
        if entry is not None:
            self.rows[entry[1]][3] = owner

    def forget(self, tensor: Tensor) -> None:
        """Leave out a storage that does not live on the target."""
        entry = self._alive.get(tensor.untyped_storage()._cdata)
        if entry is not None:
            self.live_bytes -= self.rows[entry[1]][0]
            self.rows[entry[1]][0] = 0

    # -- operations --------------------------------------------------------------------------

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operation and follow what it made."""
        kwargs = kwargs or {}
        if func.namespace == "prim":
            known = func is _DEVICE and isinstance(args[0], FakeTensor)
            return args[0].fake_device if known else func(*args, **kwargs)
        summed = _summed_in_place(args) if func is _ADD and self.phase == BACKWARD else None
        out = _update(func, args, kwargs) if self.phase == OPTIMIZER else func(*args, **kwargs)
        if summed is not None:
            self._take_over(summed, out)
        view = self._is_view.get(func)
        if view is None:
            view = self._is_view[func] = only_views(func)
        if view:
            return out
        if self.phase == BACKWARD and recomputing():
            self.phase = RECOMPUTE
            self._record(func, args, kwargs, out)
            self.phase = BACKWARD
        else:
            self._record(func, args, kwargs, out)
        return out

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        name = str(func)
        operation = self._names.setdefault(name, len(self._names))
        scratch: list[int] = []
        # an update is in place, but for bitsandbytes' on a CPU, which unpacks its state
        if self.kernel_bytes is not None and (
            self.phase != OPTIMIZER or (func.namespace == "bitsandbytes" and not self.warming_up)
        ):
            inside = self.kernel_bytes.inside(func, args, kwargs, live_bytes=self.live_bytes)
            scratch = [self._birth(n, OWNER_CODE["temporary"], operation) for n in inside]
            if not self.kernel_bytes.beside_results:
                while scratch:
                    self._death(scratch.pop(0))
        for tensor, nbytes in real_sizes(func, args, out):
            self.adopt(tensor, operation=operation, nbytes=nbytes)
        _follow(self, out, operation)
        for row in scratch:
            self._death(row)
        if self.warming_up:
            return
        if only_allocates(func):
            return
        flops = self._flops(func, args, kwargs, out)
        moved, batched = self._traffic(read_arguments(func, args))
        written, batched_written = self._traffic((out,))
        if moved or written or flops:
            kind = operation_kind(func, args)
            begins_refill = self._begins_refill()
            loops = loop_work(func, args) if self.in_loops else None
            if loops is not None:
                written += loops.moved_bytes
                batched_written += loops.moved_bytes
            if self.stopwatch is not None:
                total = moved + written
                self.stopwatch.time(kind, func, args, kwargs, flops=flops, moved_bytes=total)
            self.operations.append(
                OperationRecord(
                    phase=self.phase,
                    unit=self.unit,
                    flops=flops,
                    moved_bytes=moved + written,
                    batched_bytes=batched + batched_written,
                    kind=kind,
                    begins_refill=begins_refill,
                    launches=1 if loops is None else loops.launches,
                )
            )

    def _begins_refill(self) -> bool:
        """Say whether another frame runs again than for the operation before."""
        before = self._refilled()
        now = running_frame() if self.phase == RECOMPUTE else None
        self._refilled = _no_frame if now is None else weakref.ref(now)
        return now is not None and now is not before

    def _traffic(self, values: Any) -> tuple[int, int]:
        """Return the bytes of all tensors, and of those that have the batch as a factor."""
        moved = batched = 0
        for item in values:
            if isinstance(item, Tensor):
                elements = item.numel()
                nbytes = elements * item.element_size()
                moved += nbytes
                if elements % self.batch == 0:
                    batched += nbytes
            elif isinstance(item, tuple | list):
                inner, inner_batched = self._traffic(item)
                moved += inner
                batched += inner_batched
        return moved, batched

    def _flops(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
        if self.as_published:
            return published_flops(func, args, out)
        flops = operation_flops(func, args, kwargs, out)
        return elementwise_flops(out) if flops == 0 and self.phase == OPTIMIZER else flops

    # -- marks -------------------------------------------------------------------------------

    def mark(self, kind: str, value: int) -> None:
        """Note a moment."""
        self._mark_exit()
        self.marks.append(Mark(self.tick, kind, value))

    def leave(self, unit: int, *, is_run: bool) -> None:
        """Note a unit's exit; a run's with what happens next.

        In the hook of a run's last module, its caller still holds what is inside the run.
        """
        self.unit, self._left = -1, unit
        if not is_run:
            self._mark_exit()

    def _mark_exit(self) -> None:
        if self._left >= 0:
            self.marks.append(Mark(self.tick, "exit", self._left))
            self._left = -1

    @contextmanager
    def in_phase(self, name: str) -> Iterator[None]:
        """Mark a phase of the step (what ``TrainingStep`` calls)."""
        self.phase = PHASES.index(name)
        self.unit = -1
        self.mark("phase", self.phase)
        yield

    @contextmanager
    def warm_up(self) -> Iterator[None]:
        """Let the optimizer make its state; what dies inside never happened."""
        self.warming_up, self.phase = True, OPTIMIZER
        yield
        self.warming_up = False

    # -- result ------------------------------------------------------------------------------

    def log(self) -> EventLog:
        """Return what was recorded, steady state: optimizer state is there from the start."""
        ticks = self.tick
        table = np.array(self.rows, dtype=np.int64).reshape(-1, 8)
        warm = np.zeros(len(table), dtype=bool)
        warm[list(self._warm)] = True
        survived = table[:, 2] < 0
        keep = ~(warm & ~survived) & ((table[:, 0] > 0) | (table[:, 7] != -1))
        table[warm & survived, 1] = 0
        table[warm & survived, 3] = OWNER_CODE["optimizer"]
        table[table[:, 4] == SETUP, 1] = 0
        table[survived, 2] = ticks + 1
        owner = _resolve_owners(table, self._end_of(FORWARD), ticks)
        table, owner = table[keep], owner[keep]
        return EventLog(
            nbytes=table[:, 0],
            birth=table[:, 1],
            death=table[:, 2],
            owner=owner,
            phase=table[:, 4],
            unit=table[:, 5],
            operation=table[:, 6],
            reduction=table[:, 7],
            reductions=tuple(self._reductions),
            operation_names=tuple(self._names),
            ticks=ticks,
            marks=tuple(self.marks),
            units=self.unit_names,
            boundary_bytes=tuple(self.boundary_bytes),
            operations=tuple(self.operations),
        )

    def _end_of(self, phase: int) -> list[tuple[int, int]]:
        """Return (start tick, end tick) of every run of a phase."""
        phases = [m for m in self.marks if m.kind == "phase"]
        ends = [*[m.tick for m in phases[1:]], self.tick]
        return [(m.tick, end) for m, end in zip(phases, ends, strict=True) if m.value == phase]


def _resolve_owners(table: Any, forwards: list[tuple[int, int]], ticks: int) -> Any:
    """Give an owner to what nobody claimed, by when it was born and when it died."""
    owner = table[:, 3].copy()
    born, died, phase = table[:, 1], table[:, 2], table[:, 4]
    unknown = owner == _UNKNOWN
    owner[unknown] = OWNER_CODE["temporary"]
    owner[unknown & (phase == INPUT)] = OWNER_CODE["input"]
    for start, end in forwards:
        inside = unknown & (phase == FORWARD) & (born > start) & (born <= end)
        owner[inside & (died > end)] = OWNER_CODE["activation"]
    # what a recomputation made and backward then used
    owner[unknown & (phase == RECOMPUTE)] = OWNER_CODE["activation"]
    owner[unknown & (phase == OPTIMIZER) & (died > ticks)] = OWNER_CODE["optimizer"]
    return owner


def _update(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation of the optimizer, which are many and mostly in place, as cheaply as can be.

    In-place arithmetic changes no size, so on fake tensors it need not run. The step counters are
    numbers: they are left real, and so is what is done to them.
    """
    first = args[0] if args else None
    if isinstance(first, list | tuple):
        first = first[0] if first else None
    if isinstance(first, FakeTensor):
        if first.dim() and _is_arithmetic_in_place(func):
            return args[0] if func._schema.returns else None
    elif isinstance(first, Tensor) and not any(isinstance(a, FakeTensor) for a in args):
        with torch._C._DisableTorchDispatch():
            return func(*args, **kwargs)
    return func(*args, **kwargs)


@cache
def _is_arithmetic_in_place(func: Any) -> bool:
    name = func._schema.name.partition("::")[2]
    if not name.endswith("_"):
        return False
    return name.startswith("_foreach_") or torch.Tag.pointwise in func.tags or name in _FILLS


def _summed_in_place(args: tuple[Any, ...]) -> Tensor | None:
    """Return the gradient that autograd adds another to in place, where it would on real tensors.

    It does so where nobody else holds it, and never for fake tensors (``can_accumulate_inplace``,
    torch/csrc/autograd/input_buffer.cpp).
    """
    if torch.is_grad_enabled() or not all(isinstance(a, FakeTensor) for a in args):
        return None
    for tensor in args:
        if _holders(tensor) == _holders_of_a_sum() and _is_dense(tensor):
            return cast("Tensor", tensor)
    return None


def _holders(tensor: Tensor) -> tuple[int, int]:
    """Return how many hold a tensor, and its storage."""
    use_count = getattr(tensor, "_use_count", int)  # older versions of PyTorch do not tell
    return use_count(), torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)


@cache
def _holders_of_a_sum() -> tuple[int, int]:
    """Return the holders of a gradient that nobody has but autograd, when it adds another to it."""
    seen: list[tuple[int, int]] = []

    class Look(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            if func is _ADD and not torch.is_grad_enabled():
                seen.append(_holders(args[0]))
            return func(*args, **(kwargs or {}))

    with FakeTensorMode(), torch.enable_grad():
        leaf = torch.empty(2, requires_grad=True)
        read_twice = leaf * 2
        out = read_twice.sin() * read_twice.cos()
        with Look():  # type: ignore[no-untyped-call]
            torch.autograd.grad(out.sum(), leaf)
    return seen[0]


_ADD, _is_dense = torch.ops.aten.add.Tensor, torch.ops.aten.is_non_overlapping_and_dense

_DEVICE = torch.ops.prim.device.default

_FILLS = {"zero_", "fill_", "copy_"}


def _padded_bytes(tensor: Tensor) -> int:
    """Return what a tensor with padded rows is a slice of: the padding behind its last row too."""
    if tensor.dim() == 0 or tensor.storage_offset():
        return 0
    return tensor.shape[0] * tensor.stride(0) * tensor.element_size()


def _follow(recorder: Recorder, out: Any, operation: int) -> None:
    """Adopt every tensor of a result."""
    if isinstance(out, Tensor):
        recorder.adopt(out, operation=operation)
    elif isinstance(out, tuple | list):
        for item in out:
            _follow(recorder, item, operation)
