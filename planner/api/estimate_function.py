"""The function ``estimate``: memory of a training step of a user's own module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.api.arguments import device_name
from planner.api.workload_functions import check_replay_files, save_replay

if TYPE_CHECKING:
    from torch import nn

    from profiler.devices.table import DeviceSpec
    from profiler.prediction.module_estimate import ModuleEstimate
    from profiler.replay.module_replay import Loss, MakeOptimizer


def estimate(
    module: nn.Module,
    batch: Any,
    *,
    optimizer: str | MakeOptimizer = "adamw",
    loss: Loss | None = None,
    device: str | DeviceSpec = "auto",
    precision: str = "fp32",
    snapshot: str | Path | None = None,
    perfetto: str | Path | None = None,
) -> ModuleEstimate:
    """Predict the memory that a training step of any module needs. Nothing is run or changed.

    The step is: fresh inputs, forward, loss, backward, optimizer step, gradients freed. The module
    may be on any device, ``meta`` included.

    Args:
        module: module to train; parameters without ``requires_grad`` are frozen.
        batch: with a loss, a pair (inputs, target); without one, the inputs. Inputs are a tensor, a
            tuple (positional arguments) or a mapping (keyword arguments). Only shapes matter.
        optimizer: ``adamw``, ``sgd`` (momentum 0.9), ``none``, or a function that makes an
            optimizer of a list of parameters.
        loss: function of (output, target) that returns a scalar; None if the module returns a
            scalar, or an object with a scalar ``loss``.
        device: ``auto`` (this machine's GPU, else the RTX 2060 SUPER), ``cpu``, or a device of the
            table.
        precision: ``fp32``, or autocast to ``bf16`` or ``fp16`` (with a gradient scaler).
        snapshot: file for a memory snapshot of the replay that PyTorch's memory_viz opens.
        perfetto: file for a JSON trace of the replay that Perfetto opens.

    Raises:
        UnknownNameError: no such device.
        UsageError: an argument out of its domain, or a step that fails or depends on the values of
            tensors.
        InputError: a file cannot be written, or is not one that this program wrote.
    """
    from planner.target_device import find_target
    from profiler.prediction.module_estimate import estimate_of
    from profiler.replay.module_replay import ModuleStep, replay_module

    check_replay_files(snapshot=snapshot, perfetto=perfetto)
    target = find_target(device_name(device))
    step = ModuleStep(
        module=module, batch=batch, loss=loss, optimizer=optimizer, precision=precision
    )
    log = replay_module(step, device=target.spec)
    save_replay(log, target.spec, snapshot=snapshot, perfetto=perfetto)
    return estimate_of(step, log, device=target.spec)
