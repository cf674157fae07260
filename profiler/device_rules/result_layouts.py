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
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import compute_elementwise_output_strides, suggest_memory_format

from profiler.device_rules.cuda_dispatch import is_imitating_cuda
from profiler.operations import Arguments, Operation

_Strides = tuple[int, ...]


def with_real_layout(func: Operation, args: Arguments, out: Any) -> Any:
    """Return the results of an operation with the strides that they have on the device.

    Args:
        func: the operation.
        args: its arguments.
        out: its results as fake tensors; a tuple, or one tensor.
    """
    rule = _RULES.get(func)
    if rule is None:
        return out
    first = out[0] if isinstance(out, tuple | list) else out
    if not isinstance(first, Tensor) or first.stride() == (strides := rule(args, first)):
        return out
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


_aten = torch.ops.aten
_RULES: dict[Operation, Callable[[Arguments, Tensor], _Strides]] = {
    _aten.native_layer_norm_backward.default: _contiguous,
    _aten.native_group_norm.default: _on_cpu(_as_suggested(0)),
    _aten.native_group_norm_backward.default: _on_cpu(_as_suggested(1)),
    _aten.native_batch_norm.default: _as_suggested(0),
    _aten.native_batch_norm_backward.default: _as_suggested(1),
    _aten.hardswish_backward.default: _elementwise,
    _aten.hardtanh_backward.default: _elementwise,
    _aten.hardsigmoid_backward.default: _elementwise,
    _aten.glu_backward.default: _contiguous,
    _aten.roll.default: _on_cpu(_as_suggested(0)),
    _aten.channel_shuffle.default: _on_cpu(_as_suggested(0)),
}
