"""Counting and recognising the layers of a module, with peft's adapters counted as their layer.

A *layer* is a module with parameters of its own. A *weight layer* has a parameter of two or more
dimensions (linear, convolution, embedding; no norm). A layer that peft wrapped has an attribute
``base_layer``; it counts as the layer that it wraps, so units are the same before and after.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeGuard

from timm.layers import DropPath
from torch import nn

Convolution = nn.modules.conv._ConvNd
"""Base class of every convolution of PyTorch."""


def outermost_layers(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield (name, module) of a module and its descendants, but of nothing inside peft's layers."""
    yield name, module
    if not hasattr(module, "base_layer"):
        for own, child in module.named_children():
            yield from outermost_layers(child, f"{name}.{own}".lstrip("."))


def count_layers(module: nn.Module) -> int:
    """Return the number of layers in a module."""
    return sum(
        hasattr(layer, "base_layer") or any(True for _ in layer.parameters(recurse=False))
        for _, layer in outermost_layers(module)
    )


def count_weight_layers(module: nn.Module) -> int:
    """Return the number of weight layers in a module."""
    return sum(
        any(p.dim() > 1 for p in layer.parameters(recurse=hasattr(layer, "base_layer")))
        for _, layer in outermost_layers(module)
    )


def wrapped_layer(module: nn.Module) -> nn.Module:
    """Return the layer that peft wrapped, or the module itself."""
    layer = getattr(module, "base_layer", module)
    return layer if isinstance(layer, nn.Module) else module


def is_layer(module: nn.Module) -> bool:
    """Return whether a module is one matmul or convolution, peft's adapters around it included.

    Quantised layers are excluded: nothing guarantees that a second call computes the same.
    """
    layer = wrapped_layer(module)
    exact = all(parameter.dtype.is_floating_point for parameter in layer.parameters())
    return isinstance(layer, nn.Linear | Convolution) and exact


def is_depthwise_convolution(module: nn.Module) -> bool:
    """Return whether a module is a convolution of each channel by itself."""
    return isinstance(module, Convolution) and module.groups == module.in_channels > 1


def is_stochastic_depth(module: nn.Module) -> TypeGuard[DropPath]:
    """Return whether a module is timm's ``DropPath``: it drops the branches of random images."""
    return isinstance(module, DropPath)
