"""CUDA's autocast rules, registered for CPU tensors while a CUDA step is replayed.

A replay runs on fake CPU tensors, so ``torch.autocast`` would follow the CPU's operator lists. They
differ from CUDA's:

- CUDA casts the inputs of layer_norm, softmax, exp, pow, sum and some eighty other operators to
  fp32, and autograd then saves the copy; the CPU does not.
- The CPU casts the inputs of cat, stack, padding and pooling; CUDA does not.

The dispatcher's AutocastCPU key therefore gets CUDA's rules, above autograd, as on CUDA:

    lower        cast to the autocast precision. Operators in both lists keep the CPU's kernel,
                 which is the same code: casts of weights are cached until autocast ends
    FP32         cast every floating-point argument except fp64 to fp32
    FP32_DTYPE   request an fp32 result (``dtype=``) if the first argument can be cast and the call
                 has no ``dtype``; softmax of fp16 then reads fp16 without a copy
    PROMOTE      cast to the widest floating-point type among the arguments
    others       no rule: the call falls through

Source: the macros AT_FORALL_LOWER_PRECISION_FP, _FP32, _FP32_SET_OPT_DTYPE,
_DIFFERENT_REDISPATCH_SIGNATURE and _PROMOTE, and ``CachedCastStrategy``, in
torch/include/ATen/autocast_mode.h; https://docs.pytorch.org/docs/stable/amp.html, "CUDA Ops that
can autocast to float32". A test compares the lists with the registrations of the installed PyTorch.
PyTorch 2.10 has no rule for rms_norm, so an operator that is not registered gets none here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import Library, fallthrough_kernel
from torch.utils._pytree import tree_leaves, tree_map

from profiler.operations import Operation

KEY = "AutocastCPU"

_LOWER = """
_convolution.deprecated _convolution conv1d conv2d conv3d conv_tbc conv_transpose1d
conv_transpose2d.input conv_transpose3d.input convolution prelu addmm addmv addr matmul einsum mm mv
linalg_vecdot linear addbmm baddbmm bmm chain_matmul linalg_multi_dot _thnn_fused_lstm_cell
_thnn_fused_gru_cell lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
_scaled_dot_product_flash_attention scaled_dot_product_attention
"""

_FP32 = """
acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar
pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm rms_norm group_norm
frobenius_norm.dim nuclear_norm nuclear_norm.dim cosine_similarity poisson_nll_loss
cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss smooth_l1_loss
huber_loss mse_loss margin_ranking_loss multilabel_margin_loss soft_margin_loss triplet_margin_loss
multi_margin_loss binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp
upsample_nearest1d _upsample_nearest_exact1d upsample_nearest2d _upsample_nearest_exact2d
upsample_nearest3d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d
_upsample_bilinear2d_aa upsample_trilinear3d upsample_bicubic2d _upsample_bicubic2d_aa
"""

_FP32_DTYPE = """
prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm linalg_matrix_norm
linalg_matrix_norm.str_ord sum sum.dim_IntList
"""

_PROMOTE = """
addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add
"""

_NORM = {
    "norm.Scalar": ("norm.ScalarOpt_dtype", 1),
    "norm.ScalarOpt_dim": ("norm.ScalarOpt_dim_dtype", 3),
}
"""Overload that takes ``dtype=``, and its number of arguments after the tensor."""

_DTYPE_POSITION = {"softmax.int": 2, "log_softmax.int": 2}
"""Position of ``dtype`` in operators where it is not keyword-only."""

_HALF_TO_FLOAT = {"softmax.int": "_softmax", "log_softmax.int": "_log_softmax"}

LOWER = tuple(_LOWER.split())

CASTING = (*_FP32.split(), *_FP32_DTYPE.split(), *_PROMOTE.split(), *_NORM)

_FLOATS = (torch.float16, torch.bfloat16, torch.float32)

_EXCLUDED = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)


def imitate_cuda_autocast(library: Library) -> None:
    """Register CUDA's rules for AutocastCPU, until the library is destroyed."""
    with warnings.catch_warnings():
        # PyTorch warns once that a registered kernel is replaced, which is the purpose here.
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        _register(library)


def _register(library: Library) -> None:
    on_cpu, on_cuda = _registered("AutocastCPU"), _registered("AutocastCUDA")
    for name in on_cpu - ({*LOWER, *CASTING} & on_cuda):
        library.impl(name, fallthrough_kernel, KEY)
    for name in set(LOWER) - on_cpu:
        library.impl(name, _casting(_overload(name), _to_lower), KEY)
    for name in on_cuda.intersection(_FP32.split()):
        library.impl(name, _casting(_overload(name), _to_fp32), KEY)
    for name in _PROMOTE.split():
        library.impl(name, _casting(_overload(name), _to_widest), KEY)
    for name in _FP32_DTYPE.split():
        library.impl(name, _with_dtype(name), KEY)
    for name in _NORM:
        library.impl(name, _norm(name), KEY)


def _registered(key: str) -> set[str]:
    names = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    return {name.removeprefix("aten::") for name in names if name.startswith("aten::")}


def _overload(name: str) -> Operation:
    packet, _, overload = name.partition(".")
    operation: Operation = getattr(getattr(torch.ops.aten, packet), overload or "default")
    return operation


def _castable(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype in _FLOATS


def _cast(values: object, dtype: torch.dtype) -> object:
    return tree_map(lambda value: value.to(dtype) if _castable(value) else value, values)


def _to_lower(values: object) -> object:
    return _cast(values, torch.get_autocast_dtype("cpu"))


def _to_fp32(values: object) -> object:
    return _cast(values, torch.float32)


def _to_widest(values: object) -> object:
    dtypes = {value.dtype for value in tree_leaves(values) if _castable(value)}
    widest = torch.float32 if torch.float32 in dtypes else torch.get_autocast_dtype("cpu")
    return _cast(values, widest)


def _casting(operation: Operation, cast: Callable[[object], Any]) -> Callable[..., object]:
    def kernel(*args: object, **kwargs: object) -> object:
        with torch._C._ExcludeDispatchKeyGuard(_EXCLUDED):
            args, kwargs = cast((args, kwargs))
            return operation(*args, **kwargs)

    return kernel


def _with_dtype(name: str) -> Callable[..., object]:
    operation, position = _overload(name), _DTYPE_POSITION.get(name)
    fused = _HALF_TO_FLOAT.get(name)

    def kernel(*args: Any, **kwargs: object) -> object:
        asked = kwargs.get("dtype")
        if position is not None and len(args) > position:
            *args, asked = args  # type: ignore[assignment]
        if asked is None and _castable(args[0]):
            asked = torch.float32
        kwargs["dtype"] = asked
        with torch._C._ExcludeDispatchKeyGuard(_EXCLUDED):
            if fused is not None and (args[0].dtype, asked) == (torch.float16, torch.float32):
                return getattr(torch.ops.aten, fused)(args[0], args[1], True)
            return operation(*args, **kwargs)

    return kernel


def _norm(name: str) -> Callable[..., object]:
    with_dtype, given = _NORM[name]
    plain, operation = _overload(name), _overload(with_dtype)
    defaults: tuple[object, ...] = (2,) if given == 1 else (2, [], False)

    def kernel(tensor: Tensor, *args: object) -> object:
        with torch._C._ExcludeDispatchKeyGuard(_EXCLUDED):
            if not _castable(tensor):
                return plain(tensor, *args)
            return operation(tensor, *args, *defaults[len(args) :], dtype=torch.float32)

    return kernel
