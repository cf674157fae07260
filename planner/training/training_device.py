"""The device of a training: its type, autocast, its memory cap, and which errors mean out of
memory.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from planner.plan import Plan
from planner.training.interrupt import Interrupt
from profiler.errors import (
    DeviceError,
    UsageError,
)
from profiler.running.memory_caps import cap_cuda_memory

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


def device_type(device: str) -> str:
    """Return ``cpu`` or ``cuda``.

    Raises:
        DeviceError: CUDA was asked for and is not here.
        UsageError: another device.
    """
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise UsageError(f"device must be cpu or cuda, got {device!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise DeviceError("there is no CUDA device in this machine; use --device cpu")
    return kind


# ---- accuracy ------------------------------------------------------------------------------------


def autocast(precision: str, kind: str) -> AbstractContextManager[None]:
    """Autocast as in training."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(kind, dtype=dtype, enabled=precision != "fp32")


@contextmanager
def caught_by(interrupt: Interrupt) -> Iterator[None]:
    """Catch interrupts, where this is the thread that gets them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def cap_to_budget(plan: Plan) -> None:
    """Let PyTorch reserve what the budget leaves beside the CUDA context."""
    memory = plan.prediction.memory
    context = (memory.device_bytes or 0) - (memory.reserved_bytes or memory.device_bytes or 0)
    cap_cuda_memory(plan.budget_bytes - context)
