"""CUDA's operators above autograd, imitated while a step is replayed on fake CPU tensors.

An operator that is a composition on one device and one fused kernel on the other saves other
tensors for backward. So during the replay of a CUDA step, the dispatcher's AutogradCPU key gets
CUDA's implementation of:

    attention  profiler/device_rules/cuda_attention.py
    dropout    one fused kernel that saves a byte mask; the CPU saves a mask in the input's
               precision. Source: ``is_fused_kernel_acceptable``,
               aten/src/ATen/native/Dropout.cpp
    rms_norm   one fused kernel that saves one fp32 number a row; the CPU composes it of five
               operations. Source: ``rms_norm_symint``, aten/src/ATen/native/layer_norm.cpp
    autocast   profiler/device_rules/cuda_autocast.py

Other operators save the same on both: layer_norm and group_norm (mean and reciprocal standard
deviation, fp32), gelu (its input), max_pool (int64 indices), convolution (its inputs). Batch norm
uses cuDNN on CUDA. In the layout that models have here (NCHW) cuDNN saves the same tensors as the
native kernel, because its reserve space is for NHWC only (``getCudnnBatchNormMode``,
aten/src/ATen/native/cudnn/BatchNorm.cpp).

Memory that kernels allocate and free inside one operation: profiler/device_rules/cuda_scratch.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from profiler.device_rules.cuda_attention import scaled_dot_product_attention
from profiler.device_rules.cuda_autocast import imitate_cuda_autocast
from profiler.device_rules.linear_bias import mark_linear
from profiler.devices.table import Capability

_imitating: ContextVar[bool] = ContextVar("imitating", default=False)


def is_imitating_cuda() -> bool:
    """Return whether a step for a GPU is being replayed on fake CPU tensors."""
    return _imitating.get()


@contextmanager
def standing_for_cuda() -> Iterator[None]:
    """Let tensors on the CPU stand for tensors on a GPU."""
    token = _imitating.set(True)
    try:
        yield
    finally:
        _imitating.reset(token)


def runs_on_cpu(tensor: Tensor) -> bool:
    """Return whether a tensor is on the CPU and does not stand for one on a GPU."""
    return tensor.device.type == "cpu" and not _imitating.get()


@contextmanager
def imitate_cuda(capability: Capability) -> Iterator[None]:
    """Give attention, dropout, rms_norm and autocast CUDA's implementations.

    Args:
        capability: compute capability of the device, which decides the kernel of attention.
    """

    def attention(*args: Any, **kwargs: Any) -> Tensor:
        return scaled_dot_product_attention(*args, capability=capability, **kwargs)

    library = Library("aten", "IMPL")
    try:
        library.impl("scaled_dot_product_attention", attention, "AutogradCPU")
        library.impl("dropout", _dropout, "AutogradCPU")
        library.impl("rms_norm", _rms_norm, "AutogradCPU")
        mark_linear(library)
        imitate_cuda_autocast(library)
        with standing_for_cuda():
            yield
    finally:
        library._destroy()


def _dropout(image: Tensor, p: float, train: bool) -> Tensor:
    if p == 0 or not train or image.numel() == 0:
        return image
    if p == 1:
        return image * torch.zeros_like(image)
    dropped: Tensor = torch.ops.aten.native_dropout(image, p, True)[0]
    return dropped


def _rms_norm(
    image: Tensor, shape: list[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    normed: Tensor
    if weight is not None and weight.dtype != image.dtype:  # CUDA composes it as well
        normed = torch.ops.aten.rms_norm.default.decompose(image, shape, weight, eps)
    else:
        normed = _FusedRmsNorm.apply(image, weight, len(shape))
    return normed


class _FusedRmsNorm(torch.autograd.Function):
    """The fused rms_norm's allocations and saved tensors; it computes no values.

    Source: ``rms_norm_cuda`` and its formula in tools/autograd/derivatives.yaml
    (``_fused_rms_norm``).
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor | None, dims: int) -> Tensor:
        rows = image.shape[:-dims] + (1,) * dims
        normed = torch.empty_like(image)
        ctx.save_for_backward(image, weight, image.new_empty(rows, dtype=torch.float32))
        return normed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        image, weight, _ = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            torch.empty_like(image) if wanted[0] else None,
            torch.empty_like(weight) if wanted[1] else None,
            None,
        )
