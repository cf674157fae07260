"""Hooks on a model that set the recorder's unit marks and claim its gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from profiler.checkpointing.apply import recomputing
from profiler.models.methods.base import backbone_of
from profiler.models.unit_runs import modules_of
from profiler.replay.recorder import Recorder
from profiler.replay.storages import OWNER_CODE


@contextmanager
def mark_gradients(recorder: Recorder, model: nn.Module) -> Iterator[None]:
    """Give the owner ``gradient`` to each gradient that backward accumulates."""

    def accumulated(parameter: Tensor) -> None:
        if parameter.grad is not None:
            recorder.storages.set_owner(parameter.grad, OWNER_CODE["gradient"])

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
    """Mark when each unit's forward begins and ends, and when its backward begins.

    A unit is one module or a sequence of modules. The hooks stay silent while a unit is
    recomputed: a recomputation calls its modules, and with them their hooks, once more.
    """
    backbone = backbone_of(model)
    handles = []
    for index, name in enumerate(recorder.unit_names):
        modules = modules_of(backbone, name)
        leave = _leave(recorder, index, is_sequence=len(modules) > 1)
        handles += [
            modules[0].register_forward_pre_hook(_enter(recorder, index)),
            modules[-1].register_forward_hook(leave),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _enter(recorder: Recorder, index: int) -> Callable[..., None]:
    def enter(*_: object) -> None:
        if not recomputing():
            recorder.clock.enter(index)

    return enter


def _leave(recorder: Recorder, index: int, *, is_sequence: bool) -> Callable[..., None]:
    def begin_backward(_: Tensor) -> None:
        recorder.clock.begin_backward(index)

    def leave(_module: nn.Module, _args: object, out: object) -> None:
        if recomputing():
            return
        recorder.clock.leave(index, is_sequence=is_sequence)
        tensor = out[0] if isinstance(out, tuple | list) else out
        if not isinstance(tensor, Tensor):
            return
        recorder.boundary_bytes[index] = tensor.numel() * tensor.element_size()
        if tensor.requires_grad:
            # the hook runs when the output's gradient is computed: backward of the unit begins
            tensor.register_hook(begin_backward)

    return leave
