"""A model that follows a placement computes what the plain model computes, and stores less.

The oracle is the plain model: outputs, every gradient, every buffer and the random generator's
state must be equal to the bit (CPU kernels on one thread are deterministic). Bytes are counted by
following every storage a forward creates (`Live`), not by what the code under test says it drops.
"""

from __future__ import annotations

import contextlib
import copy
import os
import weakref
from collections import Counter
from typing import NamedTuple

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from profiler.checkpointing.apply import apply_adaptive, apply_placement, recomputing
from profiler.device_rules.cuda_dispatch import standing_for_cuda
from profiler.errors import InputError
from profiler.models.backbones.mambavision import MambaVision
from profiler.models.backbones.vim import Vim
from profiler.models.checkpointable_units import find_units
from profiler.models.unit_parts import branches_of, layers_of, parts_of_unit
from profiler.models.unit_runs import modules_of
from profiler.placement import KEEP_ALL, Decision, Placement
from profiler.unit_options import options_of, uniform_placement

CLASSES = 5


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(name: str, **kwargs: object) -> nn.Module:
    return timm.create_model(name, num_classes=CLASSES, **kwargs)


def two_of_each_block(model: nn.Module) -> nn.Module:
    """Leave the first block of a stage and one that repeats it: more of them are alike."""
    for index, stage in enumerate(model.blocks):
        model.blocks[index] = stage[:2]
    return model


VIT = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 48, "num_heads": 2}

