"""Model, optimizer, gradient scaler and batch on fake tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._guards import active_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from profiler.replay.known_results import fake_empty
from profiler.replay.recorder import Recorder
from profiler.training_step import Batch, make_optimizer

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from profiler.devices.table import DeviceSpec
    from profiler.models.methods.base import Method
    from profiler.workload import Workload

_BOOK_LENGTH = 256
"""Values of an 8-bit code book."""


def tensors_in_move_order(module: nn.Module) -> Iterator[Tensor]:
    """Yield parameters and buffers in the order in which ``Module.to`` moves them.

    The order decides which blocks of the caching allocator they get. Source: ``Module._apply``,
    torch/nn/modules/module.py.
    """
    for child in module.children():
        yield from tensors_in_move_order(child)
    for table in (module._parameters, module._buffers):
        yield from (tensor for tensor in table.values() if tensor is not None)


def make_fake_optimizer(
    model: nn.Module, workload: Workload, method: Method, *, device: DeviceSpec
) -> Optimizer:
    """Return the optimizer of a fake model.

    bitsandbytes computes the values of its 8-bit code books when it makes the optimizer and its
    first state. Fake tensors have no values, so the optimizer is made outside fake mode, and fake
    code books of the same size replace the real ones.

    Source: ``Optimizer8bit.fill_qmap``, bitsandbytes/optim/optimizer.py.
    """
    make = partial(make_optimizer, model, workload, method=method, foreach=device.is_cuda)
    if workload.optimizer != "adamw8bit":
        return make()
    with unset_fake_temporarily():
        update: Any = make()
    books = list(getattr(update, "name2qmap", ()))

    def fill() -> None:  # called when the first state is made
        update.name2qmap.update({book: torch.zeros(_BOOK_LENGTH) for book in books})

    update.name2qmap, update.fill_qmap = {}, fill
    made: Optimizer = update
    return made


def leave_out_host_state(recorder: Recorder, optimizer: Optimizer) -> None:
    """Leave the step counters out: PyTorch keeps them on the host unless the update is fused.

    Source: ``_init_group``, torch/optim/adamw.py.
    """
    if optimizer.defaults.get("fused"):
        return
    for state in optimizer.state.values():
        counter = state.get("step")
        if isinstance(counter, Tensor):
            recorder.storages.leave_out(counter)


class FakeScaler(torch.amp.GradScaler):
    """A gradient scaler that reads no tensor's value; fake tensors have none."""

    def _maybe_opt_step(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        return optimizer.step()

    def update(self, new_scale: Any = None) -> None:
        """Leave the scale as it is: a fake tensor has no values to adapt it to."""
        for state in self._per_optimizer_states.values():
            state["stage"] = torch.amp.grad_scaler.OptState.READY


def fake_batch(workload: Workload) -> Callable[[], Batch]:
    """Return a function that makes images [batch, 3, size, size] and labels [batch]."""
    shape = (workload.micro_batch, 3, workload.image_size, workload.image_size)

    def fetch() -> Batch:
        return torch.empty(shape), torch.empty(shape[0], dtype=torch.long)

    return fetch


def to_fake(model: nn.Module) -> None:
    """Turn every parameter and buffer on ``meta`` into a fake CPU tensor (call in fake mode)."""
    mode = active_fake_mode()
    assert mode is not None, "to_fake is called in fake mode"
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is None or not tensor.is_meta:
                    continue
                if id(tensor) not in made:
                    made[id(tensor)] = _fake_like(tensor, mode)
                table[name] = made[id(tensor)]  # type: ignore[assignment]


def _fake_like(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    fake = fake_empty(tensor, mode)
    if isinstance(tensor, nn.Parameter):
        # as nn.Parameter does for a tensor of another class, but without a detached copy
        fake.requires_grad_(tensor.requires_grad)
        fake._is_param = True
    return fake
