"""Memory that CPU kernels allocate and free inside one operation, found by running them.

oneDNN reorders the operands of a convolution into blocked copies, mixed-dtype arithmetic casts an
operand, bf16 matmuls and attention use scratch space. The amounts depend on processor, library and
thread count, so they are measured: each distinct operation runs once on zeros while the allocator's
events are recorded (profiler/device_rules/cpu_allocator.py).

    batch <= 4    `Probe`: every operation runs at the replayed batch
    batch > 4     `Extended`: the step is replayed at batches 2 and 4 with a `Probe`. The bytes of
                  the n-th operation are extended linearly in the batch. Only operations that could
                  make the peak of the step run at the batch itself

Limitations: an operation that may not run here (`can_run_on_zeros`) has the bytes that follow from
small batches or, for a convolution, from fewer channels; else no temporary memory. Libraries choose
other algorithms and block sizes at other batches, so a linear extension can be far off. It is used
only where it cannot change the peak, as long as the error is below a factor of 2, and for
operations that may not run. Replayed peaks then equal the allocator's to the byte in most cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.library import Library
from torch.utils._pytree import tree_leaves, tree_map

from profiler.device_rules.cpu_allocator import memory_events, peak_and_growth
from profiler.device_rules.kernel_bytes import Blocks, KernelBytes, storage_bytes
from profiler.device_rules.linear_bias import mark_linear
from profiler.operations import Arguments, Operation
from profiler.units import MIB

PROBE_BATCHES = (2, 4)
"""Batches at which every operation runs; larger ones are extended from these."""

_LARGEST_ERROR = 2.0
"""Assumed bound of an operation's bytes over their linear extension. The largest ratio among the
convolutions of studies/memory_truth is 1.43 (batches 2 and 4 to 16), where oneDNN changes to
blocked copies."""

_ONEDNN_CONVOLUTIONS = (torch.ops.aten.convolution, torch.ops.aten.convolution_backward)
"""On one thread, PyTorch uses oneDNN for some convolutions only from 16 images on (``use_mkldnn``,
aten/src/ATen/native/Convolution.cpp). A kernel without scratch at a small batch may then copy all
its operands."""


class _CpuKernelBytes(KernelBytes):
    """Common part of the two classes below."""

    def workspaces(
        self, func: Operation, args: Arguments, out: Any
    ) -> tuple[tuple[Tensor, int], ...]:
        """Return the workspace of oneDNN's LSTM."""
        return ((out[3], lstm_workspace_bytes(args)),) if func is _LSTM else ()


@dataclass(slots=True)
class Probe(_CpuKernelBytes):
    """Runs each distinct operation once and keeps the sequence of results.

    Attributes:
        live: live bytes at the call of each operation.
        inside_bytes: bytes that each operation holds at its own peak; 0 if no more than its
            results.
    """

    beside_results: bool = False
    live: list[int] = field(default_factory=list)
    inside_bytes: list[int] = field(default_factory=list)

    def inside(
        self,
        func: Operation,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        *,
        live_bytes: int,
    ) -> Blocks:
        """Run the operation, or return the result of an earlier run with equal arguments."""
        nbytes = probed_bytes(func, args, kwargs) or 0
        self.live.append(live_bytes)
        self.inside_bytes.append(nbytes)
        return (nbytes,) if nbytes else ()


class Extended(_CpuKernelBytes):
    """Extends the sequences of two probed replays to a larger batch.

    Live bytes are linear in the batch, so the operations that could make the peak are known before
    the replay. These few are probed at the batch itself.

    Args:
        low: probe of the replay at the smaller of ``PROBE_BATCHES``.
        high: probe of the replay at the larger one.
        batch: micro-batch to extend to.
    """

    beside_results = False

    def __init__(self, low: Probe, high: Probe, *, batch: int) -> None:
        self._live = _extend(low.live, high.live, batch)
        self._inside = _extend(low.inside_bytes, high.inside_bytes, batch)
        self._highest = max(self._live, default=0)
        self._position = 0

    def inside(
        self,
        func: Operation,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        *,
        live_bytes: int,
    ) -> Blocks:
        """Return the blocks of the next operation of the step."""
        index, self._position = self._position, self._position + 1
        if index >= len(self._inside):
            return ()
        nbytes = most = self._inside[index]
        if nbytes <= 0 and func._overloadpacket in _ONEDNN_CONVOLUTIONS:
            most = sum(storage_bytes(t) for t in args if isinstance(t, Tensor))
        could_make_the_peak = self._live[index] + _LARGEST_ERROR * most > self._highest
        if most > 0 and could_make_the_peak:
            probed = probed_bytes(func, args, kwargs)
            nbytes = nbytes if probed is None else probed
        return (nbytes,) if nbytes > 0 else ()