MODELS = {
    "vit": lambda: tiny(
        "vit_tiny_patch16_224", **VIT, drop_path_rate=0.3, proj_drop_rate=0.2, attn_drop_rate=0.1
    ),
    "dinov2": lambda: tiny("vit_small_patch14_dinov2", **VIT, drop_path_rate=0.2),
    "resnet": lambda: tiny("resnet18", channels=(8, 16, 16, 32), drop_path_rate=0.2),
    "mobilenetv2": lambda: two_of_each_block(
        tiny("mobilenetv2_035", drop_rate=0.2, drop_path_rate=0.2)
    ),
    "mobilenetv3": lambda: two_of_each_block(tiny("mobilenetv3_small_050", drop_path_rate=0.2)),
    "tiny_vit": lambda: tiny(
        "tiny_vit_5m_224",
        depths=(1, 1, 1, 1),
        embed_dims=(16, 32, 32, 32),
        num_heads=(1, 2, 2, 2),
        drop_path_rate=0.2,
    ),
    "convnext": lambda: tiny(
        "convnext_atto", depths=(1, 1, 2, 1), dims=(8, 16, 16, 32), drop_path_rate=0.2
    ),
    "swin": lambda: tiny(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=4,
        depths=(2, 2),
        embed_dim=16,
        num_heads=(2, 2),
        drop_path_rate=0.2,
    ),
    "vim": lambda: Vim(dim=32, depth=3, img_size=32, num_classes=CLASSES, drop_path_rate=0.2),
    "mambavision": lambda: MambaVision(
        dim=8,
        stem_dim=8,
        depths=(1, 1, 2, 2),
        heads=(1, 1, 2, 2),
        windows=(4, 4, 2, 1),
        img_size=32,
        num_classes=CLASSES,
        drop_path_rate=0.2,
    ),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(1)
    return MODELS[name]().train()


def images(edge: int = 32, batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, 3, edge, edge, generator=torch.Generator().manual_seed(2))


def everywhere(decision: str, model: nn.Module) -> Placement:
    """One decision for all units; `parts` recomputes all branches, `mixed` cycles through all."""
    units = find_units(model)
    parts = {unit: parts_of_unit(model, unit) for unit in units}
    options = {option.key: option for option in options_of(parts)}
    if decision == Decision.SEGMENT:
        decisions = {u: Decision.SEGMENT if i else Decision.RECOMPUTE for i, u in enumerate(units)}
    elif decision == "parts":
        decisions = {f"{u}/{p}": Decision.RECOMPUTE for u in units for p in branches_of(model, u)}
    elif decision == "cheap parts":
        decisions = {f"{u}/{p}": Decision.DROP_CHEAP for u in units for p in branches_of(model, u)}
    elif decision in ("layers", "light beside layers"):
        decisions = dict.fromkeys(
            units, Decision.DROP_CHEAP if decision == "layers" else Decision.DROP_CHEAP_AND_MIXING
        )
        decisions |= {f"{u}/{n}": Decision.RECOMPUTE for u in units for n in layers_of(model, u)}
    elif decision in options:
        return uniform_placement(options[decision], parts)
    elif decision == "light beside parts":
        decisions = dict.fromkeys(units, Decision.DROP_CHEAP_AND_MIXING)
        decisions |= {
            f"{u}/{p}": Decision.RECOMPUTE for u in units for p in branches_of(model, u)[:1]
        }
    elif decision == "mixed":
        cycle = (Decision.DROP_CHEAP, Decision.RECOMPUTE, Decision.SEGMENT, Decision.KEEP)
        decisions = {u: cycle[i % len(cycle)] for i, u in enumerate(units)}
        for unit in [
            u for u in units if decisions[u] == Decision.DROP_CHEAP and branches_of(model, u)
        ]:
            decisions[f"{unit}/{branches_of(model, unit)[-1]}"] = Decision.RECOMPUTE
    else:
        decisions = dict.fromkeys(units, decision)
    return Placement(decisions=decisions)


def train_step(
    model: nn.Module, *, autocast: bool = False, steps: int = 1, edge: int = 32
) -> dict[str, Tensor]:
    """Everything a training step leaves behind."""
    torch.manual_seed(3)
    model.zero_grad(set_to_none=True)
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = model(images(edge))
            loss = F.cross_entropy(output.float(), torch.arange(4) % CLASSES)
        loss.backward()
    left = {"output": output.detach(), "random": torch.get_rng_state()}
    left |= {f"grad {n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return left | {f"buffer {n}": b.clone() for n, b in model.named_buffers()}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(got[name], expected[name])]
    assert not different, different


class Live(TorchDispatchMode):
    """Bytes of the storages created under the mode that are still alive."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.bytes = 0
        self.peak = 0
        own = [*model.parameters(), *model.buffers()]
        self.seen = {t.untyped_storage()._cdata for t in own}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.follow(tensor.untyped_storage())
        return out

    def follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.seen:
            self.seen.add(key)
            self.bytes += storage.nbytes()
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self.forget, key, storage.nbytes())

    def forget(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.bytes -= size


def stored_bytes(model: nn.Module, x: torch.Tensor, *, autocast: bool = False) -> int:
    """What a forward leaves in memory for backward (output included)."""
    with Live(model) as live:
        live.seen.add(x.untyped_storage()._cdata)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = model(x)
        stored = live.bytes
        del output
    return stored


# --- equal outputs, gradients, buffers, random state ----------------------------------------------


def between(keys: set[str]) -> set[str]:
    """Return the keys with a number (``layers:2``) that is neither the first nor the last."""
    numbers: dict[str, set[int]] = {}
    for name, _, number in (key.partition(":") for key in keys):
        if number.isdecimal():
            numbers.setdefault(name, set()).add(int(number))
    return {
        f"{name}:{n}" for name, found in numbers.items() for n in found - {min(found), max(found)}
    }


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
def test_every_decision_computes_what_the_plain_model_computes(name, autocast):
    model = build(name)
    state = copy.deepcopy(model.state_dict())
    expected = train_step(model, autocast=autocast)
    parts = {unit: parts_of_unit(model, unit) for unit in find_units(model)}
    keys = {option.key for option in options_of(parts)}
    if os.environ.get("HYPOTHESIS_PROFILE") != "nightly":
        keys -= between(keys)
    composed = {"parts", "cheap parts", "light beside parts", "layers", "light beside layers"}
    for decision in sorted({Decision.SEGMENT, "mixed", *composed, *keys}):
        model.load_state_dict(state)
        placement = everywhere(decision, model)
        with apply_placement(model, placement):
            assert_same(train_step(model, autocast=autocast), expected)


@pytest.mark.parametrize(
    "decision",
    [
        Decision.RECOMPUTE,
        Decision.SEGMENT,
        Decision.DROP_CHEAP,
        Decision.DROP_CHEAP_AND_MIXING,
        "lean-layers",
        "mixed",
    ],
)
def test_accumulated_gradients_and_batch_statistics_are_equal(decision):
    plain = build("resnet")
    placed = copy.deepcopy(plain)
    expected = train_step(plain, steps=3)
    apply_placement(placed, everywhere(decision, placed))
    assert_same(train_step(placed, steps=3), expected)
    assert int(placed.bn1.num_batches_tracked) == 3
    assert int(placed.layer2[0].bn1.num_batches_tracked) == 3


def test_cumulative_batch_statistics_are_not_moved_twice():
    plain = build("resnet")
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    placed = copy.deepcopy(plain)
    apply_placement(placed, everywhere(Decision.RECOMPUTE, placed))
    assert_same(train_step(placed, steps=2), train_step(plain, steps=2))
    assert placed.layer1[0].bn1.momentum is None


def test_in_place_activations_behind_batch_norm_can_be_dropped():
    class Block(nn.Module):
        def __init__(self, activation: nn.Module) -> None:
            super().__init__()
            self.conv1, self.bn, self.act = nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), activation
            self.conv2 = nn.Conv2d(8, 4, 3)

        def forward(self, x):
            return self.conv2(self.act(self.bn(self.conv1(x))))

    for activation in (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.ELU, nn.Mish, nn.LeakyReLU):
        torch.manual_seed(0)
        block = Block(activation(inplace=True))
        x = torch.randn(2, 4, 9, 9, requires_grad=True)
        plain = nn.Sequential(block)
        placed = copy.deepcopy(plain)
        apply_placement(placed, Placement(decisions={"0": Decision.DROP_CHEAP}), units=["0"])
        grads = []
        for model in (plain, placed):
            (grad,) = torch.autograd.grad(model(x).square().sum(), x)
            grads.append(grad)
        assert torch.equal(*grads), activation
        assert stored_bytes(placed, x) < 0.75 * stored_bytes(plain, x), activation


@pytest.mark.parametrize("decision", [Decision.DROP_CHEAP, Decision.DROP_PER_USE])
def test_a_recompute_is_in_place_unless_somebody_else_reads_its_input(decision):
    class Block(nn.Module):
        def __init__(self, *, shared: bool) -> None:
            super().__init__()
            self.conv1, self.bn = nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)
            self.conv2, self.conv3 = nn.Conv2d(8, 4, 3), nn.Conv2d(8, 4, 3)
            self.shared = shared

        def forward(self, x):
            normed = self.bn(self.conv1(x))
            beside = normed * 2 if self.shared else None
            active = F.relu6(normed, inplace=True)
            other = self.conv3(beside) if self.shared else 0
            return other + self.conv2(active)

    for shared in (False, True):
        torch.manual_seed(0)
        plain = nn.Sequential(Block(shared=shared))
        placed = copy.deepcopy(plain)
        apply_placement(placed, Placement(decisions={"0": decision}), units=["0"])
        x = torch.randn(2, 4, 9, 9, requires_grad=True)
        collected = []
        for model in (plain, placed):
            out = model(x)
            with profile_operations() as names:
                used = [x, *(p for n, p in model.named_parameters() if shared or "conv3" not in n)]
                grads = torch.autograd.grad(out.square().sum(), used)
            collected.append(grads)
        assert all(torch.equal(a, b) for a, b in zip(*collected, strict=True))
        ran = {name for name, _ in names} & {"hardtanh", "hardtanh_"}
        # a lean norm runs once for each reader, and each then has its own
        assert ran == (
            {"hardtanh"} if shared and decision == Decision.DROP_CHEAP else {"hardtanh_"}
        )


@pytest.mark.parametrize("decision", [Decision.DROP_CHEAP, Decision.DROP_PER_USE])
@pytest.mark.parametrize("activation", [F.relu, F.relu6, F.silu, F.hardswish])
def test_a_part_that_is_modified_in_place_computes_the_same(activation, decision):
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn = nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)
            self.conv2, self.conv3 = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x):
            normed = self.bn(self.conv1(x))
            active = activation(normed[:, 4:], inplace=True)
            return self.conv2(active) + self.conv3(normed[:, :4])

    torch.manual_seed(0)
    plain = nn.Sequential(Block())
    placed = copy.deepcopy(plain)
    apply_placement(placed, Placement(decisions={"0": decision}), units=["0"])
    x = torch.randn(2, 4, 9, 9, requires_grad=True)
    grads = [
        torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])
        for model in (plain, placed)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


# --- runs of siblings -----------------------------------------------------------------------------

RUNS = {
    "resnet": ("conv1+bn1+act1+maxpool",),
    "mobilenetv2": ("conv_stem+bn1", "conv_head+bn2"),
    "mobilenetv3": ("conv_stem+bn1",),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("decision", [Decision.RECOMPUTE, Decision.DROP_CHEAP])
def test_a_run_computes_the_same_and_is_undone(name, decision):
    model = build(name)
    state, keys = copy.deepcopy(model.state_dict()), list(model.state_dict())
    expected = train_step(model, steps=2)
    model.load_state_dict(state)
    placement = Placement(decisions=dict.fromkeys(RUNS[name], decision))
    with apply_placement(model, placement) as applied:
        assert set(RUNS[name]) < set(applied.units)
        assert_same(train_step(copy.deepcopy(model), steps=2), expected)
        assert_same(train_step(model, steps=2), expected)
        assert list(model.state_dict()) == keys
        with torch.no_grad():
            placed = model.eval()(images())
    assert torch.equal(model(images()), placed)
    assert not any({"forward", "_call_impl"} & vars(module).keys() for module in model.modules())


@pytest.mark.parametrize(
    ("name", "run", "kept", "freed"),
    [
        # what the convolution and ReLU (in place) give, and the pool's indices (8 bytes each)
        ("resnet", "conv1+bn1+act1+maxpool", 64 * 8 * 8, 2 * 64 * 16 * 16 + 2 * 64 * 8 * 8),
        # what the convolution gives, and the copy that ReLU6 saves of its input
        ("mobilenetv2", "conv_stem+bn1", 16 * 16 * 16, 2 * 16 * 16 * 16),
    ],
)
def test_a_recomputed_run_keeps_its_output_alone(name, run, kept, freed):
    model, x = build(name), images()
    model.bn1.register_forward_pre_hook(lambda *_: None)  # hooks inside are part of the run
    outputs: list[torch.Tensor] = []
    modules_of(model, run)[-1].register_forward_hook(lambda _m, _a, out: outputs.append(out))
    plain = stored_bytes(model, x)
    assert outputs.pop().numel() == len(x) * kept
    with apply_placement(model, Placement(decisions={run: Decision.RECOMPUTE})):
        assert plain - stored_bytes(model, x) == pytest.approx(4 * len(x) * freed, rel=0.01)


def test_hooks_that_change_what_passes_inside_a_run_still_do():
    model = build("resnet")
    model.conv1.scale = nn.Parameter(torch.full((64, 1, 1), 1.5))
    model.conv1.register_forward_hook(lambda conv, _args, out: out * conv.scale)
    expected = train_step(model)
    for decision in (Decision.RECOMPUTE, Decision.DROP_CHEAP):
        model.bn1.reset_running_stats()
        with apply_placement(model, Placement(decisions={RUNS["resnet"][0]: decision})):
            got = train_step(model)
        assert torch.equal(got["grad conv1.scale"], expected["grad conv1.scale"])
        assert torch.equal(got["output"], expected["output"])


def test_adapters_inside_a_run_train_the_same(peft):
    for name, stem in (("resnet", "conv1"), ("mobilenetv2", "conv_stem")):
        config = peft.LoraConfig(target_modules=[f"{stem}$", stem], r=2, lora_dropout=0.1)
        model = peft.get_peft_model(build(name), config).train()
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                nn.init.normal_(parameter, std=0.1)
        state = copy.deepcopy(model.state_dict())
        expected = train_step(model)
        assert any(stem in key for key in expected if key.startswith("grad"))
        model.load_state_dict(state)
        with apply_placement(model, Placement(decisions={RUNS[name][0]: Decision.RECOMPUTE})):
            assert_same(train_step(model), expected)


def test_a_run_that_is_called_otherwise_is_refused():
    model = build("resnet")
    apply_placement(model, Placement(decisions={RUNS["resnet"][0]: Decision.RECOMPUTE}))
    x = model.conv1(images())
    with pytest.raises(RuntimeError, match="not called as one run"):
        model.bn1(x * 2)


# --- what methods make of a model -----------------------------------------------------------------


@pytest.fixture(scope="module")
def peft():
    return pytest.importorskip("peft")


def with_adapters(peft, model: nn.Module, kind: str) -> nn.Module:
    common = {"target_modules": ["qkv", "fc1", "fc2"], "modules_to_save": ["head"]}
    if kind == "adalora":
        config = peft.AdaLoraConfig(
            **common, init_r=4, target_r=2, lora_dropout=0.1, total_step=10, tinit=1, tfinal=2
        )
    else:
        config = peft.LoraConfig(**common, r=4, lora_dropout=0.1, use_dora=kind == "dora")
    torch.manual_seed(4)
    wrapped = peft.get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name or "lora_E" in name:
            nn.init.normal_(parameter, std=0.1)
    return wrapped.train()


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize("kind", ["lora", "dora", "adalora"])
def test_adapters_train_the_same(peft, kind, autocast):
    model = with_adapters(peft, build("vit"), kind)
    expected = train_step(model, autocast=autocast)
    assert any("lora_A" in name for name in expected)
    base = model.get_base_model()
    for decision in (
        Decision.RECOMPUTE,
        Decision.SEGMENT,
        Decision.DROP_CHEAP,
        "lean-layers",
        "parts",
        "layers",
        "mixed",
    ):
        with apply_placement(model, everywhere(decision, base)):
            assert_same(train_step(model, autocast=autocast), expected)


@pytest.mark.parametrize("decision", [Decision.DROP_CHEAP_AND_MIXING, Decision.DROP_PER_USE])
def test_adalora_on_convolutions_trains_the_same(peft, decision):
    """Its forward multiplies parameters with each other, which is no call of a layer."""
    config = peft.AdaLoraConfig(target_modules=["conv2"], init_r=2, target_r=2, total_step=10)
    model = peft.get_peft_model(build("resnet"), config).train()
    for name, parameter in model.named_parameters():
        if "lora_E" in name or "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    state = copy.deepcopy(model.state_dict())
    expected = train_step(model)
    model.load_state_dict(state)
    with apply_placement(model, everywhere(decision, model.get_base_model())):
        assert_same(train_step(model), expected)


def test_adalora_changes_its_ranks_under_a_placement(peft):
    plain = with_adapters(peft, build("vit"), "adalora")
    placed = copy.deepcopy(plain)
    apply_placement(placed, everywhere("mixed", placed.get_base_model()))
    for model in (plain, placed):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for step in range(1, 9):
            train_step(model)
            optimizer.step()
            model.base_model.update_and_allocate(step)
    assert_same(train_step(placed), train_step(plain))
    ranks = [int((p != 0).sum()) for n, p in placed.named_parameters() if "lora_E" in n]
    assert min(ranks) < 4


@pytest.mark.parametrize(
    "decision",
    [Decision.RECOMPUTE, Decision.SEGMENT, Decision.DROP_CHEAP, Decision.DROP_PER_USE, "mixed"],
)
def test_four_bit_layers_train_the_same(peft, decision):
    bnb = pytest.importorskip("bitsandbytes")
    model = build("vit")
    for block in model.blocks:
        for owner, name in ((block.attn, "qkv"), (block.mlp, "fc1"), (block.mlp, "fc2")):
            linear = getattr(owner, name)
            four_bit = bnb.nn.Linear4bit(
                linear.in_features, linear.out_features, compute_dtype=torch.float32
            )
            four_bit.load_state_dict(linear.state_dict())
            setattr(owner, name, four_bit.to("cpu"))
    model = with_adapters(peft, model, "lora")
    expected = train_step(model)
    with apply_placement(model, everywhere(decision, model.get_base_model())):
        assert_same(train_step(model), expected)


def test_a_wrapped_quantised_layer_alone_is_recomputed_and_given_back(peft):
    bnb = pytest.importorskip("bitsandbytes")
    model = build("vit")
    fc1 = model.blocks[1].mlp.fc1
    four_bit = bnb.nn.Linear4bit(fc1.in_features, fc1.out_features, compute_dtype=torch.float32)
    four_bit.load_state_dict(fc1.state_dict())
    model.blocks[1].mlp.fc1 = four_bit.to("cpu")
    model = with_adapters(peft, model, "lora")
    expected = train_step(model)
    decisions = {
        "blocks.1": Decision.DROP_PER_USE,
        "blocks.1/mlp.fc1": Decision.RECOMPUTE,
        "blocks.2/attn.qkv": Decision.RECOMPUTE,
    }
    with apply_placement(model, Placement(decisions=decisions)):
        assert_same(train_step(model), expected)
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert_same(train_step(model), expected)


class Products(TorchDispatchMode):
    """Counts matrix products by the shape of the weight, first runs and recomputes apart."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[tuple[bool, tuple[int, ...]]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default):
            self.count[recomputing(), tuple(args[-1].shape)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize("kind", ["lora", "adalora"])
def test_the_last_frozen_layer_of_a_unit_is_not_recomputed(peft, kind, autocast):
    model = with_adapters(peft, build("vit"), kind)
    expected = train_step(model, autocast=autocast)
    width, hidden = 48, 4 * 48
    for decision in (Decision.RECOMPUTE, "parts"):
        with apply_placement(model, everywhere(decision, model.get_base_model())):
            with Products() as products:
                assert_same(train_step(model, autocast=autocast), expected)
            assert products.count[False, (hidden, width)] >= 3
            assert products.count[True, (hidden, width)] == 0
            assert products.count[True, (width, hidden)] == 3


def test_what_follows_the_last_frozen_layer_saves_as_before_though_all_goes_through_it(peft):
    # OFT turns the layer's input, so only the frozen layer's own output leads to the adapter;
    # LayerScale behind it saves its scale only for something that has a graph
    config = peft.OFTConfig(target_modules=["qkv", "fc1", "fc2"], r=0, oft_block_size=12)
    torch.manual_seed(4)
    model = peft.get_peft_model(build("dinov2"), config).train()
    expected = train_step(model)
    assert any("oft_R" in name for name in expected)
    for decision in (Decision.RECOMPUTE, "parts"):
        with apply_placement(model, everywhere(decision, model.get_base_model())):
            with Products() as products:
                assert_same(train_step(model), expected)
            assert products.count[True, (4 * 48, 48)] == 0


def test_a_frozen_layer_that_is_needed_again_is_recomputed(peft):
    model = build("dinov2")
    for block in model.blocks:
        nn.init.uniform_(block.ls2.gamma)
    model = with_adapters(peft, model, "lora")
    for name, parameter in model.named_parameters():
        if name.endswith("ls2.gamma"):
            parameter.requires_grad_(True)  # its gradient needs the MLP's output
    expected = train_step(model)
    assert any(name.endswith("ls2.gamma") for name in expected)
    with apply_placement(model, everywhere(Decision.RECOMPUTE, model.get_base_model())):
        with Products() as products:
            assert_same(train_step(model), expected)
        assert products.count[True, (4 * 48, 48)] == 3


# --- what is stored -------------------------------------------------------------------------------


VIT_LAYERS = ("0/attn.qkv", "0/attn.proj", "0/mlp.fc1")


def one_vit_block(batch: int = 8, width: int = 64) -> tuple[nn.Module, torch.Tensor, int]:
    """A block without dropout, its input, and the bytes of one D-wide value per token."""
    torch.manual_seed(5)
    block = timm.models.vision_transformer.Block(width, num_heads=2, qkv_bias=True)
    x = torch.randn(batch, 50, width, requires_grad=True)
    return nn.Sequential(block), x, batch * 50 * width * 4


@pytest.mark.parametrize(
    ("decisions", "values"),
    [
        # x is the caller's; norm1, qkv (3), attention, x2, norm2, fc1 (4), GELU (4), output
        ({}, 16.0),
        # without the norms (2) and GELU (4)
        ({"0": Decision.DROP_CHEAP}, 10.0),
        # the output alone
        ({"0": Decision.RECOMPUTE}, 1.0),
        # norm1, qkv, attention stay; of the MLP x2 stays
        ({"0/mlp": Decision.RECOMPUTE}, 7.0),
        # the MLP branch stays whole
        ({"0/attn": Decision.RECOMPUTE}, 11.0),
        ({"0/attn": Decision.RECOMPUTE, "0/mlp": Decision.RECOMPUTE}, 2.0),
        # norm2 and GELU go, norm1 stays
        ({"0/mlp": Decision.DROP_CHEAP}, 11.0),
        ({"0": Decision.DROP_CHEAP, "0/mlp": Decision.RECOMPUTE}, 6.0),
        # of what cheap leaves (qkv, attention, x2, fc1, output): without qkv; and without x2, which
        # is a sum of proj's output; and without fc1, though its input is made of x2
        ({"0": Decision.DROP_CHEAP, "0/attn.qkv": Decision.RECOMPUTE}, 7.0),
        (
            {
                "0": Decision.DROP_CHEAP,
                "0/attn.qkv": Decision.RECOMPUTE,
                "0/attn.proj": Decision.RECOMPUTE,
            },
            6.0,
        ),
        ({"0": Decision.DROP_CHEAP} | dict.fromkeys(VIT_LAYERS, Decision.RECOMPUTE), 2.0),
        # attention, and its log-sum-exp, which the tolerance hides
        ({"0": Decision.DROP_CHEAP_AND_MIXING}, 9.0),
        (
            {"0": Decision.DROP_CHEAP_AND_MIXING} | dict.fromkeys(VIT_LAYERS, Decision.RECOMPUTE),
            1.0,
        ),
        ({"0": Decision.DROP_PER_USE}, 9.0),
        ({"0": Decision.DROP_PER_USE} | dict.fromkeys(VIT_LAYERS, Decision.RECOMPUTE), 1.0),
        # nobody saves what the last layer gives
        ({"0": Decision.DROP_CHEAP, "0/mlp.fc2": Decision.RECOMPUTE}, 10.0),
    ],
    ids=str,
)
def test_bytes_of_a_vit_block_are_those_of_the_arithmetic(decisions, values):
    model, x, unit_bytes = one_vit_block()
    apply_placement(model, Placement(decisions=decisions), units=["0"])
    # Log-sum-exp of attention, means and deviations of the norms: a few values a token.
    assert stored_bytes(model, x) / unit_bytes == pytest.approx(values, abs=0.15)


@pytest.mark.parametrize(
    ("decision", "frozen", "values"),
    [
        # three convolutions' outputs (4, 4, 1), the norms' of them that ReLU6 reads (4, 4), what
        # ReLU6 gives (4, 4), and the sum (1); the last norm's output is nobody's to save
        (Decision.KEEP, False, 26.0),
        # the convolutions' outputs, and the sum
        (Decision.DROP_CHEAP, False, 10.0),
        (Decision.DROP_CHEAP, True, 10.0),
        # without the depthwise convolution's
        (Decision.DROP_CHEAP_AND_MIXING, False, 6.0),
        (Decision.DROP_CHEAP_AND_MIXING, True, 6.0),
        # what the projection gives, and the sum
        ("light, conv_pw", False, 2.0),
        ("light, conv_pw", True, 2.0),
        (Decision.DROP_PER_USE, False, 6.0),
        ("lean, conv_pw", False, 2.0),
        (Decision.RECOMPUTE, False, 1.0),
    ],
)
def test_bytes_of_an_inverted_residual_are_those_of_the_arithmetic(decision, frozen, values):
    torch.manual_seed(5)
    block = timm.models._efficientnet_blocks.InvertedResidual(
        8, 8, exp_ratio=4.0, act_layer=nn.ReLU6
    )
    for parameter in block.parameters():
        parameter.requires_grad_(not frozen)
    x = torch.randn(4, 8, 16, 16, requires_grad=True)
    model = nn.Sequential(block)
    whole, _, layer = decision.partition(", ")
    decisions = {"0": whole} | ({f"0/{layer}": Decision.RECOMPUTE} if layer else {})
    apply_placement(model, Placement(decisions=decisions), units=["0"])
    assert stored_bytes(model, x) / (x.numel() * 4) == pytest.approx(values, abs=0.15)


class Runs(TorchDispatchMode):
    """Counts those of an operator, first runs and recomputes apart.

    Args:
        operator: whose.
        weight: only those with a weight of its shape.
    """

    def __init__(self, operator: object, *, weight: torch.Tensor | None = None) -> None:
        super().__init__()
        self.operator, self.weight = operator, weight
        self.count: Counter[bool] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is self.operator and (self.weight is None or args[1].shape == self.weight.shape):
            self.count[recomputing()] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("adapters", [False, True], ids=["full", "lora"])
def test_a_lean_unit_is_never_there_as_a_whole_and_runs_its_layers_once(peft, adapters):
    torch.manual_seed(5)
    block = timm.models._efficientnet_blocks.InvertedResidual(
        8, 8, exp_ratio=4.0, act_layer=nn.GELU
    )
    model = nn.Sequential(block)
    if adapters:
        config = peft.LoraConfig(target_modules=["conv_pw"], r=2)
        model = peft.get_peft_model(model, config).get_base_model()
    expand = block.conv_pw.base_layer if adapters else block.conv_pw
    peaks = {}
    for whole in (Decision.DROP_CHEAP_AND_MIXING, Decision.DROP_PER_USE, Decision.RECOMPUTE):
        layer = {} if whole == Decision.RECOMPUTE else {"0/conv_pw": Decision.RECOMPUTE}
        x = torch.randn(4, 8, 32, 32, requires_grad=True)
        placement = Placement(decisions={"0": whole} | layer)
        with (
            apply_placement(model, placement, units=["0"]),
            Live(model) as live,
            Runs(torch.ops.aten.convolution.default, weight=expand.weight) as convolutions,
        ):
            model(x).sum().backward()
        peaks[whole] = live.peak / (x.numel() * 4)
        assert convolutions.count == {False: 1, True: 1}
        model.zero_grad(set_to_none=True)
    # at the least the input of one activation function, four values for one of the block's input
    assert peaks[Decision.DROP_PER_USE] < peaks[Decision.DROP_CHEAP_AND_MIXING] - 3.5
    assert peaks[Decision.DROP_PER_USE] < peaks[Decision.RECOMPUTE] - 3.5


@pytest.mark.parametrize("name", ["tiny_vit", "swin"])
def test_attention_in_operators_of_its_own_is_dropped_too(name):
    model = build(name)
    units = [u for u in find_units(model) if parts_of_unit(model, u).token_mixer]
    x = images()
    stored = {}
    for decision in (Decision.DROP_CHEAP, Decision.DROP_CHEAP_AND_MIXING):
        # beside light, attention as if it were cheap: only depthwise convolutions differ
        beside = (
            {f"{u}/attn": Decision.DROP_CHEAP for u in units}
            if decision == Decision.DROP_CHEAP
            else {}
        )
        decisions = dict.fromkeys(units, Decision.DROP_CHEAP_AND_MIXING) | beside
        with apply_placement(model, Placement(decisions=decisions)):
            torch.manual_seed(3)
            stored[decision] = stored_bytes(model, x)
    assert stored[Decision.DROP_CHEAP_AND_MIXING] < stored[Decision.DROP_CHEAP]


def test_a_light_unit_runs_its_scan_again_and_one_with_a_cheap_scan_does_not():
    model, x = build("vim"), images()
    units = find_units(model)
    stored, again = {}, {}
    for decision in (Decision.DROP_CHEAP, Decision.DROP_CHEAP_AND_MIXING):
        beside = (
            {f"{u}/mixer.scan": Decision.DROP_CHEAP for u in units}
            if decision == Decision.DROP_CHEAP
            else {}
        )
        placement = Placement(
            decisions=dict.fromkeys(units, Decision.DROP_CHEAP_AND_MIXING) | beside
        )
        with apply_placement(model, placement):
            stored[decision] = stored_bytes(model, x)
            with Runs(torch.ops.budgetplan.selective_scan.default) as scans:
                model(x).sum().backward()
        assert scans.count[False] == len(units)
        again[decision] = scans.count[True]
    assert again == {Decision.DROP_CHEAP: 0, Decision.DROP_CHEAP_AND_MIXING: len(units)}
    # 5 tokens of 64 channels in 2 directions: the sum of these, which the gate reads, and one state
    # of 16 values a channel for the only chunk
    tokens, channels, states = len(x) * 5, 64, len(x) * 2 * 64 * 16
    assert stored[Decision.DROP_CHEAP] - stored[Decision.DROP_CHEAP_AND_MIXING] == len(
        units
    ) * 4 * (tokens * channels + states)


def test_a_dropped_layer_keeps_its_input_if_that_is_small():
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up, self.out = nn.Linear(64, 2), nn.Linear(2, 64), nn.Linear(64, 64)

        def forward(self, x):
            return self.out(F.gelu(self.up(self.down(x))))

    torch.manual_seed(5)
    model = nn.Sequential(Narrow())
    model[0].up.requires_grad_(False)  # saves no input
    x = torch.randn(32, 64)
    expected = grads_of(model, x)
    kept = stored_bytes(model, x)
    with apply_placement(
        model,
        Placement(decisions={"0": Decision.DROP_CHEAP, "0/up": Decision.RECOMPUTE}),
        units=["0"],
    ):
        assert all(map(torch.equal, grads_of(model, x), expected))
        # what `up` gives and GELU reads, and what GELU gives; the input of two channels comes in
        assert kept - stored_bytes(model, x) == 2 * x.nbytes - 2 * len(x) * 4


def grads_of(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    wanted = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad(model(x).square().sum(), wanted)


def test_autocast_copies_of_cheap_outputs_are_dropped_too():
    model, x, unit_bytes = one_vit_block(batch=64)
    plain = stored_bytes(model, x, autocast=True)
    apply_placement(model, Placement(decisions={"0": Decision.DROP_CHEAP}), units=["0"])
    # Two norms (D) and GELU (4 D), each saved as bfloat16, and the weights' copies; and of each
    # norm the mean and the deviation of every token, which is 64 values wide.
    copies = 2 * sum(p.numel() for p in model.parameters() if p.dim() > 1)
    freed = plain - stored_bytes(model, x, autocast=True) - copies
    assert freed / unit_bytes == pytest.approx(3.0 + 2 * 2 / 64, abs=0.01)


def test_autocast_copies_of_frozen_weights_are_dropped_too(peft):
    model = build("vit")
    plain = with_adapters(peft, model, "lora")
    x = images(batch=1)
    stored = stored_bytes(plain, x, autocast=True)
    apply_placement(plain, everywhere(Decision.DROP_CHEAP, model))
    frozen = sum(p.numel() for n, p in plain.named_parameters() if "base_layer.weight" in n)
    assert stored - stored_bytes(plain, x, autocast=True) > 2 * frozen


@pytest.mark.parametrize("name", MODELS)
def test_recompute_stores_what_torch_checkpoint_stores(name):
    model, x = build(name), images()
    plain = stored_bytes(model, x)
    placed = copy.deepcopy(model)
    apply_placement(placed, everywhere(Decision.RECOMPUTE, placed))
    for unit in find_units(model):
        first, *others = modules_of(model, unit)
        whole = nn.Sequential(*(copy.copy(module) for module in (first, *others)))
        first.forward = lambda *a, f=whole.forward: checkpoint(f, *a, use_reentrant=False)
        for module in others:
            module.forward = lambda x: x
    ours, theirs = stored_bytes(placed, x), stored_bytes(model, x)
    # Theirs also keeps a state of the random generator for every unit.
    assert ours <= theirs < plain


def test_a_segment_stores_one_boundary_and_runs_forward_once_more():
    model = nn.Sequential(*(one_vit_block()[0][0] for _ in range(4)))
    x = one_vit_block()[1]
    boundary = x.numel() * 4
    units = ["0", "1", "2", "3"]
    decisions = dict.fromkeys(units, Decision.SEGMENT) | {"0": Decision.RECOMPUTE}
    apply_placement(model, Placement(decisions=decisions), units=units)
    calls: Counter[tuple[str, bool]] = Counter()
    for unit in units:
        model.get_submodule(unit).mlp.fc1.register_forward_hook(
            lambda *_, unit=unit: calls.update([(unit, recomputing())])
        )
    assert stored_bytes(model, x) == pytest.approx(boundary, rel=0.01)
    calls.clear()
    model(x).sum().backward()
    assert calls == Counter({(u, again): 1 for u in units for again in (False, True)})


def test_recomputed_tensors_are_freed_as_backward_goes():
    model = nn.Sequential(*(one_vit_block()[0][0] for _ in range(6)))
    x = one_vit_block()[1]
    units = [str(i) for i in range(6)]
    peaks = {}
    for decision in (Decision.KEEP, Decision.DROP_CHEAP, Decision.RECOMPUTE):
        with (
            apply_placement(
                model, Placement(decisions=dict.fromkeys(units, decision)), units=units
            ),
            Live(model) as live,
        ):
            model(x).sum().backward()
            peaks[decision] = live.peak
        model.zero_grad(set_to_none=True)
    assert peaks[Decision.RECOMPUTE] < 0.45 * peaks[Decision.KEEP]
    assert peaks[Decision.DROP_CHEAP] < 0.80 * peaks[Decision.KEEP]


def test_nothing_is_left_after_backward():
    model, x = build("swin"), images()
    for decision in (Decision.SEGMENT, Decision.DROP_CHEAP, "mixed"):
        with apply_placement(model, everywhere(decision, model)), Live(model) as live:
            live.seen.add(x.untyped_storage()._cdata)
            model(x).sum().backward()
            model.zero_grad(set_to_none=True)
            assert live.bytes == 0


# --- when nothing is to be recomputed -------------------------------------------------------------


def count_recomputed(model: nn.Module) -> list[str]:
    seen: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda *_, name=name: seen.append(name) if recomputing() else None
        )
    return seen


def test_a_frozen_prefix_costs_nothing():
    model = build("vit")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("blocks.2", "head")))
    for decision in (Decision.RECOMPUTE, Decision.SEGMENT):
        placed = copy.deepcopy(model)
        seen = count_recomputed(placed)
        apply_placement(placed, everywhere(decision, placed))
        assert_same(train_step(placed), train_step(model))
        assert seen
        assert all(name.startswith("blocks.2") for name in seen)


def test_without_gradients_forwards_are_plain():
    model = build("vit").eval()
    x = images()
    with torch.no_grad():
        expected = model(x)
        for decision in (Decision.RECOMPUTE, Decision.DROP_CHEAP, "mixed"):
            with apply_placement(model, everywhere(decision, model)):
                assert torch.equal(model(x), expected)


def test_backward_twice_through_a_kept_graph():
    plain = build("vit").eval()
    placed = copy.deepcopy(plain)
    apply_placement(placed, everywhere("mixed", placed))
    for model in (plain, placed):
        loss = model(images()).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
    for (name, ours), theirs in zip(placed.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), name


@pytest.mark.parametrize("in_recompute", [False, True], ids=["forward", "recompute"])
@pytest.mark.parametrize(
    "decision", [Decision.RECOMPUTE, Decision.SEGMENT, Decision.DROP_CHEAP, "parts"]
)
def test_a_failure_inside_a_unit_leaves_nothing_behind(decision, in_recompute):
    model = build("vit")
    expected = train_step(model)
    placed = copy.deepcopy(model)
    apply_placement(placed, everywhere(decision, placed))

    def fail(*_: object) -> None:
        if recomputing() == in_recompute:
            raise MemoryError

    handle = placed.blocks[1].mlp.act.register_forward_hook(fail)
    if in_recompute and decision == Decision.DROP_CHEAP:
        placed(images()).sum().backward()  # functions are run again, not modules
    else:
        with pytest.raises(MemoryError):
            placed(images()).sum().backward()
    handle.remove()
    assert not recomputing()
    assert_same(train_step(placed), expected)


# --- applying and removing ------------------------------------------------------------------------


def test_remove_restores_the_model():
    model = build("tiny_vit")
    before = {name: (type(m), dict(m.__dict__)) for name, m in model.named_modules()}
    names = list(model.state_dict())
    applied = apply_placement(model, everywhere("mixed", model))
    assert list(model.state_dict()) == names
    assert all(type(m) is before[name][0] for name, m in model.named_modules())
    assert any("forward" in m.__dict__ for m in model.modules())
    applied.remove()
    assert {name: (type(m), dict(m.__dict__)) for name, m in model.named_modules()} == before


def test_a_copy_of_a_placed_model_stands_alone():
    model = build("vit")
    apply_placement(model, everywhere("mixed", model))
    clone = copy.deepcopy(model)
    expected = train_step(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert_same(train_step(clone), expected)


def test_placements_that_do_not_fit_are_refused():
    model = build("vit")
    for decisions, message in [
        ({"blocks.12": Decision.RECOMPUTE}, r"unit 'blocks.12'.*did you mean.*blocks.1"),
        ({"layers.0": Decision.DROP_CHEAP}, r"unit 'layers.0', which the model lacks"),
        ({"blocks.1/mpl": Decision.RECOMPUTE}, r"part of 'blocks.1' 'mpl'.*did you mean mlp"),
        ({"blocks.1": Decision.SEGMENT}, r"'blocks.1' a segment .*blocks.0.*not recomputed"),
        ({"blocks.0": Decision.SEGMENT}, r"'blocks.0' a segment"),
        (
            {"blocks.1": Decision.RECOMPUTE, "blocks.1/mlp": Decision.DROP_CHEAP},
            "within recompute of blocks.1",
        ),
        ({"blocks.0/mlp": Decision.SEGMENT}, "asks for segment of blocks.0/mlp"),
        ({"blocks.0/mlp": Decision.DROP_CHEAP_AND_MIXING}, "asks for light of blocks.0/mlp"),
        (
            {"blocks.0/mlp": Decision.DROP_CHEAP, "blocks.0/mlp.act": Decision.DROP_CHEAP},
            "keep one",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            apply_placement(model, Placement(decisions=decisions))
    assert not any("forward" in m.__dict__ for m in model.modules())


def test_none_changes_nothing():
    model = build("vit")
    apply_placement(model, KEEP_ALL)
    assert not any("forward" in m.__dict__ for m in model.modules())


def test_a_unit_that_modifies_its_input_is_reported():
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.second(self.first(x.mul_(2)).relu())

    model = nn.Sequential(nn.Linear(4, 4), InPlace())
    apply_placement(model, Placement(decisions={"1": Decision.RECOMPUTE}), units=["1"])
    with pytest.raises(RuntimeError, match="modified in place"):
        model(torch.randn(2, 4)).sum().backward()


def test_a_forward_that_changes_between_the_passes_is_reported():
    class Fickle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.calls = nn.Linear(4, 4), 0

        def forward(self, x):
            self.calls += 1
            return self.linear(x if self.calls > 1 else x.exp().sin())

    model = nn.Sequential(Fickle())
    apply_placement(model, Placement(decisions={"0": Decision.RECOMPUTE}), units=["0"])
    with pytest.raises(RuntimeError, match="depends on something that changed"):
        model(torch.randn(2, 4, requires_grad=True)).sum().backward()


@pytest.mark.parametrize("name", ["vit", "resnet", "vim"])
def test_fake_tensors_follow_a_placement(name):
    model = build(name)
    placements = [
        everywhere(d, model)
        for d in (Decision.RECOMPUTE, Decision.SEGMENT, Decision.DROP_CHEAP, "mixed")
    ]
    units = find_units(model)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for module in model.modules():
            for key, parameter in list(module._parameters.items()):
                if parameter is not None:
                    module._parameters[key] = nn.Parameter(mode.from_tensor(parameter.detach()))
            for key, buffer in list(module._buffers.items()):
                if buffer is not None:
                    module._buffers[key] = mode.from_tensor(buffer)
        for placement in placements:
            model.zero_grad(set_to_none=True)
            with apply_placement(model, placement, units=units):
                model(torch.randn(2, 3, 32, 32)).sum().backward()
            for parameter in model.parameters():
                assert parameter.grad is not None
                assert parameter.grad.shape == parameter.shape
                assert getattr(parameter.grad, "fake_mode", None) is mode


# --- the adaptive rule ----------------------------------------------------------------------------


def test_adaptive_recomputes_what_is_entered_above_the_threshold():
    model = build("vit")
    expected = train_step(model)
    live = iter([100, 499, 500, 900, 100, 100])
    applied = apply_adaptive(model, budget_bytes=1000, live_bytes=lambda: next(live))
    assert_same(train_step(model), expected)
    assert dict(applied.placement.decisions) == {"blocks.2": Decision.RECOMPUTE}
    train_step(model)
    assert dict(applied.placement.decisions) == {"blocks.0": Decision.RECOMPUTE}
    applied.remove()
    assert not any("forward" in m.__dict__ for m in model.modules())


def test_adaptive_asks_only_while_training():
    model = build("vit")

    def never() -> int:
        raise AssertionError("asked without gradients")

    apply_adaptive(model, budget_bytes=1, live_bytes=never)
    with torch.no_grad():
        model(images())


# --- batch normalisation from saved statistics ----------------------------------------------------


class NormedBlock(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn, self.conv2 = nn.Conv2d(4, 8, 3), norm, nn.Conv2d(8, 4, 3)

    def forward(self, x):
        return self.conv2(torch.relu(self.bn(self.conv1(x))))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("decision", [Decision.DROP_CHEAP, Decision.DROP_PER_USE])
def test_a_norm_from_saved_statistics_is_the_same_to_the_bit(
    channels_last, precision, affine, decision
):
    torch.manual_seed(0)
    plain = nn.Sequential(NormedBlock(nn.BatchNorm2d(8, affine=affine)))
    x = torch.randn(3, 4, 19, 19, requires_grad=True)
    if channels_last:
        plain = plain.to(memory_format=torch.channels_last)
        x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    placed = copy.deepcopy(plain)
    apply_placement(placed, Placement(decisions={"0": decision}), units=["0"])
    collected = []
    for model in (plain, placed):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision != torch.float32):
            out = model(x)
        with profile_operations() as names:
            grads = torch.autograd.grad(out.float().square().sum(), [x, *model.parameters()])
        collected.append([out, *grads, *model.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*collected, strict=True))
    # the statistics are not collected a second time, though the norm does run again
    assert [training for name, training in names if name == "native_batch_norm"] == [False]


@contextlib.contextmanager
def profile_operations():
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func._overloadpacket.__name__
            seen.append((name, args[5] if name == "native_batch_norm" else None))
            return func(*args, **(kwargs or {}))

    with Watch():
        yield seen


class Fork(nn.Module):
    """A unit that takes a list of tensors, as those of SelecSLS do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, given: list[Tensor]) -> list[Tensor]:
        return [F.dropout(self.linear(given[0]), 0.5), given[-1]]


@pytest.mark.parametrize("decision", [Decision.RECOMPUTE, Decision.RECOMPUTE_FROM_HOST])
def test_a_unit_that_takes_a_list_draws_the_same_random_numbers_again(decision):
    def gradient(placement: Placement) -> Tensor:
        torch.manual_seed(0)
        model, x = nn.Sequential(Fork(), Fork()), torch.randn(16, 8)
        with apply_placement(model, placement, units=("0", "1")), standing_for_cuda():
            out = model([x, x])
        torch.manual_seed(1)
        (out[0].square().sum() + out[1].sum()).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    assert torch.equal(gradient(Placement({"0": decision, "1": decision})), gradient(KEEP_ALL))


class Size(NamedTuple):
    height: int
    width: int


class Named(dict[str, Tensor]):
    """A dict with attributes, as the outputs of transformers are."""

    @property
    def bias(self) -> Tensor:
        return self["bias"]


class Sized(nn.Module):
    """A unit whose forward looks at the type of its arguments, and takes tensors in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, size: Size, pair: tuple[int, int], more: Named):
        scale = 3 if pair == (2, 2) else 1
        return torch.tanh(self.linear(x) * scale * size.width + more.bias)


@pytest.mark.parametrize("decision", [Decision.RECOMPUTE, Decision.DROP_CHEAP])
def test_a_recomputation_gets_the_arguments_of_the_forward(decision):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.unit = nn.Linear(8, 8), Sized()

        def forward(self, x: Tensor) -> Tensor:
            return self.unit(self.before(x), Size(2, 3), (2, 2), more=Named(bias=self.before(x)))

    def gradient(placement: Placement) -> Tensor:
        torch.manual_seed(0)
        model, x = Model(), torch.randn(16, 8)
        with apply_placement(model, placement, units=("unit",)):
            model(x).square().sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    assert torch.equal(gradient(Placement({"unit": decision})), gradient(KEEP_ALL))
