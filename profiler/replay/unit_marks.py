"""Hooks that mark when each unit's forward and backward begin and end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor, nn

from profiler.checkpointing.apply import recomputing
from profiler.models.methods.base import backbone_of
from profiler.models.unit_runs import modules_of
from profiler.replay.recorder import OWNER_CODE, Recorder

if TYPE_CHECKING:
    pass


@contextmanager
def mark_gradients(recorder: Recorder, model: nn.Module) -> Iterator[None]:
    def accumulated(parameter: Tensor) -> None:
        if parameter.grad is not None:
            recorder.own(parameter.grad, OWNER_CODE["gradient"])

    handles = [
        p.register_post_accumulate_grad_hook(accumulated)
        for p in model.parameters()
        if p.requires_grad
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def mark_units(recorder: Recorder, model: nn.Module) -> Iterator[None]:
    """Mark when a unit's forward begins and ends, and when its backward begins."""
    backbone = backbone_of(model)
    handles = []
    for index, name in enumerate(recorder.unit_names):
        modules = modules_of(backbone, name)
        handles += [
            modules[0].register_forward_pre_hook(_enter(recorder, index)),
            modules[-1].register_forward_hook(_leave(recorder, index, is_run=len(modules) > 1)),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _enter(recorder: Recorder, index: int) -> Callable[..., None]:
    def enter(*_: object) -> None:
        if recomputing():  # the hooks of a run's modules are called again with it
            return
        recorder.unit = index
        recorder.mark("enter", index)

    return enter


def _leave(recorder: Recorder, index: int, *, is_run: bool) -> Callable[..., None]:
    def begin_backward(_: Tensor) -> None:
        recorder.unit = index
        recorder.mark("backward", index)

    def leave(_module: nn.Module, _args: object, out: object) -> None:
        if recomputing():
            return
        recorder.leave(index, is_run=is_run)
        tensor = out[0] if isinstance(out, tuple | list) else out
        if not isinstance(tensor, Tensor):
            return
        recorder.boundary_bytes[index] = tensor.numel() * tensor.element_size()
        if tensor.requires_grad:
            tensor.register_hook(begin_backward)

    return leave
