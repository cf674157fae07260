"""What the target's kernels do that a replay on fake CPU tensors would not show.

*CPU*: kernels take memory inside one operation: oneDNN reorders a convolution's operands into
blocked copies, mixed-dtype arithmetic casts an operand, bf16 matmuls and attention have scratch
space. What exactly depends on processor, library and thread count, so it is probed: each distinct
operation runs once on zeros under the allocator's own recording. This is done at two small
batches and extended linearly, operation by operation. Libraries choose other algorithms and other
blocks at other sizes, so that may be far off: the few operations that could make the peak are run
at the real batch. With it a replayed peak equals the CPU allocator's to the byte in most cases.

*CUDA*: other kernels save other things, and autocast has other lists (profiler/device_rules/cuda_dispatch.py,
profiler/device_rules/cuda_autocast.py). Nothing is probed, all of it is read from PyTorch's source.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.library import Library
from torch.utils._pytree import tree_map

from profiler.device_rules.cpu_allocator import memory_events, peak_and_growth

PROBE_BATCHES = (2, 4)
"""Batches at which every operation is really run; larger ones are extended from these."""

_MOST_OFF = 2.0
"""How many times its linear extension an operation may take: the largest of the truth study's
convolutions, where oneDNN goes over to blocked copies, took 1.43 times (batches 2 and 4 to 16)."""

_CONVOLUTIONS = (torch.ops.aten.convolution, torch.ops.aten.convolution_backward)
"""On one thread some are oneDNN's from 16 images on only (``use_mkldnn``, native/Convolution.cpp):
a kernel that takes nothing at a small batch may copy all its operands there."""


class KernelBytes(Protocol):
    """Tells, operation by operation, what is live at the peak inside it.

    Attributes:
        beside_results: whether the blocks are there beside the operation's results, or are all
            that it holds at its peak, before its results are there.
    """

    beside_results: bool

    def inside(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, live_bytes: int
    ) -> tuple[int, ...]:
        """Return the blocks; none for no more than the results.

        Args:
            func: the operation.
            args: its arguments.
            kwargs: its keyword arguments.
            live_bytes: live when it is called.
        """
        ...


@dataclass(slots=True)
class Probe(KernelBytes):
    """Runs each distinct operation once and remembers the sequence.

    Attributes:
        live: bytes when each operation is called.
        taken: bytes inside it, 0 for no more than its results.
    """

    beside_results: bool = False
    live: list[int] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)

    def inside(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, live_bytes: int
    ) -> tuple[int, ...]:
        """Probe the operation, or recall it."""
        nbytes = probed_bytes(func, args, kwargs)
        self.live.append(live_bytes)
        self.taken.append(nbytes)
        return (nbytes,) if nbytes else ()


class Extended(KernelBytes):
    """Extends the sequences of two probed replays to another batch.

    Live bytes are linear in the batch, so it is known beforehand which operations could make the
    peak: those few are probed at the batch itself.

    Args:
        low: what was seen at the smaller of ``PROBE_BATCHES``.
        high: at the larger.
        batch: the micro-batch to extend to.
    """

    beside_results = False

    def __init__(self, low: Probe, high: Probe, *, batch: int) -> None:
        self._live = _extend(low.live, high.live, batch)
        self._taken = _extend(low.taken, high.taken, batch)
        self._highest = max(self._live, default=0)
        self._position = 0

    def inside(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        live_bytes: int,
    ) -> tuple[int, ...]:
        """Return what the next operation of the step takes."""
        index, self._position = self._position, self._position + 1
        if index >= len(self._taken):
            return ()
        nbytes = most = self._taken[index]
        if nbytes <= 0 and func._overloadpacket in _CONVOLUTIONS:
            most = sum(_storage_bytes(t) for t in args if isinstance(t, Tensor))
        if most > 0 and self._live[index] + _MOST_OFF * most > self._highest:
            nbytes = probed_bytes(func, args, kwargs)
        return (nbytes,) if nbytes > 0 else ()


def _extend(low: list[int], high: list[int], batch: int) -> list[int]:
    """Draw the line through two values, operation by operation, up to a batch."""
    small, large = PROBE_BATCHES
    further = (batch - small) / (large - small)
    return [round(a + (b - a) * further) for a, b in zip(low, high, strict=False)]


def real_sizes(func: Any, args: tuple[Any, ...], out: Any) -> tuple[tuple[Tensor, int], ...]:
    """Return the results whose storage is larger than fake tensors say, with their real bytes.

    *col2im* makes its result as large as its input and shrinks it without giving memory back
    (aten/src/ATen/native/Col2Im.cpp, cuda/Col2Im.cu). *Normalisation* of 16-bit values by 32-bit
    weights keeps mean and deviation in 32 bits (native/Normalization.cpp, layer_norm.cpp,
    group_norm.cpp; on CUDA always, acc_type).
    """
    packet = func._overloadpacket
    if packet is torch.ops.aten.col2im:
        return ((out, max(_storage_bytes(out), args[0].numel() * args[0].element_size())),)
    if packet in _NORMS and out[0].element_size() == 2:
        statistics = (t for t in out[1:3] if t.element_size() == 2)
        return tuple((t, 2 * _storage_bytes(t)) for t in statistics)
    return ()


_NORMS = (
    torch.ops.aten.native_batch_norm,
    torch.ops.aten._native_batch_norm_legit,
    torch.ops.aten._batch_norm_with_update,
    torch.ops.aten.native_layer_norm,
    torch.ops.aten.native_group_norm,
)


def _storage_bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


_peaks: dict[tuple[str, str], int] = {}

_in_attention: ContextVar[bool] = ContextVar("in_attention", default=False)

_ADD = torch.ops.aten.add.Tensor

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


def _harmless(func: Any, args: tuple[Any, ...]) -> bool:
    """True for elementwise operations on one dtype, and for those that only make a tensor."""
    if "empty" in func.__name__:
        return True
    dtypes = {a.dtype for a in args if isinstance(a, Tensor)}
    elementwise = torch.Tag.pointwise in func.tags or func._schema.name.endswith("_")
    return elementwise and len(dtypes) <= 1


def probed_bytes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return what is live at an operation's own peak on this CPU, 0 if no more than its results.

    It is run on zeros, once for each shape.
    """
    if func is _ADD and _in_attention.get():
        func = torch.ops.aten.add_.Tensor
    if _harmless(func, args):
        return 0
    described = str(tree_map(describe, (args, kwargs)))
    key = (str(func), f"{torch.get_num_threads()} {described}")
    if key not in _peaks:
        with unset_fake_temporarily(), torch.no_grad():
            _peaks[key] = _run_once(func, *tree_map(zeros_like_it, (args, kwargs)))
    return _peaks[key]


