"""timm's conversion of published checkpoints to the tensors of a model.

timm gives each architecture a filter function: it renames the tensors of other code bases, drops
those without a use (DINOv2's ``mask_token``), and resamples position embeddings and patch
embeddings of another size. ``timm.create_model(pretrained=True)`` calls it between download and
loading; here it is called for files too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from profiler.models.backbones.timm_interface import create_model
from profiler.models.silent_log import silent_log

if TYPE_CHECKING:
    from torch import Tensor, nn

StateFilter = Callable[..., Mapping[str, Any]]
"""Called with a state dict and the model, in older code with the state dict alone."""


@cache
def timm_filter(name: str) -> StateFilter | None:
    """Return the filter function that timm's hub path applies for a model; None without one.

    The filter is an argument of timm's builder and is kept nowhere, and some are closures over the
    variant. The model is therefore built on ``meta`` as for pretrained weights, with a function in
    place of the download that keeps the filter.
    """
    import torch
    from timm.models import _builder

    taken: list[StateFilter | None] = []

    def take(model: nn.Module, *, filter_fn: StateFilter | None = None, **_: object) -> None:
        taken.append(filter_fn)

    download = _builder.load_pretrained
    _builder.load_pretrained = take
    try:
        with torch.device("meta"), silent_log("timm"):
            create_model(name, pretrained=True)
    finally:
        _builder.load_pretrained = download
    return taken[0] if taken else None


def filtered(
    state: Mapping[str, Tensor], model: nn.Module, state_filter: StateFilter | None
) -> dict[str, Tensor] | None:
    """Return a state dict after a filter; None if the filter cannot handle it.

    Args:
        state: tensors by name; it is not changed.
        model: the model that will load them; Vim and MambaVision bring ``adapt_state_dict``.
        state_filter: timm's filter of the model, or None.
    """
    import torch

    own = getattr(model, "adapt_state_dict", None)
    convert = own if callable(own) else state_filter
    if convert is None:
        return dict(state)
    with silent_log("timm"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A conversion indexes and reshapes the tensors that it expects, so anything can fail.
        try:
            found = convert(dict(state)) if callable(own) else convert(dict(state), model)
        except TypeError:  # a filter that takes no model; timm does the same
            try:
                found = convert(dict(state))
            except Exception:
                return None
        except Exception:
            return None
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
