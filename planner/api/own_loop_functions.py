"""Functions for a training loop of the user's own, and for other training programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from planner.api.plan_functions import plan_of

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

    from planner.export.targets import Export
    from planner.plan import Plan
    from planner.training.loop import LoopImages
    from planner.training.own_loop import LoadedBackbone


def load_backbone(
    plan: Plan | str | Path, *, weights: str | Path | None = None, pretrained: bool = True
) -> LoadedBackbone:
    """Return the backbone of a plan with its weights, for ``apply_plan``.

    Args:
        plan: plan, or the path of a plan file.
        weights: file of weights; None for timm's pretrained weights.
        pretrained: load timm's pretrained weights; False for random values.

    Raises:
        InputError: the weights cannot be loaded, or are those of another model.
    """
    from planner.training.own_loop import load_backbone as load

    return load(plan_of(plan), weights=weights, pretrained=pretrained)


def load_images(plan: Plan | str | Path, data: str | None = None) -> LoopImages:
    """Return the images that a plan's recipe trains and evaluates on.

    Args:
        plan: plan, or the path of a plan file.
        data: name of a data set, or a folder; None for the data that the plan was made for.

    Raises:
        InputError: the data cannot be read, or does not fit the plan.
    """
    from planner.training.own_loop import load_images as load

    return load(plan_of(plan), data)


def optimizer_and_schedule(
    model: nn.Module, plan: Plan | str | Path, *, total_steps: int, new_classifier: bool = True
) -> tuple[Optimizer, LambdaLR]:
    """Return the optimizer of a plan's recipe and its schedule.

    Args:
        model: the model that ``apply_plan`` returned, on its device.
        plan: plan, or the path of a plan file.
        total_steps: number of optimizer steps of the whole training.
        new_classifier: whether the classifier has random values. The recipe may set it to zero.

    Returns:
        The optimizer, and a scheduler whose ``step`` is called after each optimizer step.

    Raises:
        InputError: the plan has no recipe.
        UsageError: the number of steps is not positive.
    """
    from planner.training.own_loop import optimizer_and_schedule as make

    return make(model, plan_of(plan), total_steps=total_steps, new_classifier=new_classifier)


def export_plan(plan: Plan | str | Path, to: str, out: str | Path | None = None) -> Export:
    """Return a plan in the form of another training program.

    Args:
        plan: plan, or the path of a plan file.
        to: ``script``, ``hf``, ``lightning``, ``timm`` or ``peft``.
        out: folder for the files; None to write none.

    Raises:
        UsageError: there is no such target, or it cannot train the plan's method.
        InputError: the plan has no recipe, or a file of other content would be replaced.
    """
    from planner.export.targets import export_plan as export

    made = export(plan_of(plan), to)
    if out is not None:
        made.write(Path(out))
    return made
