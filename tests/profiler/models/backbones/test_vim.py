"""Vim: published sizes and names, a mixer written a second time, position embeddings, training."""

import math
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from profiler.errors import InputError
from profiler.models import backbones
from profiler.models.backbones.vim import VIM_MODELS, Vim, VimMixer


def tiny(**kwargs) -> Vim:
    return Vim(
        **{"dim": 32, "depth": 2, "img_size": 32, "patch_size": 8, "num_classes": 5, **kwargs}
    )


def parameter_count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# --- published facts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("vim_small_patch16_224", 1000, 25_796_584),
        ("vim_small_patch16_224", 100, 25_450_084),  # MambaPEFT's 25,450 K
        ("vim_tiny_patch16_224", 1000, 7_148_008),  # published as 7 M
        ("vim_base_patch16_224", 1000, 97_598_440),  # published as 98 M
    ],
)
def test_parameter_counts(name, classes, count):
    with torch.device("meta"):
        model = VIM_MODELS[name](num_classes=classes)
    assert parameter_count(model) == count


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of vim_s_midclstok_80p5acc.pth, as published at
    huggingface.co/hustvl/Vim-small-midclstok."""
    mixer = {
        "in_proj.weight": (1536, 384),
        "out_proj.weight": (384, 768),
        **{name: (768, 16) for name in ("A_log", "A_b_log")},
        **{name: (768,) for name in ("D", "D_b")},
    }
    for suffix in ("", "_b"):
        mixer |= {
            f"conv1d{suffix}.weight": (768, 1, 4),
            f"conv1d{suffix}.bias": (768,),
            f"x_proj{suffix}.weight": (56, 768),
            f"dt_proj{suffix}.weight": (768, 24),
            f"dt_proj{suffix}.bias": (768,),
        }
    layer = {f"mixer.{name}": shape for name, shape in mixer.items()} | {"norm.weight": (384,)}
    shapes = {f"layers.{i}.{name}": shape for i in range(24) for name, shape in layer.items()}
    return shapes | {
        "cls_token": (1, 1, 384),
        "pos_embed": (1, 197, 384),
        "patch_embed.proj.weight": (384, 3, 16, 16),
        "patch_embed.proj.bias": (384,),
        "norm_f.weight": (384,),
        "head.weight": (1000, 384),
        "head.bias": (1000,),
    }


def test_state_dict_is_the_published_one():
    with torch.device("meta"):
        state = Vim().state_dict()
    assert {name: tuple(x.shape) for name, x in state.items()} == published_shapes()


def test_mamba_initialisation():
    mixer = tiny().layers[0].mixer
    rates = torch.arange(1.0, 17.0).expand(64, 16)
    torch.testing.assert_close(mixer.A_log.exp(), rates)
    steps = F.softplus(mixer.dt_proj.bias)
    assert steps.min() >= 0.99e-3 and steps.max() <= 0.101
    assert steps.std() > 0.005


# --- numbers --------------------------------------------------------------------------------------


def naive_direction(p: dict[str, Tensor], x: Tensor, suffix: str) -> Tensor:
    """One direction for one sequence [length, inner], position by position, in scalars' order."""
    rank = p["dt_proj.weight"].shape[1]
    decay = -p["A_log" if not suffix else "A_b_log"].exp()
    kernel, bias = p[f"conv1d{suffix}.weight"][:, 0], p[f"conv1d{suffix}.bias"]
    h = torch.zeros_like(decay)
    outputs = []
    for t in range(len(x)):
        window = [x[t - k] * kernel[:, 3 - k] for k in range(4) if t - k >= 0]
        u = F.silu(sum(window) + bias)
        selection = p[f"x_proj{suffix}.weight"] @ u
        step = p[f"dt_proj{suffix}.weight"] @ selection[:rank] + p[f"dt_proj{suffix}.bias"]
        step = torch.log1p(step.exp())
        b, c = selection[rank : rank + 16], selection[rank + 16 :]
        h = (step[:, None] * decay).exp() * h + (step * u)[:, None] * b
        outputs.append(h @ c + p[f"D{suffix}"] * u)
    return torch.stack(outputs)


