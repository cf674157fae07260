"""The order of an image batch's dimensions in memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

IMAGE_DIMENSIONS = 4


def use_channels_last(model: nn.Module) -> None:
    """Store 4-dimensional parameters and buffers of a model with channels innermost.

    The kernels that peft's DoRA reads as a matrix by ``view`` keep their order.
    """
    kept = {id(tensor) for tensor in _kernels_of_dora(model)}
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.dim() == IMAGE_DIMENSIONS and id(tensor) not in kept:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def _kernels_of_dora(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the first factors of all DoRA layers: only these have kernels larger than 1 x 1."""
    for module in model.modules():
        factors = getattr(module, "lora_A", None)
        if isinstance(factors, nn.ModuleDict) and getattr(module, "lora_magnitude_vector", None):
            yield from factors.parameters()
