"""The device of a training: its type, its autocast context and its memory cap."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

from planner.plan import Plan
from profiler.errors import DeviceError, UsageError
from profiler.records import DeviceKind
from profiler.running.memory_caps import cap_cuda_memory, use_planned_configuration

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


def device_kind(word: str) -> DeviceKind:
    """Return the kind of device that a word means, if this machine has such a device.

    Raises:
        DeviceError: CUDA is not available.
        UsageError: the word is neither ``cpu`` nor ``cuda``.
    """
    if word == "cpu":
        return "cpu"
    if word != "cuda":
        raise UsageError(f"device must be cpu or cuda, got {word!r}")
    if not torch.cuda.is_available():
        raise DeviceError("there is no CUDA device in this machine; use --device cpu")
    return "cuda"


def autocast(precision: str, kind: DeviceKind) -> AbstractContextManager[None]:
    """Return the autocast context of a precision, for evaluation.

    Args:
        precision: ``fp32`` (no autocast), ``bf16`` or ``fp16``.
        kind: kind of the device.
    """
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(kind, dtype=dtype, enabled=precision != "fp32")


def planned_power_limit(plan: Plan, device: DeviceKind) -> AbstractContextManager[None]:
    """Return the context in which the GPU has the plan's power limit, if it has one.

    On another GPU than the planned one the limit means nothing, and none is set.

    Args:
        plan: the plan.
        device: kind of the device of the training.
    """
    from profiler.devices.nvml import NvmlGpu, open_gpu
    from profiler.devices.power_limit import limited_power

    watts = plan.prediction.power_limit_watts
    if watts is None or device != "cuda":
        return nullcontext()
    gpu = open_gpu(0)
    if not isinstance(gpu, NvmlGpu) or gpu.spec.name != plan.prediction.device.name:
        return nullcontext()
    return limited_power(gpu, watts)


def cap_to_budget(plan: Plan) -> None:
    """Cap PyTorch's CUDA allocator at the plan's budget less the CUDA context.

    The context is the difference of the predicted device bytes and reserved bytes.
    """
    use_planned_configuration()
    memory = plan.prediction.memory
    context = (memory.device_bytes or 0) - (memory.reserved_bytes or memory.device_bytes or 0)
    cap_cuda_memory(plan.budget_bytes - context)