def _extend(low: list[int], high: list[int], batch: int) -> list[int]:
    """Extend two sequences linearly to a batch, operation by operation."""
    small, large = PROBE_BATCHES
    further = (batch - small) / (large - small)
    return [round(a + (b - a) * further) for a, b in zip(low, high, strict=False)]


# --- running one operation ------------------------------------------------------------------------

MAX_RUN_BYTES = 256 * MIB
"""Largest arguments and results, together, of an operation that is run. An operation holds up to as
much again inside, and PyTorch and timm themselves take half a gigabyte, so a prediction stays below
1 GB. The replayed peak of ResNet-50 at batch 32 is the same with a limit of 2 GiB."""

_RECURRENT = ("rnn", "lstm", "gru")
"""Parts of the names of PyTorch's recurrent operations."""

_FAILS_ON_ZEROS = (RuntimeError, MemoryError, ValueError, IndexError, TypeError)
"""Errors of an operation that is not defined on zeros (an index out of range), or that this machine
has too little memory for. No memory is then assumed."""

_peaks: dict[tuple[str, str], int | None] = {}
"""Bytes by operation and arguments, for the life of the process; None if it may not run here."""

_in_attention: ContextVar[bool] = ContextVar("in_attention", default=False)

_ADD = torch.ops.aten.add.Tensor

_LSTM = torch.ops.aten.mkldnn_rnn_layer.default
_LSTM_BACKWARD = torch.ops.aten.mkldnn_rnn_layer_backward.default

_workspaces: dict[str, int] = {}
"""Bytes of the workspace that an LSTM layer leaves for its backward, by its arguments."""


_STATISTICS = {
    torch.ops.aten.native_layer_norm_backward.default: (slice(3, 5), 5),
    torch.ops.aten.native_group_norm_backward.default: (slice(2, 4), 4),
    torch.ops.aten.native_batch_norm_backward.default: (slice(5, 7), 2),
}
"""Positions of mean and reciprocal standard deviation among the arguments, and of the weight."""


def probed_bytes(
    func: Operation, args: tuple[object, ...], kwargs: dict[str, object]
) -> int | None:
    """Return the live bytes at an operation's own peak, or 0 if they are no more than its results.

    The operation runs on zeros, once for each distinct set of shapes and strides. A convolution
    whose weight is too large runs with fewer output channels. None: it may not run here.
    """
    args = with_real_statistics(func, args)
    if func is _ADD and _in_attention.get():
        func = torch.ops.aten.add_.Tensor  # see imitate_cpu
    if _needs_no_probe(func, args):
        return 0
    signature = str(tree_map(argument_signature, (args, kwargs)))
    key = (str(func), f"{torch.get_num_threads()} {signature}")
    if key not in _peaks:
        _peaks[key] = 0
        if func is _LSTM_BACKWARD:
            _peaks[key] = _run_lstm_backward(args)
        elif can_run_on_zeros(func, args, kwargs):
            with unset_fake_temporarily(), torch.no_grad():
                _peaks[key] = _run_once(func, args, kwargs)
        else:
            _peaks[key] = _bytes_of_narrower(func, args, kwargs)
    return _peaks[key]


_OPERANDS = {
    torch.ops.aten.convolution.default: (None, 1, 2, 8),
    torch.ops.aten.convolution_backward.default: (0, 2, 3, 9),
}
"""Positions of a convolution's gradient, weight, bias and number of groups."""


