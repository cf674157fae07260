"""AdaLoRA's schedule and allocator; adapters in peft's own format; peft:NAME."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import small_backbones as small
import torch
from peft.tuners.adalora.layer import RankAllocator
from safetensors.torch import load_file, save_file

from profiler.errors import InputError, UnknownNameError, UsageError
from profiler.models import backbones
from profiler.models.methods import get_method
from profiler.models.methods.lowrank import rank_schedule
from profiler.workload import Workload


# peft 0.21 takes AdaLoRA's rank_pattern for LoRA's when it checks names
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match")
@pytest.mark.parametrize("name", ["lora", "dora", "adalora"])
@pytest.mark.parametrize("backbone", ["vit", "resnet", "mambavision"])
def test_adapters_load_with_plain_peft(name: str, backbone: str, tmp_path: Path) -> None:
    method = get_method(name)
    model = method.apply(small.make(backbone), small.workload(name))
    small.train(model, method, small.workload(name), steps=5, rate=1e-3)
    method.save(model, tmp_path)
    plain = peft.PeftModel.from_pretrained(small.make(backbone), str(tmp_path))
    torch.testing.assert_close(small.outputs(plain), small.outputs(model))


@pytest.mark.parametrize("steps", [1, 2, 10, 100, 2400, 7820])
def test_schedule_leaves_steps_to_cut_ranks(steps: int) -> None:
    schedule = rank_schedule(steps)
    assert schedule["tinit"] + schedule["tfinal"] <= max(steps - 1, 0) or steps == 1
    assert schedule["deltaT"] >= 1
    if steps >= 2400:
        assert schedule == {"tinit": 200, "tfinal": 1000, "deltaT": 10}


def test_adalora_ends_with_the_target_budget() -> None:
    method, load = get_method("adalora"), small.workload("adalora", rank=4)
    model = method.apply(small.make("vit"), load)
    small.train(model, method, load, steps=12, rate=1e-3)
    pattern = model.peft_config["default"].rank_pattern
    layers = len(pattern)
    assert {len(kept) for kept in pattern.values()} == {6}
    assert sum(sum(kept) for kept in pattern.values()) == 4 * layers
    values = [p for n, p in model.named_parameters() if ".lora_E." in n]
    assert sum(int((v != 0).sum()) for v in values) <= 4 * layers


def _adalora_steps(model: torch.nn.Module, *, first: int, last: int, total: int) -> None:
    method = get_method("adalora")
    method.on_training_start(model, total_steps=total)
    for step in range(first, last + 1):
        torch.manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
        method.before_zero_grad(model, global_step=step)


@pytest.mark.parametrize("stop", [1, 3, 5, 7, 8])
def test_adalora_resumed_with_another_length_ends_with_the_target_budget(stop: int) -> None:
    method, load = get_method("adalora"), small.workload("adalora", rank=4)
    for total in sorted({stop, stop + 1, stop + 2, 8, 12}):
        torch.manual_seed(0)
        model = method.apply(small.make("vit"), load)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_E." in name:
                    parameter.normal_()
        _adalora_steps(model, first=1, last=stop, total=8)
        state = method.training_state(model)
        method.restore_training_state(model, state)
        _adalora_steps(model, first=stop + 1, last=total, total=total)
        pattern = model.peft_config["default"].rank_pattern
        if total > stop:
            assert sum(map(sum, pattern.values())) <= 4 * len(pattern), total


def test_importance_is_that_of_peft() -> None:
    method, load = get_method("adalora"), small.workload("adalora")
    model = method.apply(small.make("vit"), load)
    ours = model.base_model.rankallocator
    theirs = RankAllocator(model.base_model.model, model.peft_config["default"], "default")
    for step in range(3):
        torch.manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
        ours.update_ipt(model.base_model.model)
        theirs.update_ipt(model.base_model.model)
    assert ours.exp_avg_ipt.keys() == theirs.exp_avg_ipt.keys()
    for name, expected in theirs.exp_avg_ipt.items():
        torch.testing.assert_close(ours.exp_avg_ipt[name], expected)
        torch.testing.assert_close(ours.exp_avg_unc[name], theirs.exp_avg_unc[name])


def test_an_adapter_of_another_shape_is_refused(tmp_path: Path) -> None:
    method = get_method("lora")
    model = method.apply(small.make("vit"), small.workload("lora", rank=4))
    method.save(model, tmp_path)
    other = method.apply(small.make("vit"), small.workload("lora", rank=8))
    with pytest.raises(InputError, match="does not fit"):
        method.load(other, tmp_path)
    with pytest.raises(InputError, match="no peft adapter"):
        method.load(other, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: value * float("nan"), "not finite"),
        (lambda value: value.to(torch.int8), "holds torch.int8"),
        (None, "it lacks"),
    ],
    ids=["nan", "int8", "missing"],
)
def test_a_damaged_adapter_is_refused(
    tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor] | None, words: str
) -> None:
    method, load = get_method("lora"), small.workload("lora", rank=4)
    method.save(method.apply(small.make("vit"), load), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    for wanted in ("lora_B", "head"):
        # copies: safetensors 0.4 maps the file into memory, and saving cuts it off
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
        name = next(name for name in tensors if wanted in name)
        changed = {} if change is None else {name: change(tensors[name])}
        save_file({k: v for k, v in tensors.items() if k != name} | changed, file)
        with pytest.raises(InputError, match=words):
            method.load(method.apply(small.make("vit"), load), tmp_path)
        save_file(tensors, file)


def test_a_target_that_matches_nothing_is_a_usage_error() -> None:
    load = small.workload("lora", targets=("qkv", "nonsense"))
    with pytest.raises(UsageError, match="'nonsense' matches no layer; use one of fc1, fc2"):
        get_method("lora").apply(small.make("vit"), load)
    depthwise = small.workload("lora", targets=("conv_dw",))
    with pytest.raises(UsageError, match="only grouped convolutions"):
        get_method("lora").apply(small.make("mobilenet"), depthwise)


def test_depthwise_convolutions_are_left_out_and_named() -> None:
    model, load = small.make("mobilenet"), small.workload("lora")
    method = get_method("lora")
    assert any("depthwise" in note for note in method.notes(model, load))
    wrapped = method.apply(model, load)
    adapted = [m for m in wrapped.modules() if hasattr(m, "lora_A")]
    assert adapted
    assert all(m.get_base_layer().groups == 1 for m in adapted)


WORK_ON_VIT = ["beft", "c3a", "deft", "delora", "gralora", "hira", "hra", "ia3", "loha", "lokr"]
WORK_ON_VIT += ["miss", "oft", "psoft", "road", "vblora", "vera", "ln_tuning"]


@pytest.mark.filterwarnings("ignore:Unsupported layer type")  # ln_tuning on timm's LayerNorm
@pytest.mark.parametrize("name", WORK_ON_VIT)
def test_named_adapters_of_peft_train(name: str, tmp_path: Path) -> None:
    method, load = get_method(f"peft:{name}"), small.workload(f"peft:{name}")
    model = method.apply(small.make("vit"), load)
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses = small.train(model, method, load, steps=3, rate=1e-3)
    assert losses[-1] < losses[0]
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert any("head" in n for n in moved)
    assert any("head" not in n for n in moved)
    assert moved <= learning
    method.save(model, tmp_path)
    plain = peft.PeftModel.from_pretrained(small.make("vit"), str(tmp_path))
    torch.testing.assert_close(small.outputs(plain), small.outputs(model))


def test_oft_is_refused_where_peft_would_take_a_map_for_a_convolution_s() -> None:
    swin = backbones.build(
        "swin_tiny_patch4_window7_224", num_classes=10, image_size=224, device="meta"
    )
    load = Workload(model="swin_tiny_patch4_window7_224", method="peft:oft")
    reason = get_method("peft:oft").refusal(swin, load)
    assert reason is not None
    assert "downsample.reduction is a linear layer with such an input" in reason
    vit = backbones.build("vit_tiny_patch16_224", num_classes=10, image_size=224, device="meta")
    assert get_method("peft:oft").refusal(vit, load) is None


def test_adapters_for_language_models_are_refused() -> None:
    with pytest.raises(UsageError, match="language models"):
        get_method("peft:p_tuning").apply(small.make("vit"), small.workload("peft:p_tuning"))
    with pytest.raises(UsageError, match="use the method adalora"):
        get_method("peft:adalora").apply(small.make("vit"), small.workload("peft:adalora"))
    with torch.device("meta"), pytest.raises(UsageError, match="profiled without weights"):
        get_method("peft:lokr").apply(small.vit(), small.workload("peft:lokr"))
    with pytest.raises(UnknownNameError, match="peft:loha"):
        get_method("peft:loah")
