"""Replay a training step of any ``nn.Module`` with any batch, on fake tensors.

    ModuleStep      a module, a batch, a loss and an optimizer
    replay_module   the event log of a steady step

The step is that of ``profiler.training_step``: fresh inputs, forward, loss, backward, optimizer
step, ``zero_grad(set_to_none=True)``. The module is copied without its tensors' data, so the replay
takes no memory for weights and changes nothing of the caller's.

Units of the log are the modules without children, in the order of ``named_modules``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._pytree import tree_leaves, tree_map

from profiler.device_rules.cpu_kernels import Probe, imitate_cpu
from profiler.device_rules.cuda_dispatch import imitate_cuda
from profiler.device_rules.cuda_scratch import CudaKernels
from profiler.devices.table import DeviceSpec, multiprocessors
from profiler.errors import UsageError
from profiler.replay.event_log import EventLog
from profiler.replay.fake_model import (
    FakeScaler,
    leave_out_host_state,
    tensors_in_move_order,
    to_fake,
)
from profiler.replay.recorder import Recorder
from profiler.replay.storages import OWNER_CODE
from profiler.replay.unit_marks import mark_gradients
from profiler.training_step import SGD_MOMENTUM, WEIGHT_DECAY

if TYPE_CHECKING:
    from torch.optim import Optimizer

Loss = Callable[[Any, Any], Tensor]
"""Takes (output, target) and returns a scalar."""

MakeOptimizer = Callable[[list[nn.Parameter]], "Optimizer"]

OPTIMIZER_NAMES = ("adamw", "sgd", "none")

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleStep:
    """A training step of a module.

    Attributes:
        module: module to train; parameters without ``requires_grad`` are frozen.
        batch: with a loss, a pair (inputs, target); without one, the inputs. Inputs are a tensor, a
            tuple (positional arguments) or a mapping (keyword arguments).
        loss: loss function; None if the module returns a scalar, or an object with a scalar
            ``loss``.
        optimizer: ``adamw``, ``sgd`` (momentum 0.9), ``none``, or a function that makes one of the
            trainable parameters.
        precision: ``fp32``, or autocast to ``bf16`` or ``fp16`` (with a gradient scaler).

    Raises:
        UsageError: an argument out of its domain.
    """

    module: nn.Module
    batch: Any
    loss: Loss | None = None
    optimizer: str | MakeOptimizer = "adamw"
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if self.precision not in _DTYPES:
            raise UsageError(f"precision must be one of {', '.join(_DTYPES)}: {self.precision!r}")
        if isinstance(self.optimizer, str) and self.optimizer not in OPTIMIZER_NAMES:
            raise UsageError(
                f"optimizer must be one of {', '.join(OPTIMIZER_NAMES)}, or a function that takes "
                f"parameters and returns an optimizer; got {self.optimizer!r}"
            )
        object.__setattr__(self, "batch", _plain(self.batch))
        is_pair = isinstance(self.batch, tuple | list) and len(self.batch) == 2
        if self.loss is not None and not is_pair:
            raise UsageError("with a loss, the batch must be a pair (inputs, target)")
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(self.batch)):
            raise UsageError("the batch holds no tensor")
        if not any(p.requires_grad for p in self.module.parameters()):
            raise UsageError("no parameter of the module is trainable (requires_grad)")

    def loss_of(self, module: nn.Module, batch: Any) -> Tensor:
        """Return the scalar loss of a batch."""
        inputs = batch if self.loss is None else batch[0]
        if isinstance(inputs, Mapping):
            output = module(**inputs)
        elif isinstance(inputs, tuple | list):
            output = module(*inputs)
        else:
            output = module(inputs)
        if self.loss is not None:
            return self.loss(output, batch[1])
        found = getattr(output, "loss", output)
        if isinstance(output, Mapping):
            found = output.get("loss", output)
        if not isinstance(found, Tensor) or found.numel() != 1:
            raise UsageError(
                "the module returns no scalar and no object with a scalar `loss`; pass loss= and a "
                "batch (inputs, target)"
            )
        return found


def _plain(batch: Any) -> Any:
    """Return a batch whose mappings are dicts; PyTorch's tree functions know no others."""
    if isinstance(batch, Mapping) and not isinstance(batch, dict):
        return {key: _plain(value) for key, value in batch.items()}
    if type(batch) in (tuple, list):
        return type(batch)(_plain(value) for value in batch)
    return batch


