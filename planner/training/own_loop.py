"""The optimizer, the schedule and the images of a plan, for a training loop of the user's own.

    load_backbone           the plan's backbone with its weights, before ``apply_plan``
    optimizer_and_schedule  optimizer and learning-rate schedule of the plan's recipe
    after_optimizer_step    the hook of a method between steps (AdaLoRA's ranks)
    load_images             the images that the plan's recipe uses

With these, a loop in another framework does the same steps as ``planner.training.loop``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch.optim.lr_scheduler import LambdaLR

from planner.plan import Plan, planned_data
from planner.training.loop import LoopImages
from planner.training.parameter_groups import parameter_groups
from planner.training.plan_check import load_data_for
from planner.training.zero_classifier import zero_new_classifier
from profiler.errors import InputError, check_whole_number
from profiler.models.backbones import WeightSource
from profiler.models.build import load_backbone as build_backbone
from profiler.models.methods import get_method
from profiler.training_step import make_optimizer as optimizer_of

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


def optimizer_and_schedule(
    model: nn.Module, plan: Plan, *, total_steps: int, new_classifier: bool = True
) -> tuple[Optimizer, LambdaLR]:
    """Return the optimizer of a plan's recipe and its schedule.

    Args:
        model: the model that ``apply_plan`` returned, on its device.
        plan: the plan.
        total_steps: number of optimizer steps of the whole training.
        new_classifier: whether the classifier has random values. The recipe may set it to zero; a
            classifier that was trained already is left as it is.

    Returns:
        The optimizer, and a scheduler whose ``step`` is called after each optimizer step.

    Raises:
        InputError: the plan has no recipe.
        UsageError: the number of steps is not positive.
    """
    optimizer = optimizer_without_schedule(model, plan, new_classifier=new_classifier)
    return optimizer, schedule_of(optimizer, model, plan, total_steps=total_steps)


def optimizer_without_schedule(
    model: nn.Module, plan: Plan, *, new_classifier: bool = True
) -> Optimizer:
    """Return the optimizer of a plan's recipe, without the schedule."""
    recipe, workload = plan.require_recipe(), plan.candidate.workload
    zero_new_classifier(model, recipe, is_new=new_classifier)
    on_cuda = any(parameter.is_cuda for parameter in model.parameters())
    return optimizer_of(
        model,
        workload,
        method=get_method(workload.method),
        foreach=on_cuda,
        learning_rate=recipe.learning_rate,
        groups=parameter_groups(model, recipe, at_once=on_cuda),
    )


def schedule_of(
    optimizer: Optimizer, model: nn.Module, plan: Plan, *, total_steps: int
) -> LambdaLR:
    """Return the learning-rate schedule of a plan's recipe.

    A method with a schedule of its own (AdaLoRA) gets the number of steps.
    """
    check_whole_number("total_steps", total_steps, least=1)
    recipe = plan.require_recipe()
    get_method(plan.candidate.workload.method).on_training_start(model, total_steps=total_steps)

    def factor(step: int) -> float:
        return recipe.rate_factor(step, total_steps=total_steps)

    return LambdaLR(optimizer, factor)


def after_optimizer_step(model: nn.Module, plan: Plan, *, global_step: int) -> None:
    """Run the hook of a plan's method after an optimizer step, before gradients are freed.

    Only AdaLoRA does anything: it updates the importance of its ranks.

    Args:
        model: the model that ``apply_plan`` returned.
        plan: the plan.
        global_step: number of the step, from 0.
    """
    get_method(plan.candidate.workload.method).before_zero_grad(model, global_step=global_step)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedBackbone:
    """A backbone with weights, before ``apply_plan``.

    Attributes:
        model: the backbone; it maps images [batch, 3, S, S] to logits [batch, classes].
        weights: where its weights came from.
        has_new_classifier: whether the classifier has random values although weights were loaded.
    """

    model: nn.Module
    weights: WeightSource
    has_new_classifier: bool


def load_backbone(
    plan: Plan, *, weights: str | Path | None = None, pretrained: bool = True
) -> LoadedBackbone:
    """Return the backbone of a plan with its weights.

    Args:
        plan: the plan.
        weights: file of weights; None for timm's pretrained weights.
        pretrained: load timm's pretrained weights. False for random values, which the plan's recipe
            may not be meant for.

    Raises:
        InputError: the weights cannot be loaded, or are those of another model.
    """
    place = None if weights is None else Path(weights)
    model, source, is_new = build_backbone(
        plan.candidate.workload, weights=place, pretrained=pretrained
    )
    wants_pretrained = plan.recipe is not None and plan.recipe.weights == "pretrained"
    if source.kind == "random" and wants_pretrained and (pretrained or place is not None):
        raise InputError(
            f"the plan is for pretrained weights, which cannot be loaded ({source.detail}); give a "
            "file of weights, or ask for random ones (pretrained=False, or --no-pretrained)"
        )
    return LoadedBackbone(model=model, weights=source, has_new_classifier=is_new)


def load_images(plan: Plan, data: str | None = None) -> LoopImages:
    """Return the images that a plan's recipe trains and evaluates on.

    Args:
        plan: the plan.
        data: name of a data set, or a folder; None for the data that the plan was made for.

    Raises:
        InputError: the data cannot be read, or does not fit the plan.
    """
    name = data or planned_data(plan.provenance)
    images = load_data_for(plan.candidate.workload, name)
    return LoopImages.of(images, plan.require_recipe())
