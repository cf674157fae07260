"""Trainable-parameter counts, against published ones (arXiv 2402.02242, MambaPEFT 2411.03855)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from profiler.models import backbones
from profiler.models.backbones.timm_interface import classifier_names
from profiler.models.methods import backbone_of, get_method
from profiler.workload import Workload


def prepared(model: str, method: str, *, classes: int = 100, **changes: object) -> nn.Module:
    backbone = backbones.build(model, num_classes=classes, image_size=224, device="meta")
    load = Workload(model=model, method=method, num_classes=classes).replace(**changes)
    return get_method(method).apply(backbone, load)


def learned(model: nn.Module) -> int:
    """Count what learns, the classifier left out."""
    heads = tuple(f"{name}." for name in classifier_names(backbone_of(model)))
    return sum(
        p.numel()
        for name, p in model.named_parameters()
        if p.requires_grad and not name.removeprefix("base_model.model.").startswith(heads)
    )


@pytest.mark.parametrize(
    ("targets", "published"),
    [(None, 516_096), (("qkv", "fc1", "fc2"), 516_096), (("qkv", "proj", "fc1", "fc2"), 589_824)],
)
def test_lora_on_vit_s_has_the_published_count(
    targets: tuple[str, ...] | None, published: int
) -> None:
    model = prepared("vit_s", "lora", rank=8, targets=targets)
    assert learned(model) == published
    everything = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert everything == published + 38_500


@pytest.mark.parametrize(
    ("model", "method", "rank", "millions"),
    [  # V-PETL's tables, ViT-B/16 and Swin-B, heads left out (arXiv 2402.02242)
        ("vit_b", "full", None, 85.8),
        ("vit_b", "bitfit", None, 0.10),
        ("vit_b", "adaptformer", 8, 0.16),
        ("vit_b", "ssf", None, 0.21),
        ("vit_b", "side", 8, 2.38),
        ("swin_base_patch4_window7_224", "bitfit", None, 0.20),
        ("swin_base_patch4_window7_224", "ln_tune", None, 0.06),
        ("swin_base_patch4_window7_224", "partial_1", None, 12.60),
    ],
)
def test_counts_of_the_survey(model: str, method: str, rank: int | None, millions: float) -> None:
    prepared_model = prepared(model, method, rank=rank)
    assert learned(prepared_model) / 1e6 == pytest.approx(millions, abs=0.0051)


@pytest.mark.parametrize(
    ("targets", "rank", "weights", "published_thousands"),
    [
        (("in_proj",), 32, 24 * (384 + 1536), 1_483),
        (("out_proj",), 96, 24 * (768 + 384), 2_663),
        (("x_proj", "x_proj_b"), 64, 48 * (768 + 56), 2_540),
        (("dt_proj", "dt_proj_b"), 64, 48 * (24 + 768), 2_442),
        (("proj",), 32, 768 + 384, 45),  # the patch embedding, a convolution of 3 x 16 x 16
    ],
)
def test_lora_on_vim_s_has_mambapefts_counts(
    targets: tuple[str, ...], rank: int, weights: int, published_thousands: int
) -> None:
    """MambaPEFT (arXiv 2411.03855) does not print its ranks; these reproduce its counts.

    They count the head in, which is an average over VTAB's tasks: 9 K by its row for the linear
    probe. One size of head, 9,050, makes all five rows right when they are cut to thousands.
    """
    model = prepared("vim_s", "lora", rank=rank, targets=targets)
    assert learned(model) == rank * weights
    assert (learned(model) + 9_050) // 1000 == published_thousands


def test_prompts_and_prefixes_are_counted_by_their_formula() -> None:
    assert learned(prepared("vit_s", "vpt_shallow", rank=50)) == 50 * 384
    assert learned(prepared("vit_s", "vpt_deep", rank=10)) == 12 * 10 * 384
    assert learned(prepared("vit_s", "prefix", rank=20)) == 12 * 2 * 20 * 384


def test_adalora_starts_at_one_and_a_half_times_the_rank() -> None:
    # A [12, in], B [out, 12], E [12, 1] for qkv, fc1, fc2 of 12 blocks
    per_block = 12 * ((384 + 1152) + (384 + 1536) + (1536 + 384)) + 3 * 12
    assert learned(prepared("vit_s", "adalora", rank=8)) == 12 * per_block


def test_targets_are_found_in_every_family() -> None:
    def adapted(name: str) -> set[str]:
        model = prepared(name, "lora")
        names = [n for n, _ in model.named_modules() if n.endswith(".lora_A")]
        return {n.removesuffix(".lora_A").rpartition(".")[2] for n in names}

    assert adapted("tiny_vit_5m") == {"qkv", "proj", "fc1", "fc2"}
    assert adapted("vim_s") == {"in_proj", "x_proj", "dt_proj", "out_proj"}
    assert adapted("mambavision_t") == {"in_proj", "out_proj", "qkv", "proj", "fc1", "fc2"}
    assert adapted("mobilenetv2") == {"conv_stem", "conv_pw", "conv_pwl", "conv_head"}
    assert adapted("convnext_t") == {"fc1", "fc2"}


def test_everything_created_lies_where_the_weights_lie() -> None:
    model = prepared("vit_t", "dora")
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device for tensor in tensors} == {torch.device("meta")}
