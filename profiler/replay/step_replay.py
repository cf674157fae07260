"""Replay: one training step on fake tensors, with every storage's birth and death recorded.

No weight and no activation is ever allocated: parameters are made on ``meta``, turned into fake
CPU tensors (a CUDA build of PyTorch without a GPU cannot run backward on fake CUDA tensors), and
the step of ``profiler.training_step`` runs on them. A ``TorchDispatchMode`` sees each operation
below autograd, so saved tensors, recomputation and the optimizer's temporaries are those of a real
step. Storages die by reference counting, exactly as in a real run.

A dispatch mode cannot see memory that a kernel allocates and frees inside one operation. The
rules of ``profiler.device_rules`` add it.

The cost grows with the number of operations, not with the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from profiler.checkpointing.apply import apply_placement
from profiler.device_rules.cpu_kernels import (
    PROBE_BATCHES,
    Extended,
    Probe,
    imitate_cpu,
)
from profiler.device_rules.cuda_dispatch import imitate_cuda
from profiler.device_rules.cuda_scratch import CudaKernels
from profiler.device_rules.kernel_bytes import KernelBytes
from profiler.devices.table import CPU, DeviceSpec, multiprocessors
from profiler.models.build import BuiltModel, build_model
from profiler.models.forward_check import explain_refusals
from profiler.replay.event_log import EventLog
from profiler.replay.fake_model import (
    FakeScaler,
    fake_batch,
    leave_out_host_state,
    make_fake_optimizer,
    tensors_in_move_order,
    to_fake,
)
from profiler.replay.operation_counter import OperationCounter, OperationTimer
from profiler.replay.recorder import Recorder
from profiler.replay.repeated_units import UnitRow, expand_log, find_rows, skip_units
from profiler.replay.reused_models import ReplayModel, new_mode, reused_model
from profiler.replay.storages import OWNER_CODE
from profiler.replay.unit_marks import mark_gradients, mark_units
from profiler.training_step import TrainingStep, gc_paused
from profiler.workload import HOST_OPTIMIZER, Candidate

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from profiler.workload import Workload


class KernelMemory(Enum):
    """Memory inside operations that a replay includes.

    ``NONE``: none. ``THIS_BATCH``: the memory at the replayed batch. ``ANY_BATCH``: in addition,
    buffers of partial sums that are empty at the replayed batch but not at every batch. Profiles
    over the batch need them (``profiler.prediction.parametric``); for CUDA devices only.
    """

    NONE = "none"
    THIS_BATCH = "this batch"
    ANY_BATCH = "any batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """Parts of a step that a replay includes, and how FLOPs are counted.

    Attributes:
        optimizer: whether the optimizer's state and update are included. They depend on neither
            batch nor placement, so the search replays them once (``replay_update``) and adds them.
        kernel_memory: memory inside operations.
        repeated_units: whether only three units of each row of equal units run, and the log is
            expanded (``profiler.replay.repeated_units``). If that fails, all units run.
        published_flops: whether FLOPs are counted as in arXiv 2507.23536.
    """

    optimizer: bool = True
    kernel_memory: KernelMemory = KernelMemory.THIS_BATCH
    repeated_units: bool = False
    published_flops: bool = False

    def __post_init__(self) -> None:
        # an operation of the update may handle parameters of several units, and belongs to no unit
        if self.repeated_units and self.optimizer:
            raise ValueError("repeated_units infers no optimizer step; pass optimizer=False")

    def check(self, device: DeviceSpec, workload: Workload) -> None:
        """Refuse a device or a workload that these options do not allow.

        Raises:
            ValueError: names the option and what to pass instead.
        """
        if device.is_cuda:
            pass
        elif self.kernel_memory is KernelMemory.ANY_BATCH:
            raise ValueError("KernelMemory.ANY_BATCH needs a CUDA device; use THIS_BATCH or NONE")
        elif self.repeated_units and self.kernel_memory is not KernelMemory.NONE:
            # the memory of CPU kernels is looked up by an operation's position in the whole step
            raise ValueError("repeated_units on a CPU needs kernel_memory=KernelMemory.NONE")
        if self.repeated_units and workload.accumulation > 1:
            raise ValueError(f"repeated_units needs accumulation=1, got {workload.accumulation}")


WHOLE_STEP = ReplayOptions()


def replay_step(
    candidate: Candidate,
    *,
    device: DeviceSpec,
    options: ReplayOptions = WHOLE_STEP,
    timer: OperationTimer | None = None,
) -> EventLog:
    """Replay one steady training step of a candidate.

    A step of more than two micro-batches is replayed with two: the second shows the steady state
    of accumulation.

    Args:
        candidate: the workload and its placement.
        device: device whose kernels and optimizer defaults are imitated.
        options: parts of the step that are included.
        timer: times each distinct operation (``profiler.timing.cpu_rates``); None for no timing.

    Raises:
        UsageError: the method does not work on the backbone, the model does not run, or tensors
            wait in the host's memory and the device has no link to it.
        InputError: the placement names a unit that the backbone lacks.
        ValueError: the options do not allow this device or workload.
    """
    options.check(device, candidate.workload)
    if device.is_cuda and candidate.workload.optimizer == HOST_OPTIMIZER:
        device.check_host_link(f"optimizer {HOST_OPTIMIZER}", instead="adamw")
    if device.is_cuda and candidate.placement.uses_host_memory:
        device.check_host_link("the placement", instead="one without offload")
    with gc_paused(), explain_refusals(candidate.workload):
        return _replay_step(candidate, device=device, options=options, timer=timer)


def _replay_step(
    candidate: Candidate,
    *,
    device: DeviceSpec,
    options: ReplayOptions,
    timer: OperationTimer | None,
) -> EventLog:
    accumulation = min(candidate.workload.accumulation, 2)
    workload = candidate.workload.replace(accumulation=accumulation)
    candidate = Candidate(workload=workload, placement=candidate.placement)
    kernel_bytes = _kernel_bytes(candidate, device, options.kernel_memory)

    def run(model: ReplayModel, rows: Sequence[UnitRow] = ()) -> EventLog:
        return replay_built_model(
            model.built,
            candidate,
            device=device,
            kernel_bytes=kernel_bytes,
            optimizer=options.optimizer,
            published_flops=options.published_flops,
            rows=rows,
            timer=timer,
            mode=model.mode,
        )

    if not options.repeated_units:
        return run(ReplayModel.of(workload))
    with reused_model(workload) as model:
        rows = find_rows(model.signatures, model.built.units, candidate.placement)
        try:
            expanded = expand_log(run(model, rows), rows)
        except (TypeError, ValueError, RuntimeError):
            # MViT's units return two values, while a skipped unit returns its first argument. Units
            # of Xception begin with a function in place, which autograd refuses behind a skipped
            # one. If the error has another cause, it comes again when all units run.
            expanded = None
        return run(model) if expanded is None else expanded


def _kernel_bytes(
    candidate: Candidate, device: DeviceSpec, memory: KernelMemory
) -> KernelBytes | None:
    if memory is KernelMemory.NONE:
        return None
    if device.is_cuda:
        this_batch = memory is KernelMemory.THIS_BATCH
        return CudaKernels(multiprocessors(device), only_this_batch=this_batch)
    # CPU kernels are measured at small batches only, and extrapolated to larger ones
    batch = candidate.workload.micro_batch
    if batch <= max(PROBE_BATCHES):
        return Probe()
    low, high = (_probed(candidate, small) for small in PROBE_BATCHES)
    return Extended(low, high, batch=batch)


def _probed(candidate: Candidate, batch: int) -> Probe:
    probe = Probe()
    workload = candidate.workload.replace(micro_batch=batch)
    small = Candidate(workload=workload, placement=candidate.placement)
    built = build_model(workload, device="meta")
    replay_built_model(built, small, device=CPU, kernel_bytes=probe, optimizer=False)
    return probe


def replay_built_model(
    built: BuiltModel,
    candidate: Candidate,
    *,
    device: DeviceSpec,
    kernel_bytes: KernelBytes | None = None,
    optimizer: bool = True,
    published_flops: bool = False,
    rows: Sequence[UnitRow] = (),
    timer: OperationTimer | None = None,
    mode: FakeTensorMode | None = None,
) -> EventLog:
    """Replay one steady training step of a built model; afterwards it follows no placement.

    Args:
        built: the model on ``meta``, and its method. Its tensors become fake.
        candidate: its workload and placement.
        device: device whose kernels and optimizer defaults are imitated.
        kernel_bytes: memory inside operations; None for none.
        optimizer: whether the optimizer's state and update are included.
        published_flops: whether FLOPs are counted as in arXiv 2507.23536.
        rows: rows of equal units; only three units of each row run.
        timer: times each distinct operation; None for no timing.
        mode: mode of the model's tensors if they are fake already.
    """
    with ExitStack() as stack:
        stack.enter_context(mode or new_mode())
        stack.enter_context(imitate(device))
        to_fake(built.model)
        stack.enter_context(apply_placement(built.model, candidate.placement, units=built.units))
        stack.enter_context(skip_units(built.backbone, built.units, rows))
        counter = OperationCounter(
            batch=candidate.workload.micro_batch,
            published_flops=published_flops,
            scans_as_loops=device.is_cuda,
            timer=timer,
        )
        recorder = Recorder(built.units, kernel_bytes=kernel_bytes, counter=counter)
        return _record_step(recorder, built, candidate.workload, device=device, optimizer=optimizer)


def imitate(device: DeviceSpec) -> AbstractContextManager[None]:
    """Return a context in which operations are dispatched as on a device."""
    if device.compute_capability is None:
        return imitate_cpu()
    return imitate_cuda(device.compute_capability)


def _record_step(
    recorder: Recorder,
    built: BuiltModel,
    workload: Workload,
    *,
    device: DeviceSpec,
    optimizer: bool,
) -> EventLog:
    model = built.model
    update = make_fake_optimizer(model, workload, built.method, device=device)
    step = _training_step(recorder, built, workload, update, device)
    with recorder, mark_units(recorder, model), mark_gradients(recorder, model):
        for tensor in tensors_in_move_order(model):
            owner = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
            recorder.storages.follow(tensor, owner=OWNER_CODE[owner])
        fetch = fake_batch(workload)
        loss = step.accumulate([fetch] * workload.accumulation)
        if optimizer:
            _record_update(recorder, built, step, device)
    # the log is made while model, optimizer and loss are alive: their storages have not died
    log = recorder.log()
    del loss
    return log


def replay_update(candidate: Candidate, *, device: DeviceSpec) -> EventLog:
    """Replay the optimizer's part of a step: parameters, gradients, state and temporaries.

    Args:
        candidate: the workload; its placement and batch do not matter.
        device: device whose optimizer defaults are imitated.
    """
    workload = candidate.workload
    with reused_model(workload) as lent, lent.mode, imitate(device):
        built, model = lent.built, lent.built.model
        to_fake(model)
        counter = OperationCounter(batch=workload.micro_batch)
        recorder = Recorder(built.units, counter=counter)
        update = make_fake_optimizer(model, workload, built.method, device=device)
        step = _training_step(recorder, built, workload, update, device)
        if step.scaler is not None:
            step.scaler.scale(torch.ones(()))  # a scaler's scale is made by the first backward
        with recorder:
            for parameter in model.parameters():
                recorder.storages.follow(parameter, owner=OWNER_CODE["parameter"])
                if parameter.requires_grad:
                    parameter.grad = torch.empty_like(parameter)
                    recorder.storages.set_owner(parameter.grad, OWNER_CODE["gradient"])
            _record_update(recorder, built, step, device)
            return recorder.log()


def _training_step(
    recorder: Recorder,
    built: BuiltModel,
    workload: Workload,
    update: Optimizer,
    device: DeviceSpec,
) -> TrainingStep:
    # a compiled step runs other kernels, which a replay does not see
    eager = tuple(lever for lever in workload.levers if lever != "compile")
    step = TrainingStep(
        built.model,
        update,
        workload.replace(levers=eager),
        method=built.method,
        foreach=device.is_cuda,
        mark=recorder.clock.in_phase,
    )
    if step.scaler is not None:
        step.scaler = FakeScaler("cpu")
    return step


def _record_update(
    recorder: Recorder, built: BuiltModel, step: TrainingStep, device: DeviceSpec
) -> None:
    """Run the update twice: the first makes the optimizer's state, the second is steady."""
    with recorder.warm_up():
        step.update()
        built.method.before_zero_grad(built.model, global_step=0)
    if device.is_cuda:
        leave_out_host_state(recorder, step.optimizer)
    step.finish()
