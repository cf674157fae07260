"""FLOPs of one dispatched operation: matmuls, convolutions and attention (a multiply-add is 2).

PyTorch's own formulas are used, except for the convolution's backward: until
github.com/pytorch/pytorch/pull/183405 the weight gradient left the groups out, which makes a
depthwise backward look up to 20 times as expensive as it is (facts/seeds.md 4.4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

_CONVOLUTION_BACKWARD = torch.ops.aten.convolution_backward


def convolution_backward_flops(
    *,
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    output_shape: Sequence[int],
    transposed: bool,
    wanted: Sequence[bool],
    ignore_groups: bool = False,
    groups: int = 1,
) -> int:
    """Return the FLOPs of a convolution's backward.

    Each of the input's and the weight's gradient costs as much as the forward:
    2 * batch * positions * weights, where ``weight_shape`` already has the input channels of one
    group. The bias gradient is a sum and not counted.

    Args:
        input_shape: [batch, in_channels, *spatial].
        weight_shape: [out_channels, in_channels / groups, *kernel].
        output_shape: [batch, out_channels, *spatial].
        transposed: whether the convolution is.
        wanted: whether the input's, weight's and bias's gradients are computed.
        ignore_groups: count the weight gradient as if there were no groups, as arXiv 2507.23536
            did.
        groups: of the convolution.
    """
    spatial = input_shape[2:] if transposed else output_shape[2:]
    one = 2 * output_shape[0] * prod(weight_shape) * prod(spatial)
    weight = one * groups if ignore_groups else one
    return one * int(wanted[0]) + weight * int(wanted[1])


@cache
def _formula(packet: Any) -> Callable[..., int] | None:
    if packet is _CONVOLUTION_BACKWARD:
        return None
    formula: Callable[..., int] | None = flop_registry.get(packet)
    return formula


def operation_flops(
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    out: Any,
    *,
    as_published: bool = False,
) -> int:
    """Return the FLOPs of one dispatched aten operation; 0 for elementwise work."""
    packet = func._overloadpacket
    if packet is _CONVOLUTION_BACKWARD:
        grad, image, weight = args[0], args[1], args[2]
        return convolution_backward_flops(
            input_shape=image.shape,
            weight_shape=weight.shape,
            output_shape=grad.shape,
            transposed=args[7],
            wanted=args[10],
            groups=args[9],
            ignore_groups=as_published,
        )
    formula = _formula(packet)
    if formula is None:
        return 0
    return int(formula(*args, **kwargs, out_val=out))


def elementwise_flops(out: Any) -> int:
    """Return one FLOP per element written: how an optimizer's update is counted."""
    if isinstance(out, Tensor):
        return out.numel() if out.is_floating_point() else 0
    if isinstance(out, tuple | list):
        return sum(elementwise_flops(item) for item in out)
    return 0
