"""Scratch of CUDA's reductions: what a sum takes from the allocator and gives back inside itself.

A reduction with few outputs and many inputs (the gradient of a bias) is spread over several blocks
of threads, which leave partial sums in global memory: a buffer of up to tens of MiB, larger the
more multiprocessors the GPU has, and one counter per column of blocks. How it is spread is host
code, and repeated here to the byte.

Source: ATen/native/cuda/Reduce.cuh (``setReduceConfig``, ``ReduceConfig``), in torch's own include
folder; ``TensorIteratorBase::reorder_dimensions`` and ``coalesce_dimensions``, aten/src/ATen/
TensorIterator.cpp; ``sum_functor``, aten/src/ATen/native/cuda/ReduceSumProdKernel.cu. Checked
against torch's own CUDA code by studies/hollow_gpu.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from profiler.devices.table import Multiprocessors

_WARP = 32

_MOST_THREADS = 512

_LEAST_VALUES, _MOST_VALUES = 16, 256
"""Of values per thread: fewer and more are not wanted."""

_COUNTER_BYTES = 4


@dataclass(frozen=True, slots=True)
class Reduction:
    """A reduction as ``TensorIterator`` sees it, dimensions reordered and coalesced.

    Attributes:
        outputs: number of results.
        inputs: values that go into each.
        partial_bytes: of a partial result.
        along_rows: whether the fastest dimension is a reduced one.
        vector: outputs that a thread makes at once, or inputs that it reads at once.
    """

    outputs: int
    inputs: int
    partial_bytes: int
    along_rows: bool
    vector: int

    def scratch_bytes(self, on: Multiprocessors) -> tuple[int, ...]:
        """Return the buffer of partial results and the counters; nothing for one block each."""
        outputs_at_once = 1 if self.along_rows else self.vector
        if self.along_rows:
            wide, high = self.inputs // self.vector, self.outputs
        else:
            wide, high = self.outputs // self.vector, self.inputs
        most = _MOST_THREADS // outputs_at_once
        widest, highest = _power_of_two(wide, most), _power_of_two(high, most)
        height = min(highest, most // min(widest, _WARP))
        width = min(widest, most // height)
        threads = width * height
        step_inputs, step_outputs = (width, 1) if self.along_rows else (1, width)
        if -(-self.inputs // step_inputs) < min(16 * height, _MOST_VALUES):
            return ()  # warps share the outputs: none is split further
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
    """Bytes of a buffer of partial sums: no multiple of the batch, but known at every one.

    Attributes:
        reduction: whose; None where it is only known at the batch it was seen at.
    """

    reduction: Reduction | None

    def __new__(cls, nbytes: int, reduction: Reduction | None = None) -> PartialSums:
        """Make one."""
        made = super().__new__(cls, nbytes)
        made.reduction = reduction
        return made


def _power_of_two(number: int, most: int) -> int:
    """The largest power of two in a number, at most `most`."""
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
    """Describe the reduction of a tensor, or return None where there is nothing to reduce.

    Args:
        shape: of the input.
        strides: of the input, in elements.
        reduced: its dimensions that are summed over.
        offset: of its first element in its storage.
        partial_bytes: of a partial result.
        wide_loads: inputs that a thread reads at once if they lie side by side.
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
    """One dimension: its size, and how far its neighbours are apart in result and input."""

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
    """Reduced dimensions first, then by stride (``reorder_dimensions``: insertion sort)."""
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
    """Make one of neighbouring dimensions that are one in memory (``coalesce_dimensions``)."""
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
    """``get_output_vec_size``: 4, or the largest of 2 and 1 that divides all."""
    return next(size for size in (4, 2, 1) if all(number % size == 0 for number in numbers))
