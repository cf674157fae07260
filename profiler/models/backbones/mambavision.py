"""MambaVision: convolutional stages, then stages of Mamba mixers followed by self-attention.

Written from the published description (Hatamizadeh & Kautz, arXiv 2407.08083, section 3, the model
cards and configuration files of huggingface.co/nvidia/MambaVision-*); none of the authors'
code is used, because its licence is non-commercial (NVIDIA Source Code License-NC).

    stem      two 3x3 convolutions of stride 2, to `stem_dim` and to `dim`, with BatchNorm and ReLU
    level i   width dim * 2^i; a 3x3 convolution of stride 2 to the next
      0, 1    residual blocks of two 3x3 convolutions with BatchNorm, GELU (tanh) between them
      2, 3    pre-norm blocks over windows, each with an MLP; the mixer of the first half of the
              blocks (rounded up) is Mamba's, that of the others is attention
    BatchNorm, average pool, linear head

    mixer     x, z = halves of in_proj(tokens); x = silu(conv_x(x)); z = silu(conv_z(z)), both
              convolutions not causal; out_proj(concat(scan(x), z))

Configurations: T, S, B, L and L2 are from the configuration files of the 1K models. T2 is T with
eleven blocks in the third level, because that gives its published size (35.1 M). T has 31,794,248
parameters.

Names of the state dict follow the published checkpoints. Two public listings of the loaded
MambaVision-T (a table of its layers and a conversion script, neither the authors' code) confirm
`patch_embed.conv_down.N`, `levels.i.blocks.j`, `conv1`, `norm1`, `downsample.reduction.0`,
`mixer.in_proj`, `x_proj`, `dt_proj`, `out_proj`, `mlp.fc1`, `fc2`, `conv1d_x` and `conv1d_z`.
`A_log` and `D` are Mamba's names. The checkpoints of huggingface.co prefix every name by `model.`.

Limitation: no published checkpoint was loaded, so its names are not verified.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from profiler.models.backbones.image_classifier import (
    LINEAR_STD,
    ImageClassifier,
    linear_head,
)
from profiler.models.backbones.mamba_parameters import (
    decay_parameter,
    step_projection,
    step_rank,
)
from profiler.models.backbones.selective_scan import SelectiveScan

MAMBAVISION_STATES, MAMBAVISION_CONV_WIDTH = 8, 3
STEM_NORM_EPS = 1e-4
CONVOLUTIONAL_LEVELS = 2


class PatchStem(nn.Module):
    """Two convolutions of stride 2: the map has a quarter of the image's edge."""

    def __init__(self, in_chans: int, stem_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Identity()
        self.conv_down = nn.Sequential(
            nn.Conv2d(in_chans, stem_dim, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(stem_dim, eps=STEM_NORM_EPS),
            nn.ReLU(),
            nn.Conv2d(stem_dim, dim, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(dim, eps=STEM_NORM_EPS),
            nn.ReLU(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """[batch, channels, height, width] -> [batch, dim, height / 4, width / 4]."""
        x: Tensor = self.conv_down(self.proj(images))
        return x


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2 that doubles the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Sequential(nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, dim, height, width] -> [batch, 2 dim, height / 2, width / 2]."""
        y: Tensor = self.reduction(x)
        return y


class ConvBlock(nn.Module):
    """Residual block of two 3x3 convolutions."""

    def __init__(self, dim: int, *, drop_path_rate: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(dim)
        self.act1 = nn.GELU(approximate="tanh")
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(dim)
        self.drop_path = _drop_path(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, dim, height, width] -> the same."""
        branch = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        y: Tensor = x + self.drop_path(branch)
        return y


class MambaVisionMixer(nn.Module):
    """Selective scan on one half of the channels, a convolution on the other."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        half, rank = dim // 2, step_rank(dim)
        self.step_rank = rank
        self.in_proj = nn.Linear(dim, dim, bias=False)
        self.x_proj = nn.Linear(half, rank + 2 * MAMBAVISION_STATES, bias=False)
        self.dt_proj = step_projection(rank, half)
        self.A_log = decay_parameter(half, MAMBAVISION_STATES)
        self.D = nn.Parameter(torch.ones(half))
        self.scan = SelectiveScan()
        self.out_proj = nn.Linear(dim, dim, bias=False)
        self.conv1d_x = _same_conv(half)
        self.conv1d_z = _same_conv(half)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, length, dim] -> the same."""
        x, z = self.in_proj(tokens).transpose(1, 2).chunk(2, dim=1)
        # In channels-last layout the projections and the scan copy nothing.
        u = F.silu(self.conv1d_x(x).transpose(1, 2).contiguous())
        z = F.silu(self.conv1d_z(z)).transpose(1, 2)
        low_rank, b, c = self.x_proj(u).split(
            [self.step_rank, MAMBAVISION_STATES, MAMBAVISION_STATES], dim=-1
        )
        y = self.scan(
            u.transpose(1, 2),
            self.dt_proj(low_rank).transpose(1, 2),
            -torch.exp(self.A_log.float()),
            b.transpose(1, 2),
            c.transpose(1, 2),
            self.D.float(),
            delta_softplus=True,
        ).transpose(1, 2)
        mixed: Tensor = self.out_proj(torch.cat([y, z], dim=-1))
        return mixed


class Attention(nn.Module):
    """Multi-head self-attention within a window."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, length, dim] -> the same."""
        qkv = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        y: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return y


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, length, dim] -> the same."""
        y: Tensor = self.fc2(self.act(self.fc1(tokens)))
        return y


class TokenBlock(nn.Module):
    """Pre-norm block over the tokens of a window: mixer, then MLP, each with a residual sum."""

    def __init__(
        self,
        dim: int,
        *,
        mixer: nn.Module,
        mlp_ratio: float,
        layer_scale: float | None,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = _drop_path(drop_path_rate)
        self.gamma_1 = _scale_parameter(dim, layer_scale)
        self.gamma_2 = _scale_parameter(dim, layer_scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """[windows, length, dim] -> the same."""
        mixed = self.mixer(self.norm1(tokens))
        tokens = tokens + self.drop_path(_layer_scaled(mixed, self.gamma_1))
        expanded = self.mlp(self.norm2(tokens))
        result: Tensor = tokens + self.drop_path(_layer_scaled(expanded, self.gamma_2))
        return result


class Level(nn.Module):
    """The blocks of a resolution, and the convolution to the next.

    Args:
        blocks: blocks of this resolution.
        window: edge of the windows whose tokens the blocks take; None for blocks that take the map.
        downsample: module after the blocks; None in the last level.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], *, window: int | None, downsample: nn.Module | None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.window = window
        self.downsample = downsample

    def forward(self, feature_map: Tensor) -> Tensor:
        """[batch, dim, height, width] -> the next level's map."""
        x = feature_map if self.window is None else _to_windows(feature_map, self.window)
        for block in self.blocks:
            x = block(x)
        if self.window is not None:
            x = _from_windows(x, self.window, shape=feature_map.shape)
        return x if self.downsample is None else self.downsample(x)


class MambaVision(ImageClassifier):
    """MambaVision classifier with the interface of a timm model.

    Args:
        dim: channels of the first level.
        stem_dim: channels between the stem's convolutions.
        depths: blocks of each level.
        heads: attention heads of each level.
        windows: window edge of each level; the convolutional levels ignore it.
        mlp_ratio: hidden width of the MLPs over their width.
        layer_scale: initial scale of the token blocks' branches; None for no scale.
        img_size: edge of the images in pixels; incomplete windows are padded with zeros.
        in_chans: image channels.
        num_classes: outputs; 0 for features only.
        drop_path_rate: stochastic depth rate of the last block; rates grow linearly from zero.
    """

    def __init__(
        self,
        *,
        dim: int = 80,
        stem_dim: int = 32,
        depths: Sequence[int] = (1, 3, 8, 4),
        heads: Sequence[int] = (2, 4, 8, 16),
        windows: Sequence[int] = (8, 8, 14, 7),
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        img_size: int = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            num_features=dim * 2 ** (len(depths) - 1),
            img_size=img_size,
            in_chans=in_chans,
            crop_pct=1.0,
            first_conv="patch_embed.conv_down.0",
        )
        self.patch_embed = PatchStem(in_chans, stem_dim, dim)
        rates = [drop_path_rate * i / max(1, sum(depths) - 1) for i in range(sum(depths))]
        levels: list[Level] = []
        for i, depth in enumerate(depths):
            width, level_rates = dim * 2**i, rates[sum(depths[:i]) :][:depth]
            downsample = Downsample(width) if i < len(depths) - 1 else None
            if i < CONVOLUTIONAL_LEVELS:
                blocks: list[nn.Module] = [
                    ConvBlock(width, drop_path_rate=rate) for rate in level_rates
                ]
                levels.append(Level(blocks, window=None, downsample=downsample))
                continue
            blocks = [
                TokenBlock(
                    width,
                    mixer=_mixer(width, heads[i], block=j, depth=depth),
                    mlp_ratio=mlp_ratio,
                    layer_scale=layer_scale,
                    drop_path_rate=rate,
                )
                for j, rate in enumerate(level_rates)
            ]
            levels.append(Level(blocks, window=windows[i], downsample=downsample))
        self.levels = nn.ModuleList(levels)
        self.norm = nn.BatchNorm2d(self.num_features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.head = linear_head(self.num_features, num_classes)
        self.apply(_init_linear)

    def forward_features(self, images: Tensor) -> Tensor:
        """Images -> normalised map [batch, features, height / 32, width / 32]."""
        x = self.patch_embed(images)
        for level in self.levels:
            x = level(x)
        normed: Tensor = self.norm(x)
        return normed

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature map -> average -> logits."""
        pooled: Tensor = self.avgpool(features).flatten(1)
        return pooled if pre_logits else self.head(pooled)


def _mixer(dim: int, heads: int, *, block: int, depth: int) -> nn.Module:
    """Return a Mamba mixer in the first half of a level's blocks (rounded up), else attention."""
    return MambaVisionMixer(dim) if block < (depth + 1) // 2 else Attention(dim, heads)


def _to_windows(x: Tensor, window: int) -> Tensor:
    """[batch, dim, height, width] -> [windows, window^2, dim], zero-padded to whole windows."""
    batch, dim, height, width = x.shape
    x = F.pad(x, (0, -width % window, 0, -height % window))
    rows, columns = x.shape[2] // window, x.shape[3] // window
    x = x.reshape(batch, dim, rows, window, columns, window).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(batch * rows * columns, window * window, dim)


def _from_windows(tokens: Tensor, window: int, *, shape: Sequence[int]) -> Tensor:
    """Invert ``_to_windows``: tokens -> map of ``shape``, without the padding."""
    batch, dim, height, width = shape
    rows, columns = -(-height // window), -(-width // window)
    x = tokens.reshape(batch, rows, columns, window, window, dim).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(batch, dim, rows * window, columns * window)[:, :, :height, :width]


def _layer_scaled(branch: Tensor, gamma: Tensor | None) -> Tensor:
    return branch if gamma is None else gamma * branch


def _scale_parameter(dim: int, layer_scale: float | None) -> nn.Parameter | None:
    return None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))


def _drop_path(rate: float) -> nn.Module:
    return DropPath(rate) if rate > 0 else nn.Identity()


def _same_conv(channels: int) -> nn.Conv1d:
    return nn.Conv1d(
        channels, channels, MAMBAVISION_CONV_WIDTH, groups=channels, padding="same", bias=False
    )


def _init_linear(module: nn.Module) -> None:
    """Initialise linear layers by a truncated normal; ``dt_proj`` keeps its own distribution."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and name != "dt_proj":
            trunc_normal_(child.weight, std=LINEAR_STD)
            if child.bias is not None:
                nn.init.zeros_(child.bias)


_large = partial(MambaVision, dim=196, stem_dim=64, heads=(4, 8, 16, 32), layer_scale=1e-5)

MAMBAVISION_MODELS: dict[str, Callable[..., MambaVision]] = {
    "mambavision_t": MambaVision,  # 31.8 M parameters
    "mambavision_t2": partial(MambaVision, depths=(1, 3, 11, 4)),  # 35.1 M
    "mambavision_s": partial(MambaVision, dim=96, stem_dim=64, depths=(3, 3, 7, 5)),  # 50.1 M
    "mambavision_b": partial(
        MambaVision, dim=128, stem_dim=64, depths=(3, 3, 10, 5), layer_scale=1e-5
    ),  # 97.7 M
    "mambavision_l": partial(_large, depths=(3, 3, 10, 5)),  # 227.9 M
    "mambavision_l2": partial(_large, depths=(3, 3, 12, 5)),  # 241.5 M
}
"""Constructors of the published models, which take the other arguments of ``MambaVision``."""
