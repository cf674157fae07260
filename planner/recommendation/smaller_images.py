"""The recommended plan on smaller images, as an alternative without a plan file.

The number of pixels decides the time of a step more than any lever. It changes the accuracy too,
and no published comparison is of the user's images. So no such row is ever recommended.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from planner.cost.budget import needed_bytes
from planner.recommendation.answer import Alternative, FrontEntry
from planner.recommendation.image_size import patch_edge
from profiler.errors import BudgetplanError
from profiler.units import format_bytes_in, unit_as_asked

if TYPE_CHECKING:
    from profiler.devices.table import DeviceSpec

LARGEST_EDGE_SHARE = 0.75
"""Edge of the smaller images over that of the plan's, at most: 160 px for 224 px."""

STRIDE = 32
"""Pixels that one position of the last feature map of most backbones covers."""

SMALLEST_PIXELS = 96
"""Least edge of the smaller images in pixels (a choice, not a measurement)."""


def smaller_size(
    size: int, *, patch: int | None, share: float = LARGEST_EDGE_SHARE, least: int = SMALLEST_PIXELS
) -> int | None:
    """Return the size of smaller images that patches or strides divide; None if there is none.

    Args:
        size: height and width of the plan's images in pixels.
        patch: edge of the backbone's patches; None if it has none.
        share: largest edge over ``size``.
        least: smallest edge in pixels.
    """
    step = STRIDE if patch is None or STRIDE % patch == 0 else patch
    smaller = math.floor(share * size / step) * step
    return smaller if smaller >= max(least, step) else None


def patch_of(model: str) -> int | None:
    """Return the edge of a backbone's patches in pixels; None if it has none."""
    from profiler.models import backbones

    size = backbones.native_image_size(model)
    return patch_edge(backbones.shared_shapes(model, num_classes=1, image_size=size))


def with_smaller_images(entry: FrontEntry, *, device: DeviceSpec) -> Alternative | None:
    """Return the alternative of a plan on smaller images; None if the backbone takes none.

    Args:
        entry: the recommended row.
        device: device that is planned for.
    """
    from profiler.prediction.report import predict

    candidate = entry.plan.candidate
    workload = candidate.workload
    size = smaller_size(workload.image_size, patch=patch_of(workload.model))
    if size is None:
        return None
    try:
        report = predict(
            replace(candidate, workload=workload.replace(image_size=size)),
            device=device,
            power_limit_watts=entry.plan.prediction.power_limit_watts,
        )
    except BudgetplanError:
        return None  # windows that must divide the image, for example
    unit, speed = unit_as_asked(entry.plan.budget_bytes), "time not known"
    if report.step_seconds:
        speed = f"{workload.effective_batch / report.step_seconds:,.0f} images/s"
    return Alternative(
        name="smaller images",
        index=None,
        note=f"{size} px: {format_bytes_in(needed_bytes(report), unit)}, {speed}; accuracy not "
        "compared",
    )
