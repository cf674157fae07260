"""The child process of a validation: load, train a few steps, evaluate.

torch is imported by the functions, because the parent imports this module only for its address.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from planner.training.validation_messages import ValidationRequest, ValidationResult
from profiler.running.measurement import cap_host_step
from profiler.running.memory_caps import cap_at_budget, use_planned_configuration
from profiler.running.sandbox import Progress
from profiler.workload import Workload

if TYPE_CHECKING:
    from planner.recipe import Recipe
    from planner.training.images.image_set import ImageData, ImageSet


def run_validation(request: ValidationRequest, progress: Progress) -> ValidationResult:
    """Train a few steps and evaluate, under the request's memory limit."""
    import torch

    from planner.training.inference import evaluate_inference
    from planner.training.plan_check import load_data_for
    from planner.training.short_training import ShortTraining
    from planner.training.training_device import device_kind
    from profiler.models.forward_check import explain_refusals
    from profiler.training_step import gc_frozen

    workload, kind = request.candidate.workload, device_kind(request.device)
    if kind == "cuda":
        use_planned_configuration()
    progress("loading images", 0.0)
    images = load_data_for(workload, request.data)
    # The images are decoded before the cap is set: neither their time nor their memory counts.
    train = training_images(images, request.recipe)
    training = ShortTraining(request, train)
    if request.budget_bytes:
        _cap_memory(request.budget_bytes, kind, workload)
    torch.manual_seed(request.seed)
    with gc_frozen(), explain_refusals(workload):
        steps = training.on_cuda(progress) if kind == "cuda" else training.on_host(progress)
    built = training.drop_all_but_model()
    progress("evaluating selection images", 0.75)
    inference = evaluate_inference(
        built.model, images.selection, request, whole_images=len(images.test)
    )
    notes = [*training.notes]
    if inference.images != len(images.test):
        notes.append(
            f"inference time is scaled from {inference.images} selection images to the "
            f"{len(images.test)} test images"
        )
    return ValidationResult(
        training=msgspec.structs.replace(steps, notes=tuple(notes)),
        losses=tuple(training.losses),
        inference=inference,
        weights=built.weights,
        data=images.source,
    )


def training_images(images: ImageData, recipe: Recipe | None) -> ImageSet:
    """Return the images that a validation trains on.

    Selection images judge the run, so they are left out even if the recipe trains on them.
    """
    if recipe is None or recipe.augment:
        return images.train
    return images.train.without_augmentation(images.test)


def _cap_memory(budget_bytes: int, kind: str, workload: Workload) -> None:
    """Cap the memory allocated from now on; on CUDA at the budget less the CUDA context."""
    if kind == "cpu":
        cap_host_step(workload, budget_bytes)
    else:
        cap_at_budget(budget_bytes)
