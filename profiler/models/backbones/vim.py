"""Vim (Vision Mamba): a stack of bidirectional Mamba mixers over image patches.

Written from the architecture (Zhu et al., arXiv 2401.09417, algorithm 1; variant
``..._bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2`` of github.com/hustvl/Vim
@dd0358a, Apache-2.0):

    patches + class token in the middle + position embeddings
    N times:  x = x + drop_path(mixer(RMSNorm(x)))
    RMSNorm, class token, linear head

    mixer:  x, z = in_proj(tokens)
            y_d = scan_d(silu(conv_d(x)))     d: along the tokens, and against them; each direction
                                              has its own weights
            out_proj((y_forward + y_backward) / 2 * silu(z))

The state dict has the names and shapes of the published checkpoints (under their key "model"):
``vim_s_midclstok_80p5acc.pth`` loads strictly.

Differences from the published code:
- Published blocks pass a pair (branch, residual), which the next block adds. Here each layer takes
  and returns the sum in float32. The values are equal, and a unit has one input and one output.
- Under autocast two results are rounded differently: ``dt_proj`` adds its own bias (so that an
  adapter can replace the whole layer), which the published code adds inside the scan; and the
  norm's result is not rounded before ``in_proj`` casts it.
- Both directions run as one scan of twice the channels, with two groups of B and C.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from timm.layers import DropPath, PatchEmbed, resample_abs_pos_embed, trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from profiler.models.backbones.image_classifier import ImageClassifier, linear_head
from profiler.models.backbones.mamba_parameters import (
    decay_parameter,
    step_projection,
    step_rank,
)
from profiler.models.backbones.selective_scan import SelectiveScan

DEPTH, EXPAND = 24, 2
VIM_STATES, VIM_CONV_WIDTH = 16, 4
NORM_EPS, TOKEN_STD = 1e-5, 0.02
"""Settings of the published models (hustvl/Vim, vim/models_mamba.py)."""


class VimMixer(nn.Module):
    """Bidirectional Mamba, version 2: the directions share only ``in_proj`` and ``out_proj``.

    Args:
        dim: width of the tokens.
        depth: layers of the model; the initial ``out_proj`` is scaled by 1 / sqrt(depth).
    """

    def __init__(self, dim: int, *, depth: int) -> None:
        super().__init__()
        inner, rank = EXPAND * dim, step_rank(dim)
        self.step_rank = rank
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.A_log = decay_parameter(inner, VIM_STATES)
        self.A_b_log = decay_parameter(inner, VIM_STATES)
        self.D = nn.Parameter(torch.ones(inner))
        self.D_b = nn.Parameter(torch.ones(inner))
        self.conv1d, self.conv1d_b = _causal_conv(inner), _causal_conv(inner)
        self.x_proj = nn.Linear(inner, rank + 2 * VIM_STATES, bias=False)
        self.x_proj_b = nn.Linear(inner, rank + 2 * VIM_STATES, bias=False)
        self.dt_proj, self.dt_proj_b = step_projection(rank, inner), step_projection(rank, inner)
        self.scan = SelectiveScan()
        self.out_proj = nn.Linear(inner, dim, bias=False)
        with torch.no_grad():
            self.out_proj.weight.div_(math.sqrt(depth))

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, length, dim] -> the same."""
        length = tokens.shape[1]
        x, z = self.in_proj(tokens).chunk(2, dim=-1)
        x = x.transpose(1, 2)
        conv_f, conv_b = self.conv1d(x)[..., :length], self.conv1d_b(x.flip(-1))[..., :length]
        # In channels-last layout the projections, the gate and the scan copy nothing.
        u = F.silu(torch.cat([conv_f.transpose(1, 2), conv_b.transpose(1, 2)], dim=-1))
        u_f, u_b = u.chunk(2, dim=-1)
        steps_f, b_f, c_f = self._selection(u_f, self.x_proj, self.dt_proj)
        steps_b, b_b, c_b = self._selection(u_b, self.x_proj_b, self.dt_proj_b)
        # The mean of the directions: halving C and D halves the outputs, and both are far smaller.
        y = self.scan(
            u.transpose(1, 2),
            torch.cat([steps_f, steps_b], dim=-1).transpose(1, 2),
            -torch.exp(torch.cat([self.A_log, self.A_b_log]).float()),
            torch.stack([b_f, b_b], dim=1).transpose(2, 3),
            torch.stack([c_f, c_b], dim=1).transpose(2, 3) * 0.5,
            torch.cat([self.D, self.D_b]).float() * 0.5,
            delta_softplus=True,
        )
        y_f, y_b = y.transpose(1, 2).chunk(2, dim=-1)
        mixed: Tensor = self.out_proj((y_f + y_b.flip(1)) * F.silu(z))
        return mixed

    def _selection(
        self, u: Tensor, x_proj: nn.Module, dt_proj: nn.Module
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the step sizes, B and C of a direction, which depend on its input ``u``."""
        low_rank, b, c = x_proj(u).split([self.step_rank, VIM_STATES, VIM_STATES], dim=-1)
        return dt_proj(low_rank), b, c


def _causal_conv(inner: int) -> nn.Conv1d:
    return nn.Conv1d(inner, inner, VIM_CONV_WIDTH, groups=inner, padding=VIM_CONV_WIDTH - 1)


class VimLayer(nn.Module):
    """Norm, mixer, residual sum in float32."""

    def __init__(self, dim: int, *, depth: int, drop_path_rate: float) -> None:
        super().__init__()
        self.mixer = VimMixer(dim, depth=depth)
        self.norm = nn.RMSNorm(dim, eps=NORM_EPS)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, length, dim] float32 -> the same."""
        mixed: Tensor = self.drop_path(self.mixer(self.norm(tokens)))
        return tokens + mixed.to(tokens.dtype)


class Vim(ImageClassifier):
    """Vision Mamba classifier with the interface of a timm model.

    Args:
        dim: width of the tokens.
        depth: layers.
        img_size: height and width of the images in pixels, a multiple of ``patch_size``.
        patch_size: edge of a patch in pixels.
        in_chans: channels of the images.
        num_classes: outputs; 0 for features only.
        drop_path_rate: stochastic depth rate of the last layer; rates grow linearly from zero.
    """

    def __init__(
        self,
        *,
        dim: int = 384,
        depth: int = DEPTH,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            num_features=dim,
            img_size=img_size,
            in_chans=in_chans,
            crop_pct=0.875,  # DeiT's transforms, which hustvl/Vim evaluates with
            first_conv="patch_embed.proj",
        )
        self.embed_dim, self.num_prefix_tokens = dim, 1
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, self.patch_embed.num_patches + 1, dim))
        rates = [drop_path_rate * i / max(1, depth - 1) for i in range(depth)]
        self.layers = nn.ModuleList(
            VimLayer(dim, depth=depth, drop_path_rate=rate) for rate in rates
        )
        self.norm_f = nn.RMSNorm(dim, eps=NORM_EPS)
        self.head = linear_head(dim, num_classes)
        trunc_normal_(self.cls_token, std=TOKEN_STD)
        trunc_normal_(self.pos_embed, std=TOKEN_STD)

    @property
    def middle(self) -> int:
        """Position of the class token in the sequence."""
        return int(self.patch_embed.num_patches) // 2

    def no_weight_decay(self) -> set[str]:
        """Return the scan's own parameters and the embeddings."""
        return super().no_weight_decay() | {"cls_token", "pos_embed"}

    def forward_features(self, images: Tensor) -> Tensor:
        """[batch, channels, height, width] -> normalised tokens [batch, length, dim]."""
        patches = self.patch_embed(images)
        cls_token = self.cls_token.expand(len(patches), -1, -1).to(patches.dtype)
        before, after = patches[:, : self.middle], patches[:, self.middle :]
        x = (torch.cat([before, cls_token, after], dim=1) + self.pos_embed).float()
        for layer in self.layers:
            x = layer(x)
        normed: Tensor = self.norm_f(x)
        return normed

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens -> class token -> logits."""
        pooled = features[:, self.middle]
        return pooled if pre_logits else self.head(pooled)

    def adapt_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a published state dict with its position embeddings at this image size."""
        if "pos_embed" not in state:
            return state
        return {**state, "pos_embed": _resized_positions(state["pos_embed"], model=self)}


def _resized_positions(positions: Tensor, *, model: Vim) -> Tensor:
    """Resize the grid bicubically; the class token's embedding is in the middle of the sequence."""
    if positions.shape == model.pos_embed.shape:
        return positions
    middle = (positions.shape[1] - 1) // 2
    cls_position = positions[:, middle : middle + 1]
    grid = torch.cat([positions[:, :middle], positions[:, middle + 1 :]], dim=1)
    resized = resample_abs_pos_embed(
        grid, new_size=list(model.patch_embed.grid_size), num_prefix_tokens=0
    )
    return torch.cat([resized[:, : model.middle], cls_position, resized[:, model.middle :]], dim=1)


VIM_MODELS: dict[str, Callable[..., Vim]] = {
    "vim_tiny_patch16_224": partial(Vim, dim=192),  # 7 M parameters
    "vim_small_patch16_224": partial(Vim, dim=384),  # 26 M
    "vim_base_patch16_224": partial(Vim, dim=768),  # 98 M
}
"""Constructors of the published models, which take the other arguments of ``Vim``."""
