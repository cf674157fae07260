"""MobileVLM V2 (arXiv 2402.03766): a CLIP image tower, a projector and a LLaMA decoder.

transformers has both towers; the projector LDPv2 is written here after its description and the
published tensor names (github.com/Meituan-AutoML/MobileVLM, ``vision_projector.py``). The names of
all tensors are those of the published checkpoints, except that transformers 5 no longer has the
module ``vision_model`` inside of the image tower (``published_names``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaModel

FEATURE_LAYER = -2
"""Layer of the image tower whose output is projected: the last but one."""


IMAGE_TOKEN = -200
"""Placeholder of an image token among the tokens of a prompt, as in LLaVA."""

_TOWER = "model.vision_tower.vision_tower."


@dataclass(frozen=True, slots=True, kw_only=True)
class MobileVlmOutput:
    """Result of a forward, with the names of transformers' outputs.

    Attributes:
        logits: [B, tokens, vocabulary] logits of the positions that were kept.
        cache: keys and values so far.
    """

    logits: Tensor
    cache: Any

    @property
    def past_key_values(self) -> Any:
        """The cache under its former name."""
        return self.cache


def published_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a published checkpoint under the names of ``MobileVlm``."""
    return {
        name.replace(f"{_TOWER}vision_model.", _TOWER): tensor for name, tensor in tensors.items()
    }


class FeatureLayer(nn.Module):
    """Two linear layers from the width of the image tower to that of the decoder."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_width, out_width), nn.GELU(), nn.Linear(out_width, out_width)
        )


class TokenLayer(nn.Module):
    """Average pooling of the patches to ``side`` by ``side`` tokens."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.dwn = nn.Sequential(nn.AdaptiveAvgPool2d((side, side)))


class PositionLayer(nn.Module):
    """A depthwise convolution that is added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.peg = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, groups=width))


class LightProjector(nn.Module):
    """LDPv2: image features to tokens of the decoder.

    Args:
        in_width: width of the image tower.
        out_width: width of the decoder.
        side: tokens along each side of an image.
    """

    def __init__(self, in_width: int, out_width: int, side: int) -> None:
        super().__init__()
        self.mlp = FeatureLayer(in_width, out_width)
        self.dwn = TokenLayer(side)
        self.peg = PositionLayer(out_width)

    def forward(self, features: Tensor) -> Tensor:
        """Map features [B, patches, in_width] to tokens [B, side * side, out_width]."""
        projected = self.mlp.mlp(features)
        side = int(projected.shape[1] ** 0.5)
        grid = projected.transpose(1, 2).reshape(len(projected), -1, side, side)
        pooled = self.dwn.dwn(grid)
        tokens: Tensor = (self.peg.peg(pooled) + pooled).flatten(2).transpose(1, 2)
        return tokens


class _Tower(nn.Module):
    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.vision_tower = CLIPVisionModel(config)


class MobileVlm(nn.Module):
    """The whole model; ``model`` and ``lm_head`` are named as in the published checkpoints.

    Args:
        config: ``vision_config``, ``text_config`` and ``side``, as in ``catalogue.json``.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        vision, text = (
            CLIPVisionConfig(**config["vision_config"]),
            LlamaConfig(**config["text_config"]),
        )
        self.config = text
        self.model = LlamaModel(text)
        self.model.vision_tower = _Tower(vision)
        self.model.mm_projector = LightProjector(
            vision.hidden_size, text.hidden_size, config["side"]
        )
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)

    @property
    def language_model(self) -> nn.Module:
        """The decoder."""
        decoder: nn.Module = self.model
        return decoder

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding of the decoder's tokens."""
        embedding: nn.Module = self.model.embed_tokens
        return embedding

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        logits_to_keep: int = 0,
        **options: Any,
    ) -> MobileVlmOutput:
        """Read tokens, those of an image among them.

        Args:
            input_ids: [B, tokens] tokens; ``IMAGE_TOKEN`` stands for each token of the image.
            pixel_values: [B, 3, S, S] images; None if no token is ``IMAGE_TOKEN``.
            logits_to_keep: number of last positions whose logits are returned; 0 for all.
            options: options of transformers' decoder, the cache among them.
        """
        is_image = input_ids == IMAGE_TOKEN
        embedded = self.model.embed_tokens(input_ids.masked_fill(is_image, 0))
        if pixel_values is not None:
            seen = self.image_tokens(pixel_values).to(embedded.dtype)
            embedded = torch.masked_scatter(embedded, is_image.unsqueeze(-1), seen)
        found = self.model(inputs_embeds=embedded, **options)
        cache = found.cache if hasattr(found, "cache") else found.past_key_values
        hidden = found.last_hidden_state[:, -logits_to_keep:]
        return MobileVlmOutput(logits=self.lm_head(hidden), cache=cache)

    def image_tokens(self, images: Tensor) -> Tensor:
        """Return the decoder's tokens [B, side * side, width] of images [B, 3, S, S]."""
        found = self.model.vision_tower.vision_tower(images, output_hidden_states=True)
        features = found.hidden_states[FEATURE_LAYER][:, 1:]  # without the class token
        tokens: Tensor = self.model.mm_projector(features)
        return tokens
