"""Rules for bytes inside CUDA operations, each by its own arithmetic.

All of them are held against torch's own code in tests/studies/test_hollow_gpu.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from profiler.device_rules.cuda_scratch import CudaKernels
from profiler.device_rules.kernel_bytes import bytes_inside
from profiler.devices.table import Multiprocessors

aten = torch.ops.aten
KERNELS = CudaKernels(Multiprocessors(count=28, threads=1536))


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


def inside(func: Any, *args: Any) -> int:
    return bytes_inside(KERNELS.inside(func, args, {}))


def test_operations_without_a_rule_take_nothing() -> None:
    assert inside(aten.mul.Tensor, tensor(8), 2) == 0


def test_a_convolution_copies_what_does_not_lie_as_its_kernel_wants() -> None:
    image, weight = tensor(2, 8, 10, 10), tensor(16, 8, 3, 3)
    rest = (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    assert inside(aten.convolution.default, image, weight, *rest) == 0
    last = image.to(memory_format=torch.channels_last)
    copied = 16 * 8 * 3 * 3 * 4  # the weight, to channels-last like the image
    assert inside(aten.convolution.default, last, weight, *rest) == copied


def test_a_convolutions_backward_takes_the_larger_of_its_stages() -> None:
    image, weight, grad = tensor(2, 8, 10, 10), tensor(16, 8, 3, 3), tensor(2, 16, 10, 10)
    rest = ([16], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, True])
    assert inside(aten.convolution_backward.default, grad, image, weight, *rest) == 0
    turned = tensor(2, 10, 10, 16).permute(0, 3, 1, 2)  # as tokens give it back
    copied = turned.numel() * 4
    assert inside(aten.convolution_backward.default, turned, image, weight, *rest) == copied


def test_layer_norm_copies_what_is_not_contiguous() -> None:
    image = tensor(4, 7, 96)
    weight = tensor(96)
    assert inside(aten.native_layer_norm.default, image, [96], weight, weight, 1e-6) == 0
    turned = tensor(4, 96, 7).transpose(1, 2)
    assert (
        inside(aten.native_layer_norm.default, turned, [96], weight, weight, 1e-6) == 4 * 7 * 96 * 4
    )


def test_layer_norms_gradients_of_very_many_rows_are_summed_in_parts() -> None:
    weight, rows = tensor(96), tensor(70_000, 1)
    args = ([96], rows, rows, weight, weight, [True, True, True])
    few, many = tensor(65_536, 96), tensor(70_000, 96)
    assert inside(aten.native_layer_norm_backward.default, few, few, *args) == 0
    parts = 2 * -(-70_000 // 32) * 96 * 4  # of weight and bias, one row for 32
    seen = KERNELS.inside(aten.native_layer_norm_backward.default, (many, many, *args), {})
    assert sum(seen[:2]) == parts


def test_softmax_backward_makes_a_product_first() -> None:
    grad = tensor(6, 49, 49)
    args = (grad, grad, -1, torch.float32)
    assert inside(aten._softmax_backward_data.default, *args) == 6 * 49 * 49 * 4


def test_a_roll_over_two_dimensions_is_two_rolls() -> None:
    image = tensor(2, 8, 8, 4)
    assert inside(aten.roll.default, image, [1, 1], [1, 2]) == image.numel() * 4
    assert inside(aten.roll.default, image, [1], [1]) == 0
