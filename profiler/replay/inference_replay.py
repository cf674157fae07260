"""Replay of an inference on fake tensors, with every storage's birth and death recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from profiler.device_rules.cpu_kernels import Probe
from profiler.device_rules.cuda_scratch import CudaKernels
from profiler.devices.table import DeviceSpec, multiprocessors
from profiler.replay.event_log import EventLog, OperationRecord
from profiler.replay.fake_model import tensors_in_move_order, to_fake
from profiler.replay.operation_counter import OperationCounter, OperationTimer
from profiler.replay.recorder import Recorder
from profiler.replay.step_replay import imitate
from profiler.replay.storages import OWNER_CODE


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceReplay:
    """A replayed inference.

    Attributes:
        log: its storages and operations.
        parts: operations of each part that the inference announced, in order.
    """

    log: EventLog
    parts: dict[str, tuple[OperationRecord, ...]]


def replay_inference(
    model: nn.Module,
    run: Callable[[nn.Module, Callable[[str], None]], object],
    *,
    device: DeviceSpec,
    batch: int,
    timer: OperationTimer | None = None,
) -> InferenceReplay:
    """Replay ``run(model, begin_part)``.

    Args:
        model: a model on ``meta``. Its tensors become fake.
        run: makes its own inputs and calls the model; it announces each part by its name.
        device: device whose kernels are imitated.
        batch: number of images, for the counts of operations.
        timer: times each distinct operation; None for no timing.
    """
    kernels = CudaKernels(multiprocessors(device)) if device.is_cuda else Probe()
    begins: dict[str, int] = {}
    with FakeTensorMode(allow_non_fake_inputs=True), imitate(device), torch.no_grad():
        to_fake(model)
        counter = OperationCounter(batch=batch, scans_as_loops=device.is_cuda, timer=timer)
        recorder = Recorder((), kernel_bytes=kernels, counter=counter)
        with recorder:
            for tensor in tensors_in_move_order(model):
                owner = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
                recorder.storages.follow(tensor, owner=OWNER_CODE[owner])
            with recorder.clock.in_phase("forward"):
                result = run(model, lambda name: begins.__setitem__(name, len(counter.records)))
        # the log is made while the model and the result are alive: they have not died
        log = recorder.log()
        del result
    ends = [*list(begins.values())[1:], len(counter.records)]
    parts = {
        name: tuple(counter.records[begin:end])
        for (name, begin), end in zip(begins.items(), ends, strict=True)
    }
    return InferenceReplay(log=log, parts=parts)
