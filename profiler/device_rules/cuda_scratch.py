"""What CUDA kernels take from the allocator and give back inside one operation.

A replay sees results only. What an operation holds besides while it runs is decided by host code,
which is repeated here, and checked operation by operation against torch's own CUDA code by
studies/hollow_gpu. Known are:

* sums and means, and the sum that is the gradient of a convolution's bias: partial results
  (profiler/device_rules/cuda_reductions.py);
* convolutions: operands are copied into the layout the kernel wants, which is channels-last if the
  image or the weight is. Source: ``cudnn_conv_suggest_memory_format`` (native/ConvUtils.h),
  ``use_cudnn_depthwise`` and ``convolution_backward`` (native/Convolution.cpp). cuDNN's own
  workspaces are chosen at run time and are not known;
* layer norm: copies of operands that are not contiguous, and partial gradients of weight and bias.
  Source: native/cuda/layer_norm_kernel.cu;
* softmax, backward: the product of gradient and output (native/cuda/SoftMax.cu);
* scattered sums: sorted indices (native/cuda/Indexing.cu);
* roll over several dimensions: one after the other (native/cuda/TensorTransformations.cu);
* memory-efficient attention, backward: delta [B, H, M] fp32; for fp32 operands it is made of a
  product of the output's size; then accumulators of grad q in fp32, in tiles of ``_tile``. Not
  counted: those of grad k and grad v for half precision with heads above 128.
  Source: attention_backward.cu, mem_eff_attention/kernel_backward.h (``workspace_size``);
* flash attention, backward: grad q in fp32 [B, M to 128, H, head to 32] and the row sums
  [B, H, M to 128] fp32. Source: flash_attn/flash_api.cpp (``mha_bwd``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from profiler.device_rules.cuda_reductions import PartialSums, reduction_of
from profiler.devices.table import Multiprocessors

_aten = torch.ops.aten

_HALF = (torch.float16, torch.bfloat16)

_WIDE_LOADS = 4

_WARP = 32

_TALL_ROWS, _MOST_BLOCKS = 64 * 1024, 32 * 1024
"""Of layer norm's gradients: with more rows they are summed in parts, by at most so many blocks."""

_SORTING_COPIES = 5
"""Of the indices that a scattered sum sorts; measured, with the sort's own scratch, 4 to 6."""

_DELTA_BYTES = 4

_LOCK_BYTES = 16

Blocks = tuple[int, ...]


