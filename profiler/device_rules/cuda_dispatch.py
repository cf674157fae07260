"""CUDA's choice of kernels, imitated while a step is replayed on fake CPU tensors.

What differs between the two devices above autograd, and so changes what is saved:

* attention. ``scaled_dot_product_attention`` picks a kernel by precision, compute capability, head
  size and mask; each saves other things (all save q, k, v and the output):

      flash      log-sum-exp [B, H, M] fp32, 16 bytes of random state
      efficient  log-sum-exp [B, H, M rounded up to 32] fp32, and the bias it was given, whose rows
                 are padded to a multiple of 8 if they are not aligned; its gradient is made at full
                 size [B, H, M, N rounded up to 16]
      cudnn      log-sum-exp [B, H, M, 1] fp32; first choice on compute capability 9 and 10
      math       the probabilities (and fp32 copies of q, k, v if they are half precision)

  Source: aten/src/ATen/native/transformers/cuda/sdp_utils.cpp (``select_sdp_backend``,
  ``can_use_*``, ``minimum_gemm_alignment``, ``check_prefer_cudnn_attention``), attention.cpp beside
  it (``scaled_dot_product_attention``, ``preprocess_mask``, ``pad_last_dim``) at
  github.com/pytorch/pytorch/tree/001f694aef6f; sizes from torch/_meta_registrations.py.
* dropout: one fused kernel with a mask of one byte an element; the CPU makes a mask in the input's
  precision. Source: ``is_fused_kernel_acceptable``, aten/src/ATen/native/Dropout.cpp.
* rms_norm: one fused kernel that saves one number a row; the CPU composes it of five operations.
  Source: ``rms_norm_symint``, aten/src/ATen/native/layer_norm.cpp.
* autocast (profiler/device_rules/cuda_autocast.py).

The same on both: layer_norm and group_norm (mean and 1/deviation, fp32), gelu (its input), max_pool
(int64 indices), convolution (its inputs). Batch norm goes to cuDNN on CUDA; in the layout used here
(NCHW) that saves what the native kernel saves, as its reserve space is for NHWC only
(``getCudnnBatchNormMode``, aten/src/ATen/native/cudnn/BatchNorm.cpp).

What kernels take and give back inside one operation is in profiler/device_rules/cuda_scratch.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.library import Library
from torch.nn import functional as F

from profiler.device_rules.cuda_autocast import imitate_cuda_autocast

Capability = tuple[int, int]

FLASH, EFFICIENT, CUDNN, MATH = "flash", "efficient", "cudnn", "math"

_aten = torch.ops.aten

_HALF = (torch.float16, torch.bfloat16)

_OLDEST_FLASH: Capability = (8, 0)

_BIAS_ALIGNMENT = 8

_FLASH_ALIGNMENT = 8

_FLASH_HEAD = 256

_CUDNN_HEAD = 128

_imitating: ContextVar[bool] = ContextVar("imitating", default=False)


def runs_on_cpu(tensor: Tensor) -> bool:
    """True unless a tensor is on a GPU, or stands for one that would be."""
    return tensor.device.type == "cpu" and not _imitating.get()


@contextmanager
def imitate_cuda(capability: Capability) -> Iterator[None]:
    """Send attention, dropout, rms_norm and autocast where CUDA would send them."""

    def attention(*args: Any, **kwargs: Any) -> Tensor:
        return scaled_dot_product_attention(*args, capability=capability, **kwargs)

    library = Library("aten", "IMPL")
    token = _imitating.set(True)
    try:
        library.impl("scaled_dot_product_attention", attention, "AutogradCPU")
        library.impl("dropout", _dropout, "AutogradCPU")
        library.impl("rms_norm", _rms_norm, "AutogradCPU")
        imitate_cuda_autocast(library)
        yield
    finally:
        _imitating.reset(token)
        library._destroy()


def _dropout(image: Tensor, p: float, train: bool) -> Tensor:
    if p == 0 or not train or image.numel() == 0:
        return image
    if p == 1:
        return image * torch.zeros_like(image)
    dropped: Tensor = _aten.native_dropout(image, p, True)[0]
    return dropped


def _rms_norm(
    image: Tensor, shape: list[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    normed: Tensor
    if weight is not None and weight.dtype != image.dtype:
        normed = _aten.rms_norm.default.decompose(image, shape, weight, eps)
    else:
        normed = _FusedRmsNorm.apply(image, weight, len(shape))
    return normed


class _FusedRmsNorm(torch.autograd.Function):
    """Allocates and saves what the fused kernel does; its CPU namesake is a composition."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor | None, dims: int) -> Tensor:
        rows = image.shape[:-dims] + (1,) * dims
        ctx.save_for_backward(image, weight, image.new_empty(rows, dtype=torch.float32))
        return torch.empty_like(image)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        image, weight, _ = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            torch.empty_like(image) if wanted[0] else None,
            torch.empty_like(weight) if wanted[1] else None,
            None,
        )


# --- attention ------------------------------------------------------------------------------------


