"""The weights of a backbone: from a file, from the Hugging Face hub through timm, or random.

Only tensors are ever read: see ``profiler.models.backbones.checkpoint_file``.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from profiler.models.backbones.registry import is_own_model, resolve
from profiler.models.backbones.timm_interface import classifier_names

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSource:
    """Where a model's weights came from, shown beside every accuracy.

    Attributes:
        kind: ``pretrained`` (a hub), ``file`` or ``random``.
        detail: the file or the tag, or why no weights could be loaded.
        notes: sentences on the parts of a file that were taken, converted or left out.
    """

    kind: str
    detail: str
    notes: tuple[str, ...] = ()


def load_weights(
    model: nn.Module, name: str, *, weights: Path | None, pretrained: bool = True
) -> WeightSource:
    """Load weights into a model: from a file if given, else from timm's hub, else keep random ones.

    A classifier with another number of outputs keeps its random values.

    Args:
        model: a backbone of that name, on a real device.
        name: any name that ``resolve`` accepts.
        weights: file to read, or None; ``FILE::ENTRY`` takes an entry of a checkpoint.
        pretrained: whether to try timm's hub when no file is given.

    Raises:
        InputError: the file cannot be read or holds the weights of another model.
    """
    if weights is not None:
        from profiler.models.backbones.load_checkpoint import load_checkpoint_file

        notes = load_checkpoint_file(model, name, weights)
        return WeightSource(kind="file", detail=str(weights), notes=notes)
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
    from huggingface_hub import constants
    from timm.models import load_pretrained

    from profiler.models.backbones.timm_filter import timm_filter
    from profiler.models.silent_log import silent_log

    config = getattr(model, "pretrained_cfg", None) or {}
    if not (config.get("url") or config.get("hf_hub_id") or config.get("file")):
        return WeightSource(kind="random", detail=f"timm has no weights for {canonical}")
    constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE or not hub_is_reachable()
    try:
        classifier = model.get_submodule(classifier_names(model)[0])
        with silent_log("timm"):
            load_pretrained(
                model,
                num_classes=getattr(classifier, "out_features", 0),
                in_chans=3,
                filter_fn=timm_filter(canonical),
                strict=False,
            )
    except Exception as error:  # the hub's clients raise many types; the reason is kept
        if constants.HF_HUB_OFFLINE:
            reason = f"no weights of {canonical} are cached, and no model hub can be reached"
        else:
            reason = textwrap.shorten(str(error), 160, placeholder=" ...") or "no answer"
            reason = f"the model hub gave no weights of {canonical}: {reason}"
        return WeightSource(kind="random", detail=reason)
    return WeightSource(kind="pretrained", detail=str(config.get("hf_hub_id") or canonical))