def naive_mixer(p: dict[str, Tensor], tokens: Tensor) -> Tensor:
    results = []
    for sequence in tokens:
        x, z = (sequence @ p["in_proj.weight"].T).chunk(2, dim=1)
        forward = naive_direction(p, x, "")
        backward = naive_direction(p, x.flip(0), "_b").flip(0)
        gated = (forward + backward) / 2 * z * torch.sigmoid(z)
        results.append(gated @ p["out_proj.weight"].T)
    return torch.stack(results)


def test_mixer_equals_a_second_implementation():
    torch.manual_seed(0)
    mixer = VimMixer(24, depth=2).double()
    for name, parameter in mixer.named_parameters():
        if name in {"D", "D_b", "A_log", "A_b_log"}:
            parameter.data += 0.3 * torch.randn_like(parameter)
    parameters = dict(mixer.named_parameters())
    tokens = torch.randn(2, 21, 24, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(tokens)
    got, expected = mixer(tokens), naive_mixer(parameters, tokens)
    # A and D are cast to float32 in the mixer, as the kernel does.
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)
    wanted = (tokens, *parameters.values())
    grads = torch.autograd.grad((got * weights).sum(), wanted)
    expected_grads = torch.autograd.grad((expected * weights).sum(), wanted)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-6)


def test_layers_equal_the_published_pair_of_branch_and_residual():
    torch.manual_seed(0)
    model = tiny(depth=3).eval()
    images = torch.randn(2, 3, 32, 32)
    patches = model.patch_embed(images)
    cls_token = model.cls_token.expand(2, -1, -1)
    branch = torch.cat([patches[:, :8], cls_token, patches[:, 8:]], dim=1) + model.pos_embed
    residual = None
    for layer in model.layers:
        residual = branch if residual is None else residual + branch
        branch = layer.mixer(layer.norm(residual))
    expected = model.head(model.norm_f(residual + branch)[:, 8])
    torch.testing.assert_close(model(images), expected)


def test_reversing_the_tokens_and_swapping_directions_reverses_the_mixer():
    torch.manual_seed(0)
    mixer, mirrored = VimMixer(16, depth=1), VimMixer(16, depth=1)
    swap = {"A_log": "A_b_log", "D": "D_b", "conv1d": "conv1d_b", "x_proj": "x_proj_b"}
    swap |= {"dt_proj": "dt_proj_b"}
    swap |= {there: here for here, there in swap.items()}
    state = {}
    for name, x in mixer.state_dict().items():
        first, dot, rest = name.partition(".")
        state[swap.get(first, first) + dot + rest] = x
    mirrored.load_state_dict(state)
    tokens = torch.randn(2, 19, 16)
    torch.testing.assert_close(mirrored(tokens.flip(1)).flip(1), mixer(tokens))


def test_autocast_keeps_the_residual_stream_in_float32():
    torch.manual_seed(0)
    model, images = tiny(), torch.randn(2, 3, 32, 32)
    exact = model(images)
    boundaries = []
    hooks = [
        layer.register_forward_hook(lambda *args: boundaries.append(args[2].dtype))
        for layer in model.layers
    ]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(images)
    for hook in hooks:
        hook.remove()
    assert boundaries == [torch.float32] * 2
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.1, atol=0.05)


