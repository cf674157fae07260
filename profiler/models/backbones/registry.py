"""Names of the backbones (all timm image classifiers, Vim, MambaVision) and their construction.

``resolve`` turns a name or an alias into the canonical name; ``build`` makes the model with random
weights, on the ``meta`` device (nothing is allocated) or on a real one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from profiler.errors import UnknownNameError, UsageError
from profiler.models.backbones.model_names import OWN_MODELS, is_timm_name, own_and_timm_names
from profiler.models.backbones.timm_interface import IMAGE_SIZE, attention_level, create_model

if TYPE_CHECKING:
    from torch import nn

ALIASES: Mapping[str, str] = {
    "vit_t": "vit_tiny_patch16_224",
    "vit_s": "vit_small_patch16_224",
    "vit_b": "vit_base_patch16_224",
    "tiny_vit": "tiny_vit_21m_224",
    "tiny_vit_5m": "tiny_vit_5m_224",
    "tiny_vit_11m": "tiny_vit_11m_224",
    "tiny_vit_21m": "tiny_vit_21m_224",
    "mobilenetv2": "mobilenetv2_100",
    "mobilenetv3": "mobilenetv3_large_100",
    "convnext_t": "convnext_tiny",
    "swin_t": "swin_tiny_patch4_window7_224",
    "dinov2_s": "vit_small_patch14_dinov2",
    "dinov2_b": "vit_base_patch14_dinov2",
    "dinov2_l": "vit_large_patch14_dinov2",
    "siglip_b": "vit_base_patch16_siglip_224",
    "vim_t": "vim_tiny_patch16_224",
    "vim_s": "vim_small_patch16_224",
    "vim_b": "vim_base_patch16_224",
}
"""Short names that are accepted beside the names of timm."""


@cache
def _own_models() -> dict[str, Callable[..., nn.Module]]:
    """Return the constructors of the models written here (imports torch)."""
    from profiler.models.backbones.mambavision import MAMBAVISION_MODELS
    from profiler.models.backbones.vim import VIM_MODELS

    return {**VIM_MODELS, **MAMBAVISION_MODELS}


def is_own_model(name: str) -> bool:
    """Return whether a canonical name is one of the models written here."""
    return name in OWN_MODELS


def model_names(pattern: str = "") -> list[str]:
    """Return the canonical names that contain a pattern; the models written here come first.

    Neither torch nor timm is imported.
    """
    return [name for name in own_and_timm_names() if pattern in name]


def resolve(name: str) -> str:
    """Return the canonical name for an alias or a name of timm or of a model written here.

    timm is imported only for the tag of its weights (``NAME.TAG``).

    Raises:
        UnknownNameError: no such backbone; lists similar names.
    """
    canonical = ALIASES.get(name, name)
    if is_own_model(canonical):
        return canonical
    architecture, _, tag = canonical.partition(".")  # behind the dot: the tag of the weights
    if not is_timm_name(architecture):
        raise UnknownNameError(
            kind="model",
            name=name,
            known=[*ALIASES, *own_and_timm_names()],
            hint="`budgetplan models` lists them",
        )
    if tag:
        _check_tag(architecture, tag)
    return canonical


def _check_tag(architecture: str, tag: str) -> None:
    import timm

    tags = [name.partition(".")[2] for name in timm.list_models(architecture, pretrained=True)]
    if tag not in tags:
        raise UnknownNameError(
            kind=f"tag of the weights of {architecture}",
            name=tag,
            known=tags,
            hint=f"use {architecture} or one of its tags: {', '.join(tags[:6]) or 'none'}",
        )


@cache
def native_image_size(name: str) -> int:
    """Return the edge in pixels of the images that the backbone was trained on."""
    canonical = resolve(name)
    if is_own_model(canonical):
        return IMAGE_SIZE
    import timm

    config = timm.get_pretrained_cfg(canonical, allow_unregistered=True)
    return int(config.input_size[-1]) if config is not None else IMAGE_SIZE


def has_fixed_image_size(name: str) -> bool:
    """Return whether timm builds the backbone for one image size, which ``img_size`` changes."""
    import timm

    config = timm.get_pretrained_cfg(resolve(name), allow_unregistered=True)
    return config is not None and bool(config.fixed_input_size)


def build(
    name: str,
    *,
    num_classes: int,
    image_size: int,
    drop_path: float = 0.0,
    device: str = "cpu",
) -> nn.Module:
    """Build a backbone with random weights, in training mode.

    Args:
        name: any name that ``resolve`` accepts.
        num_classes: outputs of the classifier.
        image_size: height and width of the input in pixels.
        drop_path: stochastic depth rate; models without stochastic depth refuse it or ignore it.
        device: device of the weights; ``meta`` allocates nothing.

    Raises:
        UnknownNameError: no such backbone.
        UsageError: the backbone cannot take this image size.
    """
    import torch

    canonical = resolve(name)
    if device == "meta":
        return copy.deepcopy(
            _shapes_only(canonical, num_classes, image_size, drop_path, attention_level())
        )
    with torch.device(device):
        return _construct(canonical, num_classes, image_size, drop_path).train()


def shared_shapes(name: str, *, num_classes: int, image_size: int) -> nn.Module:
    """Return a backbone on ``meta`` to read shapes from; all callers share it, so none changes it.

    Args:
        name: any name that ``resolve`` accepts.
        num_classes: outputs of the classifier.
        image_size: height and width of the input in pixels.

    Raises:
        UnknownNameError: no such backbone.
        UsageError: the backbone cannot take this image size.
    """
    return _shapes_only(resolve(name), num_classes, image_size, 0.0, attention_level())


def build_on_meta(name: str, *, image_size: int) -> nn.Module:
    """Construct a backbone on ``meta`` anew, so that a dispatch mode can observe it."""
    import torch

    with torch.device("meta"):
        return _construct(resolve(name), 2, image_size, 0.0)


@lru_cache(maxsize=8)
def _shapes_only(
    canonical: str, num_classes: int, image_size: int, drop_path: float, level: int
) -> nn.Module:
    """Return a backbone on ``meta`` to copy: copying takes a sixth of the time of construction.

    ``level`` is that of ``attention_level``, which a model keeps from its construction.
    """
    import torch

    with torch.device("meta"):
        return _construct(canonical, num_classes, image_size, drop_path).train()


def _construct(canonical: str, num_classes: int, image_size: int, drop_path: float) -> nn.Module:
    own = _own_models().get(canonical)
    if own is not None:
        return own(num_classes=num_classes, img_size=image_size, drop_path_rate=drop_path)
    options: dict[str, object] = {"num_classes": num_classes}
    if drop_path:
        options["drop_path_rate"] = drop_path
    native = native_image_size(canonical)
    try:
        return _create(canonical, None if native == image_size else image_size, options)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"{canonical} cannot be built for {image_size} px ({error}); "
            f"use its own size, {native} px"
        ) from error


def _create(canonical: str, image_size: int | None, options: dict[str, object]) -> nn.Module:
    """Call timm's constructor; ``image_size`` None means the model's own size."""
    if image_size is not None:
        # Convolutional networks take any size and refuse the argument.
        with suppress(TypeError):
            return create_model(canonical, img_size=image_size, **options)
    return create_model(canonical, **options)
