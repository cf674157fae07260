"""The folder of a trained model: checked before training, written after it, loaded from it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from planner.plan import Plan, read_plan
from planner.training.images.image_set import ImageData
from planner.training.images.load import load_data
from profiler.checkpointing.apply import apply_placement
from profiler.errors import (
    InputError,
    UsageError,
)
from profiler.models.backbones import image_statistics
from profiler.models.build import BuiltModel, build_model
from profiler.workload import Workload

if TYPE_CHECKING:
    from torch import nn


PLAN_FILE, HISTORY_FILE, MODEL_FOLDER = "plan.json", "training.json", "model"


# ---- checks before anything is run ---------------------------------------------------------------


def load_trained(
    output: Path, *, weights: Path | None = None, pretrained: bool = True, seed: int = 0
) -> nn.Module:
    """Return the model that a training left in its folder, ready to classify.

    It is called with images [batch, 3, size, size] as ``planner.training.images.load`` prepares them, and returns
    logits [batch, classes].

    Args:
        output: the folder.
        weights: the file of weights that the training was given, if it was.
        pretrained: whether the training might fetch weights.
        seed: of the training; random weights under an adapter are made of it.

    Raises:
        InputError: the folder holds no training, or one of another model.
    """
    plan = read_plan(output / PLAN_FILE)
    check_against_model(plan)
    torch.manual_seed(seed)
    built = build_model(plan.candidate.workload, weights=weights, pretrained=pretrained)
    built.method.load(built.model, output / MODEL_FOLDER)
    return built.model.eval()


def check_against_model(plan: Plan) -> BuiltModel:
    """Hold a plan against the model it names; return that model on ``meta``.

    Raises:
        InputError: no such model or method here, the method refuses the model, parameter counts
            have changed, or the placement names units that the model lacks.
    """
    workload = plan.candidate.workload
    try:
        built = build_model(workload, device="meta")
    except UsageError as error:
        raise InputError(f"the plan does not fit this installation: {error}") from error
    from profiler.models.parameter_count import count_parameters

    counted, planned = count_parameters(workload), plan.prediction.parameters
    if counted != planned:
        raise InputError(
            f"the plan's model has changed: {workload.model} with {workload.method} has "
            f"{counted.total} parameters ({counted.trainable} trainable) here, "
            f"the plan says {planned.total} ({planned.trainable}); make a new plan"
        )
    apply_placement(built.model, plan.candidate.placement, units=built.units).remove()
    return built


def data_for(workload: Workload, spec: str, *, backbone: nn.Module | None = None) -> ImageData:
    """Load data as a workload's model wants it.

    Args:
        workload: gives image size and classes.
        spec: ``digits``, ``cifar100``, ``dtd`` or a folder.
        backbone: for its normalisation; built without allocating when not given.

    Raises:
        InputError: the data cannot be read, has another number of classes than the workload, or
            fewer images than one step takes.
    """
    if backbone is None:
        backbone = build_model(workload, device="meta").backbone
    mean, std = image_statistics(backbone)
    images = load_data(spec, image_size=workload.image_size, mean=mean, std=std)
    check_data(images, workload)
    return images


def check_data(images: ImageData, workload: Workload) -> None:
    """Refuse data that a workload cannot be trained on.

    Raises:
        InputError: another number of classes or image size, or too few images.
    """
    name = images.source.name
    if images.num_classes != workload.num_classes:
        raise InputError(
            f"the plan's classifier has {workload.num_classes} classes, "
            f"{name} has {images.num_classes}; make a plan for this data"
        )
    if images.train.input_format.image_size != workload.image_size:
        raise InputError(
            f"the plan is for images of {workload.image_size} px, "
            f"{name} was loaded at {images.train.input_format.image_size} px"
        )
    if len(images.train) < workload.effective_batch:
        raise InputError(
            f"one step of the plan takes {workload.effective_batch} images, {name} has "
            f"{len(images.train)} to train on; plan with a smaller batch"
        )


def save_model(built: BuiltModel, folder: Path) -> None:
    draft = folder.with_name(f".{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    built.method.save(built.model, draft)
    shutil.rmtree(folder, ignore_errors=True)
    draft.replace(folder)
