"""Tensors of a unit that wait in the host's memory between forward and backward.

    SavedOnHost        decision offload: tensors are copied to the host as a unit saves them for
                       backward, and back when backward needs them
    OffloadedInput     the input of a unit with decision recompute-from-host
    host_work          the copy under way, for a recorder

The idea is ``torch.autograd.graph.save_on_cpu``; three things differ. A storage that several saved
tensors share is copied once, as a whole. Parameters, their casts and small tensors stay. Copies
are queued on the stream of the computation, from and to page-locked memory, so that neither host
nor allocator waits for them: blocks are freed and taken at the same places of the program as in a
replay. They do not overlap with kernels. A second stream would hide a part of their time, but then
a block is free only after an event that no replay can foresee.

On a CPU nothing is moved, except in a replay of a GPU's step.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from profiler.checkpointing.forward_state import tensors_among
from profiler.checkpointing.recompute import KeptInput
from profiler.device_rules.cuda_dispatch import runs_on_cpu
from profiler.devices.host_link import HostWork

SMALLEST_MOVED_SHARE = 1 / 16
"""Smallest tensor that is moved, as a share of the unit's input. It divides the statistics of norms
and attention from activations. Both grow with the batch, so it does so at every batch."""


_host_work: ContextVar[HostWork | None] = ContextVar("host_work", default=None)


def host_work() -> HostWork | None:
    """Return the work under way that concerns the host's memory; None if there is none."""
    return _host_work.get()


@contextlib.contextmanager
def working(kind: HostWork) -> Iterator[None]:
    """Make ``host_work`` return a kind of work."""
    token = _host_work.set(kind)
    try:
        yield
    finally:
        _host_work.reset(token)


class HostStorage:
    """A copy of a tensor's whole storage in the host's memory.

    Args:
        tensor: a tensor on the device.
    """

    __slots__ = ("__weakref__", "_copy", "_device", "_waiting")

    def __init__(self, tensor: Tensor) -> None:
        whole = _whole_storage(tensor)
        self._device = tensor.device
        self._waiting: list[weakref.ref[OffloadedTensor]] = []
        with working(HostWork.TO_HOST):
            self._copy = torch.empty(
                whole.shape, dtype=whole.dtype, device="cpu", pin_memory=whole.is_cuda
            )
            self._copy.copy_(whole, non_blocking=True)

    def add(self, offloaded: OffloadedTensor) -> None:
        """Register a tensor that ``fill_waiting`` gives its values back."""
        self._waiting.append(weakref.ref(offloaded))

    def on_device(self) -> Tensor:
        """Return a new copy of the whole storage on the device, [values]."""
        with working(HostWork.TO_DEVICE):
            whole = torch.empty(self._copy.shape, dtype=self._copy.dtype, device=self._device)
            return whole.copy_(self._copy, non_blocking=True)

    def fill_waiting(self) -> None:
        """Give every registered tensor that is still alive its values; they share one storage."""
        whole = self.on_device()
        for ref in self._waiting:
            offloaded = ref()
            if offloaded is not None:
                offloaded.tensor = whole.as_strided(*offloaded.geometry)


class OffloadedTensor:
    """Placeholder in the autograd graph for a saved tensor whose values are on the host."""

    __slots__ = ("__weakref__", "geometry", "host", "tensor")

    def __init__(self, tensor: Tensor, host: HostStorage) -> None:
        self.geometry = (tensor.shape, tensor.stride(), tensor.storage_offset())
        self.host = host
        self.tensor: Tensor | None = None
        host.add(self)

    def unpack(self) -> Tensor:
        """Return the tensor on the device."""
        if self.tensor is None:
            self.host.fill_waiting()
        assert self.tensor is not None, "a placeholder that is asked for is alive"
        return self.tensor


def unpack_from_host(packed: OffloadedTensor | Tensor) -> Tensor:
    """Unpack hook: return the saved tensor on the device."""
    return packed.unpack() if isinstance(packed, OffloadedTensor) else packed


class SavedOnHost:
    """The tensors that a call of a unit saves: moves some, and copies each storage once.

    Args:
        module: the unit; its parameters and buffers stay on the device.
        given: the unit's input.
    """

    def __init__(self, module: nn.Module, given: Tensor) -> None:
        own = [*module.parameters(), *module.buffers()]
        self._own = {tensor.untyped_storage()._cdata for tensor in own}
        self._shapes = {tuple(tensor.shape) for tensor in own}
        self._smallest_bytes = SMALLEST_MOVED_SHARE * given.numel() * given.element_size()
        # a weak reference frees the memory, but no other storage gets its address, the key
        self._copied: dict[tuple[object, ...], tuple[StorageWeakRef, HostStorage]] = {}

    def pack(self, tensor: Tensor) -> OffloadedTensor | Tensor:
        """Pack hook: return the tensor, or a placeholder for it."""
        storage = tensor.untyped_storage()
        if self._stays(tensor, storage):
            return tensor.detach()
        # conjugate and negative views share a storage with other values
        views = (tensor.is_conj(), tensor.is_neg())
        key = (storage._cdata, tensor._version, tensor.dtype, views)
        if key not in self._copied:
            self._copied[key] = StorageWeakRef(storage), HostStorage(tensor.detach())
        return OffloadedTensor(tensor, self._copied[key][1])

    def _stays(self, tensor: Tensor, storage: torch.UntypedStorage) -> bool:
        # autocast saves casts of weights, whose bytes do not grow with the batch
        is_weight = storage._cdata in self._own or self._has_weights_shape(tensor)
        return is_weight or runs_on_cpu(tensor) or storage.nbytes() < self._smallest_bytes

    def _has_weights_shape(self, tensor: Tensor) -> bool:
        shape = tuple(tensor.shape)
        return shape in self._shapes or shape[::-1] in self._shapes


class OffloadedInput(KeptInput):
    """An input of a recomputable call that waits on the host.

    Args:
        tensor: the input, on the device.
    """

    __slots__ = ("_geometry", "_host")

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.requires_grad = tensor.shape, tensor.requires_grad
        self._geometry = (tensor.shape, tensor.stride(), tensor.storage_offset())
        self._host = HostStorage(tensor.detach())

    def take(self, *, only_this: bool) -> Tensor:
        """Return the input on the device; later changes in place of the original do not matter."""
        return self._host.on_device().as_strided(*self._geometry)


def first_tensor(args: tuple[object, ...], kwargs: dict[str, object]) -> Tensor | None:
    """Return the first tensor among the arguments of a call, the unit's input."""
    return next(tensors_among((*args, *kwargs.values())), None)


def _whole_storage(tensor: Tensor) -> Tensor:
    """Return all values of a tensor's storage, [values]."""
    count = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.as_strided((count,), (1,), 0)
