"""Functions for classification without fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from planner.api.arguments import no_progress, parse_size
from profiler.errors import UsageError

if TYPE_CHECKING:
    from planner.recommendation.request import Notify
    from planner.training_free.features import FeatureAccuracy
    from planner.training_free.options import TrainingFreeOption


def training_free(
    vram: int | str,
    *,
    device: str = "auto",
    data: str = "cifar100",
    on_progress: Notify | None = None,
) -> tuple[TrainingFreeOption, ...]:
    """Return the known frozen models under a budget, those that fit first.

    Args:
        vram: budget in bytes or as text.
        device: ``auto``, ``cpu``, or a name of the device table.
        data: data set whose published accuracies are shown.
        on_progress: called with (stage, description, fraction of the stage done).

    Raises:
        UsageError: no such device.
        InputError: a library of these models is not installed.
    """
    from planner.target_device import find_target
    from planner.training_free.options import training_free_options
    from profiler.store import Store

    budget = parse_size(vram)
    notify = on_progress or no_progress
    return training_free_options(
        device=find_target(device).spec,
        budget_bytes=budget,
        data=data,
        store=Store.default(),
        on_progress=lambda text, done: notify("replay", text, done),
    )


def features(
    model: str,
    *,
    data: str = "digits",
    image_size: int | None = None,
    weights: str | Path | None = None,
    pretrained: bool = True,
    on_progress: Notify | None = None,
) -> FeatureAccuracy:
    """Test k-NN and a linear probe on the features of a frozen backbone.

    The features are kept on disk: a second call computes none again, an interrupted one goes on.

    Args:
        model: backbone.
        data: name of a data set, or a folder.
        image_size: height and width in pixels; None for the backbone's own.
        weights: file of weights; None for timm's pretrained weights.
        pretrained: try to load timm's pretrained weights.
        on_progress: called with (stage, description, fraction of the stage done).

    Raises:
        UsageError: no such backbone, or an image size that it refuses.
        InputError: the data or the weights cannot be read.
    """
    from planner.training_free.features import evaluate_features

    if image_size is not None and not 8 <= image_size <= 8192:
        raise UsageError(f"image_size must be from 8 to 8192, got {image_size}")
    notify = on_progress or no_progress
    return evaluate_features(
        model,
        data=data,
        image_size=image_size,
        weights=None if weights is None else Path(weights),
        pretrained=pretrained,
        on_progress=lambda text, done: notify("features", text, done),
    )