def _run_once(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    held: list[Any] = []
    try:
        func(*args, **kwargs)  # a library's first call may allocate what it then keeps
        peak, growth = peak_and_growth(memory_events(lambda: held.append(func(*args, **kwargs))))
    except (RuntimeError, ValueError, IndexError, TypeError):
        return 0  # not defined on zeros: nothing is known, nothing is added
    return peak if peak > growth else 0


def describe(arg: Any) -> Any:
    """Return what of an argument decides how an operation runs on it."""
    if isinstance(arg, Tensor):
        return f"{tuple(arg.shape)}{arg.dtype}{arg.stride()}"
    return arg


def zeros_like_it(arg: Any) -> Any:
    """Return real zeros laid out as a fake tensor, and anything else as it is."""
    if not isinstance(arg, Tensor):
        return arg
    elements = arg.untyped_storage().nbytes() // arg.element_size()
    flat = torch.zeros(elements, dtype=arg.dtype)
    return flat.as_strided(arg.shape, arg.stride(), arg.storage_offset())


@contextmanager
def imitate_cpu() -> Iterator[None]:
    """Imitate the CPU's math attention: it adds its mask in place, but not to fake tensors.

    Source: ``_scaled_dot_product_attention_math``, aten/src/ATen/native/transformers/attention.cpp.
    """
    attention = torch.ops.aten.scaled_dot_product_attention.default

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        token = _in_attention.set(True)
        try:
            out: Tensor = attention._op_dk(_COMPOSITE, *args, **kwargs)
        finally:
            _in_attention.reset(token)
        return out

    library = Library("aten", "IMPL")
    try:
        library.impl("scaled_dot_product_attention", watched, "AutogradCPU")
        yield
    finally:
        library._destroy()
