"""Which torch functions are cheap to recompute, and how each is called again.

    cheap           normalisation, activation functions, arithmetic, dropout, copies and sums
    multiplying     matmuls, convolutions, attention, scans: recomputed only if a placement names
                    them (``cheap_ops.py``)

Every other function runs once and keeps its saved tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from profiler.checkpointing.function_call import FunctionCall
from profiler.checkpointing.recompute import RecomputableFunction

NORMS = {"layer_norm", "rms_norm", "group_norm", "batch_norm"}

ACTIVATIONS = {
    *("celu", "elu", "exp", "gelu", "glu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu"),
    *("mish", "relu", "relu6", "rsqrt", "selu", "sigmoid", "silu", "softmax", "softplus"),
    *("softsign", "tanh"),
}

ARITHMETIC = {"mul", "__mul__", "__rmul__", "div", "__truediv__", "pow", "__pow__", "square"}

DROPOUTS = {"alpha_dropout", "dropout", "dropout1d", "dropout2d", "dropout3d"}

COPIES_AND_SUMS = {
    *("add", "__add__", "__radd__", "sub", "__sub__", "__rsub__", "neg", "__neg__"),
    *("to", "float", "half", "bfloat16", "type_as", "contiguous", "reshape", "flatten", "clone"),
    *("cat", "concat", "stack", "flip", "roll", "pad"),
}

CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}

ATTENTION, SCAN = "scaled_dot_product_attention", "selective_scan"

PRODUCTS = {"matmul", "__matmul__", "bmm"}

CHEAP = NORMS | ACTIVATIONS | ARITHMETIC | DROPOUTS | COPIES_AND_SUMS

MULTIPLYING = CONVOLUTIONS | PRODUCTS | {"linear", ATTENTION, SCAN}

SAVE_NO_INPUT = COPIES_AND_SUMS | DROPOUTS | {"exp", "relu", "rsqrt", "sigmoid", "softmax", "tanh"}
"""Functions that save a mask, their output or nothing. Dropping their output frees memory only if
something else keeps their inputs."""

_OUTPUT_SERVES_BACKWARD = {"hardtanh", "relu6"}
"""Their backward needs where the input was within bounds: exactly where the output is."""

_BATCH_NORM_ARGUMENTS = tuple(inspect.signature(nn.functional.batch_norm).parameters)

_CONVOLUTION_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


@cache
def recomputable_function(function: Callable[..., Any]) -> RecomputableFunction | None:
    """Return how to recompute a torch function, None for one that is neither list's."""
    name = getattr(function, "__name__", "")
    # F.batch_norm calls torch.batch_norm: one call is enough
    if name not in CHEAP | MULTIPLYING or function is torch.batch_norm:
        return None
    return RecomputableFunction(
        name=name,
        run=_batch_norm_again if name == "batch_norm" else function,
        stochastic=name in DROPOUTS or name == ATTENTION,
        output_serves_backward=name in _OUTPUT_SERVES_BACKWARD,
    )


def is_depthwise_call(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Return True if a call of ``F.conv1d``, ``F.conv2d`` or ``F.conv3d`` is depthwise."""
    named = dict(zip(_CONVOLUTION_ARGUMENTS, args, strict=False)) | kwargs
    weight: Tensor = named["weight"]  # [outputs, inputs / groups, ...]
    return named.get("groups", 1) > 1 and weight.shape[1] == 1


# --- BatchNorm ------------------------------------------------------------------------------------


def _batch_norm_again(*args: Any, **kwargs: Any) -> Tensor:
    """Call ``F.batch_norm`` without updating the running statistics."""
    named = dict(zip(_BATCH_NORM_ARGUMENTS, args, strict=False)) | kwargs | {"momentum": 0.0}
    return nn.functional.batch_norm(**named)


def _batch_norm_from_statistics(
    statistics: list[Tensor | None], *args: Any, **kwargs: Any
) -> Tensor | None:
    """Return the output of a training-mode ``F.batch_norm`` from its saved batch statistics.

    The CPU kernel computes ``x * alpha + (bias - mean * alpha)`` in both modes, where alpha is the
    weight divided by the standard deviation (``batch_norm_cpu_collect_linear_and_constant_terms``
    in ``aten/src/ATen/native/cpu/batch_norm_kernel.cpp``). Called in evaluation mode with alpha as
    the weight and variance 1, it returns the same bits. This skips the collection of the
    statistics, which is most of the time (16 x 96 x 56 x 56 on one thread of a Xeon: 9.8 ms with,
    1.6 ms without).

    Args:
        statistics: saved mean and inverse standard deviation, both [channels].
        args: arguments of ``F.batch_norm``.
        kwargs: keyword arguments of ``F.batch_norm``.

    Returns:
        The output, or None if the call was not in training mode or not in float32.
    """
    named = dict(zip(_BATCH_NORM_ARGUMENTS, args, strict=False)) | kwargs
    weight: Tensor | None = named.get("weight")
    if not named.get("training") or len(statistics) != 2:
        return None
    mean, inverse_deviation = statistics
    if mean is None or inverse_deviation is None:
        return None
    if mean.dtype != torch.float32 or (weight is not None and weight.dtype != torch.float32):
        return None
    return nn.functional.batch_norm(
        named["input"],
        mean,
        torch.ones_like(mean),
        inverse_deviation if weight is None else inverse_deviation * weight.detach(),
        named.get("bias"),
        training=False,
        eps=1e-30,  # added to 1 it is 1, and older versions of PyTorch refuse 0
    ).detach()


BATCH_NORM_ON_CPU = RecomputableFunction(
    name="batch_norm",
    run=_batch_norm_again,
    stochastic=False,
    output_from_saved=_batch_norm_from_statistics,
)

# --- autocast's copies of weights -----------------------------------------------------------------

_CAST_WEIGHT = RecomputableFunction(name="cast of a weight", run=torch.Tensor.to, stochastic=False)


def weight_cast_call(weight: Tensor, dtype: torch.dtype) -> FunctionCall:
    """Return the call that casts a weight; the weight itself is kept as its input."""
    return FunctionCall(_CAST_WEIGHT, (weight, dtype), {}, store_input=lambda kept: kept)


def weight_cast(weight: Tensor) -> tuple[Tensor, FunctionCall | None]:
    """Cast a weight as autocast would.

    Returns:
        The copy and the call that casts again, or the weight and None if autocast would not cast.
    """
    device_type = weight.device.type
    if weight.dtype != torch.float32 or not torch.is_autocast_enabled(device_type):
        return weight, None
    dtype = torch.get_autocast_dtype(device_type)
    return weight.to(dtype), weight_cast_call(weight, dtype)
