"""The 4-bit layer against bitsandbytes' own, and what quantising must not do."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import small_backbones as small
import torch
from bitsandbytes import functional as kernels
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from profiler.errors import UsageError
from profiler.models.methods import get_method
from profiler.models.methods.qlora import FourBitLinear


def _layer(inputs: int = 192, outputs: int = 320) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs)


def _reference(layer: nn.Linear) -> bnb.nn.Linear4bit:
    four_bit = bnb.nn.Linear4bit(
        layer.in_features, layer.out_features, quant_type="nf4", compute_dtype=torch.float32
    )
    four_bit.load_state_dict(layer.state_dict())
    return four_bit.to("cpu")


def test_output_and_input_gradient_are_those_of_bitsandbytes() -> None:
    layer = _layer()
    ours, theirs = FourBitLinear(layer, torch.float32), _reference(layer)
    inputs = [torch.randn(7, 192, requires_grad=True) for _ in range(2)]
    inputs[1].data.copy_(inputs[0].data)
    outputs = [ours(inputs[0]), theirs(inputs[1])]
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


def test_state_dict_has_the_keys_and_values_of_bitsandbytes() -> None:
    layer = _layer()
    ours, theirs = FourBitLinear(layer, torch.float32).state_dict(), _reference(layer).state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key


def test_error_of_nf4_is_that_of_four_bits() -> None:
    layer = _layer()
    weight = FourBitLinear(layer, torch.float32).dequantised()
    relative = (weight - layer.weight).norm() / layer.weight.norm()
    assert 0.02 < relative < 0.12


def test_weights_take_half_a_byte_and_their_scales() -> None:
    layer = FourBitLinear(_layer(1024, 1024), torch.float32)
    tensors = [*layer.parameters(), *layer.buffers()]
    stored = sum(t.numel() * t.element_size() for t in tensors) - 1024 * 4  # the bias
    elements = 1024 * 1024
    assert stored == elements // 2 + elements // 64 + elements // 64 // 256 * 4 + 1024 + 64 + 4


def test_training_goes_on_after_an_evaluation() -> None:
    plain = _layer()
    layer, fresh = (FourBitLinear(plain, torch.float32) for _ in range(2))
    layer.eval()
    with torch.no_grad():
        layer(torch.randn(4, 192))
    layer.train()
    x = torch.randn(4, 192, requires_grad=True)
    (after,) = torch.autograd.grad(layer(x).square().sum(), x)
    (before,) = torch.autograd.grad(fresh(x).square().sum(), x)
    assert torch.equal(after, before)
    assert after.any()


def test_types_follow_precision_and_autocast() -> None:
    layer = FourBitLinear(_layer(), torch.bfloat16)
    assert layer(torch.randn(4, 192)).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(4, 192)).dtype == torch.bfloat16


def test_fake_layers_leave_no_fake_table_behind() -> None:
    kernels.name2qmap.clear()
    with FakeTensorMode():
        FourBitLinear(nn.Linear(64, 64), torch.float32)
    FourBitLinear(_layer(64, 64), torch.float32)
    assert all(type(table) is torch.Tensor for table in kernels.name2qmap.values())


def test_everything_linear_but_the_head_is_quantised() -> None:
    model = small.make("vit")
    get_method("qlora").apply(model, small.workload("qlora"))
    plain = {
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and "lora_" not in name
    }
    assert plain == {"head.original_module", "head.modules_to_save.default"}


def test_convolutional_backbones_are_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="no convolution in 4 bits"):
        get_method("qlora").apply(small.make("resnet"), small.workload("qlora"))
