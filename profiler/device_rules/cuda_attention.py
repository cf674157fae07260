"""Attention on CUDA: the kernel that PyTorch chooses, and the tensors that it saves for backward.

``scaled_dot_product_attention`` chooses a kernel by precision, compute capability, head size and
mask. Every kernel saves q, k, v and the output. Beside these it saves, for batch B, H heads, M
queries and N keys:

    flash      log-sum-exp [B, H, M] fp32, 16 bytes of random state
    efficient  log-sum-exp [B, H, M rounded up to 32] fp32, and the bias, whose rows are padded to a
               multiple of 8 if they are not aligned. The gradient of the bias has full size,
               [B, H, M, N rounded up to 16]
    cudnn      log-sum-exp [B, H, M, 1] fp32; preferred on compute capability 9 and 10
    math       the probabilities, and fp32 copies of q, k, v in half precision

Sources, all in PyTorch at https://github.com/pytorch/pytorch/tree/001f694aef6f:

    choice     ``select_sdp_backend``, ``can_use_*``, ``minimum_gemm_alignment`` and
               ``check_prefer_cudnn_attention``,
               aten/src/ATen/native/transformers/cuda/sdp_utils.cpp
    operands   ``scaled_dot_product_attention``, ``preprocess_mask`` and ``pad_last_dim``,
               aten/src/ATen/native/transformers/attention.cpp
    sizes      torch/_meta_registrations.py
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from profiler.devices.table import AMPERE, Capability

FLASH, EFFICIENT, CUDNN, MATH = "flash", "efficient", "cudnn", "math"

HALF_DTYPES = (torch.float16, torch.bfloat16)

_BIAS_ALIGNMENT = 8  # elements of a row of the bias: kernels/cutlassF.h

_FLASH_ALIGNMENT = 8  # elements of a head

_LARGEST_FLASH_HEAD = 256

_LARGEST_CUDNN_HEAD = 128


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
    """Call the kernel that CUDA would choose.

    Args:
        query: [B, H, M, head].
        key: [B, H, N, head].
        value: [B, H, N, head of the value].
        attn_mask: boolean mask or bias, broadcast to [B, H, M, N].
        dropout_p: probability of a dropped attention weight.
        is_causal: whether later keys are masked.
        scale: factor of the scores; None for 1 / sqrt(head).
        enable_gqa: whether groups of query heads share a key head.
        capability: compute capability of the device.
    """
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
        out = torch.ops.aten._scaled_dot_product_cudnn_attention(
            *tensors, bias, learns, dropout_p, is_causal, False, scale=scale
        )
    elif kernel == EFFICIENT:
        bias = None if bias is None else _padded(bias, query, key)
        out = torch.ops.aten._scaled_dot_product_efficient_attention(
            *tensors, bias, learns, dropout_p, is_causal, scale=scale
        )
    else:
        out = torch.ops.aten._scaled_dot_product_attention_math(
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
    """Return the kernel that CUDA chooses, by its own order of preference.

    Args:
        query: [B, H, M, head].
        key: [B, H, N, head].
        value: [B, H, N, head of the value].
        mask: boolean mask or bias; None without one.
        dropout: probability of a dropped attention weight.
        learns: whether a gradient is needed.
        capability: compute capability of the device.

    Source: ``select_sdp_backend`` and ``priority_order``, sdp_utils.cpp.
    """
    tensors = (query, key, value)
    dense = all(t.dim() == 4 and t.stride(-1) == 1 and t.numel() > 0 for t in tensors)
    if not dense or (mask is not None and mask.stride(-1) != 1):
        return MATH
    heads = (query.shape[-1], key.shape[-1], value.shape[-1])
    # both kernels need Ampere, as bfloat16 does
    low_precision = query.dtype in HALF_DTYPES and capability >= AMPERE
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
    # check_cudnn_tensor_shapes, check_dropout: dropout must be a multiple of 1/16
    fits = all(head <= _LARGEST_CUDNN_HEAD and head % 8 == 0 for head in heads)
    if not fits or key.shape[2] == 1 or dropout * 16 != int(dropout * 16):
        return False
    return mask is None or _cudnn_takes_mask(mask, (*query.shape[:3], key.shape[2]))


def _cudnn_takes_mask(mask: Tensor, full: tuple[int, ...]) -> bool:
    """Return whether cuDNN takes a mask of this shape.

    Source: ``check_attn_mask_shape``, sdp_utils_cpp.h.

    Args:
        mask: boolean mask or bias.
        full: (B, H, M, N).
    """
    if mask.requires_grad or mask.dim() not in (2, 4):
        return False
    ends = zip(mask.shape, full[-mask.dim() :], strict=True)
    return all(size in (1, whole) for size, whole in ends)


def _flash_takes(
    heads: tuple[int, ...], dropout: float, learns: bool, capability: Capability
) -> bool:
    head = heads[0]
    if len(set(heads)) > 1 or head > _LARGEST_FLASH_HEAD:
        return False
    # check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120: the backward kernel
    # needs more shared memory than these devices have.
    small_shared_memory = (8, 6) <= capability <= (8, 9) or capability[0] == 12
    if not (learns and small_shared_memory):
        return True
    return head <= 192 or (dropout == 0 and head > 224)


def _efficient_takes(heads: tuple[int, ...], dtype: torch.dtype, capability: Capability) -> bool:
    if dtype not in (torch.float32, *HALF_DTYPES) or capability < (5, 0):
        return False
    if dtype == torch.bfloat16 and capability < AMPERE:
        return False
    # check_head_dim_size_mem_efficient
    alignment = _gemm_alignment(dtype in HALF_DTYPES, capability)
    return heads[0] == heads[1] and all(head % alignment == 0 for head in heads)


def _gemm_alignment(half: bool, capability: Capability) -> int:
    """Return the alignment of rows in elements (``minimum_gemm_alignment``, sdp_utils.cpp)."""
    tensor_cores = capability[0] >= 8 or (capability[0] >= 7 and half)
    least = 4 if capability[0] >= 8 else 1
    return max(least, 128 // (16 if half else 32)) if tensor_cores else least


def _as_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return a boolean mask as a bias of 0 and minus infinity (``convert_boolean_attn_mask``)."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    forbidden = torch.full((), -torch.inf, dtype=dtype, device=mask.device)
    return torch.where(mask, 0.0, forbidden)


def _padded(bias: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Return a bias with aligned rows, expanded to [B, H, M, N] without a copy.

    Source: ``preprocess_mask``, attention.cpp.
    """
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
    """Call flash attention with heads padded to a multiple of 8 (``pad_last_dim``).

    Autograd sees the padding, so padded copies of q, k and v are saved.
    """
    head = query.shape[-1]
    missing = -head % _FLASH_ALIGNMENT
    if missing:
        query, key, value = (F.pad(t, (0, missing)) for t in (query, key, value))
    scale = scale if scale is not None else head**-0.5
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, dropout, causal, False, scale=scale
    )[0]
    return out[..., :head] if missing else out
