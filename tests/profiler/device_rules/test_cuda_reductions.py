"""Scratch of CUDA's reductions, in numbers worked out by hand from Reduce.cuh.

Random ones are compared with torch's own code in tests/studies/test_hollow_gpu.py.
"""

from __future__ import annotations

import pytest

from profiler.device_rules.cuda_reductions import PartialSums, Reduction, reduction_of
from profiler.devices.table import Multiprocessors

RTX_3060 = Multiprocessors(count=28, threads=1536)
H200 = Multiprocessors(count=132, threads=2048)


def rows(tokens: int, width: int) -> Reduction:
    """The sum over the rows of a matrix: the gradient of a bias."""
    found = reduction_of(
        (tokens, width),
        (width, 1),
        (0,),
        offset=0,
        partial_bytes=4,
        wide_loads=4,
    )
    assert found is not None
    return found


def test_a_bias_gradient_is_summed_by_many_blocks() -> None:
    # 4 outputs a thread, 32 x 4 threads a block, 2 columns of blocks; 28 x 12 blocks run at once,
    # so 168 share a column: 192 outputs x 168 x 32 x 4 partial sums of 4 bytes, 2 counters
    assert rows(18912, 192).scratch_bytes(RTX_3060) == (192 * 168 * 32 * 4 * 4, 8)


def test_no_thread_sums_fewer_than_sixteen() -> None:
    # 264 blocks a column would fit (1584 / 6), but 4 x 16 rows each leave 3152 / 64
    assert rows(3152, 768).scratch_bytes(H200) == (768 * 50 * 32 * 4 * 4, 24)


def test_few_rows_are_not_spread() -> None:
    assert rows(4 * 255, 192).scratch_bytes(RTX_3060) == ()
    assert rows(4 * 256, 192).scratch_bytes(RTX_3060) != ()


def test_a_sum_along_rows_leaves_one_number_a_block() -> None:
    found = reduction_of((2, 1 << 20), (1 << 20, 1), (1,), offset=0, partial_bytes=4, wide_loads=4)
    assert found == Reduction(2, 1 << 20, 4, along_rows=True, vector=4)
    # 512 threads along the row, 2048 values each; 84 blocks run at once, 2 columns (one a row)
    assert found.scratch_bytes(RTX_3060) == (2 * 42 * 4, 8)


@pytest.mark.parametrize(
    ("shape", "strides", "reduced", "outputs", "inputs", "along_rows"),
    [
        ((8, 64, 7, 7), (3136, 49, 7, 1), (0, 2, 3), 64, 392, True),
        ((8, 64, 7, 7), (3136, 1, 448, 64), (0, 2, 3), 64, 392, False),
        ((3, 5), (0, 1), (1,), 3, 5, False),
        ((4, 6), (6, 1), (0, 1), 1, 24, True),
    ],
    ids=["nchw", "channels-last", "expanded", "all"],
)
def test_which_way_the_memory_lies(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    reduced: tuple[int, ...],
    outputs: int,
    inputs: int,
    along_rows: bool,
) -> None:
    found = reduction_of(shape, strides, reduced, offset=0, partial_bytes=4, wide_loads=4)
    assert found is not None
    assert (found.outputs, found.inputs, found.along_rows) == (outputs, inputs, along_rows)


def test_an_odd_width_or_offset_is_loaded_one_by_one() -> None:
    assert rows(100, 192).vector == 4
    assert rows(100, 190).vector == 2
    moved = reduction_of((100, 192), (192, 1), (0,), offset=1, partial_bytes=4, wide_loads=4)
    assert moved is not None
    assert moved.vector == 1


def test_nothing_is_reduced_of_an_empty_tensor() -> None:
    empty = reduction_of((0, 3), (3, 1), (0,), offset=0, partial_bytes=4, wide_loads=4)
    assert empty is None


def test_partial_sums_are_bytes_that_know_their_reduction() -> None:
    made = PartialSums(5, rows(10, 2))
    assert made + 1 == 6
    assert made.reduction == rows(10, 2)
