"""Make a model's forward follow a placement: the same code for replay, measuring and training.

One mechanism serves every decision. A *frame* is one call of a module whose saved tensors can be
had again by running the call again (non-reentrant checkpointing: pack and unpack hooks of autograd,
so that the graph, the gradients and everything that hangs on them are those of the plain model):

    _Frame     inputs, random state and autocast state of one call; how to run it again
    _Slot      what autograd holds instead of a saved tensor; unpacking an empty one refills the
               frame, which stops as soon as the last slot still alive is filled
    _Reading   a slot for (a view or a cast of) a frame's *output*, held by whoever saved it or
               took it as input; so outputs of frames need not be kept either
    _Table     from storages to the frames that made them, to recognise such outputs

    recompute  the unit is a frame
    segment    the unit is a frame whose input is a reading of the unit before it. Refilling it
               refills that one too, whose own backward then finds its slots full: one forward for
               the whole segment. Where the model puts something between the two units, or the unit
               before saved nothing (a frozen prefix), the input is kept instead
    cheap      norms, activation functions and dropout inside the unit are frames, and what the rest
               of the unit saves of their outputs are readings. Matmuls, convolutions, attention and
               scans run once. A frame that would have to keep an input which nobody else keeps (a
               ReLU behind an addition) frees nothing: it is left alone
    unit/part  the branch is a frame, reading its input from the norm in front of it; so the norm's
               output goes too. What stays: the residual stream, and the branch's output where
               something outside the branch saves it (a trainable LayerScale)

What a recompute must not do: draw other random numbers (the generator is put back, only if the
first call moved it), update BatchNorm's statistics again (momentum 0, no counting), run in another
autocast state than the first call. Nothing is framed when gradients are off, and a call that saves
nothing costs nothing. Modules keep class, name and state: only the instance's ``forward`` changes.

Limits: a unit must not modify its own input in place (refilling raises), and tensors that a custom
autograd function hides from ``save_for_backward`` (bitsandbytes: its quantised weight) stay.
"""

from __future__ import annotations

import contextlib
import difflib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.batchnorm import _BatchNorm

from profiler.backbones.discovery import find_units
from profiler.errors import InputError
from profiler.methods.base import backbone_of
from profiler.placement import RECOMPUTE, SEGMENT, Placement

_recomputing: ContextVar[bool] = ContextVar("recomputing", default=False)


def recomputing() -> bool:
    """True while a frame runs again for backward."""
    return _recomputing.get()


# --- frames -------------------------------------------------------------------------------------


class _FilledError(Exception):
    """Stops a recompute: every slot still alive is filled."""


class _Slot:
    """What autograd holds in place of a saved tensor."""

    __slots__ = ("__weakref__", "dtype", "frame", "shape", "tensor")

    def __init__(self, frame: _Frame, like: Tensor) -> None:
        self.frame = frame
        self.tensor: Tensor | None = None
        self.shape, self.dtype = like.shape, like.dtype

    def unpack(self) -> Tensor:
        if self.tensor is None:
            self.frame.refill()
        if self.tensor is None:
            raise RuntimeError(
                f"recomputing {self.frame.call.name} saved fewer tensors than its first forward; "
                "its forward depends on something that changed in between, so keep this unit"
            )
        return self.tensor

    def fill(self, tensor: Tensor) -> None:
        if tensor.shape != self.shape or tensor.dtype != self.dtype:
            raise RuntimeError(
                f"recomputing {self.frame.call.name} gave {tuple(tensor.shape)} {tensor.dtype} "
                f"where its first forward saved {tuple(self.shape)} {self.dtype}; "
                "its forward depends on something that changed in between, so keep this unit"
            )
        self.tensor = tensor.detach()


def _unpack(packed: _Slot | Tensor) -> Tensor:
    return packed.unpack() if isinstance(packed, _Slot) else packed


def _never(_: object) -> Tensor:
    raise RuntimeError("backward inside a recompute is not supported")


class _Reading(_Slot):
    """A slot for a frame's output as somebody else sees it: a view, or a cast."""

    __slots__ = ("geometry", "requires_grad")

    def __init__(self, frame: _Frame, like: Tensor) -> None:
        super().__init__(frame, like)
        self.geometry = (tuple(like.shape), tuple(like.stride()), int(like.storage_offset()))
        self.requires_grad = like.requires_grad
        frame.readings.append(weakref.ref(self))

    def take(self) -> Tensor:
        """Return the tensor and forget it: for a frame's input, needed once per refill."""
        tensor = self.unpack()
        self.tensor = None
        return tensor

    def read(self, output: Tensor) -> None:
        cast = output.detach().to(self.dtype)
        self.fill(cast.as_strided(*self.geometry))


