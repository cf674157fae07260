"""MambaVision: published sizes, names, windows, the mixer written a second time, training."""

import pytest
import torch
from accelerate import init_empty_weights
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from profiler.models.backbones.mambavision import (
    MAMBAVISION_MODELS,
    Attention,
    ConvBlock,
    MambaVision,
    MambaVisionMixer,
    TokenBlock,
    _from_windows,
    _to_windows,
)


def tiny(**kwargs) -> MambaVision:
    shape = {"dim": 8, "stem_dim": 4, "depths": (1, 1, 3, 2), "windows": (8, 8, 4, 2)}
    return MambaVision(**{**shape, "img_size": 64, "num_classes": 5, **kwargs})


# --- published facts ------------------------------------------------------------------------------


def test_parameter_count_of_t():
    with torch.device("meta"):
        model = MambaVision()
    assert sum(parameter.numel() for parameter in model.parameters()) == 31_794_248


@pytest.mark.parametrize(
    ("name", "published_millions"),
    [
        ("mambavision_t", 31.8),
        ("mambavision_t2", 35.1),
        ("mambavision_s", 50.1),
        ("mambavision_b", 97.7),
        ("mambavision_l", 227.9),
        ("mambavision_l2", 241.5),
    ],
)
def test_sizes_of_the_family(name, published_millions):
    with torch.device("meta"):
        model = MAMBAVISION_MODELS[name]()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(published_millions, abs=0.1)


def test_blocks_of_t():
    with torch.device("meta"):
        levels = MambaVision().levels
    kinds = [
        [type(block.mixer if isinstance(block, TokenBlock) else block) for block in level.blocks]
        for level in levels
    ]
    assert kinds == [
        [ConvBlock],
        [ConvBlock] * 3,
        [MambaVisionMixer] * 4 + [Attention] * 4,
        [MambaVisionMixer] * 2 + [Attention] * 2,
    ]
    assert [level.window for level in levels] == [None, None, 14, 7]
    assert levels[3].downsample is None


def test_names_of_the_state_dict():
    with torch.device("meta"):
        state = MambaVision().state_dict()
    expected = {
        "patch_embed.conv_down.0.weight": (32, 3, 3, 3),
        "patch_embed.conv_down.4.running_var": (80,),
        "levels.0.blocks.0.conv1.bias": (80,),
        "levels.0.blocks.0.norm2.weight": (80,),
        "levels.1.downsample.reduction.0.weight": (320, 160, 3, 3),
        "levels.2.blocks.0.mixer.A_log": (160, 8),
        "levels.2.blocks.0.mixer.D": (160,),
        "levels.2.blocks.0.mixer.in_proj.weight": (320, 320),
        "levels.2.blocks.0.mixer.conv1d_x.weight": (160, 1, 3),
        "levels.2.blocks.0.mixer.conv1d_z.weight": (160, 1, 3),
        "levels.2.blocks.0.mixer.x_proj.weight": (36, 160),
        "levels.2.blocks.0.mixer.dt_proj.weight": (160, 20),
        "levels.2.blocks.0.mixer.out_proj.weight": (320, 320),
        "levels.2.blocks.0.mlp.fc1.weight": (1280, 320),
        "levels.2.blocks.7.mixer.qkv.bias": (960,),
        "levels.3.blocks.3.mixer.proj.weight": (640, 640),
        "norm.running_mean": (640,),
        "head.weight": (1000, 640),
    }
    assert {name: tuple(state[name].shape) for name in expected} == expected
    assert not any("gamma" in name for name in state)
    with torch.device("meta"):
        assert "levels.2.blocks.0.gamma_1" in MAMBAVISION_MODELS["mambavision_b"]().state_dict()


# --- numbers --------------------------------------------------------------------------------------


def naive_mixer(p: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """One window at a time, position by position."""
    half, states = p["A_log"].shape
    rank = p["dt_proj.weight"].shape[1]
    results = []
    for sequence in tokens:
        x, z = (sequence @ p["in_proj.weight"].T).chunk(2, dim=1)

        def same(values: Tensor, kernel: Tensor) -> Tensor:
            padded = F.pad(values, (0, 0, 1, 1))
            return F.silu(sum(padded[k : k + len(values)] * kernel[:, 0, k] for k in range(3)))

        x, z = same(x, p["conv1d_x.weight"]), same(z, p["conv1d_z.weight"])
        h, outputs = x.new_zeros(half, states), []
        for u in x:
            selection = p["x_proj.weight"] @ u
            step = F.softplus(p["dt_proj.weight"] @ selection[:rank] + p["dt_proj.bias"])
            b, c = selection[rank : rank + states], selection[rank + states :]
            h = torch.exp(-step[:, None] * p["A_log"].exp()) * h + (step * u)[:, None] * b
            outputs.append(h @ c + p["D"] * u)
        results.append(torch.cat([torch.stack(outputs), z], dim=1) @ p["out_proj.weight"].T)
    return torch.stack(results)


def test_mixer_equals_a_second_implementation():
    torch.manual_seed(0)
    mixer = MambaVisionMixer(16).double()
    mixer.D.data += torch.randn(8)
    parameters = dict(mixer.named_parameters())
    tokens = torch.randn(3, 20, 16, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(tokens)
    got, expected = mixer(tokens), naive_mixer(parameters, tokens)
    # A and D are cast to float32 in the mixer, as the kernel does.
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)
    wanted = (tokens, *parameters.values())
    grads = torch.autograd.grad((got * weights).sum(), wanted)
    expected_grads = torch.autograd.grad((expected * weights).sum(), wanted)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-6)


