"""The registry of backbones: every timm image classifier, and the Mamba models written here.

``resolve`` turns what a user typed into a canonical name; ``build`` makes the model, on the
``meta`` device (nothing allocated) or for real; ``load_weights`` fills it.
"""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiler.errors import InputError, UnknownNameError, UsageError

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
"""Short names of the design, beside every timm name."""

_OWN_MODULES = ("vim", "mambavision")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSource:
    """Where a model's weights came from, shown beside every accuracy.

    Attributes:
        kind: ``pretrained`` (a hub), ``file`` or ``random``.
        detail: the file or the tag, or why no weights could be loaded.
    """

    kind: str
    detail: str


@cache
def _own_models() -> dict[str, Callable[..., nn.Module]]:
    from importlib import import_module

    models: dict[str, Callable[..., nn.Module]] = {}
    for module in _OWN_MODULES:
        models.update(import_module(f"profiler.models.backbones.{module}").MODELS)
    return models


def model_names(pattern: str = "") -> list[str]:
    """Return the canonical names that contain a pattern, ours first."""
    import timm

    names = [*_own_models(), *timm.list_models()]
    return [name for name in names if pattern in name]


def resolve(name: str) -> str:
    """Return the canonical name for a timm name, one of ours, or an alias.

    Raises:
        UnknownNameError: no such backbone; carries near names.
    """
    canonical = ALIASES.get(name, name)
    if canonical in _own_models():
        return canonical
    import timm

    if timm.is_model(canonical.partition(".")[0]):
        return canonical
    raise UnknownNameError(
        kind="model",
        name=name,
        known=[*ALIASES, *_own_models(), *timm.list_models()],
        hint="`budgetplan models` lists them",
    )


def build(
    name: str,
    *,
    num_classes: int,
    image_size: int,
    drop_path: float = 0.0,
    device: str = "cpu",
) -> nn.Module:
    """Make a backbone with random weights.

    Args:
        name: anything ``resolve`` accepts.
        num_classes: width of the classifier.
        image_size: height and width of the input in pixels.
        drop_path: stochastic depth rate; ignored by models without it.
        device: ``meta`` allocates nothing.

    Raises:
        UnknownNameError: no such backbone.
        UsageError: the backbone cannot take this image size.
    """
    import torch

    canonical = resolve(name)
    if device == "meta":
        return copy.deepcopy(_shapes(canonical, num_classes, image_size, drop_path))
    with torch.device(device):
        model = _construct(canonical, num_classes, image_size, drop_path)
    model.train()
    return model


@lru_cache(maxsize=8)
def _shapes(canonical: str, num_classes: int, image_size: int, drop_path: float) -> nn.Module:
    """Return a backbone on ``meta`` to copy: a copy takes a sixth of the time to construct one."""
    import torch

    with torch.device("meta"):
        model = _construct(canonical, num_classes, image_size, drop_path)
    model.train()
    return model


def _construct(canonical: str, num_classes: int, image_size: int, drop_path: float) -> nn.Module:
    own = _own_models().get(canonical)
    if own is not None:
        return own(num_classes=num_classes, img_size=image_size, drop_path_rate=drop_path)
    import timm

    wanted: dict[str, Any] = {"num_classes": num_classes}
    if drop_path:
        wanted["drop_path_rate"] = drop_path
    fixed = native_image_size(canonical)
    try:
        if fixed == image_size:
            model: nn.Module = timm.create_model(canonical, **wanted)
        else:
            model = _with_image_size(canonical, image_size, wanted)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"{canonical} cannot be built for {image_size} px ({error}); its own size is {fixed} px"
        ) from error
    return model


def _with_image_size(canonical: str, image_size: int, wanted: dict[str, Any]) -> nn.Module:
    import timm

    try:
        model: nn.Module = timm.create_model(canonical, img_size=image_size, **wanted)
    except TypeError:  # convolutional networks take any size and no such argument
        model = timm.create_model(canonical, **wanted)
    return model


@cache
def native_image_size(name: str) -> int:
    """Return the input size in pixels that the backbone was made for."""
    canonical = resolve(name)
    if canonical in _own_models():
        return 224
    import timm

    config = timm.get_pretrained_cfg(canonical, allow_unregistered=True)
    return int(config.input_size[-1]) if config is not None else 224


