"""The order of an image batch's dimensions in memory."""

from __future__ import annotations

import torch
from torch import nn

IMAGE_DIMENSIONS = 4


def use_channels_last(model: nn.Module) -> None:
    """Store 4-dimensional parameters and buffers of a model with channels innermost."""
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.dim() == IMAGE_DIMENSIONS:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
