"""Workspace of CUDA's reductions: buffers that a sum allocates and frees inside one operation.

A reduction with few outputs and many inputs (such as the gradient of a bias) is distributed over
several thread blocks. Each block writes its partial sums to global memory, and the last block of a
column adds them up. This needs two buffers:

    partial sums   up to tens of MiB; more on GPUs with more multiprocessors
    counters       one int for each column of blocks

The distribution is chosen by host code, which is repeated here to the byte:

    step                                           function in PyTorch
    sort and merge the tensor's dimensions         TensorIteratorBase::reorder_dimensions and
                                                   coalesce_dimensions, aten/src/ATen/
                                                   TensorIterator.cpp
    choose threads, vector width and blocks        setReduceConfig, ReduceConfig,
                                                   ATen/native/cuda/Reduce.cuh
    values that a thread loads at once             sum_functor, aten/src/ATen/native/cuda/
                                                   ReduceSumProdKernel.cu

studies/hollow_gpu compares the result with torch's own CUDA code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from profiler.devices.table import Multiprocessors

WARP_THREADS = 32

_MOST_THREADS = 512
"""Threads of a block (``MAX_NUM_THREADS``, Reduce.cuh)."""

_LEAST_VALUES, _MOST_VALUES = 16, 256
"""Bounds of the input values that one thread adds up (``setReduceConfig``)."""

_COUNTER_BYTES = 4


@dataclass(frozen=True, slots=True)
class Reduction:
    """A reduction after ``TensorIterator`` has sorted and merged the dimensions.

    Attributes:
        outputs: number of results.
        inputs: number of values that are added up for each result.
        partial_bytes: bytes of a partial sum.
        along_rows: whether the fastest dimension is reduced
            (``reduction_on_fastest_striding_dimension``).
        vector: number of inputs that a thread loads at once if ``along_rows``, else of outputs that
            it computes at once.
    """

    outputs: int
    inputs: int
    partial_bytes: int
    along_rows: bool
    vector: int

    def scratch_bytes(self, on: Multiprocessors) -> tuple[int, ...]:
        """Return the bytes of (partial sums, counters); empty if one block computes each output.

        Args:
            on: multiprocessors of the GPU.
        """
        # Shape of a thread block: ``width`` threads along the fastest dimension, ``height`` along
        # the other, at most 512 threads in all (ReduceConfig::set_block_dimension).
        outputs_at_once = 1 if self.along_rows else self.vector
        if self.along_rows:
            wide, high = self.inputs // self.vector, self.outputs
        else:
            wide, high = self.outputs // self.vector, self.inputs
        most = _MOST_THREADS // outputs_at_once
        widest, highest = _power_of_two(wide, most), _power_of_two(high, most)
        height = min(highest, most // min(widest, WARP_THREADS))
        width = min(widest, most // height)
        threads = width * height
        step_inputs, step_outputs = (width, 1) if self.along_rows else (1, width)
        # With few inputs, the rows of the block compute different outputs (block_y_reduce is not
        # set). Then no output needs a second block.
        if -(-self.inputs // step_inputs) < min(16 * height, _MOST_VALUES):
            return ()
        # Otherwise the rows of the block share the inputs of an output, and so may several blocks,
        # as long as the GPU has room for them (ctas_per_output).
        step_inputs *= height
        values = -(-self.inputs // step_inputs)
        columns = -(-(self.outputs // outputs_at_once) // step_outputs)
        wanted = on.count * (on.threads // threads)
        if values < _MOST_VALUES or columns > wanted:
            return ()
        least, most_blocks = -(-values // _MOST_VALUES), -(-values // _LEAST_VALUES)
        blocks = min(max(-(-wanted // columns), least), most_blocks)
        if blocks <= 1:
            return ()
        partials = self.outputs * blocks * (1 if self.along_rows else width * outputs_at_once)
        return self.partial_bytes * partials, _COUNTER_BYTES * columns


class PartialSums(int):
    """Bytes of a buffer of partial sums, with the reduction that determines them.

    The bytes are not proportional to the batch. With the reduction they can be computed for every
    batch.

    Attributes:
        reduction: the reduction; None if the bytes are known at the present batch only.
    """

    reduction: Reduction | None

    def __new__(cls, nbytes: int, reduction: Reduction | None = None) -> PartialSums:
        """Return the bytes as such an integer."""
        made = super().__new__(cls, nbytes)
        made.reduction = reduction
        return made


def _power_of_two(number: int, most: int) -> int:
    """Return the largest power of two that is not above a number, at most ``most``."""
    return min(1 << (max(1, number).bit_length() - 1), most)


def reduction_of(
    shape: Sequence[int],
    strides: Sequence[int],
    reduced: Sequence[int],
    *,
    offset: int,
    partial_bytes: int,
    wide_loads: int,
) -> Reduction | None:
    """Return the reduction of a tensor, or None if the tensor is empty.

    Args:
        shape: shape of the input.
        strides: strides of the input, in elements.
        reduced: dimensions that are summed over.
        offset: position of the first element in its storage, in elements.
        partial_bytes: bytes of a partial sum.
        wide_loads: number of adjacent inputs that a thread loads at once.
    """
    if not prod(shape):
        return None
    results = _result_strides(shape, frozenset(reduced))
    dims = [
        _Dim(size, result, stride)
        for size, result, stride in zip(shape, results, strides, strict=True)
    ]
    dims = _coalesced(_ordered(dims))
    inner = [dim for dim in dims if dim.result == 0]
    kept = dims[len(inner) :]
    outputs = prod(dim.size for dim in kept)
    inputs = prod(shape) // outputs
    along_rows = not kept or (bool(inner) and inner[0].stride < kept[0].stride)
    fastest = (inner if along_rows else kept)[:1]
    # A thread handles several elements at once only along a contiguous dimension
    # (vectorize_input; output_vec_size).
    vector = 1
    if not dims or fastest[0].stride == 1:
        if along_rows and inputs >= 128 and len(inner) == 1:
            vector = wide_loads
        elif not along_rows:
            others = [dim.stride for dim in dims if dim is not kept[0]]
            vector = _common_vector([offset, kept[0].size, *others])
    return Reduction(
        outputs=outputs,
        inputs=inputs,
        partial_bytes=partial_bytes,
        along_rows=along_rows,
        vector=vector,
    )


@dataclass(slots=True)
class _Dim:
    """One dimension of the input.

    Attributes:
        size: number of elements.
        result: stride in the result, in elements; 0 for a reduced dimension.
        stride: stride in the input, in elements.
    """

    size: int
    result: int
    stride: int


def _result_strides(shape: Sequence[int], reduced: frozenset[int]) -> list[int]:
    strides, step = [0] * len(shape), 1
    for dim in reversed(range(len(shape))):
        if dim not in reduced:
            strides[dim] = step
            step *= shape[dim]
    return strides


def _ordered(dims: Sequence[_Dim]) -> list[_Dim]:
    """Return the dimensions sorted: reduced ones first, then by stride.

    Source: ``reorder_dimensions``. Its comparison is not a total order, so its insertion sort is
    repeated step by step.
    """
    order = list(reversed(dims))
    for start in range(1, len(order)):
        at = start
        for before in range(start - 1, -1, -1):
            compared = _compare(order[before], order[at])
            if compared > 0:
                order[before], order[at] = order[at], order[before]
                at = before
            elif compared < 0:
                break
    return order


def _compare(first: _Dim, second: _Dim) -> int:
    """Return 1 if the second dimension comes first, -1 if not, 0 if it is undecided."""
    if (first.result == 0) != (second.result == 0):
        return 1 if second.result == 0 else -1
    for one, other in ((first.result, second.result), (first.stride, second.stride)):
        if one == 0 or other == 0:
            continue
        if one != other:
            return -1 if one < other else 1
        if first.size > second.size:
            return 1
    return 0


def _coalesced(dims: Sequence[_Dim]) -> list[_Dim]:
    """Return the dimensions with contiguous neighbours merged (``coalesce_dimensions``)."""
    merged: list[_Dim] = []
    for dim in dims:
        last = merged[-1] if merged else None
        if last is not None and (
            1 in {last.size, dim.size}
            or (last.size * last.result == dim.result and last.size * last.stride == dim.stride)
        ):
            if last.size == 1:
                last.result, last.stride = dim.result, dim.stride
            last.size *= dim.size
        else:
            merged.append(_Dim(dim.size, dim.result, dim.stride))
    return merged


def _common_vector(numbers: Sequence[int]) -> int:
    """Return the largest of 4, 2 and 1 that divides all numbers (``get_output_vec_size``)."""
    return next(size for size in (4, 2, 1) if all(number % size == 0 for number in numbers))