def _bytes_of_narrower(
    func: Operation, args: tuple[Any, ...], kwargs: dict[str, object]
) -> int | None:
    """Return the bytes inside a convolution with a large weight, from two narrower ones.

    Its bytes are linear in the output channels: copies of the weight and of the
    gradient grow with them, copies of the input are constant. None for other operations.
    """
    if func not in _OPERANDS:
        return None
    gradient, weight, bias, groups = _OPERANDS[func]
    channels = args[weight].shape[0]
    is_transposed = args[6 if gradient is None else 7]
    if is_transposed or args[groups] != 1:
        return None

    def narrowed(count: int) -> tuple[Any, ...]:
        changed = list(args)
        changed[weight] = _with_size(args[weight], 0, count)
        if gradient is not None:
            changed[gradient] = _with_size(args[gradient], 1, count)
        if isinstance(args[bias], Tensor):
            changed[bias] = _with_size(args[bias], 0, count)
        elif args[bias] is not None:  # its sizes
            changed[bias] = [count]
        return tuple(changed)

    few = channels
    while few > 1 and not can_run_on_zeros(func, narrowed(2 * few), kwargs):
        few //= 2
    if few == 1:
        return None  # it is not the weight that is large
    with unset_fake_temporarily(), torch.no_grad():
        less, more = (_run_once(func, narrowed(count), kwargs) for count in (few, 2 * few))
    return int(less + (more - less) * (channels - few) / few)


def _with_size(tensor: Tensor, dim: int, size: int) -> Tensor:
    """Return a tensor on ``meta`` in the memory format of another, with another size."""
    shape = list(tensor.shape)
    shape[dim] = size
    made = torch.empty(shape, dtype=tensor.dtype, device="meta")
    return made.to(memory_format=suggest_memory_format(tensor)) if len(shape) > 1 else made