def normalisation(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation per channel that the backbone expects."""
    config: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    mean = config.get("mean", (0.485, 0.456, 0.406))
    std = config.get("std", (0.229, 0.224, 0.225))
    return tuple(mean), tuple(std)


def classifier_name(model: nn.Module) -> str:
    """Return the module name of the classifier (``head``, ``fc``, ``head.fc``, ...)."""
    getter = getattr(model, "get_classifier", None)
    head = getter() if callable(getter) else None
    for name, module in model.named_modules():
        if module is head:
            return str(name)
    raise UsageError(f"{type(model).__name__} has no classifier that could be trained")


def load_weights(
    model: nn.Module, name: str, *, weights: Path | None, pretrained: bool = True
) -> WeightSource:
    """Fill a real model: from a file, else pretrained through timm where it can, else as it is.

    A classifier of another width keeps its random values. Only tensors are ever read
    (safetensors, or a torch state dict with ``weights_only=True``).

    Raises:
        InputError: the file cannot be read or holds another model's weights.
    """
    if weights is not None:
        _load_state(model, _read_state(weights), origin=str(weights))
        return WeightSource(kind="file", detail=str(weights))
    canonical = resolve(name)
    if not pretrained:
        return WeightSource(kind="random", detail="pretrained weights were not asked for")
    if canonical in _own_models():
        return WeightSource(
            kind="random", detail=f"no hub carries {canonical} for timm; give --weights FILE"
        )
    return _load_pretrained(model, canonical)


def can_load_pretrained(name: str) -> bool:
    """Say whether timm's weights of a backbone are here already or can be fetched."""
    canonical = resolve(name)
    if canonical in _own_models():
        return False
    import timm
    from huggingface_hub import try_to_load_from_cache

    config = timm.get_pretrained_cfg(canonical, allow_unregistered=True)
    if config is None or not config.has_weights:
        return False
    if config.file or hub_is_reachable():
        return True
    files = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")
    repository = config.hf_hub_id
    return repository is not None and any(
        isinstance(try_to_load_from_cache(repository, file), str) for file in files
    )


@cache
def hub_is_reachable() -> bool:
    """Say whether the hub answers; without a network its client retries for a minute."""
    import os
    import socket
    from urllib.parse import urlsplit

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return True  # only the proxy can tell
    address = urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), timeout=5):
            return True
    except OSError:
        return False


def _load_pretrained(model: nn.Module, canonical: str) -> WeightSource:
    import logging

    from huggingface_hub import constants
    from timm.models import load_pretrained

    config = getattr(model, "pretrained_cfg", None) or {}
    if not (config.get("url") or config.get("hf_hub_id") or config.get("file")):
        return WeightSource(kind="random", detail=f"timm knows no weights for {canonical}")
    constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE or not hub_is_reachable()
    logger = logging.getLogger("timm")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        head = classifier_name(model)
        width = model.get_submodule(head)
        load_pretrained(
            model, num_classes=getattr(width, "out_features", 0), in_chans=3, strict=False
        )
    except Exception as error:  # whatever a hub client raises offline: the reason is kept
        reason = textwrap.shorten(str(error), 160, placeholder=" ...") or "no answer"
        return WeightSource(kind="random", detail=f"{type(error).__name__}: {reason}")
    finally:
        logger.setLevel(before)
    return WeightSource(kind="pretrained", detail=str(config.get("hf_hub_id") or canonical))


def _read_state(path: Path) -> dict[str, Any]:
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"weights file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "unreadable"
        if isinstance(error, pickle.UnpicklingError):  # torch's own advice is to trust the file
            reason = "it is damaged, or holds more than tensors"
        raise InputError(
            f"weights file {path} is neither safetensors nor a plain torch state dict ({reason})"
        ) from error
    for key in ("model", "state_dict"):  # how published checkpoints wrap the dict
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(hasattr(v, "shape") for v in state.values()):
        raise InputError(f"weights file {path} holds no state dict of tensors")
    return state


def _load_state(model: nn.Module, state: dict[str, Any], *, origin: str) -> None:
    head = classifier_name(model)
    own = model.state_dict()
    resized = getattr(model, "adapt_state_dict", None)
    if callable(resized):  # position embeddings of another image size
        state = resized(state)
    keep = {
        name: value
        for name, value in state.items()
        if not (name.startswith(f"{head}.") and name in own and own[name].shape != value.shape)
    }
    wrong = [n for n, v in keep.items() if n in own and own[n].shape != v.shape]
    missing = [n for n in own if n not in keep and not n.startswith(f"{head}.")]
    strange = [n for n in keep if n not in own and not n.startswith(f"{head}.")]
    for names, what in ((wrong, "another shape for"), (missing, "no"), (strange, "an unknown")):
        if names:
            raise InputError(
                f"weights file {origin} does not fit the model: it has {what} {names[0]!r} "
                f"({len(names)} such); check --model and --image-size"
            )
    model.load_state_dict(keep, strict=False)
