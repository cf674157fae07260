"""Kind, flags and dimensions of the kernel that an operation runs on a GPU.

FLOPs and bytes do not decide a kernel's time alone: a matrix product with an inner dimension of 24,
a depthwise convolution and a copy of a transposed tensor reach different parts of the peak rates.
``kernel_shape`` reads these facts from an operation's arguments. ``profiler.timing`` has the
rates.

The name is a kind and flags, separated by blanks. The meaning of the six dimensions:

    kind                        dimensions
    matmul, batched_matmul      batch, rows, columns, inner, 1, rows
    convolution[_backward]      groups, output positions, output channels per group, input channels
                                per group, kernel elements, input positions (of all images)
    attention[_backward]        batch * heads, queries, keys, head size, 1, queries
    batch_norm[_backward]       images, channels, positions of an image
    softmax, layer_norm, ...    rows, values of a row
    reduction                   values read, values written
    others                      values of the largest tensor

Each dimension is a monomial in batch size and rank, as parametric profiles need it
(``profiler.prediction.parametric``).

Flags: ``half`` for 16-bit operands, ``strided`` for an operand that is neither dense nor broadcast;
of convolutions ``dense``, ``pointwise``, ``grouped`` or ``depthwise``, ``kHxW`` and ``sN`` (kernel
size and stride), ``bias``, and ``no_input`` and ``no_weight`` for a gradient that is not computed;
``nhwc`` for images whose channels are the innermost dimension (convolutions and batch norms);
``given`` for a batch norm by given statistics.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from profiler.operations import Arguments, Operation

DIMENSIONS = 6
"""Dimensions of a kernel shape; unused ones are 0."""


class KernelShape(NamedTuple):
    """Kernel of an operation.

    Attributes:
        name: kind and flags, separated by blanks.
        dims: dimensions, whose meaning depends on the kind.
    """

    name: str
    dims: tuple[int, ...]


UNKNOWN = KernelShape("other", (0,) * DIMENSIONS)

_MATMULS = {"aten::mm": 0, "aten::addmm": 1, "aten::bmm": 0, "aten::baddbmm": 1}
"""Position of the left operand."""

_KINDS = {
    "aten::_softmax": "softmax",
    "aten::_log_softmax": "softmax",
    "aten::_softmax_backward_data": "softmax_backward",
    "aten::_log_softmax_backward_data": "softmax_backward",
    "aten::native_layer_norm": "layer_norm",
    "aten::native_layer_norm_backward": "layer_norm_backward",
    "aten::native_group_norm": "group_norm",
    "aten::native_group_norm_backward": "group_norm_backward",
    "aten::cat": "cat",
    "aten::stack": "cat",
    "aten::constant_pad_nd": "cat",
    "aten::slice_backward": "cat",
    "aten::select_backward": "cat",
    "aten::zero_": "fill",
    "aten::fill_": "fill",
    "aten::zeros": "fill",
    "aten::zeros_like": "fill",
    "aten::ones_like": "fill",
    "aten::new_zeros": "fill",
    "aten::full": "fill",
}

_ROW_KINDS = ("softmax", "softmax_backward", "layer_norm", "layer_norm_backward")

_REDUCTIONS = ("aten::sum", "aten::mean", "aten::amax", "aten::var", "aten::linalg_vector_norm")

_GATHERS = ("aten::index", "aten::embedding", "aten::gather", "aten::scatter", "aten::roll")

_ACTIVATIONS = ("silu", "gelu", "hardswish", "sigmoid", "mish", "hardtanh", "leaky", "elu", "tanh")

_POOLS = ("pool2d", "pool3d", "upsample")


def kernel_shape(func: Operation, args: Arguments, out: object) -> KernelShape:
    """Return the kernel shape of an operation.

    Args:
        func: the operation.
        args: its positional arguments.
        out: its result.
    """
    name: str = func._schema.name
    if name in _MATMULS:
        return _matmul_shape(args[_MATMULS[name] :])
    if name == "aten::convolution":
        return _convolution_shape(
            "convolution", args[0], args[1], out, args[3], bias=args[2] is not None
        )
    if name == "aten::convolution_backward":
        return _convolution_backward_shape(args)
    if "scaled_dot_product" in name:
        return _attention_shape(name, args)
    return _memory_bound(name, args, out)


def _memory_bound(name: str, args: Arguments, out: object) -> KernelShape:
    """Return the kernel shape of an operation without matrix products."""
    tensors = list(_tensors_in((args, out)))
    if not tensors:
        return UNKNOWN
    if "batch_norm" in name:
        image = args[1] if "backward" in name else args[0]
        kind = "batch_norm_backward" if "backward" in name else "batch_norm"
        positions = prod(image.shape[2:])
        flags = [*_given_flags(name, args), *_layout_flags(image)]
        named = " ".join([_with_precision(kind, image), *flags])
        return _padded_shape(named, image.shape[0], image.shape[1], positions)
    kind = _KINDS.get(name) or _kind_by_part(name)
    largest = max(tensors, key=Tensor.numel)
    named = _with_precision(kind, largest)
    if kind in _ROW_KINDS:
        columns = max(largest.shape[-1] if largest.dim() else 1, 1)
        return _padded_shape(named, largest.numel() // columns, columns)
    if kind == "reduction":
        written = next((t.numel() for t in _tensors_in((out,))), 1)
        return _padded_shape(named, largest.numel(), written)
    strided = any(_is_strided(tensor) for tensor in tensors)
    return _padded_shape(f"{named} strided" if strided else named, largest.numel())


def _kind_by_part(name: str) -> str:
    if name.startswith(_REDUCTIONS):
        return "reduction"
    if name.startswith(_GATHERS):
        return "gather"
    if any(part in name for part in _POOLS):
        return "pool_backward" if "backward" in name else "pool"
    if name.startswith(("aten::_foreach", "aten::_fused")):
        return "foreach"
    if name in {"aten::_to_copy", "aten::copy_", "aten::clone", "aten::contiguous"}:
        return "copy"
    return elementwise_kind(name)


def elementwise_kind(name: str) -> str:
    """Return the kind of an elementwise operation from its schema name."""
    plain = name.removeprefix("aten::").rstrip("_")
    if plain in {"add", "mul"}:
        return plain
    if plain in {"relu", "threshold_backward"}:
        return "relu"
    return "activation" if any(part in plain for part in _ACTIVATIONS) else "elementwise"


def _padded_shape(name: str, *dims: int) -> KernelShape:
    return KernelShape(name, tuple(map(int, dims)) + (0,) * (DIMENSIONS - len(dims)))


def _with_precision(kind: str, tensor: Tensor) -> str:
    return f"{kind} half" if tensor.element_size() == 2 else kind


def _matmul_shape(operands: Arguments) -> KernelShape:
    left, right = operands[0], operands[1]
    batch = left.shape[0] if left.dim() == 3 else 1
    rows, inner, columns = left.shape[-2], left.shape[-1], right.shape[-1]
    kind = "matmul" if left.dim() == 2 else "batched_matmul"
    return _padded_shape(_with_precision(kind, left), batch, rows, columns, inner, 1, rows)


def _convolution_shape(
    kind: str, image: Tensor, weight: Tensor, out: object, stride: Iterable[int], *, bias: bool
) -> KernelShape:
    assert isinstance(out, Tensor)
    kernel = weight.shape[2:]
    groups = max(image.shape[1] // max(weight.shape[1], 1), 1)
    flags = [
        _grouping(groups, weight),
        f"k{'x'.join(map(str, kernel))}",
        f"s{max(stride, default=1)}",
        *(["bias"] if bias else []),
        *_layout_flags(image),
    ]
    return _padded_shape(
        " ".join([_with_precision(kind, image), *flags]),
        groups,
        out.shape[0] * prod(out.shape[2:]),
        weight.shape[0] // groups,
        weight.shape[1],
        prod(kernel),
        image.shape[0] * prod(image.shape[2:]),
    )


def _grouping(groups: int, weight: Tensor) -> str:
    if groups > 1:
        alone = weight.shape[0] == groups and weight.shape[1] == 1
        return "depthwise" if alone else "grouped"
    return "pointwise" if prod(weight.shape[2:]) == 1 else "dense"


def _convolution_backward_shape(args: Arguments) -> KernelShape:
    grad, image, weight, _, stride = args[:5]
    wanted = args[10]
    shape = _convolution_shape(
        "convolution_backward", image, weight, grad, stride, bias=bool(wanted[2])
    )
    flags = ["" if wanted[0] else " no_input", "" if wanted[1] else " no_weight"]
    return KernelShape(shape.name + "".join(flags), shape.dims)


def _attention_shape(name: str, args: Arguments) -> KernelShape:
    backward = "backward" in name
    query, key = (args[1], args[2]) if backward else (args[0], args[1])
    kind = "attention_backward" if backward else "attention"
    batch = prod(query.shape[:-2])
    return _padded_shape(
        _with_precision(kind, query),
        batch,
        query.shape[-2],
        key.shape[-2],
        query.shape[-1],
        1,
        query.shape[-2],
    )


def _tensors_in(values: object) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _tensors_in(value)


_TRAINS = {"aten::native_batch_norm": 5, "aten::native_batch_norm_backward": 7}
"""Position of the argument that says whether a batch norm computes its statistics."""


def _given_flags(name: str, args: Arguments) -> list[str]:
    position = _TRAINS.get(name)
    return ["given"] if position is not None and not args[position] else []


def _layout_flags(image: Tensor) -> list[str]:
    """Return ``nhwc`` for a dense image batch with channels innermost, in no other order.

    With a single channel or position, the images are dense in both orders and count as neither.
    """
    if image.dim() != 4 or image.is_contiguous():
        return []
    return ["nhwc"] if image.is_contiguous(memory_format=torch.channels_last) else []


def _is_strided(tensor: Tensor) -> bool:
    """Return whether a tensor's values are not dense in memory and not a broadcast."""
    return not (tensor.is_contiguous() or 0 in tensor.stride())
