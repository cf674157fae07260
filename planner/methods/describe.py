"""The effect of a method on a backbone: trained layers, number of parameters, notes.

The backbone is built on the meta device, so only shapes exist and nothing is run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from profiler.models.methods import MethodInfo
from profiler.workload import Workload

if TYPE_CHECKING:
    from torch import nn

METHOD_FACTS_SCHEMA = "budgetplan.method/1"

OUTSIDE_LAYERS = "(the model's own)"
"""Shown for parameters outside every layer, such as class token and position embedding."""

_PEFT_SUFFIX = re.compile(r"\.(base_layer|modules_to_save|lora_\w+|\w+)\.default$|\.base_layer$")


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodFacts:
    """A method and its effect on a backbone.

    Attributes:
        info: entry of the method in the registry.
        model: canonical name of the backbone; None if none was given.
        refused: reason why the method refuses the backbone; None if it does not.
        layers: number of trained or adapted layers by the last part of their name.
        trainable_parameters: number of trainable parameters; None without a backbone.
        notes: one sentence per limitation or default of the method on the backbone.
    """

    info: MethodInfo
    model: str | None = None
    refused: str | None = None
    layers: Mapping[str, int] = field(default_factory=dict)
    trainable_parameters: int | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``methods NAME --json`` prints."""
        return {"schema": METHOD_FACTS_SCHEMA, **asdict(self)}


def method_facts(name: str, *, model: str | None) -> MethodFacts:
    """Return the facts of a method.

    Args:
        name: name of the method.
        model: name or alias of a backbone; None for the method alone.

    Raises:
        UnknownNameError: no such method or model.
    """
    from profiler.errors import UsageError
    from profiler.models import backbones
    from profiler.models.methods import get_method

    method = get_method(name)
    if model is None:
        return MethodFacts(info=method.info)
    canonical = backbones.resolve(model)
    size = backbones.native_image_size(canonical)
    workload = Workload(model=canonical, method=name, image_size=size)
    backbone = backbones.build(
        canonical, num_classes=workload.num_classes, image_size=size, device="meta"
    )
    reason = method.refusal(backbone, workload)
    if reason is not None:
        return MethodFacts(info=method.info, model=canonical, refused=reason)
    notes = tuple(method.notes(backbone, workload))
    try:
        prepared = method.apply(backbone, workload)
    except UsageError as error:
        return MethodFacts(info=method.info, model=canonical, refused=str(error))
    return MethodFacts(
        info=method.info,
        model=canonical,
        layers=trained_layers(prepared),
        trainable_parameters=sum(p.numel() for p in prepared.parameters() if p.requires_grad),
        notes=notes,
    )


def trained_layers(model: nn.Module) -> dict[str, int]:
    """Return the number of modules with a trainable parameter, by the last part of their name."""
    owners = dict.fromkeys(
        _backbone_name(name.rpartition(".")[0])
        for name, p in model.named_parameters()
        if p.requires_grad
    )
    return dict(Counter(map(_last_part, owners)))


def _backbone_name(name: str) -> str:
    """Return the name of a module in the backbone, without the wrappers of peft and of SSF."""
    name = _PEFT_SUFFIX.sub("", name.removeprefix("base_model.model."))
    return name.removesuffix(".ssf")


def _last_part(name: str) -> str:
    """Return the last part of a name that is not a number."""
    parts = [part for part in name.split(".") if part and not part.isdigit()]
    return parts[-1] if parts else OUTSIDE_LAYERS
