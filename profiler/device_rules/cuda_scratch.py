"""Workspaces of CUDA kernels: memory that one operation allocates and frees.

A replay on fake tensors shows results only. The workspaces of an operation are chosen by PyTorch's
host code, which is repeated here; studies/hollow_gpu compares each operation with torch's own CUDA
code. Paths below are relative to aten/src/ATen/native in PyTorch.

    sum, mean, gradient of a       partial sums: profiler/device_rules/cuda_reductions.py
    convolution's bias
    convolution                    copies of operands in the kernel's layout: channels-last if the
                                   image or the weight is. ``cudnn_conv_suggest_memory_format``,
                                   ConvUtils.h; ``use_cudnn_depthwise`` and
                                   ``convolution_backward``, Convolution.cpp
    layer norm                     copies of operands that are not contiguous; partial gradients of
                                   weight and bias in backward. cuda/layer_norm_kernel.cu
    softmax, backward              product of gradient and output. cuda/SoftMax.cu
    index_put with accumulation    sorted indices. cuda/Indexing.cu
    roll over several dimensions   one intermediate result. cuda/TensorTransformations.cu
    batch norm, backward           with given statistics: the reciprocal standard deviations.
                                   ``batch_norm_backward_cuda``, cuda/Normalization.cu
    efficient attention, backward  delta [B, H, M] fp32. For fp32 operands it is the sum of a
                                   product of the output's size, which is freed again. Then fp32
                                   accumulators of the gradient of q, in tiles of `_tile`.
                                   transformers/cuda/attention_backward.cu; ``workspace_size``,
                                   transformers/cuda/mem_eff_attention/kernel_backward.h
    flash attention, backward      gradient of q in fp32 [B, M up to 128, H, head up to 32], and row
                                   sums [B, H, M up to 128] fp32 ("up to": rounded up to a
                                   multiple). ``mha_bwd``, transformers/cuda/flash_attn/
                                   flash_api.cpp

Limitations. cuDNN chooses its workspaces at run time, so they are not included. For half precision
with heads above 128, efficient attention also needs accumulators of the gradients of k and v, which
are not included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverloadPacket
from torch._prims_common import suggest_memory_format

from profiler.device_rules.caching_allocator.sizes import round_to_multiple
from profiler.device_rules.cuda_attention import HALF_DTYPES
from profiler.device_rules.cuda_reductions import WARP_THREADS, PartialSums, reduction_of
from profiler.device_rules.kernel_bytes import BeforeResults, Blocks, Earlier, KernelBytes
from profiler.devices.table import Multiprocessors
from profiler.operations import Operation

_WIDE_LOADS = 4
"""Values of 32 bits that a thread of a sum loads at once (``sum_functor``)."""

_TALL_ROWS, _MOST_BLOCKS = 64 * 1024, 32 * 1024
"""Rows above which layer norm sums the gradients of weight and bias in parts, and the most blocks
that it uses for them (``LaunchGammaBetaBackwardCUDAKernel``)."""

_SORTING_COPIES = 5
"""Copies of the indices that a scattered sum holds while it sorts them. Measured, the workspace of
the sort included: 4 to 6."""

_LOCK_BYTES = 16
"""Bytes of the lock of an accumulator tile (``GradQTempStorage``, kernel_backward.h)."""


class CudaKernels(KernelBytes):
    """The ``KernelBytes`` of a CUDA device.

    Args:
        multiprocessors: multiprocessors of the device.
        only_this_batch: whether sums without a workspace at the present batch are left out. False
            for profiles over the batch (profiler/prediction/parametric.py), because such a sum may
            have one at another batch.
    """

    beside_results = True

    def __init__(self, multiprocessors: Multiprocessors, *, only_this_batch: bool = True) -> None:
        self.multiprocessors = multiprocessors
        self.only_this_batch = only_this_batch
        self._rules: dict[OpOverloadPacket, Callable[..., Blocks]] = {
            torch.ops.aten.sum: self._sum,
            torch.ops.aten.mean: self._mean,
            torch.ops.aten.convolution: _convolution,
            torch.ops.aten.convolution_backward: self._convolution_backward,
            torch.ops.aten.native_layer_norm: _layer_norm,
            torch.ops.aten.native_layer_norm_backward: self._layer_norm_backward,
            torch.ops.aten.native_batch_norm_backward: _batch_norm_backward,
            torch.ops.aten._softmax_backward_data: _softmax_backward,
            torch.ops.aten.roll: _roll,
            torch.ops.aten.index_put: _index_put,
            torch.ops.aten._scaled_dot_product_efficient_attention_backward: _efficient_backward,
            torch.ops.aten._scaled_dot_product_flash_attention_backward: _flash_backward,
        }

    def inside(
        self,
        func: Operation,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        *,
        live_bytes: int = 0,
    ) -> Blocks:
        """Return the blocks that an operation holds beside its results."""
        rule = self._rules.get(func._overloadpacket)
        return () if rule is None else rule(*args)

    def in_order(self, func: Operation, out: Any) -> Any:
        """Return an operation's results in the order in which they are allocated."""
        if func is torch.ops.aten._scaled_dot_product_efficient_attention.default:
            output, sums, seed, offset = out
            return seed, offset, output, sums
        return out

    # --- reductions ---

    def _sum(self, image: Tensor, dims: Sequence[int] | None = None, *_: object) -> Blocks:
        wide_loads = 2 * _WIDE_LOADS if image.dtype in HALF_DTYPES else _WIDE_LOADS
        return self._reduction(image, dims, wide_loads=wide_loads)

    def _mean(self, image: Tensor, dims: Sequence[int] | None = None, *_: object) -> Blocks:
        return self._reduction(image, dims, wide_loads=_WIDE_LOADS)

    def _reduction(self, image: Tensor, dims: Sequence[int] | None, *, wide_loads: int) -> Blocks:
        """Return the buffers of partial sums and of counters."""
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
        # Blocks of 0 bytes mark a sum that may have a workspace at another batch.
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
        # The weight is needed for the gradient of the image only. When the gradient of the weight
        # is computed, the copy of the weight has been freed, or its block serves the gradient.
        operands = (grad, image) if wanted[1] else (grad, image, weight)
        copies = tuple(_copied(t) for t in operands if not _has_layout(t, layout))
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
        copies = [_copied(t) for t in (grad, image) if not t.is_contiguous()]
        width = prod(shape)
        rows = image.numel() // width
        learned = [
            wants and t is not None for t, wants in zip((weight, bias), wanted[1:], strict=True)
        ]
        partial: list[int] = []
        # With many rows and few columns, several blocks share a column.
        tiled = rows > _TALL_ROWS and width // WARP_THREADS < self.multiprocessors.count // 2
        if tiled and any(learned):
            columns = -(-width // WARP_THREADS)
            tall = min(_MOST_BLOCKS // columns, -(-rows // WARP_THREADS))
            tiles = torch.empty(tall, width, dtype=image.dtype, device="meta")
            partial = [_bytes(tiles)] * sum(learned)
            partial += self._reduction(tiles, [0], wide_loads=_WIDE_LOADS)
        return (*copies, *map(PartialSums, partial))


def _convolution(image: Tensor, weight: Tensor, *_: object) -> Blocks:
    layout = _layout(image, weight)
    in_image = () if _has_layout(image, layout) else (_copied(image),)
    in_weight = () if _has_layout(weight, layout) else (_bytes(weight),)
    return (*in_image, *in_weight)


def _layout(image: Tensor, weight: Tensor) -> torch.memory_format:
    formats = {suggest_memory_format(t) for t in (image, weight)}
    last = torch.channels_last
    return last if last in formats else torch.contiguous_format


def _has_layout(tensor: Tensor, layout: torch.memory_format) -> bool:
    return tensor.is_contiguous(memory_format=layout)


# --- normalisation, softmax, roll -----------------------------------------------------------------


def _layer_norm(image: Tensor, *_: object) -> Blocks:
    return () if image.is_contiguous() else (_copied(image),)


def _batch_norm_backward(  # noqa: PLR0917 - aten's own signature
    grad: Tensor,
    image: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor | None,
    invstd: Tensor | None,
    train: bool,
    *_: object,
) -> Blocks:
    return () if train else (BeforeResults(image.shape[1] * 4),)


def _softmax_backward(grad: Tensor, *_: object) -> Blocks:
    return (_bytes(grad),)


def _roll(image: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Blocks:
    return (_copied(image),) if len(dims) > 1 else ()


def _index_put(
    image: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False
) -> Blocks:
    if not accumulate:
        return ()
    copied = 0 if values.is_contiguous() else _bytes(values)
    sorting = sum(index.numel() * 8 for index in indices if index is not None)
    return (copied, *(_SORTING_COPIES * (sorting,)))


# --- attention ------------------------------------------------------------------------------------


def _efficient_backward(grad: Tensor, query: Tensor, *_: object) -> Blocks:
    batch, heads, rows, head = query.shape
    delta = batch * heads * rows * 4
    in_sum = (grad.numel() * 4, delta) if query.dtype == torch.float32 else ()
    height, width = _tile(head)
    tiles = ceil(rows / height) * ceil(head / width)
    accumulators = batch * heads * tiles * (height * width * 4 + _LOCK_BYTES)
    return (*map(Earlier, in_sum), delta, accumulators)


def _flash_backward(grad: Tensor, query: Tensor, *_: object) -> Blocks:
    batch, heads, rows, head = query.shape
    sums = batch * heads * round_to_multiple(rows, 128) * 4
    return (sums * (round_to_multiple(head, 32) if head <= 192 else 256), sums)


def _tile(head: int) -> tuple[int, int]:
    """Return (kBlockSizeI, kBlockSizeJ) of the backward kernel (kernels/cutlassB.h)."""
    return (64, 64) if head <= 64 else (128, 64)


def _copied(tensor: Tensor) -> int:
    return BeforeResults(_bytes(tensor))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