class CudaKernels:
    """The ``KernelBytes`` of a CUDA device.

    Args:
        multiprocessors: how much runs at once.
        only_this_batch: leave out sums that need no scratch at the batch they are called with,
            though they may at another; False for profiles (profiler/prediction/parametric.py).
    """

    beside_results = True

    def __init__(self, multiprocessors: Multiprocessors, *, only_this_batch: bool = True) -> None:
        self.multiprocessors = multiprocessors
        self.only_this_batch = only_this_batch
        self._rules: dict[Any, Callable[..., Blocks]] = {
            _aten.sum: self._sum,
            _aten.mean: self._mean,
            _aten.convolution: _convolution,
            _aten.convolution_backward: self._convolution_backward,
            _aten.native_layer_norm: _layer_norm,
            _aten.native_layer_norm_backward: self._layer_norm_backward,
            _aten._softmax_backward_data: _softmax_backward,
            _aten.roll: _roll,
            _aten.index_put: _index_put,
            _aten._scaled_dot_product_efficient_attention_backward: _efficient_backward,
            _aten._scaled_dot_product_flash_attention_backward: _flash_backward,
        }

    def inside(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        live_bytes: int = 0,
    ) -> Blocks:
        """Return the blocks that it holds beside its results."""
        rule = self._rules.get(func._overloadpacket)
        return () if rule is None else rule(*args)

    # --- reductions ---

    def _sum(self, image: Tensor, dims: Sequence[int] | None = None, *_: Any) -> Blocks:
        wide_loads = 2 * _WIDE_LOADS if image.dtype in _HALF else _WIDE_LOADS
        return self._reduction(image, dims, wide_loads=wide_loads)

    def _mean(self, image: Tensor, dims: Sequence[int] | None = None, *_: Any) -> Blocks:
        return self._reduction(image, dims, wide_loads=_WIDE_LOADS)

    def _reduction(self, image: Tensor, dims: Sequence[int] | None, *, wide_loads: int) -> Blocks:
        """Return the partial results and the counters."""
        found = reduction_of(
            image.shape,
            image.stride(),
            [dim % image.dim() for dim in dims or range(image.dim())],
            offset=int(image.storage_offset()),
            partial_bytes=max(4, image.element_size()),
            wide_loads=wide_loads,
        )
        if found is None:
            return ()
        scratch = found.scratch_bytes(self.multiprocessors)
        if not scratch and self.only_this_batch:
            return ()
        # where there is none at this batch, there may be at another
        partial, counters = scratch or (0, 0)
        return (PartialSums(partial, found), PartialSums(counters))

    # --- convolutions ---

    def _convolution_backward(  # noqa: PLR0917 - aten's own signature
        self,
        grad: Tensor,
        image: Tensor,
        weight: Tensor,
        bias_sizes: Sequence[int] | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        transposed: bool,
        output_padding: Sequence[int],
        groups: int,
        wanted: Sequence[bool],
    ) -> Blocks:
        layout = _layout(image, weight)
        # the weight's copy is gone, or its place is the gradient's, when that of the weight is made
        operands = (grad, image) if wanted[1] else (grad, image, weight)
        copies = tuple(_bytes(t) for t in operands if not _lies(t, layout))
        in_sum = self._sum(grad, (0, *range(2, grad.dim()))) if wanted[2] else ()
        return in_sum if sum(in_sum) > sum(copies) else copies

    # --- layer norm ---

    def _layer_norm_backward(  # noqa: PLR0917 - aten's own signature
        self,
        grad: Tensor,
        image: Tensor,
        shape: Sequence[int],
        mean: Tensor,
        rstd: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        wanted: Sequence[bool],
    ) -> Blocks:
        copies = [_bytes(t) for t in (grad, image) if not t.is_contiguous()]
        width = prod(shape)
        rows = image.numel() // width
        learned = [
            wants and t is not None for t, wants in zip((weight, bias), wanted[1:], strict=True)
        ]
        partial: list[int] = []
        tiled = rows > _TALL_ROWS and width // _WARP < self.multiprocessors.count // 2
        if tiled and any(learned):
            columns = -(-width // _WARP)
            tall = min(_MOST_BLOCKS // columns, -(-rows // _WARP))
            tiles = torch.empty(tall, width, dtype=image.dtype, device="meta")
            partial = [_bytes(tiles)] * sum(learned)
            partial += self._reduction(tiles, [0], wide_loads=_WIDE_LOADS)
        return (*copies, *map(PartialSums, partial))


def _convolution(image: Tensor, weight: Tensor, *_: Any) -> Blocks:
    layout = _layout(image, weight)
    return tuple(_bytes(t) for t in (image, weight) if not _lies(t, layout))


def _layout(image: Tensor, weight: Tensor) -> torch.memory_format:
    formats = {suggest_memory_format(t) for t in (image, weight)}
    last = torch.channels_last
    return last if last in formats else torch.contiguous_format


def _lies(tensor: Tensor, layout: torch.memory_format) -> bool:
    return tensor.is_contiguous(memory_format=layout)


# --- normalisation, softmax, roll -----------------------------------------------------------------


def _layer_norm(image: Tensor, *_: Any) -> Blocks:
    return () if image.is_contiguous() else (_bytes(image),)


def _softmax_backward(grad: Tensor, *_: Any) -> Blocks:
    return (_bytes(grad),)


def _roll(image: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Blocks:
    return (_bytes(image),) if len(dims) > 1 else ()


def _index_put(
    image: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False
) -> Blocks:
    if not accumulate:
        return ()
    copied = 0 if values.is_contiguous() else _bytes(values)
    sorting = sum(index.numel() * 8 for index in indices if index is not None)
    return (copied, *(_SORTING_COPIES * (sorting,)))


# --- attention ------------------------------------------------------------------------------------


def _efficient_backward(grad: Tensor, query: Tensor, *_: Any) -> Blocks:
    batch, heads, rows, head = query.shape
    delta = batch * heads * rows * _DELTA_BYTES
    product = grad.numel() * 4 if query.dtype == torch.float32 else 0
    height, width = _tile(head)
    tiles = ceil(rows / height) * ceil(head / width)
    accumulators = batch * heads * tiles * (height * width * 4 + _LOCK_BYTES)
    return (delta, max(product, accumulators))


def _flash_backward(grad: Tensor, query: Tensor, *_: Any) -> Blocks:
    batch, heads, rows, head = query.shape
    sums = batch * heads * _up(rows, 128) * 4
    return (sums * (_up(head, 32) if head <= 192 else 256), sums)


def _tile(head: int) -> tuple[int, int]:
    """Block of the backward kernel (kBlockSizeI, kBlockSizeJ), from kernels/cutlassB.h."""
    return (64, 64) if head <= 64 else (128, 64)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
