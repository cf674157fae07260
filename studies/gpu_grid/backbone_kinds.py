"""The kind of a backbone, by which the study groups errors and factors."""

from __future__ import annotations

from functools import cache


@cache
def backbone_kind(model: str) -> str:
    """Return the kind of a backbone: ``scan``, ``attention`` or ``convolution``.

    The kind is read from the class names of its modules, which needs no forward.
    """
    from profiler.models import backbones

    image_size = backbones.native_image_size(model)
    built = backbones.shared_shapes(model, num_classes=10, image_size=image_size)
    names = [type(module).__name__ for module in built.modules()]
    if any("Mixer" in name and ("Vim" in name or "Mamba" in name) for name in names):
        return "scan"
    return "attention" if any("Attention" in name for name in names) else "convolution"
