"""Parameter groups of the optimizer: the learning rate and weight decay of each parameter.

    parameter_groups   groups by a recipe, each with its ``lr_scale``
    set_learning_rate  sets the rate of every group for a step

Memory is predicted for one group of all parameters in the order of the model. Several groups must
not need more. On CUDA an optimizer updates a whole group at once, so smaller groups have smaller
temporaries. On a CPU it updates one parameter after another, and a temporary of each lives until
the next parameter has its own. Where large weights follow each other, which norms and biases would
keep apart, that is one more temporary of the largest weight. There, each parameter is a group.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from planner.recipe import Recipe
from profiler.models.backbones.timm_interface import classifier_names
from profiler.models.methods.base import backbone_of

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from profiler.training_step import ParameterGroup


def parameter_groups(model: nn.Module, recipe: Recipe, *, at_once: bool) -> list[ParameterGroup]:
    """Return all trainable parameters of a model, grouped by learning rate and weight decay.

    A parameter with one dimension or fewer is a norm's or a bias, as in ``timm.optim``.

    Args:
        model: the model that a method returned.
        recipe: learning rates and weight decay.
        at_once: whether the optimizer updates a group at once; otherwise, if the settings differ,
            each parameter is a group.
    """
    backbone = backbone_of(model)
    heads = tuple(f".{name}." for name in classifier_names(backbone))
    layer_scales = _layer_scales(backbone, recipe.layer_decay)
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # peft keeps a copy of the classifier under the classifier's own name.
        is_head = any(head in f".{name}" for head in heads)
        scale = recipe.head_rate_ratio if is_head else layer_scales.get(id(parameter), 1.0)
        decays = recipe.decay_norms_and_biases or parameter.ndim > 1
        groups[scale, recipe.weight_decay if decays else 0.0].append(parameter)
    if not at_once and len(groups) > 1:
        return [
            group | {"params": [parameter]}
            for group in _as_groups(groups, recipe)
            for parameter in group["params"]
        ]
    return _as_groups(groups, recipe)


def _as_groups(
    settings: Mapping[tuple[float, float], list[nn.Parameter]], recipe: Recipe
) -> list[ParameterGroup]:
    """Return groups from parameters by (scale of the learning rate, weight decay)."""
    return [
        {
            "params": parameters,
            "lr": recipe.learning_rate * scale,
            "lr_scale": scale,
            "weight_decay": decay,
        }
        for (scale, decay), parameters in settings.items()
    ]


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of every group to its scale times a rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def _layer_scales(backbone: nn.Module, layer_decay: float) -> dict[int, float]:
    """Return the scale of the learning rate by parameter; those of the last layer have 1.

    Args:
        backbone: timm model, whose ``group_matcher`` gives the order of the layers.
        layer_decay: ratio of the rates of a layer and the next.
    """
    if layer_decay == 1:
        return {}
    from timm.optim import param_groups_layer_decay

    groups = param_groups_layer_decay(backbone, layer_decay=layer_decay, weight_decay=0.0)
    return {id(p): group["lr_scale"] for group in groups for p in group["params"]}
