"""Methods that add small modules inside the blocks: AdaptFormer and SSF.

An added module is a child of an existing module and acts through a forward hook of that module, so
the backbone keeps its classes and the names of its state dict.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from profiler.models.backbones.timm_interface import classifier_names
from profiler.models.methods.base import Method
from profiler.models.methods.target_layers import (
    BatchNorm,
    adaptable_layers,
    learn_only,
    norm_layers,
    parameters_of,
    where_weights_are,
)
from profiler.workload import Workload

ADAPTER_SCALE = 0.1
"""The scale s of the bottleneck's output (arXiv 2205.13535, section 4.1)."""
SSF_SPREAD = 0.02
"""Standard deviation of the initial scales (about 1) and shifts (about 0) in SSF's code."""


class AdaptFormer(Method):
    """A bottleneck beside every MLP: y = MLP(x) + s * up(relu(down(x))) (arXiv 2205.13535, eq. 3).

    In a backbone without MLPs it is beside every Mamba mixer, as ParallelAdapter in arXiv
    2411.03855. The rank is the width of the bottleneck.
    """

    def refusal(self, model: nn.Module, workload: Workload) -> str | None:
        """Refuse backbones with neither MLPs nor mixers."""
        if _hosts(model):
            return None
        return f"{type(model).__name__} has neither MLPs nor Mamba mixers for a bottleneck"

    def apply(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Add the bottlenecks."""
        self.raise_refusal(model, workload)
        added = []
        with where_weights_are(model):
            for name, (inputs, outputs) in _hosts(model).items():
                host = model.get_submodule(name)
                host.adaptformer = Bottleneck(inputs, outputs, width=self.rank(workload))
                host.register_forward_hook(_add_bottleneck)
                added.append(f"{name}.adaptformer")
        learn_only(model, parameters_of(model, added))
        return model


class Bottleneck(nn.Module):
    """Linear layer down, ReLU, linear layer up (initially zero), scale."""

    def __init__(self, inputs: int, outputs: int, *, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, width)
        self.up = nn.Linear(width, outputs)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zeroed in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zeroed)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        y: Tensor = self.up(F.relu(self.down(x))) * ADAPTER_SCALE
        return y


def _add_bottleneck(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    added: Tensor = module.adaptformer(args[0])  # type: ignore[operator]
    return output + added


def _hosts(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the modules that get a bottleneck, with their input and output widths."""
    modules = dict(model.named_modules())
    for host, first, last in (("mlp", "fc1", "fc2"), ("mixer", "in_proj", "out_proj")):
        found: dict[str, tuple[int, int]] = {}
        for name in modules:
            inner, outer = modules.get(f"{name}.{first}"), modules.get(f"{name}.{last}")
            if (
                name.endswith(host)
                and isinstance(inner, nn.Linear)
                and isinstance(outer, nn.Linear)
            ):
                found[name] = (inner.in_features, outer.out_features)
        if found:
            return found
    return {}


class ScaleShift(Method):
    """SSF: a learned scale and shift after every operation (arXiv 2210.08823).

    Operations are linear layers, convolutions and norms. BatchNorm gets none: a scale and shift of
    the convolution before it has the same effect.
    """

    def apply(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Add the scales and shifts."""
        added = []
        with where_weights_are(model):
            for name, channels in _scaled_layers(model).items():
                host = model.get_submodule(name)
                axis = 1 if isinstance(host, nn.Conv2d) or "2d" in type(host).__name__ else -1
                host.ssf = Affine(channels, axis=axis)
                host.register_forward_hook(_scale_and_shift)
                added.append(f"{name}.ssf")
        learn_only(model, parameters_of(model, added))
        return model


class Affine(nn.Module):
    """y = scale * x + shift along one axis.

    Args:
        channels: length of the axis.
        axis: 1 for maps [batch, channels, height, width], -1 for tokens.
    """

    def __init__(self, channels: int, *, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.scale = nn.Parameter(torch.empty(channels).normal_(1.0, SSF_SPREAD))
        self.shift = nn.Parameter(torch.empty(channels).normal_(0.0, SSF_SPREAD))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor like x, in one pass over it."""
        scale, shift = self.scale.to(x.dtype), self.shift.to(x.dtype)
        if self.axis == 1:
            scale, shift = scale[:, None, None], shift[:, None, None]
        return torch.addcmul(shift, x, scale)


def _scale_and_shift(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    changed: Tensor = module.ssf(output)  # type: ignore[operator]
    return changed


def _scaled_layers(model: nn.Module) -> dict[str, int]:
    """Return the layers that get a scale and shift, with their output channels."""
    linear, _ = adaptable_layers(model)
    found = {name: int(model.get_submodule(name).out_features) for name in linear}  # type: ignore[arg-type]
    heads = tuple(classifier_names(model))
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and name not in heads:
            found[name] = module.out_channels
    for name in norm_layers(model):
        module = model.get_submodule(name)
        if not isinstance(module, BatchNorm):
            found[name] = module._parameters["weight"].numel()  # type: ignore[union-attr]
    return found