def test_checkpointed_layers_give_the_same_gradients():
    torch.manual_seed(0)
    model, tokens = tiny(), torch.randn(2, 17, 32)

    def gradients(run) -> list[Tensor]:
        loss = run(model.layers[0], tokens).square().sum()
        return list(torch.autograd.grad(loss, list(model.layers[0].parameters())))

    kept = gradients(lambda layer, x: layer(x))
    recomputed = gradients(lambda layer, x: checkpoint(layer, x, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(kept, recomputed, strict=True))


# --- as a timm model ------------------------------------------------------------------------------


def test_interface_of_a_timm_model():
    model = tiny(drop_path_rate=0.1)
    images = torch.randn(2, 3, 32, 32)
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)
    assert model.pretrained_cfg["classifier"] == "head"
    features = model.forward_features(images)
    assert features.shape == (2, 17, 32)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    assert model.get_classifier() is model.head
    model.reset_classifier(7)
    assert model(images).shape == (2, 7) and model.num_classes == 7
    model.reset_classifier(0)
    assert model(images).shape == (2, 32)
    decayed = {name for name, _ in model.named_parameters()} - model.no_weight_decay()
    assert "layers.0.mixer.in_proj.weight" in decayed
    assert not any("A_log" in name or name.endswith((".D", ".D_b")) for name in decayed)


def test_no_storage_on_meta_or_without_weights():
    with torch.device("meta"):
        assert all(x.is_meta for x in Vim().state_dict().values())
    with init_empty_weights():
        assert all(parameter.is_meta for parameter in Vim(img_size=96).parameters())


def test_training_step_on_fake_tensors():
    with FakeTensorMode():
        model = tiny()
        model(torch.randn(2, 3, 32, 32)).sum().backward()
        assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


def test_projections_are_called_as_modules():
    """An adapter replaces them: each must see its input and decide its output."""
    model, called = tiny(), set()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda *_, name=name: called.add(name))
    model(torch.randn(1, 3, 32, 32))
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert called == linear and len(linear) == 2 * 6 + 1


# --- checkpoints ----------------------------------------------------------------------------------


def load(model: Vim, checkpoint: dict[str, object], folder: Path) -> None:
    path = folder / "vim.pth"
    torch.save(checkpoint, path)
    backbones.load_weights(model, "vim_s", weights=path)


def test_checkpoint_of_the_same_size_loads_exactly(tmp_path):
    torch.manual_seed(0)
    source, target = tiny(), tiny()
    load(target, {"model": source.state_dict()}, tmp_path)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(source(images), target(images))


def test_position_embeddings_are_resized_around_the_class_token(tmp_path):
    source, target = tiny(), tiny(img_size=64)
    rows = torch.arange(4.0).repeat_interleave(4)
    grid = rows.view(1, 16, 1).expand(1, 16, 32)
    marker = torch.full((1, 1, 32), 100.0)
    state = source.state_dict()
    state["pos_embed"] = torch.cat([grid[:, :8], marker, grid[:, 8:]], dim=1)
    load(target, state, tmp_path)
    resized = target.pos_embed.detach()
    assert resized.shape == (1, 65, 32)
    assert torch.equal(resized[:, 32], marker[:, 0])
    patches = torch.cat([resized[:, :32], resized[:, 33:]], dim=1).view(8, 8, 32)
    assert (patches.diff(dim=0) > -1e-4).all() and patches[0].max() < 0.3 < patches[-1].min() - 2
    torch.testing.assert_close(patches.std(dim=1), torch.zeros(8, 32), atol=1e-5, rtol=0)


def test_checkpoint_that_does_not_fit_is_refused_in_one_line(tmp_path):
    state = tiny().state_dict()
    del state["norm_f.weight"]
    with pytest.raises(InputError, match="norm_f") as failure:
        load(tiny(), {"model": state}, tmp_path)
    assert "\n" not in str(failure.value)


def test_a_classifier_for_other_classes_keeps_its_random_values(tmp_path):
    source, target = tiny(), tiny(num_classes=6)
    head = target.head.weight.detach().clone()
    load(target, source.state_dict(), tmp_path)
    assert torch.equal(target.head.weight, head)
    assert torch.equal(target.norm_f.weight, source.norm_f.weight)


def test_a_few_steps_of_training_lower_the_loss():
    torch.manual_seed(0)
    model = tiny(drop_path_rate=0.05)
    images, labels = torch.randn(10, 3, 32, 32), torch.arange(10) % 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(model(images), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(5), abs=0.3)
    assert losses[-1] < 0.5 * losses[0]
