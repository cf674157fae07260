"""Whether a workload's model runs at all: its forward on shapes alone, without memory.

A backbone can refuse an image size in its forward, a library a kind of layer, and BatchNorm a
single value for each channel. These are facts about the arguments, so they end in a usage error
that names a working choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from textwrap import shorten

import numpy as np

from profiler.errors import BudgetplanError, UsageError
from profiler.models.silent_log import silent_log
from profiler.store import Store
from profiler.workload import Workload

_SIZE_STEPS = (1, 2, 4, 8, 14, 16, 28, 32, 56, 64)
"""Image sizes near the refused one are tried at multiples of these (patch and window sizes)."""

LONGEST_QUOTE = 100
"""Characters of a library's message in a reason."""


@contextmanager
def explain_refusals(workload: Workload) -> Iterator[None]:
    """Turn an exception of a workload that cannot run into a `UsageError` with the reason.

    Other exceptions pass unchanged.
    """
    try:
        with silent_log("torch._subclasses.fake_tensor"):
            yield
    except (BudgetplanError, MemoryError):
        raise
    except Exception as error:
        reason = None
        with suppress(Exception):  # an explanation that fails must not hide the error
            reason = refusal_of_forward(workload)
        if reason is None:
            raise
        raise UsageError(reason) from error


def check_forward(workload: Workload) -> None:
    """Refuse a workload whose model cannot run.

    Raises:
        UsageError: names the reason and a working choice.
    """
    reason = refusal_of_forward(workload)
    if reason is not None:
        raise UsageError(reason)


def refusal_of_forward(workload: Workload) -> str | None:
    """Return why the model of a workload cannot run its forward; None if it can."""
    images = min(workload.micro_batch, 2)
    return _refusal(workload.replace(micro_batch=images, accumulation=1, precision="fp32"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardRuns:
    """Stored fact that a workload's forward ran.

    Attributes:
        images: number of images of the forward, a scalar array.
    """

    images: np.ndarray[tuple[()], np.dtype[np.int64]]


@cache
def _refusal(workload: Workload) -> str | None:
    """Return why a forward cannot run.

    That it runs is stored, because a search tries every method of a backbone. A reason is not
    stored: its words are those of the installed libraries and of this program.
    """
    store, key = Store.default(), ("forward runs", workload.to_json())
    if store.holds(key):
        return None
    reason = _find_refusal(workload)
    if reason is None:
        store.keep(key, ForwardRuns(images=np.array(workload.micro_batch)))
    return reason


_ERRORS_OF_SHAPES = (
    RuntimeError, ValueError, TypeError, IndexError, AssertionError, ZeroDivisionError,
)  # fmt: skip
"""Errors that a backbone raises at an image size that it does not take."""


def _find_refusal(workload: Workload) -> str | None:
    from profiler.models.build import build_model

    reason: str | None
    try:
        model = build_model(workload, device="meta").model
    except UsageError as error:
        return str(error)
    except _ERRORS_OF_SHAPES as error:  # a method may run the backbone to learn its shapes
        reason = _message_of(error)
    else:
        reason = _error_of_forward(model, images=workload.micro_batch, size=workload.image_size)
    if reason is None:
        return None
    if workload.micro_batch == 1 and _refusal(workload.replace(micro_batch=2)) is None:
        return (
            f"one image is too few for {workload.model} at {workload.image_size} px: its BatchNorm "
            "would have a single value for each channel; a micro-batch of 2 works"
        )
    if not _runs(workload.replace(method="full", rank=None), images=2):
        return (
            f"{workload.model} does not run at {workload.image_size} px (message of timm or "
            f"PyTorch: {reason}){_other_sizes(workload)}"
        )
    return (
        f"{workload.method} does not run on {workload.model}, which runs without it (message of "
        f"peft or PyTorch: {reason}); use another method"
    )


def _error_of_forward(model: object, *, images: int, size: int) -> str | None:
    """Return the message of the exception of a forward on ``meta``; None without one."""
    import torch

    assert isinstance(model, torch.nn.Module)
    try:
        with torch.no_grad():
            model(torch.empty(images, 3, size, size, device="meta"))
    except Exception as error:  # models and libraries raise any type
        return _message_of(error)
    return None


def _message_of(error: Exception) -> str:
    """Return a library's message on one line, cut between words; its class without one."""
    return shorten(str(error), LONGEST_QUOTE, placeholder=" ...") or type(error).__name__


def _runs(workload: Workload, *, images: int) -> bool:
    from profiler.models import backbones

    try:
        backbone = backbones.build(
            workload.model, num_classes=2, image_size=workload.image_size, device="meta"
        )
    except UsageError:
        return False
    return _error_of_forward(backbone, images=images, size=workload.image_size) is None


def _other_sizes(workload: Workload) -> str:
    """Return the nearest image sizes that work, as the end of a sentence."""
    from profiler.models import backbones

    size, native = workload.image_size, backbones.native_image_size(workload.model)
    below = sorted({step * (size // step) for step in _SIZE_STEPS} - {0, size}, reverse=True)
    above = sorted({step * (size // step + 1) for step in _SIZE_STEPS} - {size})
    found = {
        next((s for s in sizes if _runs(workload.replace(image_size=s), images=2)), native)
        for sizes in (below, above)
    }
    works = sorted(found | {native})
    return f"; use {' or '.join(map(str, works))} px"
