"""Replay: one training step on fake tensors, with every storage's birth and death recorded.

No weight and no activation is ever allocated: parameters are made on ``meta``, turned into fake
CPU tensors (a CUDA build of PyTorch without a GPU cannot run backward on fake CUDA tensors), and
the step of ``profiler.training_step`` runs on them. A ``TorchDispatchMode`` sees each operation after
autograd has split it, so the saved tensors, the checkpoint's recomputation and the optimizer's
temporaries are the real ones. Storages die by reference counting exactly as in a real run.

What a dispatch mode cannot see is memory that a kernel takes and gives back inside one operation;
``profiler.device_rules.cpu_kernels`` knows that for the target's kernels.

The cost grows with the number of operations, not with the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from profiler.checkpointing.apply import apply_placement
from profiler.device_rules.cpu_kernels import (
    PROBE_BATCHES,
    RTX_2060_SUPER,
    TURING,
    Extended,
    KernelBytes,
    Probe,
    kernels_of,
)
from profiler.device_rules.cuda_scratch import CudaKernels
from profiler.devices.table import Capability, Multiprocessors
from profiler.models.build import BuiltModel, build_model
from profiler.replay.event_log import (
    EventLog,
)
from profiler.replay.fake_model import (
    FakeScaler,
    fake_batch,
    forget_host_state,
    make_fake_optimizer,
    tensors_in_move_order,
    to_fake,
)
from profiler.replay.recorder import OWNER_CODE, OperationTimer, Recorder
from profiler.replay.repeated_units import Row, expand, pass_on, rows_of
from profiler.replay.unit_marks import mark_gradients, mark_units
from profiler.training_step import TrainingStep
from profiler.workload import Candidate

if TYPE_CHECKING:
    from profiler.workload import Workload


# -- replaying a candidate ---------------------------------------------------------------------


def replay(
    candidate: Candidate,
    *,
    target: str = "cuda",
    capability: Capability = TURING,
    on: Multiprocessors = RTX_2060_SUPER,
    optimizer: bool = True,
    inside_kernels: bool = True,
    only_this_batch: bool = True,
    as_published: bool = False,
    abridged: bool = False,
    stopwatch: OperationTimer | None = None,
) -> EventLog:
    """Replay one steady training step of a candidate.

    Args:
        candidate: what to replay.
        target: ``cuda`` or ``cpu``: whose kernels and optimizer defaults are imitated.
        capability: compute capability of the CUDA device: it decides which attention runs.
        on: its multiprocessors: they decide how much scratch a reduction takes.
        optimizer: False leaves the optimizer's state and step out (the search adds them, since
            they depend neither on batch nor on placement).
        inside_kernels: add what kernels hold inside one operation.
        only_this_batch: False also notes what kernels hold at other batches alone, of no bytes here
            (for ``profiler.prediction.parametric``).
        as_published: count FLOPs as arXiv 2507.23536 did.
        abridged: of units that are alike run three, as far as the rest can be told from them
            (``profiler.replay.repeated_units``): of one micro-batch, without optimizer and CPU kernels.
        stopwatch: really runs and times each distinct operation (``profiler.timing.cpu_rates``).

    Raises:
        UsageError: the method does not work on the backbone.
        InputError: the placement names a unit the backbone lacks.
    """
    # two micro-batches already show the steady state of accumulation
    accumulation = min(candidate.workload.accumulation, 2)
    workload = candidate.workload.replace(accumulation=accumulation)
    candidate = Candidate(workload=workload, placement=candidate.placement)
    inside: KernelBytes | None = None
    if inside_kernels:
        inside = (
            CudaKernels(on, only_this_batch=only_this_batch)
            if target == "cuda"
            else _cpu_kernels(candidate)
        )
    run = partial(
        replay_built_model,
        candidate=candidate,
        target=target,
        inside=inside,
        capability=capability,
        optimizer=optimizer,
        as_published=as_published,
        stopwatch=stopwatch,
    )
    built = build_model(candidate.workload, device="meta")
    # what CPU kernels take was probed in the order of a whole step
    probed = inside_kernels and target == "cpu"
    if abridged and not (accumulation > 1 or optimizer or probed):
        rows = rows_of(built.backbone, built.units, candidate.placement)
        told = expand(run(built, idle=rows), rows)
        if told is not None:
            return told
        built = build_model(candidate.workload, device="meta")
    return run(built)


def replay_update(candidate: Candidate, *, target: str = "cuda") -> EventLog:
    """Replay the optimizer's part of a step alone: parameters, gradients, state, temporaries.

    Args:
        candidate: whose optimizer; its placement and batch do not matter.
        target: ``cuda`` or ``cpu``.
    """
    workload = candidate.workload
    built = build_model(workload, device="meta")
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = built.model
        to_fake(model)
        recorder = Recorder(built.units, batch=workload.micro_batch)
        update = make_fake_optimizer(model, workload, built.method, target=target)
        step = TrainingStep(
            model,
            update,
            workload,
            method=built.method,
            foreach=target == "cuda",
            mark=recorder.in_phase,
        )
        if step.scaler is not None:
            step.scaler = FakeScaler("cpu")
            step.scaler.scale(torch.ones(()))  # a scaler exists from the first backward on
        with recorder:
            for parameter in model.parameters():
                recorder.adopt(parameter, OWNER_CODE["parameter"])
                if parameter.requires_grad:
                    parameter.grad = torch.empty_like(parameter)
                    recorder.own(parameter.grad, OWNER_CODE["gradient"])
            with recorder.warm_up():
                step.update()
                built.method.before_zero_grad(model, global_step=0)
            if target == "cuda":
                forget_host_state(recorder, update)
            step.finish()
            return recorder.log()


def _cpu_kernels(candidate: Candidate) -> KernelBytes:
    batch = candidate.workload.micro_batch
    if batch <= max(PROBE_BATCHES):
        return Probe()
    low, high = (_probed(candidate, small) for small in PROBE_BATCHES)
    return Extended(low, high, batch=batch)


def _probed(candidate: Candidate, batch: int) -> Probe:
    probe = Probe()
    small = Candidate(
        workload=candidate.workload.replace(micro_batch=batch), placement=candidate.placement
    )
    built = build_model(small.workload, device="meta")
    replay_built_model(built, small, target="cpu", inside=probe, optimizer=False)
    return probe


def replay_built_model(
    built: BuiltModel,
    candidate: Candidate,
    *,
    target: str,
    inside: KernelBytes | None = None,
    capability: Capability = TURING,
    optimizer: bool = True,
    as_published: bool = False,
    idle: Sequence[Row] = (),
    stopwatch: OperationTimer | None = None,
) -> EventLog:
    """Replay one steady training step of a model on ``meta``, which turns fake by it.

    Args:
        built: the model and its method.
        candidate: its workload and placement.
        target: ``cuda`` or ``cpu``.
        inside: what kernels hold inside one operation; None for nothing.
        capability: compute capability of the CUDA device.
        optimizer: False leaves the optimizer's state and step out.
        as_published: count FLOPs as arXiv 2507.23536 did.
        idle: rows of units of which only some run.
        stopwatch: really runs and times each distinct operation.
    """
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        kernels_of(target, capability=capability),
    ):
        to_fake(built.model)
        apply_placement(built.model, candidate.placement, units=built.units)
        pass_on(built.backbone, built.units, idle)
        recorder = Recorder(
            built.units,
            batch=candidate.workload.micro_batch,
            kernel_bytes=inside,
            as_published=as_published,
            stopwatch=stopwatch,
            in_loops=target == "cuda",
        )
        return _record_step(recorder, built, candidate.workload, target=target, optimizer=optimizer)


def _record_step(
    recorder: Recorder, built: BuiltModel, workload: Workload, *, target: str, optimizer: bool
) -> EventLog:
    model = built.model
    update = make_fake_optimizer(model, workload, built.method, target=target)
    step = TrainingStep(
        model,
        update,
        workload,
        method=built.method,
        foreach=target == "cuda",
        mark=recorder.in_phase,
    )
    if step.scaler is not None:
        step.scaler = FakeScaler("cpu")
    with recorder, mark_units(recorder, model), mark_gradients(recorder, model):
        for tensor in tensors_in_move_order(model):
            is_parameter = isinstance(tensor, nn.Parameter)
            recorder.adopt(tensor, OWNER_CODE["parameter" if is_parameter else "buffer"])
        fetch = fake_batch(workload)
        loss = step.accumulate([fetch] * workload.accumulation)
        if optimizer:
            with recorder.warm_up():
                step.update()
                built.method.before_zero_grad(model, global_step=0)
            if target == "cuda":
                forget_host_state(recorder, update)
            step.finish()
    # the model, the optimizer and the loss are still alive here: what they hold did not die
    log = recorder.log()
    del loss
    return log