def with_real_statistics(func: Operation, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments that the backward of a normalisation has on real tensors.

    With 32-bit weights, a normalisation of 16-bit inputs keeps its statistics in 32 bits; fake
    tensors have 16 (`kernel_bytes.understated_results`). The real backward refuses those.
    """
    if func not in _STATISTICS:
        return args
    positions, weight = _STATISTICS[func]
    if not isinstance(args[weight], Tensor) or args[weight].dtype != torch.float32:
        return args
    statistics = (t.to(torch.float32) if isinstance(t, Tensor) else t for t in args[positions])
    return (*args[: positions.start], *statistics, *args[positions.stop :])


def can_run_on_zeros(
    func: Operation, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> bool:
    """Return whether an operation may be run on zeros here.

    Recurrent layers may not, but for the forward of oneDNN's LSTM: their backward reads a workspace
    that only its forward can fill, and crashes on zeros (`_run_lstm_backward`). Operations on more
    than `MAX_RUN_BYTES` may not either: a prediction must not need the memory that it predicts.
    """
    if any(word in func.__name__ for word in _RECURRENT) and func is not _LSTM:
        return False
    tensors = [a for a in tree_leaves((args, dict(kwargs))) if isinstance(a, Tensor)]
    nbytes = sum(storage_bytes(tensor) for tensor in tensors)
    if nbytes > MAX_RUN_BYTES:
        return False
    with unset_fake_temporarily(), torch.no_grad():
        try:
            results = func(*tree_map(_meta_copy, args), **tree_map(_meta_copy, dict(kwargs)))
        except Exception:  # not every operation has shapes on meta; its arguments are small
            return True
    nbytes += sum(storage_bytes(r) for r in tree_leaves(results) if isinstance(r, Tensor))
    return nbytes <= MAX_RUN_BYTES


def _meta_copy(arg: object) -> object:
    """Return a tensor of the same layout on ``meta``, and any other argument unchanged."""
    if not isinstance(arg, Tensor):
        return arg
    return torch.empty_strided(arg.shape, arg.stride(), dtype=arg.dtype, device="meta")


def _needs_no_probe(func: Operation, args: tuple[object, ...]) -> bool:
    """Return whether an operation is elementwise on one dtype, or only allocates its result."""
    if "empty" in func.__name__:
        return True
    dtypes = {a.dtype for a in args if isinstance(a, Tensor)}
    elementwise = torch.Tag.pointwise in func.tags or func._schema.name.endswith("_")
    return elementwise and len(dtypes) <= 1


def _run_once(func: Operation, args: tuple[object, ...], kwargs: dict[str, object]) -> int:
    try:
        real, named = tree_map(zeros_like_it, (args, kwargs))
        return _bytes_inside(func, real, named)
    except _FAILS_ON_ZEROS:
        return 0


def _bytes_inside(func: Operation, real: tuple[object, ...], named: dict[str, object]) -> int:
    """Return the live bytes at an operation's own peak, or 0 if they are no more than results."""
    held: list[object] = []
    func(*real, **named)  # the first call of a library may allocate memory that it keeps
    peak, growth = peak_and_growth(memory_events(lambda: held.append(func(*real, **named))))
    return peak if peak > growth else 0


def lstm_workspace_bytes(args: tuple[object, ...]) -> int:
    """Return the bytes of the workspace that oneDNN's LSTM leaves for its backward.

    The fake result has none. The layer runs once on zeros for each distinct set of arguments.
    """
    key = str(tree_map(argument_signature, args))
    if key not in _workspaces:
        _workspaces[key] = 0
        if can_run_on_zeros(_LSTM, args, {}):
            with suppress(*_FAILS_ON_ZEROS), unset_fake_temporarily(), torch.enable_grad():
                workspace = _LSTM(*tree_map(zeros_like_it, args))[3]
                if workspace is not None:  # without gradients there is none
                    _workspaces[key] = storage_bytes(workspace)
    return _workspaces[key]


def _run_lstm_backward(args: tuple[Any, ...]) -> int:
    """Return the bytes inside the backward of an LSTM layer, run after a forward on zeros."""
    inputs, weights, (hx, cx) = args[0], args[1:5], args[5:7]
    reverse, mode, hidden_size, num_layers, has_biases, train, bidirectional = args[13:20]
    batch_sizes, batch_first = args[20:22]
    forward = (
        *(inputs, *weights, hx, cx, reverse, batch_sizes, mode, hidden_size, num_layers),
        *(has_biases, bidirectional, batch_first, train),
    )
    if not can_run_on_zeros(_LSTM, forward, {}):
        return 0
    # without gradients there is no workspace
    with suppress(*_FAILS_ON_ZEROS), unset_fake_temporarily(), torch.enable_grad():
        workspace = _LSTM(*tree_map(zeros_like_it, forward))[3]
        zeros = tree_map(zeros_like_it, args[:-1])
        return _bytes_inside(_LSTM_BACKWARD, (*zeros, workspace), {})
    return 0


def argument_signature(arg: object) -> object:
    """Return shape, dtype and strides of a tensor as text, and any other argument unchanged.

    Operations with equal signatures run the same kernels.
    """
    if isinstance(arg, Tensor):
        return f"{tuple(arg.shape)}{arg.dtype}{arg.stride()}"
    return arg


def zeros_like_it(arg: object) -> object:
    """Return zeros with the layout of a fake tensor, and any other argument unchanged."""
    if not isinstance(arg, Tensor):
        return arg
    elements = arg.untyped_storage().nbytes() // arg.element_size()
    flat = torch.zeros(elements, dtype=arg.dtype)
    return flat.as_strided(arg.shape, arg.stride(), arg.storage_offset())


# --- attention ------------------------------------------------------------------------------------


@contextmanager
def imitate_cpu() -> Iterator[None]:
    """Mark the operations inside attention while a step is replayed for a CPU.

    The composite attention adds its mask in place on real tensors, but out of place on fake ones.
    ``probed_bytes`` therefore probes that addition as an in-place one.
    Source: ``_scaled_dot_product_attention_math``, aten/src/ATen/native/transformers/attention.cpp.
    """
    attention = torch.ops.aten.scaled_dot_product_attention.default
    composite = torch._C.DispatchKey.CompositeImplicitAutograd

    def marked(*args: object, **kwargs: object) -> Tensor:
        token = _in_attention.set(True)
        try:
            out: Tensor = attention._op_dk(composite, *args, **kwargs)
        finally:
            _in_attention.reset(token)
        return out

    library = Library("aten", "IMPL")
    try:
        library.impl("scaled_dot_product_attention", marked, "AutogradCPU")
        mark_linear(library)
        yield
    finally:
        library._destroy()
