"""Apply a plan to a model that the user built, for a training loop of the user's own.

    apply_plan         apply the plan's method and placement to a timm model
    remove_placement   restore the model's own forward; the method stays

    model = timm.create_model("vit_small_patch16_224", pretrained=True, num_classes=10)
    plan = load_plan("plan.json")                               # planner.load_plan
    model = apply_plan(model, plan)                             # planner.apply_plan
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    ...                                                         # any loop
    method = get_method(plan.candidate.workload.method)         # profiler.models.methods
    method.save(model, Path("trained"))                         # the trained tensors alone
    method.load(apply_plan(another_model, plan), Path("trained"))

The plan's batch, precision, optimizer and learning rate are left to the loop. The predicted memory
and time hold only if the loop uses the plan's.

Limitations: GaLore needs its own optimizer (``method.make_optimizer``). AdaLoRA changes its ranks
only if the loop calls ``method.on_training_start``, and ``method.before_zero_grad`` after each
optimizer step. A method cannot be removed from a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from planner.plan import Plan
from planner.training.plan_check import check_against_model
from profiler.checkpointing.apply import AppliedPlacement, apply_placement
from profiler.errors import InputError
from profiler.models import backbones
from profiler.models.image_layout import use_channels_last
from profiler.models.methods import get_method
from profiler.models.methods.target_layers import freeze_statistics

if TYPE_CHECKING:
    from torch import nn

    from profiler.workload import Workload

_APPLIED: WeakKeyDictionary[nn.Module, AppliedPlacement] = WeakKeyDictionary()
"""The placement of each model that ``apply_plan`` returned, for ``remove_placement``."""


def apply_plan(model: nn.Module, plan: Plan) -> nn.Module:
    """Make a model trainable by a plan's method, and make it follow the plan's placement.

    The model is changed in place and keeps its weights, its device and its mode. Methods of peft
    wrap it, so the returned model must be used: for the forward, the optimizer and saving.
    ``requires_grad`` is set on exactly the parameters that the method trains. New parameters are
    drawn from torch's global generator.

    Args:
        model: the plan's backbone as timm builds it, with the plan's number of classes and image
            size.
        plan: plan whose method and placement are applied.

    Returns:
        The model to train. It maps images [batch, 3, S, S] to logits [batch, classes].

    Raises:
        InputError: the model is not the plan's backbone, a plan was applied to it before, or the
            plan does not fit this installation. Nothing is changed then.
    """
    workload = plan.candidate.workload
    reference = check_against_model(plan)
    _check_backbone(model, workload)
    applied = get_method(workload.method).apply(model, workload)
    if workload.frozen_batch_norm:
        freeze_statistics(applied, also_trained=True)
    if "channels_last" in workload.levers:
        use_channels_last(applied)
    # The units are those of the reference: to find them can take a forward, which would update the
    # running statistics of the user's BatchNorm layers.
    _APPLIED[applied] = apply_placement(applied, plan.candidate.placement, units=reference.units)
    return applied


def remove_placement(model: nn.Module) -> None:
    """Restore the forward of a model that ``apply_plan`` returned; its units are kept from then on.

    Raises:
        InputError: ``apply_plan`` did not return this model, or its placement was removed before.
    """
    applied = _APPLIED.pop(model, None)
    if applied is None:
        raise InputError(
            f"no plan is applied to this {type(model).__name__}; give the model of apply_plan"
        )
    applied.remove()


def _check_backbone(model: nn.Module, workload: Workload) -> None:
    """Compare class, names and shapes of a model with the plan's backbone.

    Settings without a tensor, such as the number of heads or stochastic depth, are not compared.
    """
    expected = backbones.build(
        workload.model,
        num_classes=workload.num_classes,
        image_size=workload.image_size,
        drop_path=workload.drop_path,
        device="meta",
    )
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.state_dict().items()}
    reason = ""
    if type(model) is not type(expected):
        reason = f"it is a {type(model).__name__}, not a {type(expected).__name__}"
    for name in [*wanted, *found]:
        if not reason and found.get(name) != wanted.get(name):
            shapes = [str(shapes.get(name, "missing")) for shapes in (found, wanted)]
            reason = f"{name} is {shapes[0]}, in the plan {shapes[1]}"
    if model in _APPLIED:
        reason = "a plan is applied to it already"
    if reason:
        raise InputError(
            f"the model is not the plan's {workload.model} with {workload.num_classes} classes at "
            f"{workload.image_size} px: {reason}; build it anew by timm.create_model"
        )