def test_attention_equals_its_definition():
    torch.manual_seed(0)
    attention, tokens = Attention(16, heads=4), torch.randn(2, 9, 16)
    q, k, v = attention.qkv(tokens).view(2, 9, 3, 4, 4).permute(2, 0, 3, 1, 4)
    mixed = (q @ k.mT / 2).softmax(-1) @ v
    expected = attention.proj(mixed.transpose(1, 2).reshape(2, 9, 16))
    torch.testing.assert_close(attention(tokens), expected)


@pytest.mark.parametrize("size", [(8, 8), (8, 12), (7, 9), (3, 3)])
def test_windows_cut_and_come_back(size):
    feature_map = torch.randn(2, 5, *size)
    windows = _to_windows(feature_map, 4)
    count = -(-size[0] // 4) * -(-size[1] // 4)
    assert windows.shape == (2 * count, 16, 5)
    assert torch.equal(windows[0].T.reshape(5, 4, 4)[:, :3, :3], feature_map[0, :, :3, :3])
    assert torch.equal(_from_windows(windows, 4, shape=feature_map.shape), feature_map)


def test_windows_do_not_mix():
    torch.manual_seed(0)
    level = tiny().levels[2].eval()
    level.register_module("downsample", None)
    feature_map = torch.randn(1, 32, 8, 8)
    changed = feature_map.clone()
    changed[:, :, :4, :4] += 1
    difference = (level(feature_map) - level(changed)).abs().amax(dim=(0, 1))
    assert (difference[:4, :4] > 0).all()
    assert (difference[4:] == 0).all() and (difference[:, 4:] == 0).all()


# --- as a timm model ------------------------------------------------------------------------------


def test_interface_of_a_timm_model():
    model = tiny(drop_path_rate=0.1)
    images = torch.randn(2, 3, 64, 64)
    assert model.pretrained_cfg["input_size"] == (3, 64, 64)
    assert model.pretrained_cfg["classifier"] == "head"
    features = model.forward_features(images)
    assert features.shape == (2, 64, 2, 2)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    assert model.get_classifier() is model.head
    model.reset_classifier(7)
    assert model(images).shape == (2, 7) and model.num_classes == 7
    assert "levels.2.blocks.0.mixer.A_log" in model.no_weight_decay()
    assert not any("A_log" in name for name in model.state_dict().keys() - model.no_weight_decay())


@pytest.mark.parametrize("size", [64, 96, 80])
def test_other_image_sizes_run(size):
    assert tiny()(torch.randn(2, 3, size, size)).shape == (2, 5)


def test_no_storage_on_meta_or_without_weights():
    with torch.device("meta"):
        assert all(x.is_meta for x in MambaVision().state_dict().values())
    with init_empty_weights():
        assert all(
            parameter.is_meta for parameter in MAMBAVISION_MODELS["mambavision_b"]().parameters()
        )


def test_training_step_on_fake_tensors():
    with FakeTensorMode():
        model = tiny(layer_scale=1e-5)
        model(torch.randn(2, 3, 64, 64)).sum().backward()
        assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


def test_projections_are_called_as_modules():
    model, called = tiny(), set()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda *_, name=name: called.add(name))
    model(torch.randn(2, 3, 64, 64))
    assert called == {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}


def test_autocast_and_checkpointing():
    torch.manual_seed(0)
    model = tiny().eval()
    images = torch.randn(2, 3, 64, 64)
    exact = model(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model(images).float(), exact, rtol=0.1, atol=0.05)
    block, tokens = model.levels[2].blocks[0], torch.randn(2, 16, 32)
    kept = torch.autograd.grad(block(tokens).sum(), list(block.parameters()))
    again = checkpoint(block, tokens, use_reentrant=False)
    recomputed = torch.autograd.grad(again.sum(), list(block.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(kept, recomputed, strict=True))


def test_a_few_steps_of_training_lower_the_loss():
    torch.manual_seed(0)
    model = tiny()
    images, labels = torch.randn(10, 3, 64, 64), torch.arange(10) % 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(model(images), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
