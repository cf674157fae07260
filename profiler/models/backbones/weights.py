"""The weights of a backbone: from a file, from the Hugging Face hub through timm, or random.

Only tensors are ever read: safetensors, or a torch state dict with ``weights_only=True``.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from profiler.errors import InputError
from profiler.models.backbones.registry import is_own_model, resolve
from profiler.models.backbones.timm_interface import classifier_names

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSource:
    """Where a model's weights came from, shown beside every accuracy.

    Attributes:
        kind: ``pretrained`` (a hub), ``file`` or ``random``.
        detail: the file or the tag, or why no weights could be loaded.
    """

    kind: str
    detail: str


def load_weights(
    model: nn.Module, name: str, *, weights: Path | None, pretrained: bool = True
) -> WeightSource:
    """Load weights into a model: from a file if given, else from timm's hub, else keep random ones.

    A classifier with another number of outputs keeps its random values.

    Args:
        model: a backbone of that name, on a real device.
        name: any name that ``resolve`` accepts.
        weights: file to read, or None.
        pretrained: whether to try timm's hub when no file is given.

    Raises:
        InputError: the file cannot be read or holds the weights of another model.
    """
    if weights is not None:
        _load_state(model, _read_state(weights), origin=str(weights))
        return WeightSource(kind="file", detail=str(weights))
    canonical = resolve(name)
    if not pretrained:
        return WeightSource(kind="random", detail="pretrained weights were not requested")
    if is_own_model(canonical):
        return WeightSource(
            kind="random", detail=f"no hub carries {canonical} for timm; give --weights FILE"
        )
    return _load_pretrained(model, canonical)


def can_load_pretrained(name: str) -> bool:
    """Return whether timm's weights of a backbone are cached or can be downloaded."""
    canonical = resolve(name)
    if is_own_model(canonical):
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
    """Return whether the hub accepts a connection within five seconds.

    Without a network the hub's client retries for a minute, so callers check this first.
    """
    import os
    import socket
    from urllib.parse import urlsplit

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return True  # a direct connection proves nothing where a proxy is in between
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
        return WeightSource(kind="random", detail=f"timm has no weights for {canonical}")
    constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE or not hub_is_reachable()
    logger = logging.getLogger("timm")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        classifier = model.get_submodule(classifier_names(model)[0])
        load_pretrained(
            model, num_classes=getattr(classifier, "out_features", 0), in_chans=3, strict=False
        )
    except Exception as error:  # the hub's clients raise many types; the reason is kept
        reason = textwrap.shorten(str(error), 160, placeholder=" ...") or "no answer"
        return WeightSource(kind="random", detail=f"{type(error).__name__}: {reason}")
    finally:
        logger.setLevel(before)
    return WeightSource(kind="pretrained", detail=str(config.get("hf_hub_id") or canonical))


def _read_state(path: Path) -> dict[str, Tensor]:
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
        if isinstance(error, pickle.UnpicklingError):  # torch's message suggests weights_only=False
            reason = "it is damaged, or holds more than tensors"
        raise InputError(
            f"weights file {path} is neither safetensors nor a plain torch state dict ({reason})"
        ) from error
    for key in ("model", "state_dict"):  # published checkpoints wrap the dict under these keys
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(hasattr(v, "shape") for v in state.values()):
        raise InputError(f"weights file {path} holds no state dict of tensors")
    return state


def _load_state(model: nn.Module, state: dict[str, Tensor], *, origin: str) -> None:
    """Copy a state dict into a model; only the classifier may have another shape or be absent."""
    heads = tuple(f"{name}." for name in classifier_names(model))
    own = model.state_dict()
    adapt = getattr(model, "adapt_state_dict", None)
    if callable(adapt):  # Vim resizes position embeddings of another image size
        state = adapt(state)
    other_shape = {n for n, value in state.items() if n in own and own[n].shape != value.shape}
    wrong = [name for name in state if name in other_shape and not name.startswith(heads)]
    missing = [name for name in own if name not in state and not name.startswith(heads)]
    unknown = [name for name in state if name not in own and not name.startswith(heads)]
    for names, what in ((wrong, "another shape for"), (missing, "no"), (unknown, "an unknown")):
        if names:
            raise InputError(
                f"weights file {origin} does not fit the model: it has {what} {names[0]!r} "
                f"({len(names)} such); check --model and --image-size"
            )
    kept = {name: value for name, value in state.items() if name not in other_shape}
    model.load_state_dict(kept, strict=False)
