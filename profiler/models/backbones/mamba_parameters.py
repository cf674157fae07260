"""Sizes and initial values of the parameters that every Mamba mixer has.

Constants are those of ``mamba_ssm`` (Gu & Dao, arXiv 2312.00752, section 3.6): A = -(1 .. states)
for every channel, initial step sizes log-uniform in [1e-3, 0.1].
"""

from __future__ import annotations

import math

import torch
from torch import nn

STEP_MIN, STEP_MAX, STEP_FLOOR = 1e-3, 0.1, 1e-4
"""``dt_min``, ``dt_max`` and ``dt_init_floor`` of ``mamba_ssm``."""

CHANNELS_PER_STEP_RANK = 16
"""Token channels per dimension of the low-rank step sizes (``dt_rank="auto"``)."""

SCAN_PARAMETER_SUFFIXES = (".A_log", ".A_b_log", ".D", ".D_b")
"""Suffixes of the scan's own parameters (``_b``: Vim's scan against the tokens). The published
recipes apply no weight decay to them."""


def step_rank(dim: int) -> int:
    """Return the rank of the step sizes for tokens of width ``dim``."""
    return math.ceil(dim / CHANNELS_PER_STEP_RANK)


def decay_parameter(channels: int, states: int) -> nn.Parameter:
    """Return the logarithms of the decay rates [channels, states]: 1 .. states per channel."""
    rates = torch.arange(1, states + 1, dtype=torch.float32)
    return nn.Parameter(torch.log(rates).repeat(channels, 1))


def step_projection(rank: int, channels: int) -> nn.Linear:
    """Return the layer from low-rank to full step sizes; softplus(bias) is log-uniform."""
    projection = nn.Linear(rank, channels)
    nn.init.uniform_(projection.weight, -(rank**-0.5), rank**-0.5)
    low, high = math.log(STEP_MIN), math.log(STEP_MAX)
    steps = torch.exp(torch.rand(channels) * (high - low) + low).clamp(min=STEP_FLOOR)
    with torch.no_grad():
        projection.bias.copy_(steps + torch.log(-torch.expm1(-steps)))
    return projection
