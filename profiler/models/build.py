"""From a workload to a model ready to train: backbone, weights, method, units."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from profiler.errors import UsageError
from profiler.models import backbones
from profiler.models.backbones import WeightSource
from profiler.models.checkpointable_units import find_units
from profiler.models.methods import get_method
from profiler.models.methods.base import backbone_of
from profiler.workload import Workload

if TYPE_CHECKING:
    from torch import nn

    from profiler.models.methods.base import Method
    from profiler.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltModel:
    """A model that a method made trainable.

    Attributes:
        model: what is called with images.
        method: how it was made trainable.
        units: names of the checkpointable units, in the backbone's own naming.
        weights: where the backbone's weights came from.
    """

    model: nn.Module
    method: Method
    units: tuple[str, ...]
    weights: WeightSource

    @property
    def backbone(self) -> nn.Module:
        """The backbone inside the model."""
        return backbone_of(self.model)


def build_model(
    workload: Workload,
    *,
    device: str = "cpu",
    weights: Path | None = None,
    pretrained: bool = False,
) -> BuiltModel:
    """Build the backbone, load its weights, apply the method.

    Args:
        workload: what to build.
        device: ``meta`` allocates nothing.
        weights: a file of weights.
        pretrained: try timm's hub when no file is given.

    Raises:
        UsageError: the method does not work on this backbone; says why.
    """
    backbone = backbones.build(
        workload.model,
        num_classes=workload.num_classes,
        image_size=workload.image_size,
        drop_path=workload.drop_path,
        device=device,
    )
    if device == "meta":
        source = WeightSource(kind="random", detail="shapes only")
    else:
        source = backbones.load_weights(
            backbone, workload.model, weights=weights, pretrained=pretrained
        )
    method = get_method(workload.method)
    reason = method.refusal(backbone, workload)
    if reason is not None:
        raise UsageError(f"{workload.method} cannot be used on {workload.model}: {reason}")
    units = find_units(backbone)
    model = method.apply(backbone, workload)
    return BuiltModel(model=model, method=method, units=units, weights=source)
