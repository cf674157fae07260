"""Methods that add learned tokens: visual prompts (VPT) and prefixes of attention.

VPT (arXiv 2203.12119, section 3) inserts p tokens into the sequence after the class token, before
the first block, and removes them after the last block, so pooling and classifier are unchanged.
*Shallow* learns one set of prompts. *Deep* learns one set per block, which replaces the outputs of
the previous block at these positions.

A prefix is p learned keys and p learned values per head, before the keys and values of the tokens
(arXiv 2101.00190; for vision arXiv 2210.17451).

Prompts are parameters of the blocks and act through hooks. Prefixes are parameters of the attention
modules, whose forward is replaced.
"""

from __future__ import annotations

import math
from types import MethodType
from typing import Any, cast

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from profiler.models.backbones.mambavision import Attention as WindowedAttention
from profiler.models.backbones.vim import Vim
from profiler.models.methods.base import Method
from profiler.models.methods.target_layers import (
    is_vision_transformer,
    learn_only,
    where_weights_are,
)
from profiler.workload import Workload

PREFIX_STD = 0.02
"""Standard deviation of the initial keys and values."""


class VisualPrompts(Method):
    """VPT with prompts before the first block; the rank is the number of prompt tokens."""

    deep = False

    def refusal(self, model: nn.Module, workload: Workload) -> str | None:
        """Refuse backbones whose blocks do not all process one sequence of tokens."""
        if _sequence_blocks(model):
            return None
        return (
            f"{type(model).__name__} does not process one sequence of tokens in all its blocks: "
            "prompt tokens have no position in windows or feature maps"
        )

    def apply(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Add the prompts."""
        self.raise_refusal(model, workload)
        blocks, timm_model = _sequence_blocks(model), cast(Any, model)
        count, dim = self.rank(workload), timm_model.embed_dim
        position = timm_model.num_prefix_tokens if is_vision_transformer(model) else 0
        patch_weights = 3 * math.prod(timm_model.patch_embed.patch_size)
        bound = math.sqrt(
            6.0 / (patch_weights + dim)
        )  # VPT's code: Xavier uniform of the patch embedding
        with where_weights_are(model):
            for block in blocks if self.deep else blocks[:1]:
                values = torch.empty(1, count, dim).uniform_(-bound, bound)
                block.prompts = nn.Parameter(values)
                block.prompt_position = position
                block.register_forward_pre_hook(_insert if block is blocks[0] else _replace)
        blocks[-1].prompt_span = (position, position + count)
        blocks[-1].register_forward_hook(_remove)
        learn_only(model, {n for n, _ in model.named_parameters() if n.endswith(".prompts")})
        return model


class DeepVisualPrompts(VisualPrompts):
    """VPT with a set of prompts before every block; the rank is the prompt tokens per block."""

    deep = True


def _sequence_blocks(model: Any) -> list[Any]:
    """Return the blocks of a backbone that process one sequence of tokens; else none."""
    if isinstance(model, Vim):
        return list(model.layers)
    return list(model.blocks) if is_vision_transformer(model) else []


def _insert(block: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (_with_prompts(block, args[0], skip=0), *args[1:])


def _replace(block: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (_with_prompts(block, args[0], skip=block.prompts.shape[1]), *args[1:])


def _with_prompts(block: Any, x: Tensor, *, skip: int) -> Tensor:
    position = block.prompt_position
    prompts = block.prompts.to(x.dtype).expand(x.shape[0], -1, -1)
    return torch.cat([x[:, :position], prompts, x[:, position + skip :]], dim=1)


def _remove(block: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    start, end = block.prompt_span
    return torch.cat([output[:, :start], output[:, end:]], dim=1)


class Prefix(Method):
    """Learned keys and values before those of the tokens; the rank is their number per head."""

    def refusal(self, model: nn.Module, workload: Workload) -> str | None:
        """Refuse backbones without plain self-attention."""
        if _attentions(model):
            return None
        if any("attention" in type(module).__name__.lower() for module in model.modules()):
            return (
                f"the attention of {type(model).__name__} adds a learned bias for each pair of "
                "positions, and a prefix has no position"
            )
        return f"{type(model).__name__} has no attention"

    def notes(self, model: nn.Module, workload: Workload) -> list[str]:
        """Return a remark if some blocks have no attention."""
        count = len(_attentions(model))
        if any(isinstance(module, WindowedAttention) for module in model.modules()):
            return [f"only the {count} attention blocks get a prefix; the Mamba mixers have none"]
        return []

    def apply(self, model: nn.Module, workload: Workload) -> nn.Module:
        """Add the prefixes."""
        self.raise_refusal(model, workload)
        with where_weights_are(model):
            for attention in _attentions(model):
                width = attention.qkv.out_features // 3
                heads = _heads(attention)
                shape = (2, heads, self.rank(workload), width // heads)
                attention.prefix = nn.Parameter(torch.empty(shape).normal_(0.0, PREFIX_STD))
                attention.forward = MethodType(_attend, attention)
        learn_only(model, {n for n, _ in model.named_parameters() if n.endswith(".prefix")})
        return model


def _attentions(model: nn.Module) -> list[Any]:
    """Return the attention modules without position biases and gates; subclasses are excluded."""
    plain = (Attention, WindowedAttention)
    return [m for m in model.modules() if type(m) in plain and getattr(m, "gate", None) is None]


def _heads(attention: Any) -> int:
    return int(attention.num_heads if isinstance(attention, Attention) else attention.heads)


def _attend(
    self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """Forward of timm's ``Attention`` and of MambaVision's, with a prefix: [batch, length, dim]."""
    assert attn_mask is None and not is_causal, "classifiers attend to every token"
    plain = not isinstance(self, Attention)
    qkv = self.qkv(x)
    q, k, v = qkv.unflatten(-1, (3, _heads(self), -1)).permute(2, 0, 3, 1, 4).unbind(0)
    if not plain:
        q, k = self.q_norm(q), self.k_norm(k)
    prefix = self.prefix.to(v.dtype)
    keys, values = prefix.unsqueeze(1).expand(-1, x.shape[0], -1, -1, -1).unbind(0)
    dropout = 0.0 if plain or not self.training else self.attn_drop.p
    mixed = F.scaled_dot_product_attention(
        q, torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2), dropout_p=dropout
    )
    mixed = mixed.transpose(1, 2).flatten(2)
    projected: Tensor = self.proj(mixed if plain else self.norm(mixed))
    return projected if plain else cast(Tensor, self.proj_drop(projected))
