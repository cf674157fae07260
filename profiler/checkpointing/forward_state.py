"""State that a recomputation restores, so that it repeats the first forward bit by bit.

    autocast_states    autocast's precision per device type at the first forward
    RandomState        random generators before the first forward
    frozen_statistics  BatchNorm layers that must not update their running statistics a second time

``torch.utils.checkpoint`` restores the first two (``preserve_rng_state``, ``_get_autocast_kwargs``)
and updates BatchNorm's running statistics twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.batchnorm import _BatchNorm

AutocastStates = tuple[tuple[str, torch.dtype | None], ...]
"""Device type and autocast's precision, None where autocast is off."""


SEQUENCES = (list, tuple)
"""Types of arguments that may hold tensors. ``list | tuple`` in ``isinstance`` would build a union
type at every call."""


def values_among(values: Iterable[object], kind: type | tuple[type, ...]) -> Iterator[Any]:
    """Yield the values of a type, also those inside lists, tuples and dicts."""
    for value in values:
        if isinstance(value, kind):
            yield value
        elif isinstance(value, SEQUENCES):
            yield from values_among(value, kind)
        elif isinstance(value, dict):
            yield from values_among(value.values(), kind)


def tensors_among(values: Iterable[object]) -> Iterator[Tensor]:
    """Yield the tensors among the arguments of a call, also those in lists, tuples and dicts."""
    return values_among(values, Tensor)


def autocast_states(args: Sequence[object]) -> AutocastStates:
    """Return autocast's precision on the CPU and on the devices of the tensors in ``args``."""
    kinds = {"cpu"} | {tensor.device.type for tensor in tensors_among(args)}
    kinds.discard("meta")
    return tuple(
        (kind, torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None)
        for kind in kinds
    )


class RandomState:
    """The states of the random generators of the CPU and a device."""

    __slots__ = ("cpu", "device", "state")

    def __init__(self, device: torch.device) -> None:
        self.cpu = torch.get_rng_state()
        self.device = device
        self.state: Tensor | None = None
        if device.type != "cpu":
            self.state = torch.get_device_module(device).get_rng_state(device)

    @classmethod
    def before(cls, args: Sequence[object]) -> RandomState | None:
        """Return the state before a call with these arguments.

        None for fake and meta tensors, whose operations draw no random numbers.
        """
        tensor = next(tensors_among(args), None)
        if tensor is None or tensor.is_meta or isinstance(tensor, FakeTensor):
            return None
        return cls(tensor.device)

    def was_used(self) -> bool:
        """Return True if a generator has advanced since."""
        now = RandomState(self.device)
        pairs = [(self.cpu, now.cpu), (self.state, now.state)]
        return any(a is not None and b is not None and not torch.equal(a, b) for a, b in pairs)

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Set the generators to this state, and back to their present state on exit."""
        now = RandomState(self.device)
        self._set()
        try:
            yield
        finally:
            now._set()

    def _set(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.state is not None:
            torch.get_device_module(self.device).set_rng_state(self.state, self.device)


@contextlib.contextmanager
def frozen_statistics(batch_norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Let BatchNorm normalise by the batch without updating its running statistics.

    The layers keep their statistics and get momentum 0. Without statistics they would save other
    tensors for backward than in the first forward.
    """
    before = [(n, n.momentum, n._buffers.get("num_batches_tracked")) for n in batch_norms]
    try:
        for norm, _, counter in before:
            norm.momentum = 0.0
            if counter is not None:
                norm._buffers["num_batches_tracked"] = None
        yield
    finally:
        for norm, momentum, counter in before:
            norm.momentum = momentum
            if counter is not None:
                norm._buffers["num_batches_tracked"] = counter
