"""Build the model of a workload, ready to train: backbone, weights, units, method."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from profiler.errors import UsageError
from profiler.models import backbones
from profiler.models.backbones import WeightSource
from profiler.models.checkpointable_units import find_units
from profiler.models.image_layout import use_channels_last
from profiler.models.methods import get_method
from profiler.models.methods.base import backbone_of
from profiler.models.methods.target_layers import freeze_statistics
from profiler.models.zero_scales import zero_scale_note
from profiler.workload import Workload

if TYPE_CHECKING:
    from torch import nn

    from profiler.models.methods.base import Method
    from profiler.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltModel:
    """A model ready to train.

    Attributes:
        model: the trainable model, or peft's wrapper; maps images [batch, 3, size, size] to logits.
        name: name of the backbone.
        method: the method that made it trainable.
        units: names of the checkpointable units, as modules of the backbone, in forward order.
        weights: source of the backbone's weights.
        has_new_classifier: whether the classifier has random values although weights were loaded;
            False with random weights.
    """

    model: nn.Module
    name: str
    method: Method
    units: tuple[str, ...]
    weights: WeightSource
    has_new_classifier: bool = False

    @property
    def backbone(self) -> nn.Module:
        """The backbone inside the model, without peft's wrapper."""
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
        workload: names backbone and method, and gives their options.
        device: device of the weights; ``meta`` allocates nothing and loads none.
        weights: file of weights, or None.
        pretrained: whether to try timm's hub if no file is given.

    Raises:
        UsageError: the method cannot be used on this backbone; the message gives the reason.
    """
    backbone, source, has_new_classifier = load_backbone(
        workload, device=device, weights=weights, pretrained=pretrained
    )
    method = get_method(workload.method)
    reason = method.refusal(backbone, workload)
    if reason is not None:
        raise UsageError(f"{workload.method} cannot be used on {workload.model}: {reason}")
    units = _units_of(backbone, workload)  # before the method adds modules
    try:
        model = method.apply(backbone, workload)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # a backbone with layers of another kind than the method, or a library behind it, expects
        reason = " ".join(str(error).split())[:120]
        raise UsageError(
            f"{workload.method} cannot be used on {workload.model} ({reason}); use another method"
        ) from error
    if workload.frozen_batch_norm:
        freeze_statistics(model, also_trained=True)
    if "channels_last" in workload.levers:
        use_channels_last(model)
    if source.kind == "random" and device != "meta":
        note = zero_scale_note(model, workload)
        source = source if note is None else replace(source, notes=(note,))
    return BuiltModel(
        model=model,
        name=workload.model,
        method=method,
        units=units,
        weights=source,
        has_new_classifier=has_new_classifier,
    )


_found_units: dict[tuple[object, ...], tuple[str, ...]] = {}
"""Units by what decides about them; finding them may take a forward on ``meta``."""


def _units_of(backbone: nn.Module, workload: Workload) -> tuple[str, ...]:
    key = (workload.model, workload.num_classes, workload.image_size, workload.drop_path)
    if key not in _found_units:
        _found_units[key] = find_units(backbone)
    return _found_units[key]


def load_backbone(
    workload: Workload,
    *,
    device: str = "cpu",
    weights: Path | None = None,
    pretrained: bool = False,
) -> tuple[nn.Module, WeightSource, bool]:
    """Build the backbone of a workload and load its weights; no method is applied.

    Args:
        workload: names the backbone, its image size and number of classes.
        device: device of the weights; ``meta`` allocates nothing and loads none.
        weights: file of weights, or None.
        pretrained: whether to try timm's hub if no file is given.

    Returns:
        The backbone, the source of its weights, and whether its classifier has random values
        although weights were loaded.
    """
    backbone = backbones.build(
        workload.model,
        num_classes=workload.num_classes,
        image_size=workload.image_size,
        drop_path=workload.drop_path,
        device=device,
    )
    source, has_new_classifier = WeightSource(kind="random", detail="shapes only"), False
    if device != "meta":
        loads = weights is not None or pretrained
        random_sums = _classifier_sums(backbone) if loads else []
        source = backbones.load_weights(
            backbone, workload.model, weights=weights, pretrained=pretrained
        )
        is_loaded = loads and source.kind != "random"
        has_new_classifier = is_loaded and _classifier_sums(backbone) == random_sums
    return backbone, source, has_new_classifier


def _classifier_sums(backbone: nn.Module) -> list[float]:
    """Return the sum of each classifier's last weight.

    Loading changes the sum of a weight. A copy of the tensors would need their memory again.
    """
    sums = []
    for head in backbones.classifiers(backbone):
        weights = [tensor for tensor in head.parameters() if tensor.ndim > 1]
        sums += [float(tensor.detach().sum()) for tensor in weights[-1:]]
    return sums
