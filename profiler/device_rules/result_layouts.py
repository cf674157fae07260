"""Layouts of results that fake tensors get wrong.

A few operators have a fake kernel whose result has other strides than that of the real one. Its
size is the same, but later operations see the strides: a convolution, for example, copies a
gradient that is not in the memory format of its input. ``with_real_layout`` gives such results the
strides of the real kernel. Each was compared with the real one on a CPU, for contiguous, channels
last, transposed and permuted arguments; on CUDA the rules are those of the sources.

    normalisations      contiguous, or the memory format of the input (layer_norm_kernel.cpp,
                        group_norm.cpp, Normalization.cpp, cuda/group_norm_kernel.cu)
    gradients of        strides of the gradient before those of the input: the gradient is the
    activations         first operand (Activation.cpp)
    roll, shuffle       the memory format of the input on a CPU, contiguous on CUDA
                        (TensorTransformations.cpp, ChanelShuffle.cpp)
    glu                 its gradient is contiguous (GatedLinearUnit.cpp)
    views               the stride of a dimension of size 1 is the next one's stride times its size;
                        fake tensors give it that of a contiguous tensor (computeStride,
                        TensorUtils.cpp)
    x + 1, zeros_like   all strides of x if it is dense (TensorIterator.cpp, TensorFactories.cpp);
    and alike           fake tensors compute those of dimensions of size 1 anew

Strides of dimensions of size 1 matter at batch size 1: a feature map that is a view of transposed
tokens is then not in the format channels last to PyTorch, so that convolutions copy it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import compute_elementwise_output_strides, suggest_memory_format

from profiler.device_rules.cuda_dispatch import is_imitating_cuda
from profiler.operations import Arguments, Operation, only_views

_Strides = tuple[int, ...]


def with_real_layout(
    func: Operation, args: Arguments, out: Any, kwargs: Mapping[str, object] | None = None
) -> Any:
    """Return the results of an operation with the strides that they have on the device.

    Args:
        func: the operation.
        args: its arguments by position.
        out: its results as fake tensors; a tuple, or one tensor.
        kwargs: its other arguments. No rule holds for a memory format among them.
    """
    rule = _RULES.get(func)
    if rule is None:
        return out
    if kwargs and kwargs.get("memory_format") not in (None, torch.preserve_format):
        return out
    first = out[0] if isinstance(out, tuple | list) else out
    if not isinstance(first, Tensor) or first.stride() == (strides := rule(args, first)):
        return out
    if only_views(func):
        return args[0].as_strided(first.shape, strides, args[0].storage_offset())
    real = torch.empty_strided(first.shape, strides, dtype=first.dtype, device=first.device)
    return (real, *out[1:]) if isinstance(out, tuple | list) else real


@lru_cache(maxsize=1 << 14)
def _strides(shape: torch.Size, memory_format: torch.memory_format) -> _Strides:
    return torch.empty(shape, device="meta").to(memory_format=memory_format).stride()


def _contiguous(args: Arguments, out: Tensor) -> _Strides:
    return _strides(out.shape, torch.contiguous_format)


def _as_suggested(position: int) -> Callable[[Arguments, Tensor], _Strides]:
    """Return the rule of the memory format of an argument: channels last or contiguous."""

    def rule(args: Arguments, out: Tensor) -> _Strides:
        return _strides(out.shape, suggest_memory_format(args[position]))

    return rule


def _on_cpu(rule: Callable[[Arguments, Tensor], _Strides]) -> Callable[..., _Strides]:
    """Return a rule for a CPU; on CUDA the result is contiguous."""

    def either(args: Arguments, out: Tensor) -> _Strides:
        return (_contiguous if is_imitating_cuda() else rule)(args, out)

    return either


def _elementwise(args: Arguments, out: Tensor) -> _Strides:
    return tuple(compute_elementwise_output_strides(args[0], args[1]))


def _normalised(position: int) -> Callable[[Arguments, Tensor], _Strides]:
    """Return the rule of batch norm: a map that has a memory format keeps it.

    Its kernels for a CPU test whether it has, which ignores dimensions of size 1. The backward does
    so if the gradient, its first argument, has the strides of the map.
    """
    suggested = _as_suggested(position)

    def rule(args: Arguments, out: Tensor) -> _Strides:
        image = args[position]
        is_alike = args[0].stride() == image.stride()
        if 1 in image.shape and is_alike and not is_imitating_cuda():
            if image.is_contiguous():
                return _contiguous(args, out)
            if image.dim() == 4 and image.is_contiguous(memory_format=torch.channels_last):
                return _strides(out.shape, torch.channels_last)
        return suggested(args, out)

    return rule


def _as_view(args: Arguments, out: Tensor) -> _Strides:
    source = args[0]
    if 1 not in out.shape and 1 not in source.shape:
        return out.stride()
    return _view_strides(source.shape, source.stride(), out.shape)


@lru_cache(maxsize=1 << 14)
def _view_strides(shape: torch.Size, stride: _Strides, target: torch.Size) -> _Strides:
    with torch._C._DisableTorchDispatch():  # the kernel for meta tensors has the real rule
        return torch.empty_strided(shape, stride, device="meta").view(target).stride()


def _as_first(args: Arguments, out: Tensor) -> _Strides:
    """Return the strides of the first argument if it is dense and the others are numbers."""
    first = args[0]
    if 1 not in out.shape or not isinstance(first, Tensor) or first.shape != out.shape:
        return out.stride()
    if any(isinstance(arg, Tensor) and arg.dim() for arg in args[1:]):
        return out.stride()
    return first.stride() if _aten.is_non_overlapping_and_dense(first) else out.stride()


_aten = torch.ops.aten
_RULES: dict[Operation, Callable[[Arguments, Tensor], _Strides]] = {
    _aten.native_layer_norm_backward.default: _contiguous,
    _aten.native_group_norm.default: _on_cpu(_as_suggested(0)),
    _aten.native_group_norm_backward.default: _on_cpu(_as_suggested(1)),
    _aten.native_batch_norm.default: _normalised(0),
    _aten.native_batch_norm_backward.default: _normalised(1),
    _aten.hardswish_backward.default: _elementwise,
    _aten.hardtanh_backward.default: _elementwise,
    _aten.hardsigmoid_backward.default: _elementwise,
    _aten.glu_backward.default: _contiguous,
    _aten.roll.default: _on_cpu(_as_suggested(0)),
    _aten.channel_shuffle.default: _on_cpu(_as_suggested(0)),
    _aten.view.default: _as_view,
    _aten._unsafe_view.default: _as_view,
    _aten.add.Tensor: _as_first,
    _aten.sub.Tensor: _as_first,
    _aten.mul.Tensor: _as_first,
    _aten.div.Tensor: _as_first,
    _aten.hardtanh.default: _as_first,
    _aten.flip.default: _as_first,
    _aten.empty_like.default: _as_first,
    _aten.zeros_like.default: _as_first,
    _aten.ones_like.default: _as_first,
    _aten.full_like.default: _as_first,
    _aten.rand_like.default: _as_first,
    _aten.randn_like.default: _as_first,
}
