"""The registry: names, families of names, errors, and no torch before it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import small_backbones as small
import torch

from profiler.errors import InputError, UnknownNameError, UsageError
from profiler.models.methods import all_methods, get_method, method_infos, method_names


def test_names_can_be_listed_without_torch() -> None:
    code = (
        "import sys, profiler.models.methods as m; m.method_infos(); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'peft', 'timm')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_entry_loads_and_says_what_it_is() -> None:
    methods = all_methods()
    assert [method.name for method in methods] == method_names()
    assert len(set(method_names())) == len(methods)
    for method, info in zip(methods, method_infos(), strict=True):
        assert method.summary == info.summary
        assert info.summary
        assert info.source


def test_unknown_names_bring_near_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean.*lora"):
        get_method("loraa")
    with pytest.raises(UnknownNameError):
        get_method("partial_0")


def test_ranks_are_filled_in_or_refused() -> None:
    assert get_method("lora").resolve(small.workload("lora")).rank == 8
    assert get_method("partial_k").resolve(small.workload("partial_k")).rank == 1
    with pytest.raises(UsageError, match="full has no rank"):
        get_method("full").resolve(small.workload("full", rank=4))


def test_partial_k_counts_units_from_the_end() -> None:
    model = get_method("partial_1").apply(small.make("vit"), small.workload("partial_1"))
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n.split(".")[0] for n in learning} == {"blocks", "norm", "head"}
    assert all(n.startswith("blocks.1.") for n in learning if n.startswith("blocks"))
    with pytest.raises(UsageError, match="VisionTransformer has 2 units, got k = 9"):
        get_method("partial_9").apply(small.make("vit"), small.workload("partial_9"))


@pytest.mark.parametrize(
    ("method", "backbone", "reason"),
    [
        ("bn_head", "vit", "no BatchNorm"),
        ("vpt_deep", "tiny_vit", "no position in windows"),
        ("vpt_shallow", "mambavision", "no position in windows"),
        ("prefix", "tiny_vit", "bias for each pair"),
        ("prefix", "vim", "no attention"),
        ("adaptformer", "mobilenet", "neither MLPs nor Mamba mixers"),
    ],
)
def test_what_is_not_possible_is_refused_with_the_reason(
    method: str, backbone: str, reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        get_method(method).apply(small.make(backbone), small.workload(method))


def test_head_and_side_save_nothing_of_the_backbone() -> None:
    for name in ("head", "side"):
        model = get_method(name).apply(small.make("vit"), small.workload(name))
        blocks: list[torch.Tensor] = []
        model.blocks[-1].register_forward_hook(lambda _, args, out, seen=blocks: seen.append(out))
        model(small.batch()[0])
        assert not blocks[0].requires_grad


def test_statistics_stay_where_no_weight_of_the_layer_learns() -> None:
    for name, stays in (("head", True), ("lora", True), ("bn_head", False), ("bitfit", False)):
        model = get_method(name).apply(small.make("resnet"), small.workload(name))
        before = small.state(model)
        model.train()
        model(small.batch()[0])
        means = [n for n in before if n.endswith("running_mean")]
        after = small.state(model)
        assert all(torch.equal(before[n], after[n]) == stays for n in means), name


def test_files_of_another_method_or_model_are_refused(tmp_path: Path) -> None:
    bitfit = get_method("bitfit")
    model = bitfit.apply(small.make("vit"), small.workload("bitfit"))
    bitfit.save(model, tmp_path)
    with pytest.raises(InputError, match="written by method 'bitfit'"):
        get_method("ln_tune").load(model, tmp_path)
    other = bitfit.apply(small.make("resnet"), small.workload("bitfit"))
    with pytest.raises(InputError, match="does not fit the model"):
        bitfit.load(other, tmp_path)
    (tmp_path / "learned.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="not a safetensors file"):
        bitfit.load(model, tmp_path)
    with pytest.raises(InputError, match=r"holds no learned\.safetensors"):
        bitfit.load(model, tmp_path / "nowhere")


def test_prompts_leave_the_sequence_as_long_as_it_was() -> None:
    for backbone, last in (("vit", "blocks.1"), ("vim", "layers.1")):
        load = small.workload("vpt_deep", rank=3)
        model = get_method("vpt_deep").apply(small.make(backbone), load)
        lengths: list[int] = []
        block = model.get_submodule(last)
        block.register_forward_pre_hook(lambda _, args, seen=lengths: seen.append(args[0].shape[1]))
        block.register_forward_hook(
            lambda _, args, out, seen=lengths: seen.append(out.shape[1]), prepend=False
        )
        model(small.batch()[0])
        assert lengths == [17 + 3, 17]


def test_additions_start_as_the_backbone() -> None:
    for backbone in ("vit", "mambavision"):
        expected = small.outputs(small.make(backbone))
        for name in ("adaptformer", "side", "lora", "dora", "adalora"):
            model = get_method(name).apply(small.make(backbone), small.workload(name))
            torch.testing.assert_close(small.outputs(model), expected, atol=1e-5, rtol=1e-4)