class _Held:
    """A frame's input that stays in memory."""

    __slots__ = ("requires_grad", "tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()
        self.requires_grad = tensor.requires_grad
        self.version = tensor._version

    def take(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(
                "the input of a recomputed unit was modified in place after its forward; "
                "keep this unit, or switch its in-place operations off"
            )
        return self.tensor


class _Frame:
    """One call of a module that can be run again."""

    __slots__ = (
        "__weakref__",
        "autocast",
        "call",
        "inputs",
        "kwargs",
        "random",
        "readings",
        "slots",
    )

    def __init__(
        self, call: _Call, args: tuple[Any, ...], kwargs: dict[str, Any], *, source: _Table | None
    ) -> None:
        self.call = call
        self.inputs = [_hold(value, source) for value in args]
        self.kwargs = {key: _hold(value, source) for key, value in kwargs.items()}
        device = next((a.device for a in args if isinstance(a, Tensor)), torch.device("cpu"))
        self.autocast = _autocast_states(device)
        self.random = _RandomState.of(args) if call.stochastic else None
        self.slots: list[weakref.ref[_Slot]] = []
        self.readings: list[weakref.ref[_Reading]] = []

    def pack(self, tensor: Tensor) -> _Slot:
        slot = _Slot(self, tensor)
        self.slots.append(weakref.ref(slot))
        return slot

    def forget_unused_random_state(self) -> None:
        if self.random is not None and not self.random.was_used():
            self.random = None

    def refill(self) -> None:
        """Run the call again and fill every empty slot and reading that is still alive."""
        alive = [slot for ref in self.readings if (slot := ref()) is not None]
        wanted = [reading for reading in alive if reading.tensor is None]
        empty = [(ref(), i) for i, ref in enumerate(self.slots)]
        last = max((i for slot, i in empty if slot is not None and slot.tensor is None), default=-1)
        del empty
        args = [_retake(value) for value in self.inputs]
        kwargs = {key: _retake(value) for key, value in self.kwargs.items()}
        token = _recomputing.set(True)
        try:
            with torch.enable_grad(), self._first_state():
                outputs = self._run(args, kwargs, last=last, stop=not wanted)
        finally:
            _recomputing.reset(token)
        for reading in wanted:
            reading.read(outputs)

    def _run(self, args: list[Any], kwargs: dict[str, Any], *, last: int, stop: bool) -> Tensor:
        position = -1

        def refilled(tensor: Tensor) -> None:
            nonlocal position
            position += 1
            if position < len(self.slots):
                slot = self.slots[position]()
                if slot is not None and slot.tensor is None:
                    slot.fill(tensor)
            if stop and position >= last:
                raise _FilledError

        with contextlib.suppress(_FilledError), saved_tensors_hooks(refilled, _never):
            output: Tensor = self.call.forward(*args, **kwargs)
            return output.detach()
        return torch.empty(0)

    @contextlib.contextmanager
    def _first_state(self) -> Iterator[None]:
        """Put autocast, the random generators and BatchNorm back as they were."""
        with contextlib.ExitStack() as stack:
            for device_type, enabled, dtype, cache in self.autocast:
                if enabled or torch.is_autocast_enabled(device_type):
                    stack.enter_context(
                        torch.autocast(device_type, dtype, enabled, cache_enabled=cache)
                    )
            if self.random is not None:
                stack.enter_context(self.random.restored())
            if self.call.batch_norms:
                stack.enter_context(_frozen_statistics(self.call.batch_norms))
            yield


def _hold(value: object, source: _Table | None) -> object:
    if not isinstance(value, Tensor):
        return value
    reading = source.find(value) if source is not None else None
    return reading or _Held(value)


def _retake(value: object) -> object:
    if not isinstance(value, _Held | _Reading):
        return value
    tensor = value.take().detach()
    return tensor.requires_grad_() if value.requires_grad else tensor


# --- state a recompute must restore --------------------------------------------------------------


def _autocast_states(device: torch.device) -> list[tuple[str, bool, torch.dtype, bool]]:
    kinds = {"cpu", device.type} - {"meta"}
    cache = torch.is_autocast_cache_enabled()
    return [
        (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind), cache)
        for kind in kinds
    ]


class _RandomState:
    """The random generators of the CPU and of the input's device at one moment."""

    __slots__ = ("cpu", "device", "module")

    def __init__(self, device: torch.device) -> None:
        self.cpu = torch.get_rng_state()
        self.module = None if device.type == "cpu" else torch.get_device_module(device)
        self.device = None if self.module is None else (device, self.module.get_rng_state(device))

    @classmethod
    def of(cls, args: Sequence[object]) -> _RandomState | None:
        """Return the state for a call on these arguments; fake tensors draw no numbers."""
        tensors = [a for a in args if isinstance(a, Tensor)]
        if not tensors or isinstance(tensors[0], FakeTensor) or tensors[0].is_meta:
            return None
        return cls(tensors[0].device)

    def was_used(self) -> bool:
        now = self._now()
        if not torch.equal(self.cpu, now.cpu):
            return True
        if self.device is None or now.device is None:
            return False
        return not torch.equal(self.device[1], now.device[1])

    def _now(self) -> _RandomState:
        return _RandomState(torch.device("cpu") if self.device is None else self.device[0])

    def _set(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.module is not None and self.device is not None:
            self.module.set_rng_state(self.device[1], self.device[0])

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        now = self._now()
        self._set()
        try:
            yield
        finally:
            now._set()


@contextlib.contextmanager
def _frozen_statistics(batch_norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Let BatchNorm normalise by the batch without moving its running statistics.

    Momentum 0 rather than absent statistics: the tensors that are saved must be the same ones.
    """
    before = [
        (norm, norm.momentum, norm._buffers.get("num_batches_tracked")) for norm in batch_norms
    ]
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


# --- recognising outputs --------------------------------------------------------------------------


class _Table:
    """Which frame made which storage."""

    __slots__ = ("by_storage",)

    def __init__(self) -> None:
        self.by_storage: dict[int, tuple[Any, int, weakref.ref[_Frame]]] = {}

    def clear(self) -> None:
        self.by_storage.clear()

    def add(self, output: object, frame: _Frame) -> None:
        """Remember a frame's output; the storage is held weakly, so that it can be freed."""
        if not isinstance(output, Tensor):
            return
        storage = output.untyped_storage()
        self.by_storage[storage._cdata] = (
            StorageWeakRef(storage),  # type: ignore[no-untyped-call]
            output._version,
            weakref.ref(frame),
        )

    def find(self, tensor: Tensor) -> _Reading | None:
        """Return a reading if the tensor is a frame's output, unmodified, or a view of it."""
        entry = self.by_storage.get(tensor.untyped_storage()._cdata)
        if entry is None or entry[1] != tensor._version:
            return None
        frame = entry[2]()
        return None if frame is None else _Reading(frame, tensor)


# --- replaced forwards ----------------------------------------------------------------------------


class _Call:
    """A module's replaced ``forward``. A class and not a closure, so that copies stay whole."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module = module
        self.forward: Callable[..., Any] = module.forward
        self.own_forward = module.__dict__.get("forward")
        self.stochastic = True
        self.batch_norms = [
            m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None
        ]
        module.__dict__["forward"] = self

    def remove(self) -> None:
        del self.module.__dict__["forward"]
        if self.own_forward is not None:
            self.module.__dict__["forward"] = self.own_forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


class _Recomputed(_Call):
    """A unit or a part that is one frame.

    Args:
        name: for messages.
        module: the unit.
        source: where its input may be read from instead of being kept.
        target: where its output is announced.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        *,
        source: _Table | None = None,
        target: _Table | None = None,
    ) -> None:
        super().__init__(name, module)
        self.source, self.target = source, target

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        frame = _Frame(self, args, kwargs, source=self.source)
        if self.target is not None:
            self.target.clear()
        with saved_tensors_hooks(frame.pack, _unpack):
            output = self.forward(*args, **kwargs)
        frame.forget_unused_random_state()
        if self.target is not None:
            self.target.add(output, frame)
        return output


# --- applying -------------------------------------------------------------------------------------


class AppliedPlacement:
    """A model that follows a placement.

    Attributes:
        placement: what it follows.
        units: the backbone's units in forward order.
    """

    def __init__(self, placement: Placement, units: tuple[str, ...]) -> None:
        self.placement = placement
        self.units = units
        self._calls: list[_Call] = []

    def remove(self) -> None:
        """Give every module its own forward back."""
        for call in reversed(self._calls):
            call.remove()
        self._calls.clear()

    def __enter__(self) -> AppliedPlacement:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def apply_placement(
    model: nn.Module, placement: Placement, *, units: Sequence[str] | None = None
) -> AppliedPlacement:
    """Make a model follow a placement.

    Args:
        model: a backbone, or what a method made of it.
        placement: decisions by unit name, in the backbone's own naming.
        units: the backbone's units in forward order; found when not given.

    Raises:
        InputError: the placement names a unit the model lacks, or asks for what cannot be.
    """
    backbone = backbone_of(model)
    known = tuple(units) if units is not None else find_units(backbone)
    _check(placement.decisions, known, backbone)
    applied = AppliedPlacement(placement, known)
    chain = _Table()
    for name in known:
        decision = placement.decision(name)
        module = backbone.get_submodule(name)
        if decision in (RECOMPUTE, SEGMENT):
            source = chain if decision == SEGMENT else None
            applied._calls.append(_Recomputed(name, module, source=source, target=chain))
    return applied


def _check(decisions: Mapping[str, str], units: tuple[str, ...], backbone: nn.Module) -> None:
    for name, decision in decisions.items():
        unit, _, part = name.partition("/")
        if unit not in units:
            near = difflib.get_close_matches(unit, units, n=4, cutoff=0.5)
            advice = f"did you mean {', '.join(near)}?" if near else "see `budgetplan profile`"
            raise InputError(f"the placement names unit {unit!r}, which the model lacks; {advice}")
        if decision == SEGMENT:
            before = units[units.index(unit) - 1] if unit != units[0] else None
            if part or before is None or decisions.get(before) not in (RECOMPUTE, SEGMENT):
                raise InputError(
                    f"unit {name!r} is a segment with the unit before it, "
                    f"but {before!r} is not recomputed; use recompute for one of them"
                )