def replay_module(step: ModuleStep, *, device: DeviceSpec) -> EventLog:
    """Replay one steady training step of a module.

    Args:
        step: the step.
        device: device whose kernels are imitated.

    Raises:
        UsageError: the step fails, or depends on the values of tensors.
    """
    try:
        copied = _without_data(step.module)
        with FakeTensorMode(allow_non_fake_inputs=True), _imitation(device):
            to_fake(copied)
            copied.train(step.module.training)
            return _record(step, copied, device)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise UsageError(
            f"the step depends on the values of tensors ({error.func}), which a replay without "
            "data does not have; replace .item(), nonzero() and the like by operations of fixed "
            "shape"
        ) from error
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise UsageError(
            f"the step of {type(step.module).__name__} fails: {type(error).__name__}: {first}"
        ) from error


def _without_data(module: nn.Module) -> nn.Module:
    """Return a copy of a module whose parameters and buffers are on ``meta``."""
    known: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        empty = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
        )
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
        known[id(tensor)] = empty
    return copy.deepcopy(module, known)


def _imitation(device: DeviceSpec) -> AbstractContextManager[None]:
    if device.compute_capability is None:
        return imitate_cpu()
    return imitate_cuda(device.compute_capability)


def _record(step: ModuleStep, module: nn.Module, device: DeviceSpec) -> EventLog:
    leaves = {name: leaf for name, leaf in module.named_modules() if not any(leaf.children())}
    kernels = CudaKernels(multiprocessors(device)) if device.is_cuda else Probe()
    recorder = Recorder(tuple(leaves), kernel_bytes=kernels)
    optimizer = module_optimizer(step, module, foreach=device.is_cuda)
    scaler = FakeScaler("cpu") if step.precision == "fp16" else None
    dtype = _DTYPES[step.precision]
    for index, leaf in enumerate(leaves.values()):
        _mark(recorder, index, leaf)
    in_phase = recorder.clock.in_phase
    with recorder, mark_gradients(recorder, module):
        for tensor in tensors_in_move_order(module):
            owner = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
            recorder.storages.follow(tensor, owner=OWNER_CODE[owner])
        with in_phase("input"):
            batch = _fake_batch(step.batch)
        autocast = nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype)
        with in_phase("forward"), autocast:
            loss = step.loss_of(module, batch)
        with in_phase("backward"):
            (scaler.scale(loss) if scaler is not None else loss).backward()
        held = loss.detach()
        del loss
        if optimizer is not None:
            with recorder.warm_up():
                _update(optimizer, scaler)
            if device.is_cuda:
                leave_out_host_state(recorder, optimizer)
        with in_phase("optimizer"):
            if optimizer is not None:
                _update(optimizer, scaler)
            module.zero_grad(set_to_none=True)
    log = recorder.log()
    del held, batch
    return log


def _update(optimizer: Optimizer, scaler: FakeScaler | None) -> None:
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()


def module_optimizer(step: ModuleStep, module: nn.Module, *, foreach: bool) -> Optimizer | None:
    """Return the optimizer of a step for the parameters of a module; None for none."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    if step.optimizer == "none":
        return None
    if step.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=1e-3, momentum=SGD_MOMENTUM, foreach=foreach)
    if step.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=WEIGHT_DECAY, foreach=foreach)
    assert not isinstance(step.optimizer, str)
    return step.optimizer(parameters)


def _fake_batch(batch: Any) -> Any:
    """Return a batch of fake tensors of the same layouts; other values are unchanged.

    A tensor that occurs twice, such as the input of an autoencoder that is also its target, is made
    once.
    """
    made: dict[int, Tensor] = {}

    def fake_input(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in made:
            empty = torch.empty_strided(
                value.shape, value.stride(), dtype=value.dtype, device="cpu"
            )
            made[id(value)] = empty.requires_grad_(value.requires_grad)
        return made[id(value)]

    return tree_map(fake_input, batch)


def _mark(recorder: Recorder, index: int, leaf: nn.Module) -> None:
    """Mark forward and backward of a module without children."""
    clock = recorder.clock

    def leave(_module: nn.Module, _args: object, out: object) -> None:
        clock.leave(index, is_sequence=False)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda _: clock.begin_backward(index))
                return

    leaf.register_forward_pre_hook(lambda *_: clock.enter(index))
    leaf.register_forward_hook(leave)
