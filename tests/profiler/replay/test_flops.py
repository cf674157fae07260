"""FLOPs of whole models against closed forms and published counts, and of single operations."""

from __future__ import annotations

from functools import cache
from math import prod

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from profiler.devices.table import CPU
from profiler.replay.event_log import EventLog, Phase
from profiler.replay.flops import operation_flops, published_flops
from profiler.replay.step_replay import KernelMemory, ReplayOptions, replay_step
from profiler.workload import Candidate, Workload

MOBILENET, RESNET, VIT = "mobilenetv2_100", "resnet18", "vit_small_patch16_224"


@cache
def step(model: str, *, as_published: bool = False, batch: int = 1, method: str = "full"):
    workload = Workload(model=model, micro_batch=batch, method=method)
    options = ReplayOptions(kernel_memory=KernelMemory.NONE, published_flops=as_published)
    return replay_step(Candidate(workload=workload), device=CPU, options=options)


def giga(log: EventLog, phase: Phase) -> float:
    return log.flops(phase) / 1e9


# --- whole models


def test_vit_forward_is_its_closed_form():
    tokens, width, depth, classes = 197, 384, 12, 1000
    patches = 196 * width * 3 * 16 * 16
    block = tokens * width * (3 * width + width + 4 * width + 4 * width)
    attention = 2 * tokens * tokens * width
    expected = 2 * (patches + depth * (block + attention) + width * classes)
    assert step(VIT).flops(Phase.FORWARD) == expected


def test_vit_backward_is_two_forwards_but_for_input_and_attention():
    tokens, width, depth = 197, 384, 12
    patches = 2 * 196 * width * 3 * 16 * 16  # no gradient for the image
    attention = depth * 4 * tokens * tokens * width
    # flash attention computes the scores again: five products where forward has two
    expected = 2 * (step(VIT).flops(Phase.FORWARD) - attention) - patches + attention * 5 // 2
    assert step(VIT).flops(Phase.BACKWARD) == expected


def test_mobilenet_and_resnet():
    """facts/seeds.md 4.4, convolutions and classifier, one image."""
    assert giga(step(MOBILENET), Phase.FORWARD) == pytest.approx(0.602, abs=5e-4)
    assert giga(step(MOBILENET), Phase.BACKWARD) == pytest.approx(1.181, abs=5e-4)
    assert giga(step(RESNET), Phase.FORWARD) == pytest.approx(3.628, abs=5e-4)
    assert giga(step(RESNET), Phase.BACKWARD) == pytest.approx(7.020, abs=5e-4)


def test_flops_grow_with_the_batch():
    for phase in (Phase.FORWARD, Phase.BACKWARD):
        assert step(MOBILENET, batch=3).flops(phase) == 3 * step(MOBILENET).flops(phase)


def test_the_optimizer_is_counted_elementwise():
    parameters = 11_689_512
    assert step(RESNET).flops(Phase.OPTIMIZER) > 5 * parameters
    assert step(RESNET, batch=3).flops(Phase.OPTIMIZER) == step(RESNET).flops(Phase.OPTIMIZER)


def test_published_counter_finds_twenty_to_one():
    log = step(MOBILENET, as_published=True)
    assert giga(log, Phase.BACKWARD) > 11.678
    assert giga(log, Phase.BACKWARD) / giga(log, Phase.FORWARD) == pytest.approx(18.5, abs=1.5)


class GroupsLeftOut(TorchDispatchMode):
    """Backward of convolutions and linear layers, the weight gradient without groups."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mm.default:
            self.flops += 2 * args[0].numel() * args[1].shape[1]
        if func is torch.ops.aten.convolution_backward.default:
            one = 2 * args[0].shape[0] * args[2].numel() * prod(args[0].shape[2:])
            self.flops += one * args[10][0] + one * args[9] * args[10][1]
        return out


def test_groups_left_out_of_the_weight_gradient():
    import timm

    with FakeTensorMode():
        model = timm.create_model(MOBILENET, drop_rate=0.0)
        loss = model(torch.empty(1, 3, 224, 224)).sum()
        with GroupsLeftOut() as counter:
            loss.backward()
    assert counter.flops / 1e9 == pytest.approx(11.678, abs=5e-4)


# --- single operations


class Count(TorchDispatchMode):
    def __init__(self, count) -> None:
        super().__init__()
        self.count, self.flops = count, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.flops += self.count(func, args, kwargs or {}, out)
        return out


def correct(func, args, kwargs, out) -> int:
    return operation_flops(func, args, kwargs, out)


def published(func, args, kwargs, out) -> int:
    return published_flops(func, args, out)


def brute_force(image: Tensor, convolution: nn.Conv2d) -> int:
    """Multiply-adds of a convolution, by looping over what it reads."""
    out = convolution(image)
    weight = convolution.weight
    return 2 * sum(1 for _ in range(out.numel())) * prod(weight.shape[1:])


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_each_gradient_of_a_convolution_costs_its_forward(groups):
    convolution = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=groups)
    image = torch.randn(2, 8, 9, 9, requires_grad=True)
    once = brute_force(image, convolution)
    with Count(correct) as forward:
        out = convolution(image)
    with Count(correct) as backward:
        out.sum().backward()
    assert (forward.flops, backward.flops) == (once, 2 * once)


def test_attention_of_grouped_heads_costs_that_of_all_heads_of_the_query():
    query, grouped = (torch.empty(2, heads, 16, 32, device="meta") for heads in (8, 2))
    product = 2 * 2 * 8 * 16 * 16 * 32
    for kernel in ("efficient_attention", "flash_attention", "flash_attention_for_cpu"):
        forward = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}").default
        assert operation_flops(forward, (query, grouped, grouped), {}, query) == 2 * product
        backward = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_backward").default
        args = (query, query, grouped, grouped)
        assert operation_flops(backward, args, {}, query) == 5 * product


def test_transposed_convolution():
    convolution = nn.ConvTranspose2d(8, 4, 3, stride=2, bias=False)
    image = torch.randn(2, 8, 5, 5, requires_grad=True)
    with Count(correct) as backward:
        convolution(image).sum().backward()
    assert backward.flops == 3 * 2 * image.numel() * 4 * 9


def test_published_rules():
    left, right = torch.randn(3, 5), torch.randn(5, 7)
    bias = torch.randn(7)
    depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
    image = torch.randn(2, 8, 6, 6, requires_grad=True)
    norm = nn.BatchNorm2d(8)
    with Count(published) as counter:
        left @ right
    assert counter.flops == 2 * 3 * 5 * 7 - 3 * 7
    with Count(published) as counter:
        torch.addmm(bias, left, right)
    assert counter.flops == 2 * 3 * 5 * 7 - 3 * 7 + 7 * 5
    with Count(published) as counter:
        left + left
        left * left
        F.relu(left)
    assert counter.flops == 2 * 15 + 15
    with Count(published) as counter:
        out = depthwise(image)
    assert counter.flops == 2 * out.numel() * 9
    with Count(published) as counter:
        out.backward(torch.ones_like(out))
    by_image = out.numel() * 9 + image.numel()
    by_weight = 8 * out.numel() * 9 + 8 * 9  # eight times too much
    assert counter.flops == 2 * (by_image + by_weight)
    with Count(published) as counter:
        out = norm(image.detach())
    counted_batches = 2  # num_batches_tracked is added to
    assert counter.flops == 8 * image.numel() + 2 * 8 + counted_batches
    with Count(published) as counter:
        out.backward(torch.ones_like(out))
    assert counter.flops == 5 * image.numel() + 2 * 8