def scaled_dot_product_attention(  # noqa: PLR0917 - aten's own signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    capability: Capability,
) -> Tensor:
    """Call the kernel that CUDA would call; shapes as in ``F.scaled_dot_product_attention``."""
    tensors = (query, key, value)
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    kernel = choose_attention(
        query, key, value, attn_mask, dropout=dropout_p, learns=learns, capability=capability
    )
    if enable_gqa and kernel != FLASH:
        kernel = MATH
    bias = _as_bias(attn_mask, query.dtype)
    if kernel == FLASH:
        return _flash(query, key, value, dropout=dropout_p, causal=is_causal, scale=scale)
    if kernel == CUDNN:
        out = _aten._scaled_dot_product_cudnn_attention(
            *tensors, bias, learns, dropout_p, is_causal, False, scale=scale
        )
    elif kernel == EFFICIENT:
        bias = None if bias is None else _padded(bias, query, key)
        out = _aten._scaled_dot_product_efficient_attention(
            *tensors, bias, learns, dropout_p, is_causal, scale=scale
        )
    else:
        out = _aten._scaled_dot_product_attention_math(
            *tensors, bias, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    attended: Tensor = out[0]
    return attended


def choose_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    dropout: float,
    learns: bool,
    capability: Capability,
) -> str:
    """Return which kernel CUDA takes, by its own order of preference."""
    tensors = (query, key, value)
    dense = all(t.dim() == 4 and t.stride(-1) == 1 and t.numel() > 0 for t in tensors)
    if not dense or (mask is not None and mask.stride(-1) != 1):
        return MATH
    heads = (query.shape[-1], key.shape[-1], value.shape[-1])
    low_precision = query.dtype in _HALF and capability >= _OLDEST_FLASH
    prefers_cudnn = capability[0] in (9, 10)
    if low_precision and prefers_cudnn and _cudnn_takes(query, key, mask, heads, dropout=dropout):
        return CUDNN
    if low_precision and mask is None and _flash_takes(heads, dropout, learns, capability):
        return FLASH
    if _efficient_takes(heads, query.dtype, capability):
        return EFFICIENT
    return MATH


def _cudnn_takes(
    query: Tensor, key: Tensor, mask: Tensor | None, heads: tuple[int, ...], *, dropout: float
) -> bool:
    fits = all(head <= _CUDNN_HEAD and head % 8 == 0 for head in heads)
    if not fits or key.shape[2] == 1 or dropout * 16 != int(dropout * 16):
        return False
    return mask is None or _cudnn_takes_mask(mask, (*query.shape[:3], key.shape[2]))


def _cudnn_takes_mask(mask: Tensor, full: tuple[int, ...]) -> bool:
    """``check_attn_mask_shape`` of sdp_utils_cpp.h."""
    if mask.requires_grad or mask.dim() not in (2, 4):
        return False
    ends = zip(mask.shape, full[-mask.dim() :], strict=True)
    return all(size in (1, whole) for size, whole in ends)


def _flash_takes(
    heads: tuple[int, ...], dropout: float, learns: bool, capability: Capability
) -> bool:
    head = heads[0]
    if len(set(heads)) > 1 or head > _FLASH_HEAD:
        return False
    small_shared_memory = (8, 6) <= capability <= (8, 9) or capability[0] == 12
    if not (learns and small_shared_memory):
        return True
    return head <= 192 or (dropout == 0 and head > 224)


def _efficient_takes(heads: tuple[int, ...], dtype: torch.dtype, capability: Capability) -> bool:
    if dtype not in (torch.float32, *_HALF) or capability < (5, 0):
        return False
    if dtype == torch.bfloat16 and capability < _OLDEST_FLASH:
        return False
    alignment = _gemm_alignment(dtype in _HALF, capability)
    return heads[0] == heads[1] and all(head % alignment == 0 for head in heads)


def _gemm_alignment(half: bool, capability: Capability) -> int:
    """``minimum_gemm_alignment`` of sdp_utils.cpp, in elements."""
    tensor_cores = capability[0] >= 8 or (capability[0] >= 7 and half)
    least = 4 if capability[0] >= 8 else 1
    return max(least, 128 // (16 if half else 32)) if tensor_cores else least


def _as_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """``convert_boolean_attn_mask``: where attention is forbidden, minus infinity is added."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    forbidden = torch.full((), -torch.inf, dtype=dtype, device=mask.device)
    return torch.where(mask, 0.0, forbidden)


def _padded(bias: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """``preprocess_mask``: rows aligned, then spread over batch and heads without a copy."""
    aligned = all(stride % _BIAS_ALIGNMENT == 0 for stride in bias.stride()[:-1])
    if not aligned or bias.stride(-1) != 1:
        width = bias.shape[-1]
        bias = F.pad(bias, (0, _BIAS_ALIGNMENT - width % _BIAS_ALIGNMENT))[..., :width]
    return bias.expand(*query.shape[:3], key.shape[2])


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    dropout: float,
    causal: bool,
    scale: float | None,
) -> Tensor:
    """Heads are padded to a multiple of 8 first, where autograd sees it (``pad_last_dim``)."""
    head = query.shape[-1]
    missing = -head % _FLASH_ALIGNMENT
    if missing:
        query, key, value = (F.pad(t, (0, missing)) for t in (query, key, value))
    scale = scale if scale is not None else head**-0.5
    out: Tensor = _aten._scaled_dot_product_flash_attention(
        query, key, value, dropout, causal, False, scale=scale
    )[0]
    return out[..., :head] if missing else out
