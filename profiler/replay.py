"""Replay: one training step on fake tensors, with every storage's birth and death recorded.

No weight and no activation is ever allocated: parameters are made on ``meta``, turned into fake
CPU tensors (a CUDA build of PyTorch without a GPU cannot run backward on fake CUDA tensors), and
the step of ``profiler.step`` runs on them. A ``TorchDispatchMode`` sees each operation after
autograd has split it, so the saved tensors, the checkpoint's recomputation and the optimizer's
temporaries are the real ones. Storages die by reference counting exactly as in a real run.

What a dispatch mode cannot see is memory that a kernel takes and gives back inside one operation;
``profiler.kernels`` knows that for the target's kernels.

The cost grows with the number of operations, not with the batch.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from profiler.abridged import Row, expand, pass_on, rows_of
from profiler.assembly import Assembly, assemble
from profiler.backbones.discovery import modules_of
from profiler.backbones.selective_scan import loop_work
from profiler.checkpointing import apply_placement, recomputing
from profiler.cuda_kernels import Capability
from profiler.cuda_reduce import Multiprocessors, PartialSums, Reduction
from profiler.cuda_scratch import CudaKernels
from profiler.event_log import (
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
from profiler.flops import elementwise_flops, operation_flops, published_flops
from profiler.frames import Frame, running_frame
from profiler.kernels import (
    PROBE_BATCHES,
    RTX_2060_SUPER,
    TURING,
    Extended,
    KernelBytes,
    Probe,
    kernels_of,
    real_sizes,
)
from profiler.methods.base import backbone_of
from profiler.operations import kind_of, only_allocates, only_views, what_is_read
from profiler.records import OWNERS
from profiler.step import Batch, TrainingStep, make_optimizer
from profiler.workload import Candidate

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from profiler.cpu_rates import Stopwatch
    from profiler.methods.base import Method
    from profiler.workload import Workload

_OWNER = {name: code for code, name in enumerate(OWNERS)}
_UNKNOWN = -1


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
        stopwatch: Stopwatch | None = None,
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
            scratch = [self._birth(n, _OWNER["temporary"], operation) for n in inside]
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
        moved, batched = self._traffic(what_is_read(func, args))
        written, batched_written = self._traffic((out,))
        if moved or written or flops:
            kind = kind_of(func, args)
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
        table[warm & survived, 3] = _OWNER["optimizer"]
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
    owner[unknown] = _OWNER["temporary"]
    owner[unknown & (phase == INPUT)] = _OWNER["input"]
    for start, end in forwards:
        inside = unknown & (phase == FORWARD) & (born > start) & (born <= end)
        owner[inside & (died > end)] = _OWNER["activation"]
    # what a recomputation made and backward then used
    owner[unknown & (phase == RECOMPUTE)] = _OWNER["activation"]
    owner[unknown & (phase == OPTIMIZER) & (died > ticks)] = _OWNER["optimizer"]
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


_BOOK_LENGTH = 256
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


# -- replaying a candidate ---------------------------------------------------------------------


def replay(
    candidate: Candidate,
    *,
    target: str = "cuda",
    capability: Capability = TURING,
    on: Multiprocessors = RTX_2060_SUPER,
    optimizer: bool = True,
    inside_kernels: bool = True,
    only_this_batch: bool = True,
    as_published: bool = False,
    abridged: bool = False,
    stopwatch: Stopwatch | None = None,
) -> EventLog:
    """Replay one steady training step of a candidate.

    Args:
        candidate: what to replay.
        target: ``cuda`` or ``cpu``: whose kernels and optimizer defaults are imitated.
        capability: compute capability of the CUDA device: it decides which attention runs.
        on: its multiprocessors: they decide how much scratch a reduction takes.
        optimizer: False leaves the optimizer's state and step out (the search adds them, since
            they depend neither on batch nor on placement).
        inside_kernels: add what kernels hold inside one operation.
        only_this_batch: False also notes what kernels hold at other batches alone, of no bytes here
            (for ``profiler.composition``).
        as_published: count FLOPs as arXiv 2507.23536 did.
        abridged: of units that are alike run three, as far as the rest can be told from them
            (``profiler.abridged``): of one micro-batch, without optimizer and CPU kernels.
        stopwatch: really runs and times each distinct operation (``profiler.cpu_rates``).

    Raises:
        UsageError: the method does not work on the backbone.
        InputError: the placement names a unit the backbone lacks.
    """
    # two micro-batches already show the steady state of accumulation
    accumulation = min(candidate.workload.accumulation, 2)
    workload = candidate.workload.replace(accumulation=accumulation)
    candidate = Candidate(workload=workload, placement=candidate.placement)
    inside: KernelBytes | None = None
    if inside_kernels:
        inside = (
            CudaKernels(on, only_this_batch=only_this_batch)
            if target == "cuda"
            else _cpu_kernels(candidate)
        )
    run = partial(
        replay_assembled,
        candidate=candidate,
        target=target,
        inside=inside,
        capability=capability,
        optimizer=optimizer,
        as_published=as_published,
        stopwatch=stopwatch,
    )
    assembly = assemble(candidate.workload, device="meta")
    # what CPU kernels take was probed in the order of a whole step
    probed = inside_kernels and target == "cpu"
    if abridged and not (accumulation > 1 or optimizer or probed):
        rows = rows_of(assembly.backbone, assembly.units, candidate.placement)
        told = expand(run(assembly, idle=rows), rows)
        if told is not None:
            return told
        assembly = assemble(candidate.workload, device="meta")
    return run(assembly)


def replay_update(candidate: Candidate, *, target: str = "cuda") -> EventLog:
    """Replay the optimizer's part of a step alone: parameters, gradients, state, temporaries.

    Args:
        candidate: whose optimizer; its placement and batch do not matter.
        target: ``cuda`` or ``cpu``.
    """
    workload = candidate.workload
    assembly = assemble(workload, device="meta")
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = assembly.model
        to_fake(model)
        recorder = Recorder(assembly.units, batch=workload.micro_batch)
        update = _make_update(model, workload, assembly.method, target=target)
        step = TrainingStep(
            model,
            update,
            workload,
            method=assembly.method,
            foreach=target == "cuda",
            mark=recorder.in_phase,
        )
        if step.scaler is not None:
            step.scaler = _FakeScaler("cpu")
            step.scaler.scale(torch.ones(()))  # a scaler exists from the first backward on
        with recorder:
            for parameter in model.parameters():
                recorder.adopt(parameter, _OWNER["parameter"])
                if parameter.requires_grad:
                    parameter.grad = torch.empty_like(parameter)
                    recorder.own(parameter.grad, _OWNER["gradient"])
            with recorder.warm_up():
                step.update()
                assembly.method.before_zero_grad(model, global_step=0)
            if target == "cuda":
                _forget_host_state(recorder, update)
            step.finish()
            return recorder.log()


def _cpu_kernels(candidate: Candidate) -> KernelBytes:
    batch = candidate.workload.micro_batch
    if batch <= max(PROBE_BATCHES):
        return Probe()
    low, high = (_probed(candidate, small) for small in PROBE_BATCHES)
    return Extended(low, high, batch=batch)


def _probed(candidate: Candidate, batch: int) -> Probe:
    probe = Probe()
    small = Candidate(
        workload=candidate.workload.replace(micro_batch=batch), placement=candidate.placement
    )
    assembly = assemble(small.workload, device="meta")
    replay_assembled(assembly, small, target="cpu", inside=probe, optimizer=False)
    return probe


def replay_assembled(
    assembly: Assembly,
    candidate: Candidate,
    *,
    target: str,
    inside: KernelBytes | None = None,
    capability: Capability = TURING,
    optimizer: bool = True,
    as_published: bool = False,
    idle: Sequence[Row] = (),
    stopwatch: Stopwatch | None = None,
) -> EventLog:
    """Replay one steady training step of a model on ``meta``, which turns fake by it.

    Args:
        assembly: the model and its method.
        candidate: its workload and placement.
        target: ``cuda`` or ``cpu``.
        inside: what kernels hold inside one operation; None for nothing.
        capability: compute capability of the CUDA device.
        optimizer: False leaves the optimizer's state and step out.
        as_published: count FLOPs as arXiv 2507.23536 did.
        idle: rows of units of which only some run.
        stopwatch: really runs and times each distinct operation.
    """
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        kernels_of(target, capability=capability),
    ):
        to_fake(assembly.model)
        apply_placement(assembly.model, candidate.placement, units=assembly.units)
        pass_on(assembly.backbone, assembly.units, idle)
        recorder = Recorder(
            assembly.units,
            batch=candidate.workload.micro_batch,
            kernel_bytes=inside,
            as_published=as_published,
            stopwatch=stopwatch,
            in_loops=target == "cuda",
        )
        return _record_step(
            recorder, assembly, candidate.workload, target=target, optimizer=optimizer
        )


def _record_step(
    recorder: Recorder, assembly: Assembly, workload: Workload, *, target: str, optimizer: bool
) -> EventLog:
    model = assembly.model
    update = _make_update(model, workload, assembly.method, target=target)
    step = TrainingStep(
        model,
        update,
        workload,
        method=assembly.method,
        foreach=target == "cuda",
        mark=recorder.in_phase,
    )
    if step.scaler is not None:
        step.scaler = _FakeScaler("cpu")
    with recorder, _unit_marks(recorder, model), _gradient_marks(recorder, model):
        for tensor in _as_they_move(model):
            is_parameter = isinstance(tensor, nn.Parameter)
            recorder.adopt(tensor, _OWNER["parameter" if is_parameter else "buffer"])
        fetch = _fake_batch(workload)
        loss = step.accumulate([fetch] * workload.accumulation)
        if optimizer:
            with recorder.warm_up():
                step.update()
                assembly.method.before_zero_grad(model, global_step=0)
            if target == "cuda":
                _forget_host_state(recorder, update)
            step.finish()
    # the model, the optimizer and the loss are still alive here: what they hold did not die
    log = recorder.log()
    del loss
    return log


def _as_they_move(module: nn.Module) -> Iterator[Tensor]:
    """Yield parameters and buffers in the order in which ``to`` moves them (``Module._apply``)."""
    for child in module.children():
        yield from _as_they_move(child)
    for table in (module._parameters, module._buffers):
        yield from (tensor for tensor in table.values() if tensor is not None)


def _make_update(model: nn.Module, workload: Workload, method: Method, *, target: str) -> Optimizer:
    """Make the optimizer; the code books of an 8-bit one are numbers, which fake tensors have not.

    Source: ``Optimizer8bit.fill_qmap``, bitsandbytes/optim/optimizer.py.
    """
    make = partial(make_optimizer, model, workload, method=method, foreach=target == "cuda")
    if workload.optimizer != "adamw8bit":
        return make()
    with unset_fake_temporarily():
        update: Any = make()
    books = list(getattr(update, "name2qmap", ()))

    def fill() -> None:  # called when the first state is made
        update.name2qmap.update({book: torch.zeros(_BOOK_LENGTH) for book in books})

    update.name2qmap, update.fill_qmap = {}, fill
    made: Optimizer = update
    return made


def _forget_host_state(recorder: Recorder, optimizer: Optimizer) -> None:
    """Leave out the step counters: PyTorch keeps them on the host unless an update is capturable.

    Source: ``_init_group``, torch/optim/adamw.py.
    """
    for state in optimizer.state.values():
        counter = state.get("step")
        if isinstance(counter, Tensor):
            recorder.forget(counter)


class _FakeScaler(torch.amp.GradScaler):
    """A gradient scaler that never asks a tensor for its value."""

    def _maybe_opt_step(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        return optimizer.step()

    def update(self, new_scale: Any = None) -> None:
        for state in self._per_optimizer_states.values():
            state["stage"] = torch.amp.grad_scaler.OptState.READY


def _fake_batch(workload: Workload) -> Callable[[], Batch]:
    shape = (workload.micro_batch, 3, workload.image_size, workload.image_size)

    def fetch() -> Batch:
        return torch.empty(shape), torch.empty(shape[0], dtype=torch.long)

    return fetch


def to_fake(model: nn.Module) -> None:
    """Turn every parameter and buffer on ``meta`` into a fake CPU tensor (call in fake mode)."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is None or not tensor.is_meta:
                    continue
                if id(tensor) not in made:
                    made[id(tensor)] = _fake_like(tensor)
                table[name] = made[id(tensor)]  # type: ignore[assignment]


