"""``peft:NAME``: any adapter of peft that works on a vision backbone.

The config gets the target modules and the classifier (``modules_to_save``), and rank, alpha and
dropout if the config has such an option and the user gave a value. All other options keep peft's
defaults. Prompt methods of language models are refused.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from profiler.errors import UnknownNameError, UsageError
from profiler.models.backbones.timm_interface import classifier_names, run_on_meta
from profiler.models.methods.base import MethodInfo
from profiler.models.methods.lowrank import PeftMethod, exact_targets
from profiler.models.methods.target_layers import has_values, norm_layers, target_modules
from profiler.workload import Workload

PREFIX = "peft:"
REPLACED = {"adalora": "its schedule needs the length of the training; use the method adalora"}
READ_VALUES = ("loha", "lokr", "vblora")
"""Adapters whose forward converts a tensor to a number (peft 0.21), which fake tensors refuse."""


class PeftNamed(PeftMethod):
    """One of peft's adapters by its name in ``peft.PeftType``."""

    def __init__(self, info: MethodInfo) -> None:
        super().__init__(info)
        known = {kind.value.lower(): kind for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
        self.kind = self.name.removeprefix(PREFIX).lower()
        if self.kind not in known:
            raise UnknownNameError(
                kind="method", name=self.name, known=[PREFIX + name for name in known]
            )
        self.config_class: type[Any] = PEFT_TYPE_TO_CONFIG_MAPPING[known[self.kind]]
        self.options = {field.name for field in fields(self.config_class)}

    def resolve(self, workload: Workload) -> Workload:
        """Return the workload unchanged: without a rank, peft's default applies."""
        if workload.rank is not None and "r" not in self.options:
            raise UsageError(
                f"{self.name} has no rank, got rank {workload.rank}; leave the rank out"
            )
        return workload

    def refusal(self, model: nn.Module, workload: Workload) -> str | None:
        """Refuse methods that adapt no layers or cannot be profiled without weights."""
        if self.kind in REPLACED:
            return REPLACED[self.kind]
        if self.kind in READ_VALUES and not has_values(model):
            return "it cannot be profiled without weights: peft's forward reads values of tensors"
        if not {"target_modules", "modules_to_save"} <= self.options:
            return "it works on the token embeddings of language models, not on layers"
        if self.kind == "oft":
            layer = _linear_on_maps(model, target_modules(model, workload.targets))
            if layer is not None:
                return (
                    f"peft treats an input of four dimensions as a convolution's, and {layer} is a "
                    "linear layer with such an input"
                )
        return None

    def config(self, model: nn.Module, workload: Workload) -> Any:
        """Return peft's config with the options that this adapter has."""
        targets = _targets(self.kind, model, workload)
        wanted: dict[str, Any] = {
            "target_modules": exact_targets(model, targets),
            "modules_to_save": classifier_names(model),
        }
        if workload.rank is not None:
            wanted["r"] = workload.rank
            if "oft_block_size" in self.options:
                wanted["oft_block_size"] = 0  # peft takes the rank or the block size, not both
        for value, names in (
            (workload.alpha, ("lora_alpha", "alpha")),
            (workload.dropout or None, ("lora_dropout", "module_dropout")),
        ):
            option = next((name for name in names if name in self.options), None)
            if value is not None and option is not None:
                wanted[option] = value
        for option, derive in _DERIVED.items():
            if option in self.options:
                wanted[option] = derive(model, targets)
        return self.config_class(**wanted)

    def apply(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Wrap the model by peft.

        Raises:
            UsageError: peft refuses this backbone, these targets, or weights without values.
        """
        self.raise_refusal(model, workload)
        self.resolve(workload)
        with warnings.catch_warnings(), self.refusals_of_peft():
            warnings.filterwarnings("ignore", message="Unsupported layer type")  # LN_TUNING
            # peft replaces a block size that does not divide the width by one that does
            warnings.filterwarnings("ignore", message="Invalid `oft_block_size`")
            wrapped = self.wrap(model, self.config(model, workload))
        hidden = _hidden_meta_tensor(wrapped)
        if hidden:
            raise UsageError(
                f"{self.name} cannot be profiled without weights: its {hidden} is neither "
                "parameter nor buffer"
            )
        return wrapped


def _targets(kind: str, model: nn.Module, workload: Workload) -> list[str]:
    if kind == "ln_tuning" and workload.targets is None:
        return norm_layers(model)
    return target_modules(model, workload.targets)


def _linear_on_maps(model: nn.Module, targets: list[str]) -> str | None:
    """Return a linear target that is called with [batch, height, width, channels], or None."""
    found: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda _, args: found.append(name) if args[0].dim() == 4 else None

    layers = {name: model.get_submodule(name) for name in targets}
    handles = [
        layer.register_forward_pre_hook(note(name))
        for name, layer in layers.items()
        if isinstance(layer, nn.Linear)
    ]
    try:
        with torch.no_grad():
            run_on_meta(model)
    except Exception:  # without a forward on meta this cannot be checked; peft raises later
        return None
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _feedforward(model: nn.Module, targets: list[str]) -> list[str]:
    """Return the layers whose input IA3 scales; it scales the output of the others."""
    return [name for name in targets if name.endswith("fc2")]


def _common_width(model: Any, targets: list[str]) -> int:
    """Return the greatest common divisor of all input and output widths."""
    shapes = [model.get_submodule(name).weight.shape for name in targets]
    return math.gcd(*(int(side) for shape in shapes for side in shape[:2]))


_DERIVED: dict[str, Callable[[nn.Module, list[str]], Any]] = {
    "feedforward_modules": _feedforward,
    "block_size": _common_width,  # C3A
    "vector_length": _common_width,  # VB-LoRA
}


def _hidden_meta_tensor(model: nn.Module) -> str | None:
    """Return an attribute that holds a meta tensor outside parameters and buffers, or None."""
    for module in model.modules():
        for name, value in module.__dict__.items():
            if name.startswith("_"):
                continue
            held = value.values() if isinstance(value, dict) else [value]
            if any(isinstance(item, torch.Tensor) and item.is_meta for item in held):
                return name
    return None
