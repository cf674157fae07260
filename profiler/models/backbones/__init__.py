"""Backbones: every timm image classifier, and the Mamba models written here.

Callers write ``from profiler.models import backbones`` and ``backbones.build("vit_s", ...)``.
Importing this package imports no torch.
"""

from profiler.models.backbones.file_entry import ENTRY_MARK, split_entry
from profiler.models.backbones.registry import (
    ALIASES,
    build,
    build_on_meta,
    has_fixed_image_size,
    is_own_model,
    model_names,
    native_image_size,
    resolve,
    shared_shapes,
)
from profiler.models.backbones.timm_interface import (
    attention_level,
    classifier_names,
    classifiers,
    has_batch_norm,
    image_statistics,
)
from profiler.models.backbones.weights import WeightSource, can_load_pretrained, load_weights

__all__ = [
    "ALIASES",
    "ENTRY_MARK",
    "WeightSource",
    "attention_level",
    "build",
    "build_on_meta",
    "can_load_pretrained",
    "classifier_names",
    "classifiers",
    "has_batch_norm",
    "has_fixed_image_size",
    "image_statistics",
    "is_own_model",
    "load_weights",
    "model_names",
    "native_image_size",
    "resolve",
    "shared_shapes",
    "split_entry",
]
