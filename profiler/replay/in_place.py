"""In-place operations that fake tensors run differently from real ones, or need not run at all.

*Gradient sums*. When a tensor is used twice, autograd adds its two gradients. On real tensors it
adds in place if nothing else references the first gradient; on fake tensors it never does
(``can_accumulate_inplace``, torch/csrc/autograd/input_buffer.cpp). ``gradient_added_to`` finds the
gradient that a real run would reuse.

*Optimizer updates* are hundreds of elementwise in-place operations. They change no size, so a
replay skips them (``run_update``).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from profiler.operations import Arguments, Operation
from profiler.replay.known_results import run_known

ADD = torch.ops.aten.add.Tensor

_is_dense = torch.ops.aten.is_non_overlapping_and_dense

_FILLS = {"zero_", "fill_", "copy_"}


def run_update(func: OpOverload, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Any:
    """Run an operation of the optimizer's update, or skip it where it changes no size.

    The step counters are scalars and stay real tensors: the update reads their values. Operations
    on them bypass the dispatch mode.
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
    return run_known(func, args, kwargs)


@cache
def _is_arithmetic_in_place(func: OpOverload) -> bool:
    name = func._schema.name.partition("::")[2]
    if not name.endswith("_"):
        return False
    return name.startswith("_foreach_") or torch.Tag.pointwise in func.tags or name in _FILLS


def gradient_added_to(args: Arguments) -> Tensor | None:
    """Return the gradient in which a real run would store a sum, None for a new storage.

    Args:
        args: arguments of an addition during backward.
    """
    if torch.is_grad_enabled() or not all(isinstance(a, FakeTensor) for a in args):
        return None
    gradient = args[0]  # autograd never reuses the one that it adds
    is_unshared = _references(gradient) == references_of_unshared_gradient()
    return cast("Tensor", gradient) if is_unshared and _is_dense(gradient) else None


def _references(tensor: Tensor) -> tuple[int, int]:
    """Return the reference counts of a tensor and of its storage."""
    use_count = getattr(tensor, "_use_count", int)  # absent in older versions of PyTorch
    return use_count(), torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)


@cache
def references_of_unshared_gradient() -> tuple[int, int]:
    """Return the reference counts of a gradient that only autograd holds when it adds another.

    They depend on the version of PyTorch, so they are read once from a small graph. The first call
    runs autograd: it must not happen inside an operation under a dispatch mode.
    """
    seen: list[tuple[int, int]] = []

    class CountReferences(TorchDispatchMode):
        def __torch_dispatch__(
            self,
            func: Operation,
            types: object,
            args: Arguments = (),
            kwargs: Mapping[str, object] | None = None,
        ) -> object:
            if func is ADD and not torch.is_grad_enabled():
                seen.append(_references(args[0]))
            return func(*args, **(kwargs or {}))

    with FakeTensorMode(), torch.enable_grad():
        leaf = torch.empty(2, requires_grad=True)
        used_twice = leaf * 2
        out = used_twice.sin() * used_twice.cos()
        with CountReferences():  # type: ignore[no-untyped-call]
            torch.autograd.grad(out.sum(), leaf)
    return seen[0]
