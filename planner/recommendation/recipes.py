"""The recipe of each plan that a request leads to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.recommendation.request import Request
from profiler.models import backbones

if TYPE_CHECKING:
    from planner.recipe import Recipe
    from profiler.workload import Workload


def plan_recipe(request: Request, workload: Workload) -> Recipe:
    """Return the default recipe of a candidate for the images of a request."""
    from planner.training.choose_recipe import default_recipe

    part = request.of_backbone(workload.model)
    return default_recipe(
        workload,
        backbones.shared_shapes(
            workload.model,
            num_classes=workload.num_classes,
            image_size=workload.image_size,
        ),
        weights="pretrained" if part.trains_pretrained else "random",
        train_images=request.train_images,
    )
