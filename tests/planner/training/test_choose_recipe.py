"""The recipe by method, backbone, weights and data size, and the changes of a caller."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from plans import make_plan
from trainings import digits, workload

from planner.recipe import InitialWeights, Recipe
from planner.training.choose_recipe import default_recipe, earlier_recipe, paper_recipe
from planner.training.resolve_recipe import RecipeChanges, resolve_recipe
from profiler.errors import BudgetplanWarning, InputError, UsageError
from profiler.models.backbones import WeightSource
from profiler.models.build import BuiltModel, build_model
from profiler.workload import Workload

FULL = workload(method="full", rank=None, micro_batch=16)
CONVOLUTIONAL = FULL.replace(model="resnet10t")


def built(load: Workload, *, kind: str = "random") -> BuiltModel:
    return replace(build_model(load, device="meta"), weights=WeightSource(kind=kind, detail=""))


def recipe(load: Workload, *, train_images: int = 1294) -> Recipe:
    backbone = built(load).backbone
    return default_recipe(load, backbone, weights="pretrained", train_images=train_images)


def test_plans_without_a_recipe_train_as_when_they_were_written() -> None:
    def rate(load: Workload, kind: str) -> float:
        weights = "random" if kind == "random" else "pretrained"
        found = earlier_recipe(load, built(load).backbone, weights=weights)
        assert (found.schedule, found.selects_epoch, found.epochs) == ("constant", False, 10)
        assert found.warm_up_steps == (10 if kind == "random" else 0)
        return found.learning_rate

    beside = workload(method="prefix", rank=8)
    assert rate(FULL, "pretrained") == 1e-5
    assert rate(workload(), "pretrained") == rate(workload(), "random") == 5e-4
    assert rate(beside, "random") == 2e-3
    assert rate(beside, "pretrained") == 5e-4
    # DeiT's 5e-4 for 512 images; a step of 32 has a sixteenth of them
    assert rate(FULL, "random") == pytest.approx(5e-4 / 4)
    assert rate(FULL.replace(optimizer="sgd"), "random") == pytest.approx(5e-3 / 4)
    assert rate(CONVOLUTIONAL, "random") == 1e-3


def test_the_default_recipe_depends_on_backbone_method_and_number_of_images() -> None:
    assert recipe(CONVOLUTIONAL).learning_rate == 5e-4
    assert recipe(CONVOLUTIONAL.replace(optimizer="sgd")).learning_rate == 5e-3
    assert recipe(CONVOLUTIONAL.replace(optimizer="sgd")).weight_decay == 0
    assert recipe(FULL).layer_decay < 1 == recipe(CONVOLUTIONAL).layer_decay
    assert recipe(workload()).learning_rate < recipe(workload(method="head")).learning_rate
    # 40 steps an epoch: 300 steps are 8 epochs; few images take more epochs, many take fewer
    assert recipe(FULL).epochs == 8
    assert recipe(FULL, train_images=100).epochs == 50
    assert recipe(FULL, train_images=45_000).epochs == 5
    assert recipe(FULL, train_images=10).warm_up_steps == 5
    # a zero classifier would make GaLore's first gradients, and so its projections, zero
    assert recipe(FULL).zero_head and not recipe(workload(method="galore")).zero_head
    # AdaLoRA's ranks are final at its end only
    assert not recipe(workload(method="adalora")).selects_epoch


@pytest.mark.parametrize(
    ("method", "by_width"),
    [("full", True), ("lora", True), ("adaptformer", True), ("head", True), ("bitfit", False)],
)
def test_matrices_of_a_narrow_transformer_have_a_higher_rate(method: str, by_width: bool) -> None:
    """As arXiv 2203.03466 has it for Adam: half the width, twice the rate."""

    def rate(model: str) -> float:
        rank = 8 if method in ("lora", "adaptformer") else None
        return recipe(workload(model=model, method=method, rank=rank)).learning_rate

    small, tiny, base = (rate(f"vit_{size}_patch16_224") for size in ("small", "tiny", "base"))
    assert tiny == pytest.approx(2 * small if by_width else small)  # widths of 192 and 384
    assert base == small  # 768: published rates are of both


@pytest.mark.parametrize("method", ["full", "galore", "partial_2"])
@pytest.mark.parametrize("model", ["test_vit", "resnet10t"])
def test_the_source_says_whether_layers_decay(method: str, model: str) -> None:
    rank = 4 if method == "galore" else None
    found = recipe(workload(model=model, method=method, rank=rank))
    assert ("with the layer decay of" in found.source) == (found.layer_decay < 1)
    is_borrowed = model == "test_vit" and method != "full"
    assert ("without the layer decay" in found.source) == is_borrowed


@pytest.mark.parametrize("method", ["full", "head", "lora", "bitfit"])
@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_the_source_says_what_was_assumed_for_sgd(method: str, weights: InitialWeights) -> None:
    """Every recipe whose rate has the assumed factor says so, and no other."""
    load = workload(method=method, rank=4 if method == "lora" else None)
    model = built(load).backbone
    for kind in ("adamw", "sgd"):
        load = load.replace(optimizer=kind)
        for found in (
            default_recipe(load, model, weights=weights, train_images=1294),
            earlier_recipe(load, model, weights=weights),
            paper_recipe(load, weights=weights),
        ):
            assert ("times 10 for SGD (assumed)" in found.source) == (kind == "sgd")


def test_the_source_says_which_rates_are_scaled_to_the_batch() -> None:
    for method in ("full", "head", "lora"):
        loads = [
            workload(method=method, rank=4 if method == "lora" else None, micro_batch=images)
            for images in (16, 128)  # accumulated twice: 32 and 256 images of a step
        ]
        tried, larger = map(recipe, loads)
        assert tried.learning_rate == larger.learning_rate
        assert "not scaled" not in tried.source
        assert "not scaled to the 256 images of a step" in larger.source
    large = FULL.replace(micro_batch=128)
    random = [
        default_recipe(load, built(load).backbone, weights="random", train_images=1294)
        for load in (FULL, large)
    ]
    assert random[1].learning_rate == pytest.approx(math.sqrt(8) * random[0].learning_rate)
    assert "taken to 256 images by the root of the batch size" in random[1].source


def test_the_width_of_a_convolutional_net_does_not_count() -> None:
    assert recipe(CONVOLUTIONAL.replace(model="test_resnet")) == recipe(CONVOLUTIONAL)


def test_the_rate_of_a_higher_rank_falls_with_its_root() -> None:
    rates = {r: recipe(workload(rank=r)).learning_rate for r in (4, 8, 32)}
    assert rates[4] == rates[8] == pytest.approx(2 * rates[32])
    assert "2312.03732" in recipe(workload(rank=64)).source
    # with an alpha of the user's, the scaling is no longer 2
    assert recipe(workload(rank=32, alpha=8.0)).learning_rate == rates[8]
    added = [recipe(workload(method="prefix", rank=r)).learning_rate for r in (8, 32)]
    assert added[0] == added[1]


def test_the_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    cosine = replace(recipe(FULL), warm_up_steps=4)
    factors = [cosine.rate_factor(step, total_steps=44) for step in range(50)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[24] == pytest.approx(0.5)
    assert factors[14] == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert cosine.rate_factor(0, total_steps=9) == 1.0  # too short for a warm-up
    assert factors == sorted(factors[:5]) + sorted(factors[5:], reverse=True)
    assert min(factors) > 0
    constant = paper_recipe(FULL)
    assert {constant.rate_factor(step, total_steps=9) for step in range(20)} == {1.0}


def test_changes_of_the_caller_replace_values_of_the_plan() -> None:
    planned = replace(make_plan(FULL), recipe=recipe(FULL))
    model = built(FULL, kind="pretrained")

    def resolved(**changes: object) -> Recipe:
        made = RecipeChanges(**changes)
        return resolve_recipe(planned, model, digits(32, train_images=40), made)

    assert resolved() == planned.recipe
    given = resolved(epochs=3)
    assert given == replace(recipe(FULL), epochs=3, source=given.source)
    assert given.source == f"epochs as given; otherwise: {recipe(FULL).source}"
    changed = resolved(learning_rate=0.5, balance=True)
    assert (changed.learning_rate, changed.balance, changed.epochs) == (0.5, True, 8)
    assert changed.source.startswith("learning rate and balance as given; otherwise: ")
    assert resolved(recipe="paper") == paper_recipe(FULL)
    assert resolved(recipe="default").epochs == 50  # for the 40 images at hand
    for changes in (
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"epochs": 0},
        {"epochs": 10**6},
        {"recipe": "mine"},
    ):
        with pytest.raises(UsageError):
            RecipeChanges(**changes)


def test_other_weights_than_the_recipe_is_for_change_it_and_that_is_said() -> None:
    planned = replace(make_plan(FULL), recipe=recipe(FULL))
    with pytest.warns(BudgetplanWarning, match="for pretrained weights, but these are random"):
        found = resolve_recipe(planned, built(FULL), digits(32), RecipeChanges())
    assert found.weights == "random"
    assert not found.zero_head
    # the plan's recipe is not asked for, so nothing replaces it; warnings are errors
    asked = resolve_recipe(planned, built(FULL), digits(32), RecipeChanges(recipe="default"))
    assert asked == found


def test_a_recipe_that_selects_no_epoch_cannot_stop_early() -> None:
    with pytest.raises(InputError, match="patience_epochs"):
        replace(recipe(FULL), selects_epoch=False)
