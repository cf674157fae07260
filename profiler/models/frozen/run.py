"""One inference of a frozen model: what is computed for a batch of images.

A features model maps images to features. A contrastive model maps class prompts to text features
once, then images to image features, and compares both. A prompted model reads the tokens of an
image and of a prompt into its cache of keys and values, then writes an answer token by token; two
written tokens show the steady state.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from profiler.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from profiler.models.frozen.catalogue import FrozenModel

PROMPT_BATCH = 64
"""Class prompts that a text tower reads at once."""

WRITTEN_TOKENS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceLoad:
    """The input of an inference.

    Attributes:
        batch: images at once.
        num_classes: number of classes; a contrastive model reads one prompt for each.
        prompt_tokens: tokens of the question to a prompted model.
        dtype: type of weights and images: ``float32``, ``float16`` or ``bfloat16``.
    """

    batch: int
    num_classes: int = 100
    prompt_tokens: int = 32
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("batch", "num_classes", "prompt_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be positive, got {getattr(self, name)!r}")
        if self.dtype not in ("float32", "float16", "bfloat16"):
            raise UsageError(f"dtype must be float32, float16 or bfloat16, got {self.dtype!r}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type as torch names it."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found


def run_inference(built: nn.Module, model: FrozenModel, load: InferenceLoad) -> Tensor:
    """Run one batch on images of zeros; return scores [batch, classes], features or tokens.

    Args:
        built: the model, whose weights have the load's type.
        model: its entry in the catalogue.
        load: the input.
    """
    images = torch.zeros(load.batch, 3, model.image_size, model.image_size, dtype=load.torch_dtype)
    run = {"features": _features, "zero_shot": _zero_shot, "prompted": _prompted}[model.kind]
    with torch.no_grad():
        return run(built, model, load, images)


def _features(built: Any, model: FrozenModel, load: InferenceLoad, images: Tensor) -> Tensor:
    found: Tensor = built(images)
    return found


def _zero_shot(built: Any, model: FrozenModel, load: InferenceLoad, images: Tensor) -> Tensor:
    parts = []
    for first in range(0, load.num_classes, PROMPT_BATCH):
        count = min(PROMPT_BATCH, load.num_classes - first)
        prompts = torch.zeros(count, built.context_length, dtype=torch.long)
        parts.append(built.encode_text(prompts, normalize=True))
    texts = torch.cat(parts)
    del parts
    scores: Tensor = built.encode_image(images, normalize=True) @ texts.T
    return scores


def _prompted(built: Any, model: FrozenModel, load: InferenceLoad, images: Tensor) -> Tensor:
    embed, decoder = built.get_input_embeddings(), _decoder(built)
    prompt = torch.zeros(load.batch, load.prompt_tokens, dtype=torch.long)
    tokens = torch.cat([_image_tokens(built, images), embed(prompt)], dim=1)
    found = decoder(inputs_embeds=tokens, use_cache=True)
    del tokens
    written = _next(built, found)
    name = _cache_name(decoder)
    for _ in range(WRITTEN_TOKENS - 1):
        cache = {name: getattr(found, name)}
        found = decoder(inputs_embeds=embed(written), use_cache=True, **cache)
        written = _next(built, found)
    return written


def _cache_name(decoder: Any) -> str:
    """Return transformers' name of the keys and values: ``cache`` in later versions."""
    names = inspect.signature(decoder.forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def _next(built: Any, found: Any) -> Tensor:
    """Return the most likely next token [B, 1]; only the last position is classified."""
    token: Tensor = built.lm_head(found.last_hidden_state[:, -1:]).argmax(-1)
    return token


def _decoder(built: Any) -> Any:
    inner = built.model
    return getattr(inner, "language_model", None) or getattr(inner, "text_model", None) or inner


def _image_tokens(built: Any, images: Tensor) -> Tensor:
    """Return the decoder's tokens [B, image tokens, width] of images [B, 3, S, S]."""
    if hasattr(built, "image_tokens"):
        own: Tensor = built.image_tokens(images)
        return own
    inner = built.model
    if hasattr(inner, "multi_modal_projector"):  # PaliGemma
        seen = inner.vision_tower(images).last_hidden_state
        tokens: Tensor = inner.multi_modal_projector(seen)
        return tokens
    # SmolVLM: the positions of the patches are looked up by a mask of the valid patches
    side = images.shape[-1] // inner.config.vision_config.patch_size
    mask = torch.ones(len(images), side, side, dtype=torch.bool)
    seen = inner.vision_model(images, patch_attention_mask=mask).last_hidden_state
    joined: Tensor = inner.connector(seen)
    return joined
