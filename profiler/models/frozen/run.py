"""One inference of a frozen model on a batch of images.

A features model maps images to features. A contrastive model maps class prompts to text features
once, then images to image features, and compares both. A prompted model reads the tokens of an
image and of a prompt into its cache of keys and values, which gives the first token of a free
answer. It then reads the class names, a few at once, after as many copies of the cache, and writes
further tokens of the answer one by one; a single one shows the steady state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from profiler.errors import UsageError, check_whole_number
from profiler.models.frozen.decoder_cache import cache_name, decoder_of, repeated_cache

if TYPE_CHECKING:
    from torch import nn

    from profiler.models.frozen.catalogue import FrozenModel

PROMPT_BATCH = 64
"""Class prompts that a text tower reads at once."""

NAMES_AT_ONCE = 4
"""Class names that a prompted model scores at once, each after a copy of the cache."""

NAME_TOKENS = 4
"""Tokens of a class name with the end of the answer, and of a free answer: most have 2 to 4."""

WRITTEN_TOKENS = 2
"""Tokens of a free answer that an inference of zeros writes (>= 2). The first is of the part
``images``; each further one takes a pass of the decoder, at the same cost."""

TOKEN_FACTOR = (NAME_TOKENS - 1) / (WRITTEN_TOKENS - 1)
"""Passes of the decoder that write a free answer, as a ratio of those in the part ``token``."""

BeginPart = Callable[[str], None]
"""Called with the name of a part of the inference before it runs: ``prompts``, ``images``,
``names``, ``token``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceLoad:
    """The input of an inference.

    Attributes:
        batch: images at once.
        num_classes: number of classes; a contrastive model reads one prompt for each.
        prompt_tokens: tokens of the question to a prompted model.
        dtype: type of weights and images: ``float32``, ``float16`` or ``bfloat16``.
        is_four_bit: whether the linear layers are stored in 4 bits and multiply in ``dtype``.
    """

    batch: int
    num_classes: int = 100
    prompt_tokens: int = 32
    dtype: str = "float32"
    is_four_bit: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "num_classes", "prompt_tokens"):
            check_whole_number(name, getattr(self, name), least=1)
        if self.dtype not in ("float32", "float16", "bfloat16"):
            raise UsageError(f"dtype must be float32, float16 or bfloat16, got {self.dtype!r}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type as torch names it."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found


def run_inference(
    built: nn.Module,
    model: FrozenModel,
    load: InferenceLoad,
    begin_part: BeginPart = lambda name: None,
) -> Tensor:
    """Run one batch on images of zeros; return scores [batch, classes], features or tokens.

    Args:
        built: the model, whose weights have the load's type.
        model: its entry in the catalogue.
        load: the input.
        begin_part: called before each part.
    """
    images = torch.zeros(load.batch, 3, model.image_size, model.image_size, dtype=load.torch_dtype)
    run = {"features": _features, "zero_shot": _zero_shot, "prompted": _prompted}[model.kind]
    with torch.no_grad():
        return run(built, load, images, begin_part)


def _features(built: Any, load: InferenceLoad, images: Tensor, begin_part: BeginPart) -> Tensor:
    begin_part("images")
    found: Tensor = built(images)
    return found


def _zero_shot(built: Any, load: InferenceLoad, images: Tensor, begin_part: BeginPart) -> Tensor:
    begin_part("prompts")
    parts = []
    for first in range(0, load.num_classes, PROMPT_BATCH):
        count = min(PROMPT_BATCH, load.num_classes - first)
        prompts = torch.zeros(count, built.context_length, dtype=torch.long)
        parts.append(built.encode_text(prompts, normalize=True))
    texts = torch.cat(parts)
    del parts
    begin_part("images")
    scores: Tensor = built.encode_image(images, normalize=True) @ texts.T
    return scores


def _prompted(built: Any, load: InferenceLoad, images: Tensor, begin_part: BeginPart) -> Tensor:
    begin_part("images")
    embed, decoder, name = built.get_input_embeddings(), decoder_of(built), cache_name(built)
    prompt = torch.zeros(load.batch, load.prompt_tokens, dtype=torch.long)
    tokens = torch.cat([_image_tokens(built, images), embed(prompt)], dim=1)
    found = decoder(inputs_embeds=tokens, use_cache=True)
    del tokens
    written = _next(built, found)
    begin_part("names")
    _score_names(built, load, getattr(found, name))
    begin_part("token")
    for _ in range(WRITTEN_TOKENS - 1):
        cache = {name: getattr(found, name)}
        found = decoder(inputs_embeds=embed(written), use_cache=True, **cache)
        written = _next(built, found)
    return written


def _score_names(built: Any, load: InferenceLoad, cache: Any) -> None:
    """Read a few class names after copies of the cache, as ``prompted.likelihoods`` does."""
    names = torch.zeros(load.batch * NAMES_AT_ONCE, NAME_TOKENS - 1, dtype=torch.long)
    embedded = built.get_input_embeddings()(names)
    options = {cache_name(built): repeated_cache(cache, NAMES_AT_ONCE)}
    found = decoder_of(built)(inputs_embeds=embedded, use_cache=True, **options)
    built.lm_head(found.last_hidden_state).float().log_softmax(dim=-1)


def _next(built: Any, found: Any) -> Tensor:
    """Return the most likely next token [B, 1]; only the last position is classified."""
    token: Tensor = built.lm_head(found.last_hidden_state[:, -1:]).argmax(-1)
    return token


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
    with _AllPatchesMask():
        seen = inner.vision_model(images, patch_attention_mask=mask).last_hidden_state
    joined: Tensor = inner.connector(seen)
    return joined


class _AllPatchesMask(TorchFunctionMode):
    """Index by a mask as if all of it were true, as it is here.

    transformers 5.12 assigns positions by a boolean mask; later versions use ``where``. The size of
    such a selection is unknown on fake tensors.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        index = args[1] if func in _INDEXING else None
        if not isinstance(index, Tensor) or index.dtype is not torch.bool:
            return func(*args, **(kwargs or {}))
        selected = args[0].view(-1)
        return selected.clone() if func is Tensor.__getitem__ else selected.copy_(args[2])


_INDEXING = (Tensor.__getitem__, Tensor.__setitem__)
