"""Set a new classifier to zero before training, as in BiT (arXiv 1912.11370)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from profiler.models.backbones.timm_interface import classifier_names
from profiler.models.methods.base import backbone_of

if TYPE_CHECKING:
    from torch import nn

    from planner.recipe import Recipe


def zero_new_classifier(model: nn.Module, recipe: Recipe, *, is_new: bool) -> None:
    """Set the classifier of a model to zero if a recipe says so and the classifier is new.

    Args:
        model: the model that a method returned.
        recipe: the recipe of the training.
        is_new: whether the classifier has random values; one that was trained keeps its values.
    """
    if recipe.zero_head and is_new:
        zero_classifier(model)


def zero_classifier(model: nn.Module) -> None:
    """Set the last layer of each classifier to zero; the first logits are then all equal.

    If every layer were zero, none would have a gradient.

    Args:
        model: the model that a method returned.
    """
    for name in classifier_names(backbone_of(model)):
        trained = {
            key: parameter
            for key, parameter in model.named_parameters()
            if parameter.requires_grad and f".{name}." in f".{key}"
        }
        weights = [key for key, parameter in trained.items() if parameter.ndim > 1]
        if not weights:
            continue
        last_layer = weights[-1].rpartition(".")[0]
        with torch.no_grad():
            for key, parameter in trained.items():
                if key.rpartition(".")[0] == last_layer:
                    parameter.zero_()
