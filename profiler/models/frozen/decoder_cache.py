"""The decoder of a prompted model and the name of its cache of keys and values."""

from __future__ import annotations

import copy
import inspect
from typing import Any


def decoder_of(built: Any) -> Any:
    """Return the language model inside a prompted model."""
    inner = built.model
    return getattr(inner, "language_model", None) or getattr(inner, "text_model", None) or inner


def cache_name(built: Any) -> str:
    """Return transformers' name of the keys and values: ``cache`` in later versions."""
    names = inspect.signature(decoder_of(built).forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def repeated_cache(cache: Any, count: int) -> Any:
    """Return a cache of ``count`` copies of each sequence; the given cache stays as it is."""
    repeated = copy.copy(cache)
    # repeating assigns new tensors to a layer, so copies of the layers suffice
    repeated.layers = [copy.copy(layer) for layer in cache.layers]
    repeated.batch_repeat_interleave(count)
    return repeated