def _fake_like(tensor: Tensor) -> Tensor:
    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    if not isinstance(tensor, nn.Parameter):
        return fake
    return nn.Parameter(fake, requires_grad=tensor.requires_grad)


@contextmanager
def _gradient_marks(recorder: Recorder, model: nn.Module) -> Iterator[None]:
    def accumulated(parameter: Tensor) -> None:
        if parameter.grad is not None:
            recorder.own(parameter.grad, _OWNER["gradient"])

    handles = [
        p.register_post_accumulate_grad_hook(accumulated)
        for p in model.parameters()
        if p.requires_grad
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _unit_marks(recorder: Recorder, model: nn.Module) -> Iterator[None]:
    """Mark when a unit's forward begins and ends, and when its backward begins."""
    backbone = backbone_of(model)
    handles = []
    for index, name in enumerate(recorder.unit_names):
        modules = modules_of(backbone, name)
        handles += [
            modules[0].register_forward_pre_hook(_enter(recorder, index)),
            modules[-1].register_forward_hook(_leave(recorder, index, is_run=len(modules) > 1)),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _enter(recorder: Recorder, index: int) -> Callable[..., None]:
    def enter(*_: object) -> None:
        if recomputing():  # the hooks of a run's modules are called again with it
            return
        recorder.unit = index
        recorder.mark("enter", index)

    return enter


def _leave(recorder: Recorder, index: int, *, is_run: bool) -> Callable[..., None]:
    def begin_backward(_: Tensor) -> None:
        recorder.unit = index
        recorder.mark("backward", index)

    def leave(_module: nn.Module, _args: object, out: object) -> None:
        if recomputing():
            return
        recorder.leave(index, is_run=is_run)
        tensor = out[0] if isinstance(out, tuple | list) else out
        if not isinstance(tensor, Tensor):
            return
        recorder.boundary_bytes[index] = tensor.numel() * tensor.element_size()
        if tensor.requires_grad:
            tensor.register_hook(begin_backward)

    return leave
