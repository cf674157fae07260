"""Checks of a plan against its model and its data, before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.plan import Plan
from planner.training.images.image_set import ImageData
from planner.training.images.load import load_data
from profiler.checkpointing.apply import apply_placement
from profiler.errors import InputError, UsageError
from profiler.models.backbones import image_statistics
from profiler.models.build import BuiltModel, build_model
from profiler.models.forward_check import refusal_of_forward
from profiler.models.parameter_count import count_parameters
from profiler.workload import Workload

if TYPE_CHECKING:
    from torch import nn


def check_against_model(plan: Plan) -> BuiltModel:
    """Check that a plan fits the model that it names, and return that model on ``meta``.

    Raises:
        InputError: the model or the method does not exist here, the method does not work on the
            model, the model refuses the image size or the micro-batch, the parameter counts have
            changed, or the placement names units that the model lacks.
    """
    workload = plan.candidate.workload
    try:
        built = build_model(workload, device="meta")
    except UsageError as error:
        raise InputError(f"the plan does not fit this installation: {error}") from error
    counted, planned = count_parameters(workload), plan.prediction.parameters
    if counted != planned:
        raise InputError(
            f"the plan's model has changed: {workload.model} with {workload.method} has "
            f"{counted.total} parameters ({counted.trainable} trainable) here, "
            f"{planned.total} ({planned.trainable}) in the plan; make a new plan"
        )
    apply_placement(built.model, plan.candidate.placement, units=built.units).remove()
    reason = refusal_of_forward(workload)
    if reason is not None:
        raise InputError(f"the plan cannot run: {reason}")
    return built


def load_data_for(workload: Workload, spec: str, *, backbone: nn.Module | None = None) -> ImageData:
    """Load a data set in the input format of a workload's model.

    Args:
        workload: workload whose image size, classes and batch the data must fit.
        spec: name of a data set, or a folder.
        backbone: backbone whose normalisation is used; None to build it on ``meta``.

    Raises:
        InputError: the data cannot be read, or does not fit the workload.
    """
    if backbone is None:
        backbone = build_model(workload, device="meta").backbone
    mean, std = image_statistics(backbone)
    images = load_data(spec, image_size=workload.image_size, mean=mean, std=std)
    check_data(images, workload)
    return images


def check_data(images: ImageData, workload: Workload) -> None:
    """Check that a workload can be trained on a data set.

    Raises:
        InputError: the number of classes or the image size differs, or one step takes more images
            than there are.
    """
    name = images.source.name
    if images.num_classes != workload.num_classes:
        raise InputError(
            f"the plan's classifier has {workload.num_classes} classes, "
            f"{name} has {images.num_classes}; make a plan for this data"
        )
    image_size = images.train.input_format.image_size
    if image_size != workload.image_size:
        raise InputError(
            f"the plan is for images of {workload.image_size} px, "
            f"{name} was loaded at {image_size} px; load it at the plan's size"
        )
    training_images = len(images.training_whole())
    if training_images < workload.effective_batch:
        raise InputError(
            f"one step of the plan takes {workload.effective_batch} images, {name} has "
            f"{training_images} to train on; make a plan with a smaller batch"
        )
