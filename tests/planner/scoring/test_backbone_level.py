"""The levels of backbones and the hint, against brute force over the data files."""

from __future__ import annotations

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.scoring.backbone_facts import (
    CLEAR_SAVING,
    SIZE_RATIO,
    backbone_facts,
    other_backbone,
)
from planner.scoring.backbone_level import backbone_levels
from planner.scoring.imagenet_accuracy import IMAGENET_TABLE, imagenet_top1, tagged_name
from planner.scoring.published_tables import MARGIN, log_odds
from profiler.models.backbones import model_names

VIT_S = "vit_small_patch16_224"


def test_accuracies_are_those_of_timms_table() -> None:
    assert imagenet_top1("resnet18") == pytest.approx(0.71504)  # results-imagenet.csv at 224 px
    assert imagenet_top1("resnet18.tv_in1k") == pytest.approx(0.69752)
    assert imagenet_top1("vim_small_patch16_224") == pytest.approx(0.805)
    assert imagenet_top1("somebodys_net") is None
    assert tagged_name(VIT_S) == f"{VIT_S}.augreg_in21k_ft_in1k"


def test_the_table_has_names_of_timm_and_one_default_each() -> None:
    with IMAGENET_TABLE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    known = set(model_names())
    assert len(rows) > 1000
    assert {row["model"].partition(".")[0] for row in rows} <= known
    defaults = [r["model"].partition(".")[0] for r in rows if r["is_default"] == "1"]
    assert len(defaults) == len(set(defaults))
    assert all(0 < float(row["top1_percent"]) < 100 for row in rows)


def test_backbones_within_the_margin_share_a_level_and_others_do_not() -> None:
    levels = backbone_levels(["vit_small_patch16_224", "resnet18", "mambavision_t"], data="x")
    vit, resnet, mamba = levels.values()
    assert (vit.tier, mamba.tier, resnet.tier) == (1, 1, 2)
    assert vit.score == mamba.score == log_odds(0.823)
    assert resnet.score == log_odds(0.71504)


def test_weights_from_a_file_have_no_known_accuracy() -> None:
    models = ["vit_small_patch16_224", "resnet18"]
    levels = backbone_levels(models, data="x", from_files=[VIT_S])
    assert levels[VIT_S].imagenet_top1 is None
    assert levels[VIT_S].score < levels["resnet18"].score - MARGIN
    assert "from a file" in levels[VIT_S].reason
    both = backbone_levels(models, data="x", from_files=models)
    assert [each.tier for each in both.values()] == [1, 1]
    assert both[VIT_S].score == both["resnet18"].score


def test_a_published_accuracy_ranks_backbones_at_its_image_size_alone() -> None:
    models = [VIT_S, "deit_small_patch16_224"]
    at = {size: backbone_levels(models, data="cifar100", image_sizes=dict.fromkeys(models, size))
          for size in (224, 96)}  # fmt: skip
    assert "training on cifar100" in at[224][VIT_S].reason
    assert "ImageNet" in at[96][VIT_S].reason


def test_the_image_size_decides_which_accuracy_is_the_level() -> None:
    """ViT-S has 89.7 % on CIFAR-100 at 224 px, and its ImageNet accuracy at every other size."""
    models = [VIT_S, "resnet18"]
    vit, resnet = log_odds(0.81402), log_odds(0.71504)
    published = (log_odds(0.897), log_odds(0.897) - (vit - resnet))
    cases = [({}, published), ({VIT_S: 224, "resnet18": 224}, published), ({VIT_S: 224}, published),
             ({VIT_S: 96, "resnet18": 96}, (vit, resnet)), ({VIT_S: 224, "resnet18": 96},
             (vit, resnet)), ({"resnet18": 225}, (vit, resnet))]  # fmt: skip
    for sizes, expected in cases:
        levels = backbone_levels(models, data="cifar100", image_sizes=sizes)
        assert [levels[m].score for m in models] == pytest.approx(expected, abs=1e-12), sizes
        assert [levels[m].tier for m in models] == [1, 2]
        assert [levels[m].imagenet_top1 for m in models] == [0.81402, 0.71504]


