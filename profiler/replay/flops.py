"""FLOPs of a dispatched operation, by two rules.

*Correct* (the default): matmuls, convolutions and attention, a multiply-add counted as 2.
PyTorch's own formulas are used, except for the convolution's backward: until
github.com/pytorch/pytorch/pull/183405 the weight gradient left the groups out, which makes a
depthwise backward look up to 20 times as expensive as it is.

*As published*: the rule of the counter behind arXiv 2507.23536, to reproduce its numbers
(`published_flops`). Its errors are kept: it ignores groups in the weight gradient, counts a bias in
every convolution's backward, and reads the running mean's ``requires_grad`` for BatchNorm's scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverloadPacket
from torch.utils.flop_counter import flop_registry

from profiler.operations import Arguments, Operation

_CONVOLUTION_BACKWARD = torch.ops.aten.convolution_backward

_AS_ON_CUDA = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        torch.ops.aten._scaled_dot_product_flash_attention
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        torch.ops.aten._scaled_dot_product_flash_attention_backward
    ),
}


def convolution_backward_flops(
    *,
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    output_shape: Sequence[int],
    transposed: bool,
    wanted: Sequence[bool],
) -> int:
    """Return the FLOPs of a convolution's backward.

    The gradients of input and weight each cost as much as the forward:
    2 * batch * positions * weights. ``weight_shape`` already has the input channels of a single
    group, so groups need no factor. The bias gradient is a sum and is not counted.

    Args:
        input_shape: [batch, in_channels, *spatial].
        weight_shape: [out_channels, in_channels / groups, *kernel].
        output_shape: [batch, out_channels, *spatial].
        transposed: whether the convolution is transposed.
        wanted: whether the input's, weight's and bias's gradients are computed.
    """
    spatial = input_shape[2:] if transposed else output_shape[2:]
    one = 2 * output_shape[0] * prod(weight_shape) * prod(spatial)
    return one * (int(wanted[0]) + int(wanted[1]))


@cache
def _formula(packet: OpOverloadPacket) -> Callable[..., int] | None:
    if packet is _CONVOLUTION_BACKWARD:
        return None
    formula: Callable[..., int] | None = flop_registry.get(packet)
    if formula is None and packet in _AS_ON_CUDA:  # 2.11 has none for the CPU's, 2.15 has
        formula = flop_registry.get(_AS_ON_CUDA[packet])
    return formula


def operation_flops(
    func: Operation,
    args: Arguments,
    kwargs: dict[str, object],
    out: object,
) -> int:
    """Return the FLOPs of a dispatched aten operation; 0 for elementwise work."""
    packet = func._overloadpacket
    if packet is _CONVOLUTION_BACKWARD:
        grad, image, weight = args[0], args[1], args[2]
        return convolution_backward_flops(
            input_shape=image.shape,
            weight_shape=weight.shape,
            output_shape=grad.shape,
            transposed=args[7],
            wanted=args[10],
        )
    formula = _formula(packet)
    if formula is None:
        return 0
    if packet.__name__.startswith("_scaled_dot_product"):
        args = _with_equal_heads(args, first=int(packet.__name__.endswith("_backward")))
    return int(formula(*args, **kwargs, out_val=out))


def _with_equal_heads(args: Arguments, *, first: int) -> Arguments:
    """Return the arguments of attention with as many heads of keys and values as of queries.

    The products are those of the query's heads, but PyTorch's formulas did not take groups of them
    (seen in 2.10). A formula takes shapes as well as tensors.

    Args:
        args: the arguments of the operation.
        first: position of the query.
    """
    query, key, value = args[first : first + 3]
    if query.shape[1] == key.shape[1]:
        return args
    shapes = ((t.shape[0], query.shape[1], *t.shape[2:]) for t in (key, value))
    return (*args[: first + 1], *shapes, *args[first + 3 :])


def elementwise_flops(out: object) -> int:
    """Return one FLOP per element written, the rule for an optimizer's update."""
    if isinstance(out, Tensor):
        return out.numel() if out.is_floating_point() else 0
    if isinstance(out, tuple | list):
        return sum(elementwise_flops(item) for item in out)
    return 0


# --- as published ---------------------------------------------------------------------------------


def published_flops(func: Operation, args: Arguments, out: object) -> int:
    """Return the FLOPs that the counter of arXiv 2507.23536 counts; 0 for operations it skips.

    Source: model_profiler/profilers/flops_counter/flop_counter.py of
    github.com/gslama12/pytorch-model-profiler at 26c8e01. The optimizer's operations are counted
    by the same rule.
    """
    rule = _PUBLISHED.get(func._schema.name.removeprefix("aten::"))
    return 0 if rule is None else rule(args, out)


def _published_matmul(args: Arguments, out: object) -> int:
    rows, inner, columns = args[0].shape[0], args[0].shape[-1], args[1].shape[-1]
    return int(2 * rows * inner * columns - rows * columns)


def _published_addmm(args: Arguments, out: object) -> int:
    return _published_matmul(args[1:3], out) + int(args[0].shape[0] * args[1].shape[-1])


def _published_bmm(args: Arguments, out: object) -> int:
    return int(2 * args[0].numel() * args[1].shape[-1])


def _published_convolution(args: Arguments, out: Tensor) -> int:
    image, weight, bias, transposed = args[0], args[1], args[2], args[6]
    spatial = (image if transposed else out).shape[2:]
    products = image.shape[0] * weight.numel() * prod(spatial)
    return int(2 * (products + (out.numel() if bias is not None else 0)))


def _published_convolution_backward(args: Arguments, out: object) -> int:
    grad, image, weight = args[:3]
    transposed, wanted = args[7], args[10]
    total = 0
    if wanted[0]:
        spatial = (image if transposed else grad).shape[2:]
        total += grad.shape[0] * weight.numel() * prod(spatial) + image.numel()
    if wanted[1]:
        # a convolution of the image by the gradient, every channel with every other
        spatial = (image if transposed else weight).shape[2:]
        total += image.shape[1] * grad.numel() * prod(spatial)
        total += image.shape[1] * weight.shape[1] * prod(weight.shape[2:])
    return int(2 * total)


def _published_norm(args: Arguments, out: object) -> int:
    image, weight, bias = args[:3]
    learned = sum(t is not None and t.requires_grad for t in (weight, bias))
    return int((6 + learned) * image.numel() + 2 * image.shape[1])


def _published_norm_backward(args: Arguments, out: object) -> int:
    image, weight = args[0], args[2]
    one, channels = image.numel(), int(image.shape[1])
    learned = weight is not None and weight.requires_grad
    return int(4 * one + channels + (one + channels if learned else 0))


def _published_add(args: Arguments, out: object) -> int:
    return int(2 * args[0].numel())


def _published_mul(args: Arguments, out: Tensor) -> int:
    return out.numel()


_PUBLISHED: dict[str, Callable[[Arguments, Any], int]] = {
    "mm": _published_matmul,
    "addmm": _published_addmm,
    "bmm": _published_bmm,
    "convolution": _published_convolution,
    "convolution_backward": _published_convolution_backward,
    "native_batch_norm": _published_norm,
    "native_batch_norm_backward": _published_norm_backward,
    "add": _published_add,
    "add_": _published_add,
    "mul": _published_mul,
    "mul_": _published_mul,
}
