"""Strides of results on fake tensors, against the real kernels of the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from profiler.device_rules.cuda_dispatch import imitate_cuda
from profiler.device_rules.result_layouts import with_real_layout

aten = torch.ops.aten


def contiguous(b: int, c: int, h: int, w: int) -> Tensor:
    return torch.rand(b, c, h, w)


def channels_last(b: int, c: int, h: int, w: int) -> Tensor:
    return torch.rand(b, h, w, c).permute(0, 3, 1, 2)


def transposed(b: int, c: int, h: int, w: int) -> Tensor:
    return torch.rand(b, c, w, h).transpose(2, 3)


LAYOUTS = (contiguous, channels_last, transposed)
Make = Callable[[int, int, int, int], Tensor]


def calls(image: Make, gradient: Make) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Yield operations with arguments; an image has 8 channels of 6 x 4 pixels."""
    x, g, weight, bias = image(2, 8, 6, 4), gradient(2, 8, 6, 4), torch.rand(8), torch.rand(8)
    mask = [True, True, True]
    rows, row_gradient = x.permute(0, 2, 3, 1), g.permute(0, 2, 3, 1)
    mean, scale = torch.rand(2, 6, 4, 1), torch.rand(2, 6, 4, 1)
    of_rows = (row_gradient, rows, [8], mean, scale, weight, bias, mask)
    yield aten.native_layer_norm_backward.default, of_rows
    groups = (2, 8, 24, 4)
    yield aten.native_group_norm.default, (x, weight, bias, *groups, 1e-5)
    statistics = (torch.rand(2, 4), torch.rand(2, 4))
    yield aten.native_group_norm_backward.default, (g, x, *statistics, weight, *groups, mask)
    kept = (torch.rand(8), torch.rand(8))
    yield aten.native_batch_norm.default, (x, weight, bias, *kept, True, 0.1, 1e-5)
    of_batch = (g, x, weight, *kept, *kept, True, 1e-5, mask)
    yield aten.native_batch_norm_backward.default, of_batch
    yield aten.hardswish_backward.default, (g, x)
    yield aten.hardtanh_backward.default, (g, x, -1.0, 1.0)
    yield aten.hardsigmoid_backward.default, (g, x)
    yield aten.glu_backward.default, (gradient(2, 4, 6, 4), x, 1)
    yield aten.roll.default, (x, [1], [2])
    yield aten.channel_shuffle.default, (x, 2)


def tokens_as_map(b: int, c: int, h: int, w: int) -> Tensor:
    """Return a view of transposed tokens, as transformers with convolutions make it."""
    return torch.rand(b, h * w, c).transpose(1, 2).view(b, c, h, w)


def calls_of_one_image(image: Make) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Yield operations that keep strides, or whose strides a dimension of size 1 decides."""
    x, statistics = image(1, 8, 6, 4), [torch.rand(8) for _ in range(5)]
    yield aten.view.default, (x.flatten(2), [1, 8, 4, 6])
    yield aten._unsafe_view.default, (x.flatten(2), [1, 8, 4, 6])
    yield aten.view.default, (x[0], [1, 8, 6, 4])
    for func in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor):
        yield func, (x, 2.0)
        yield func, (x, torch.rand(8, 1, 1))
    yield aten.hardtanh.default, (x, 0.0, 6.0)
    yield aten.flip.default, (x, [2])
    for like in (aten.empty_like, aten.zeros_like, aten.ones_like, aten.rand_like, aten.randn_like):
        yield like.default, (x,)
    yield aten.full_like.default, (x, 1.0)
    yield aten.native_batch_norm.default, (x, *statistics[:4], True, 0.1, 1e-5)
    for gradient in (x, channels_last(1, 8, 6, 4)):
        of_batch = (gradient, x, *statistics, True, 1e-5, [True, True, True])
        yield aten.native_batch_norm_backward.default, of_batch


def strides(results: Any) -> list[tuple[int, ...]]:
    found = results if isinstance(results, tuple | list) else [results]
    return [tensor.stride() for tensor in found]


def run(func: Any, args: tuple[Any, ...]) -> Any:
    """Run an operation; None if group norm of PyTorch 2.10 refuses the layout.

    Its real forward refuses a transposed image, which ``nn.GroupNorm`` never hands it, and its
    backward on fake tensors a transposed gradient.
    """
    try:
        return func(*args)
    except (RuntimeError, ValueError):
        if "group_norm" in str(func) and torch.__version__ < (2, 14):
            return None
        raise


def real_and_replayed(image: Make, gradient: Make) -> Iterator[tuple[str, Any, Any]]:
    real = [run(func, args) for func, args in calls(image, gradient)]
    with FakeTensorMode():
        fakes = [(func, args, run(func, args)) for func, args in calls(image, gradient)]
        for expected, (func, args, fake) in zip(real, fakes, strict=True):
            if expected is not None and fake is not None:
                found = strides(with_real_layout(func, args, fake))
                yield str(func), strides(expected), found


@pytest.mark.parametrize("gradient", LAYOUTS)
@pytest.mark.parametrize("image", LAYOUTS)
def test_results_have_the_strides_of_the_real_kernels(image: Make, gradient: Make) -> None:
    for name, expected, found in real_and_replayed(image, gradient):
        assert found == expected, name


def imitated(image: Make) -> Make:
    """Return a function that makes fake images with the strides of real ones."""

    def make(b: int, c: int, h: int, w: int) -> Tensor:
        with unset_fake_temporarily():
            stride = image(b, c, h, w).stride()
        return torch.empty_strided((b, c, h, w), stride)

    return make


@pytest.mark.parametrize("image", [*LAYOUTS, tokens_as_map])
def test_strides_of_one_image_are_those_of_the_real_kernels(image: Make) -> None:
    real = [func(*args) for func, args in calls_of_one_image(image)]
    with FakeTensorMode():
        for expected, (func, args) in zip(real, calls_of_one_image(imitated(image)), strict=True):
            found = strides(with_real_layout(func, args, func(*args)))
            assert found == strides(expected), func


def test_a_given_memory_format_and_the_storage_of_a_view_are_kept() -> None:
    with FakeTensorMode():
        tokens = torch.rand(1, 24, 8).transpose(1, 2)
        wrong = aten.view.default(tokens, [1, 8, 6, 4])
        view = with_real_layout(aten.view.default, (tokens, [1, 8, 6, 4]), wrong)
        assert view.stride() != wrong.stride()
        assert view.untyped_storage()._cdata == tokens.untyped_storage()._cdata
        given = {"memory_format": torch.channels_last}
        made = torch.empty_like(view, **given)
        assert with_real_layout(aten.empty_like.default, (view,), made, given) is made


def test_cuda_rolls_and_normalises_groups_into_contiguous_results() -> None:
    """cuda/TensorTransformations.cu; group_norm.cpp takes a memory format on a CPU only."""
    with FakeTensorMode(), imitate_cuda((8, 6)):
        for func, args in calls(channels_last, channels_last):
            result = with_real_layout(func, args, func(*args))
            first = result[0] if isinstance(result, tuple) else result
            name = func._schema.name
            if "roll" in name or "group_norm" in name:
                assert first.is_contiguous(), name
            elif "batch_norm" in name:
                assert first.is_contiguous(memory_format=torch.channels_last), name