def test_a_backbone_without_an_accuracy_is_two_margins_below_the_last() -> None:
    models = [VIT_S, "resnet18", "somebodys_net", "anothers_net"]
    levels = backbone_levels(models, data="x")
    assert [levels[m].tier for m in models] == [1, 2, 3, 3]
    last = log_odds(0.71504) - 2 * MARGIN
    assert [levels[m].score for m in models[2:]] == pytest.approx([last, last], abs=1e-12)
    alone = backbone_levels(["somebodys_net"], data="x")["somebodys_net"]
    assert (alone.tier, alone.score) == (1, -2 * MARGIN)


def test_a_backbone_without_a_known_accuracy_comes_last() -> None:
    levels = backbone_levels(["resnet18", "somebodys_net"], data="x")
    assert levels["somebodys_net"].imagenet_top1 is None
    assert levels["somebodys_net"].score < levels["resnet18"].score - MARGIN
    assert "no ImageNet" in levels["somebodys_net"].reason


def test_an_accuracy_on_the_data_set_counts_before_imagenet() -> None:
    levels = backbone_levels([VIT_S, "resnet18"], data="cifar100")
    assert levels[VIT_S].score == log_odds(0.897)
    assert "cifar100" in levels[VIT_S].reason


@given(st.lists(st.sampled_from(sorted(backbone_facts())), min_size=1, unique=True))
def test_levels_keep_the_order_of_the_accuracies(models: list[str]) -> None:
    levels = backbone_levels(models, data="x")
    for first in models:
        for second in models:
            one, two = (backbone_facts()[m].top1 for m in (first, second))
            if one >= two:
                assert levels[first].score >= levels[second].score
            if log_odds(one) > log_odds(two) + 2 * MARGIN:
                assert levels[first].score > levels[second].score


@pytest.mark.parametrize("model", sorted(backbone_facts()))
def test_the_other_backbone_is_better_and_about_as_large(model: str) -> None:
    facts = backbone_facts()
    own = facts[model]
    found = other_backbone(model, budget_bytes=2 * 10**9)
    if found is None:
        assert not [
            f
            for f in facts.values()
            if f.model != model
            and 1 / SIZE_RATIO <= f.parameters / own.parameters <= SIZE_RATIO
            and f.top1 > own.top1
            and f.seconds_per_image <= (1 - CLEAR_SAVING) * own.seconds_per_image
            and f.least_bytes <= 2 * 10**9
        ]
        return
    other = facts[found.model]
    assert found.top1_difference == other.top1 - own.top1 >= 0
    assert found.time_ratio == other.seconds_per_image / own.seconds_per_image
    assert found.memory_ratio == other.full_bytes / own.full_bytes
    assert other.model in found.text
    assert f"ImageNet {100 * other.top1:.1f} % against {100 * own.top1:.1f} %" in found.text
    if found.better_at == "more accurate":
        assert log_odds(other.top1) > log_odds(own.top1) + MARGIN
        assert found.time_ratio <= 1
    elif found.better_at == "faster":
        assert found.time_ratio <= 1 - CLEAR_SAVING
    else:
        assert found.memory_ratio <= 1 - CLEAR_SAVING


def test_the_sizes_of_a_hint_are_those_of_the_file() -> None:
    """DeiT-S against LeViT-256, by the rows of backbone_facts.csv and of timm's table."""
    found = other_backbone("deit_small_patch16_224", budget_bytes=2 * 10**9)
    assert found is not None
    assert (found.model, found.better_at) == ("levit_256", "faster")
    assert found.top1_difference == pytest.approx(0.0165)
    assert found.time_ratio == pytest.approx(0.001249 / 0.002054)
    assert found.memory_ratio == pytest.approx(1354760192 / 1805647872)


def test_a_hint_fits_the_budget() -> None:
    facts = backbone_facts()
    named = other_backbone(VIT_S, budget_bytes=2 * 10**9)
    assert named is not None
    least = facts[named.model].smallest_bytes
    assert other_backbone(VIT_S, budget_bytes=least) == named
    other = other_backbone(VIT_S, budget_bytes=least - 1)
    assert other is None or facts[other.model].smallest_bytes < least
    assert other_backbone(VIT_S, budget_bytes=1) is None


def test_nothing_is_said_about_an_unknown_backbone() -> None:
    assert other_backbone("somebodys_net", budget_bytes=10**10) is None
    assert other_backbone("vit_small_patch16_224.dino", budget_bytes=10**10) is None
