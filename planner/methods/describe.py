"""What one method does on one backbone: which layers learn, how many parameters, what to know.

Shapes only: the backbone is built on ``meta`` and nothing is run.
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

SCHEMA = "budgetplan.method/1"

ITSELF = "(the model's own)"
"""Parameters of no layer: class token, position embedding."""

_INSIDE_PEFT = re.compile(r"\.(base_layer|modules_to_save|lora_\w+|\w+)\.default$|\.base_layer$")


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodFacts:
    """A method, and a backbone if one was named.

    Attributes:
        info: the method's entry of the catalogue.
        model: canonical name of the backbone; None when none was named.
        refused: why the method is not possible on it; None where it works.
        layers: how the names of the layers that learn (or are adapted) end, and how many they are.
        trainable_parameters: of the model; None without one.
        notes: what a user should know, a sentence each.
    """

    info: MethodInfo
    model: str | None = None
    refused: str | None = None
    layers: Mapping[str, int] = field(default_factory=dict)
    trainable_parameters: int | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"schema": SCHEMA, **asdict(self)}


def method_facts(name: str, *, model: str | None) -> MethodFacts:
    """Describe a method.

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
        layers=learning_layers(prepared),
        trainable_parameters=sum(p.numel() for p in prepared.parameters() if p.requires_grad),
        notes=notes,
    )


def learning_layers(model: nn.Module) -> dict[str, int]:
    """Return the endings of the names of modules that own something that learns, counted."""
    owners = dict.fromkeys(
        _plain(name.rpartition(".")[0]) for name, p in model.named_parameters() if p.requires_grad
    )
    return dict(Counter(map(_ending, owners)))


def _plain(name: str) -> str:
    """Take off what peft put around a module, and the name of what was hung on it."""
    name = _INSIDE_PEFT.sub("", name.removeprefix("base_model.model."))
    return name.removesuffix(".ssf")


def _ending(name: str) -> str:
    """Return the last part of a name that is no number."""
    parts = [part for part in name.split(".") if part and not part.isdigit()]
    return parts[-1] if parts else ITSELF
