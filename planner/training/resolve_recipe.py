"""Resolve the recipe that a training uses: the plan's, with the changes of the caller.

RecipeChanges         changes of the caller
resolve_recipe        the recipe for the weights and the images at hand
planned_or_default    the plan's recipe, or the default one if that is for other weights
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from planner.plan import Plan
from planner.recipe import LARGEST_EPOCHS, LARGEST_RATE, InitialWeights, Recipe
from planner.training.choose_recipe import default_recipe, earlier_recipe, paper_recipe
from profiler.errors import UsageError, warn_caller

if TYPE_CHECKING:
    from planner.training.images.image_set import ImageData
    from profiler.models.build import BuiltModel
    from profiler.workload import Workload

RecipeName = Literal["plan", "default", "paper"]
"""The plan's recipe, the default one for the data at hand, or that of arXiv 2607.02158."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeChanges:
    """Changes to the recipe of a plan.

    Attributes:
        recipe: the recipe to begin with.
        learning_rate: learning rate in place of the recipe's.
        epochs: number of epochs in place of the recipe's, those before a resume included.
        balance: whether each class is drawn equally often; None for the recipe's choice.

    Raises:
        UsageError: the learning rate or the number of epochs is out of its domain.
    """

    recipe: RecipeName = "plan"
    learning_rate: float | None = None
    epochs: int | None = None
    balance: bool | None = None

    def __post_init__(self) -> None:
        rate = self.learning_rate
        if rate is not None and not 0 < rate <= LARGEST_RATE:
            raise UsageError(
                f"the learning rate must be positive and at most {LARGEST_RATE:g}, got {rate!r}"
            )
        if self.epochs is not None and not 1 <= self.epochs <= LARGEST_EPOCHS:
            raise UsageError(f"epochs must be from 1 to {LARGEST_EPOCHS}, got {self.epochs!r}")
        if self.recipe not in get_args(RecipeName):
            names = ", ".join(get_args(RecipeName))
            raise UsageError(f"recipe must be one of {names}, got {self.recipe!r}")


def resolve_recipe(
    plan: Plan, built: BuiltModel, images: ImageData, changes: RecipeChanges
) -> Recipe:
    """Return the recipe of a training.

    If the plan's recipe is used and meant for pretrained weights, and only random ones could be
    loaded, or the reverse, the default recipe for the weights at hand replaces it, and a warning
    says so.
    """
    workload, weights = plan.candidate.workload, initial_weights(built)
    recipe = plan.recipe
    if changes.recipe == "paper":
        recipe = paper_recipe(workload, weights=weights)
    elif changes.recipe == "plan" and recipe is None:
        recipe = earlier_recipe(workload, built.backbone, weights=weights)
        if changes.learning_rate is not None:  # such a rate was used without a warm-up
            recipe = replace(recipe, warm_up_steps=0)
    elif recipe is None or changes.recipe == "default":
        balance = recipe is not None and recipe.balance
        recipe = _default_for(workload, built, train_images=len(images.train), balance=balance)
    else:
        if recipe.weights != weights:
            warn_caller(
                f"the plan's recipe is for {recipe.weights} weights, but these are {weights} "
                f"({built.weights.detail}): the default recipe for {weights} weights is used",
            )
        recipe = planned_or_default(recipe, workload, built, train_images=len(images.train))
    return _changed(recipe, changes)


def planned_or_default(
    recipe: Recipe | None, workload: Workload, built: BuiltModel, *, train_images: int
) -> Recipe:
    """Return a plan's recipe, or the default one for the weights of a model.

    Args:
        recipe: the plan's recipe. It is replaced if it is None or meant for other weights.
        workload: method, optimizer and batch.
        built: the model and the origin of its weights.
        train_images: number of training images, the selection part not included.
    """
    if recipe is not None and recipe.weights == initial_weights(built):
        return recipe
    balance = recipe is not None and recipe.balance
    return _default_for(workload, built, train_images=train_images, balance=balance)


def initial_weights(built: BuiltModel) -> InitialWeights:
    """Return the kind of weights that a model begins with, as recipes name it."""
    return "random" if built.weights.kind == "random" else "pretrained"


def _default_for(
    workload: Workload, built: BuiltModel, *, train_images: int, balance: bool
) -> Recipe:
    return default_recipe(
        workload,
        built.backbone,
        weights=initial_weights(built),
        train_images=train_images,
        balance=balance,
    )


def _changed(recipe: Recipe, changes: RecipeChanges) -> Recipe:
    """Return a recipe with the values that the caller gave; its source names them."""
    asked: dict[str, Any] = {
        "learning_rate": changes.learning_rate,
        "epochs": changes.epochs,
        "balance": changes.balance,
    }
    given = {field: value for field, value in asked.items() if value is not None}
    if not given:
        return recipe
    names = " and ".join(field.replace("_", " ") for field in given)
    return replace(recipe, **given, source=f"{names} as given; otherwise: {recipe.source}")
