"""The image size that a backbone is fine-tuned at by default, and notes on a size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from profiler.models import backbones

if TYPE_CHECKING:
    from torch import nn

FINE_TUNING_SIZES = {"dinov2": 224}
"""Part of a backbone's name to the size at which it is fine-tuned. DINOv2 is pretrained at 224 px
and, in a short period at the end, at 518 px (arXiv 2304.07193): five times as many tokens."""


def default_image_size(model: str) -> int:
    """Return the size to fine-tune at if none is given: the weights' own, unless it is unusual.

    Args:
        model: canonical backbone name.
    """
    size = next((size for part, size in FINE_TUNING_SIZES.items() if part in model), None)
    return backbones.native_image_size(model) if size is None else size


def patch_edge(built: nn.Module) -> int | None:
    """Return the height and width of a backbone's patches in pixels; None if it has none."""
    edge = getattr(getattr(built, "patch_embed", None), "patch_size", None)
    edge = edge[0] if isinstance(edge, tuple) and edge else edge
    return edge if isinstance(edge, int) else None


def image_size_notes(model: str, size: int, *, is_default: bool, built: nn.Module) -> Iterator[str]:
    """Yield notes on an image size.

    Args:
        model: canonical backbone name.
        size: height and width of the images in pixels.
        is_default: whether the user named no size.
        built: the backbone, on any device.
    """
    native = backbones.native_image_size(model)
    if is_default and size != native:
        yield (
            f"images are {size} px, the usual size of fine-tuning this backbone; its weights' last "
            f"size was {native} px, which --image-size {native} plans"
        )
    edge = patch_edge(built)
    if edge is not None and edge > 1 and size % edge:
        used = size - size % edge
        yield (
            f"patches of {edge} px do not divide {size} px: the last {size % edge} px of each edge "
            f"are not seen; {used} or {used + edge} px are divided"
        )
