"""Build a frozen model with random weights, on any device (``meta`` allocates nothing)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from profiler.errors import InputError
from profiler.models.silent_log import silent_log

if TYPE_CHECKING:
    from torch import nn

    from profiler.models.frozen.catalogue import FrozenModel

EXTRA = "pip install 'budgetplan[training-free]'"


def build_frozen(model: FrozenModel, *, device: str = "meta") -> nn.Module:
    """Return a frozen model in evaluation mode, with random weights.

    Args:
        model: the entry of the catalogue.
        device: device of the weights.

    Raises:
        InputError: the library of the model is not installed.
    """
    make = {
        "timm": _timm_backbone,
        "open_clip": _two_towers,
        "transformers": _language_model,
        "own": _mobilevlm,
    }[model.package]
    try:
        with torch.device(device), silent_log("transformers"):
            built: nn.Module = make(model)
    except ModuleNotFoundError as error:
        raise InputError(f"{model.name} needs {error.name}: {EXTRA}") from error
    return built.eval().requires_grad_(False)


def _timm_backbone(model: FrozenModel) -> nn.Module:
    import timm

    # the position embedding keeps its published size and is resampled in the forward
    made: nn.Module = timm.create_model(
        model.model, num_classes=0, dynamic_img_size=True, pretrained=False
    )
    return made


def _two_towers(model: FrozenModel) -> nn.Module:
    import open_clip

    config = model.config or open_clip.get_model_config(model.model)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # open_clip logs to the root that nothing was loaded
    try:
        kind = (
            open_clip.CustomTextCLIP
            if "custom_text" in config or _is_siglip(config)
            else open_clip.CLIP
        )
        options = {k: v for k, v in config.items() if k not in ("custom_text", "preprocess_cfg")}
        made: nn.Module = kind(**options)
    finally:
        root.setLevel(level)
    return made


def _is_siglip(config: dict[str, Any]) -> bool:
    return "timm_model_name" in config.get("vision_cfg", {})


def _language_model(model: FrozenModel) -> nn.Module:
    import transformers

    config, kind = {
        "paligemma": (
            transformers.PaliGemmaConfig,
            transformers.PaliGemmaForConditionalGeneration,
        ),
        "smolvlm": (transformers.SmolVLMConfig, transformers.SmolVLMForConditionalGeneration),
    }[model.model]
    made: nn.Module = kind(config(**(model.config or {})))
    return made


def _mobilevlm(model: FrozenModel) -> nn.Module:
    from profiler.models.frozen.mobilevlm import MobileVlm

    assert model.config is not None
    return MobileVlm(model.config)
