"""Calls that can be run again: what every checkpointing decision is made of.

A *frame* is one call whose saved tensors and output can be had again by running the call again. It
is non-reentrant checkpointing (pack and unpack hooks of autograd), so the graph, the gradients and
everything that hangs on them are those of the plain model.

    Recipe     what is called: a module's forward, or a torch function
    Frame      one call: its inputs, random state and autocast state; ``refill`` runs it again
    Slot       what autograd holds instead of a saved tensor; unpacking an empty one refills the
               frame, which stops as soon as the last slot still alive is filled
    Reading    a slot for (a view or a cast of) a frame's *output*, held by whoever saved it or took
               it as input; so outputs of frames need not be kept either
    Table      from storages to the frames that made them, to recognise such outputs

    Spare      the last frozen layer of a call, if nothing saved after it depends on its output: a
               refill that does not want the call's output does not run it (the adapter's last
               layer: LoRA runs the frozen layer first, so stopping early comes too late for it)

A frame that is refilled gives everything that is wanted of it, which is then there until it is
used. A *lean* frame gives as little as it can and runs again for the next who asks: to another
lean frame only what that one asked for, to anything else all of its output, and what it saved for
its own backward not before that comes.

What a recompute must not do: draw other random numbers (the generator is put back, if the first
call moved it), update BatchNorm's statistics again (momentum 0, no counting), run in another
autocast state. References go one way, from a tensor's users to what made it, so frames die with
the graph.

Source: Chen et al. 2016 (arXiv:1604.06174); ``torch.utils.checkpoint`` (use_reentrant=False), whose
early stop and lifetimes of recomputed tensors hold here too; readings are what it lacks.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.batchnorm import _BatchNorm

_recomputing: ContextVar[bool] = ContextVar("recomputing", default=False)

_running: ContextVar[Frame | None] = ContextVar("running", default=None)


def recomputing() -> bool:
    """True while a frame runs again for backward."""
    return _recomputing.get()


def running_frame() -> Frame | None:
    """Return the frame whose call is running, for the first time or again."""
    return _running.get()


class _FilledError(Exception):
    """Stops a recompute: every slot still alive is filled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a frame calls.

    Attributes:
        name: for messages.
        run: the call.
        stochastic: whether it may draw random numbers.
        batch_norms: layers inside whose statistics a second run must not move.
        from_saved: gives the output alone from the passengers and the arguments, in less time than
            ``run``, or None.
        output_serves: whether the call's backward does as well with the output as with the input
            that it saves.
    """

    name: str
    run: Callable[..., Any]
    stochastic: bool
    batch_norms: tuple[_BatchNorm, ...] = ()
    from_saved: Callable[..., Tensor | None] | None = None
    output_serves: bool = False

    @classmethod
    def of_module(cls, name: str, module: nn.Module) -> Recipe:
        """Return the recipe of a module's present forward."""
        norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
        tracking = tuple(norm for norm in norms if norm.running_mean is not None)
        return cls(name=name, run=module.forward, stochastic=True, batch_norms=tracking)


# --- what stands for a tensor ---------------------------------------------------------------------


class Slot:
    """What autograd holds in place of a saved tensor."""

    __slots__ = ("__weakref__", "dtype", "frame", "shape", "tensor")

    def __init__(self, frame: Frame, like: Tensor) -> None:
        self.frame = frame
        self.tensor: Tensor | None = None
        self.shape, self.dtype = like.shape, like.dtype

    def unpack(self, *, alone: bool = False) -> Tensor:
        """Return the tensor, running the frame again if it is not there.

        Args:
            alone: whether a lean frame shall give nobody else their readings.
        """
        if self.tensor is None:
            self._bring_back(alone=alone)
        if self.tensor is None:
            raise _changed(self.frame, "fewer tensors than its first forward")
        return self.tensor

    def _bring_back(self, *, alone: bool) -> None:
        self.frame.refill(self, alone=alone)

    def fill(self, tensor: Tensor) -> None:
        """Take a recomputed tensor."""
        if tensor.shape != self.shape or tensor.dtype != self.dtype:
            got, expected = (tuple(tensor.shape), tensor.dtype), (tuple(self.shape), self.dtype)
            raise _changed(self.frame, f"{got} where its first forward saved {expected}")
        self.tensor = tensor.detach()


class Reading(Slot):
    """A slot for a frame's output as somebody else sees it: a view, or a cast."""

    __slots__ = ("geometry", "requires_grad")

    def __init__(self, frame: Frame, like: Tensor) -> None:
        super().__init__(frame, like)
        self.geometry = (like.shape, like.stride(), like.storage_offset())
        self.requires_grad = like.requires_grad

    def take(self, *, alone: bool) -> Tensor:
        """Return the tensor and forget it: a frame's input is needed once per refill."""
        tensor = self.unpack(alone=alone)
        self.tensor = None
        return tensor

    def _bring_back(self, *, alone: bool) -> None:
        for other in self.frame.filled_readings():
            if other.tensor is not None and other.dtype == self.dtype:
                self.tensor = other.tensor.as_strided(*self.geometry)
                return
        super()._bring_back(alone=alone)

    def read(self, output: Tensor) -> None:
        """Take this view or cast of a recomputed output."""
        if output.dtype != self.dtype:
            output = output.to(self.dtype)
        self.tensor = output.as_strided(*self.geometry)


class Held:
    """A frame's input that stays in memory."""

    __slots__ = ("requires_grad", "shape", "tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.shape = tensor.detach(), tensor.shape
        self.requires_grad = tensor.requires_grad
        self.version = tensor._version

    def take(self, *, alone: bool) -> Tensor:
        """Return the tensor."""
        if self.tensor._version != self.version:
            raise RuntimeError(
                "the input of a recomputed unit was modified in place after its forward; "
                "keep this unit, or switch its in-place operations off"
            )
        return self.tensor


def unpack(packed: Slot | Tensor) -> Tensor:
    """Unpack hook of everything here."""
    return packed.unpack() if isinstance(packed, Slot) else packed


def _never(_: object) -> Tensor:
    raise RuntimeError("backward inside a recompute is not supported")


def _changed(frame: Frame, what: str) -> RuntimeError:
    return RuntimeError(
        f"recomputing {frame.recipe.name} saved {what}; "
        "its forward depends on something that changed in between, so keep this unit"
    )


# --- the frame ------------------------------------------------------------------------------------


class Frame:
    """One call that can be run again.

    Args:
        recipe: what is called.
        args: its arguments.
        kwargs: its keyword arguments.
        hold: what stands for an argument until it is needed again.

    Attributes:
        lean: whether it is rather run again than leave anything in memory.
    """

    __slots__ = (
        "__weakref__",
        "args",
        "autocast",
        "kwargs",
        "lean",
        "passengers",
        "position",
        "random",
        "readings",
        "recipe",
        "slots",
        "span",
        "spare",
        "trusted",
    )

    def __init__(
        self,
        recipe: Recipe,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        *,
        hold: Callable[[Tensor], object],
    ) -> None:
        self.recipe = recipe
        self.lean = False
        self.args = [_each(value, hold) for value in args]
        self.kwargs = {key: _each(value, hold) for key, value in kwargs.items()}
        self.autocast = _autocast_states(args)
        self.random = _RandomState.before(args) if recipe.stochastic else None
        self.slots: list[Callable[[], Slot | None]] = []
        self.readings: list[weakref.ref[Reading]] = []
        self.passengers: list[weakref.ref[Slot]] = []
        self.position = -1
        self.spare: Spare | None = None
        self.span: dict[int, Frame | None] | None = None
        self.trusted = False

    def run_first(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run the call for the first time, dropping what it saves."""
        token = _running.set(self)
        try:
            with saved_tensors_hooks(self.pack, unpack):
                output = self.recipe.run(*args, **kwargs)
        finally:
            _running.reset(token)
            if self.spare is not None:
                self.spare.node = None  # the graph holds slots, these hold the frame
        self.forget_unused_random_state()
        return output

    def pack(self, tensor: Tensor) -> Slot | Tensor:
        """Pack hook: drop the tensor."""
        if self.span is not None:
            address = tensor.untyped_storage()._cdata
            if address in self.span:
                self.skip_slot()
                cast = self.span[address]
                return tensor.detach() if cast is None else cast.reading(tensor)
            self.span = None
        elif self.spare is not None and self.spare.leads_to(tensor, trusted=self.trusted):
            self.spare = None
        slot = Slot(self, tensor)
        self.slots.append(weakref.ref(slot))
        return slot

    def pack_filled(self, tensor: Tensor) -> Slot:
        """Pack hook: hold the tensor until it is known whether to drop it."""
        slot = Reading(self, tensor)
        slot.tensor = tensor.detach()
        self.slots.append(weakref.ref(slot))
        return slot

    def pack_passenger(self, tensor: Tensor) -> Slot:
        """Pack hook: hold what is small for the time being: it is not worth a run of its own."""
        slot = Slot(self, tensor)
        slot.tensor = tensor.detach()
        self.slots.append(weakref.ref(slot))
        self.passengers.append(weakref.ref(slot))
        return slot

    def skip_slot(self) -> None:
        """Count a saved tensor that is no business of this frame."""
        self.slots.append(_nothing)

    def run_frozen(
        self,
        layer: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        *,
        weights: dict[int, Frame | None],
    ) -> Any:
        """Run a frozen layer inside the call, unless it is the spare one and this is a refill.

        Args:
            layer: the layer.
            args: its arguments.
            kwargs: its keyword arguments.
            weights: storages it may save without being needed for that: its weights, or casts of
                them with the frame of the cast.
        """
        if recomputing():
            if self.spare is None or self.position + 1 != self.spare.start or self._wants_output():
                return layer(*args, **kwargs)
            self.position = self.spare.stop - 1
            return self.spare.stand_in()
        self.spare, self.span, start = None, weights, len(self.slots)
        try:
            output = layer(*args, **kwargs)
            if self.span is not None and isinstance(output, Tensor) and output.grad_fn is not None:
                self.spare = Spare(output, start=start, stop=len(self.slots))
        finally:
            self.span = None
        return output

    def _wants_output(self) -> bool:
        return any(_is_empty(ref()) for ref in self.readings)

    def reading(self, like: Tensor) -> Reading:
        """Return a reading of the output for somebody who sees it as this tensor."""
        reading = Reading(self, like)
        self.readings.append(weakref.ref(reading))
        return reading

    def drop_passengers(self) -> None:
        """Drop what is small too: autograd has saved the output, so it will be asked for first."""
        if self.recipe.from_saved is not None:
            return
        for ref in self.passengers:
            slot = ref()
            if slot is not None:
                slot.tensor = None
        self.passengers.clear()

    def drop(self, position: int, slot: Reading, output: Tensor) -> None:
        """Empty a slot; one that holds the output itself (ReLU's) becomes a reading of it."""
        assert slot.tensor is not None
        is_output = slot.tensor.untyped_storage()._cdata == output.untyped_storage()._cdata
        if is_output or self.recipe.output_serves:
            self.slots[position] = _nothing
            self.readings.append(weakref.ref(slot))
        slot.tensor = None

    def give_up(self) -> None:
        """Release the inputs: the slots keep what they hold, nothing will be run again."""
        self.args, self.kwargs, self.random = [], {}, None

    def forget_unused_random_state(self) -> None:
        """Drop the random state if the call drew no number."""
        if self.random is not None and not self.random.was_used():
            self.random = None

    def filled_readings(self) -> Iterator[Reading]:
        """Yield the readings whose tensor is there."""
        for ref in self.readings:
            reading = ref()
            if reading is not None and reading.tensor is not None:
                yield reading

    def refill(self, asked: Slot, *, alone: bool) -> None:
        """Run the call again and fill every empty slot and reading that is still alive.

        Args:
            asked: who needs it. Of a lean frame slots are filled for a slot, readings for one.
            alone: of a lean frame: fill that reading only.
        """
        wanted = [r for ref in self.readings if (r := ref()) is not None and r.tensor is None]
        empty = {i for i, ref in enumerate(self.slots) if _is_empty(ref())}
        if self.lean:
            is_reading = any(asked is reading for reading in wanted)
            wanted = [r for r in wanted if is_reading and (r is asked or not alone)]
            empty = set() if is_reading else empty
        args = [_each(value, self._retake) for value in self.args]
        kwargs = {key: _each(value, self._retake) for key, value in self.kwargs.items()}
        if kwargs.get("inplace"):
            kwargs["inplace"] = not empty and self._owns_first(args)
        again, running = _recomputing.set(True), _running.set(self)
        try:
            with self._first_state():
                output = self._run(args, kwargs, empty=empty, output_wanted=bool(wanted))
        finally:
            _recomputing.reset(again)
            _running.reset(running)
        for reading in wanted:
            reading.read(output)

    def _run(
        self, args: list[Any], kwargs: dict[str, Any], *, empty: set[int], output_wanted: bool
    ) -> Tensor:
        """Run with a graph even for an output alone: kernels may depend on it."""
        if self.recipe.from_saved is not None and not empty:
            kept = [slot.tensor for ref in self.passengers if (slot := ref()) is not None]
            given = self.recipe.from_saved(kept, *args, **kwargs)
            if given is not None:
                return given
        if kwargs.get("inplace"):
            with torch.no_grad():
                changed: Tensor = self.recipe.run(*args, **kwargs)
                return changed.detach()
        self.position, last = -1, max(empty, default=-1)

        def refilled(tensor: Tensor) -> None:
            self.position += 1
            slot = self.slots[self.position]() if self.position in empty else None
            if slot is not None and slot.tensor is None:
                slot.fill(tensor)
            if self.position >= last and not output_wanted:
                raise _FilledError

        with contextlib.suppress(_FilledError), torch.enable_grad():
            with saved_tensors_hooks(refilled, _never):
                output: Tensor = self.recipe.run(*args, **kwargs)
            return output.detach()
        return torch.empty(0)

    def _owns_first(self, taken: Sequence[object]) -> bool:
        """Say whether nobody else looks at what was taken for the first argument."""
        value = self.args[0] if self.args else None
        tensor = taken[0] if taken else None
        return (
            isinstance(value, Reading)
            and isinstance(tensor, Tensor)
            and not value.frame.shares(tensor)
        )

    def shares(self, tensor: Tensor) -> bool:
        """Say whether somebody holds this recomputed tensor, or a view of it."""
        address = tensor.untyped_storage()._cdata
        refs: list[Callable[[], Slot | None]] = [*self.slots, *self.readings]
        tensors = (slot.tensor for ref in refs if (slot := ref()) is not None)
        return any(t is not None and t.untyped_storage()._cdata == address for t in tensors)

    def _retake(self, value: Tensor | Held | Reading) -> Tensor:
        if isinstance(value, Tensor):
            return value
        tensor = value.take(alone=self.lean).detach()
        return tensor.requires_grad_() if value.requires_grad else tensor

    def _first_state(self) -> contextlib.ExitStack:
        """Put autocast, the random generators and BatchNorm back as they were."""
        stack = contextlib.ExitStack()
        for kind, dtype in self.autocast:
            if dtype is not None or torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, dtype, enabled=dtype is not None))
        if self.random is not None:
            stack.enter_context(self.random.restored())
        if self.recipe.batch_norms:
            stack.enter_context(_frozen_statistics(self.recipe.batch_norms))
        return stack


def _nothing() -> None:
    return None


def _is_empty(slot: Slot | None) -> bool:
    return slot is not None and slot.tensor is None


_STANDING = (Held, Reading, Tensor)

SEVERAL = (list, tuple)
"""Of arguments. Written as a union it would be built anew at every call."""


def _each(value: object, change: Callable[[Any], object]) -> object:
    """Apply a change to the tensors (or what stands for them) of an argument."""
    if isinstance(value, _STANDING):
        return change(value)
    return [_each(item, change) for item in value] if isinstance(value, SEVERAL) else value


class Spare:
    """A frozen layer's call, as long as nothing saved after it depends on its output.

    Args:
        output: what it returned.
        start: position of the first tensor it saved.
        stop: position after the last.
    """

    __slots__ = ("like", "node", "start", "stop")

    def __init__(self, output: Tensor, *, start: int, stop: int) -> None:
        self.node = output.grad_fn
        self.like = (tuple(output.shape), output.dtype, output.device)
        self.start, self.stop = start, stop

    def leads_to(self, tensor: Tensor, *, trusted: bool) -> bool:
        """True unless a saved tensor is known not to depend on the output.

        What has no graph could depend on it (a mask), except where the caller knows better.
        """
        assert self.node is not None
        if tensor.grad_fn is None:
            return not (trusted or tensor.requires_grad or isinstance(tensor, nn.Parameter))
        oldest = self.node._sequence_nr()
        pending, seen = [tensor.grad_fn], set()
        while pending:
            node = pending.pop()
            if node is self.node:
                return True
            # A node that depends on another was made after it.
            if node not in seen and node._sequence_nr() > oldest:
                seen.add(node)
                pending += [before for before, _ in node.next_functions if before is not None]
        return False

    def stand_in(self) -> Tensor:
        """Return something of the output's shape: nobody will look at its values.

        It has a graph as the output had: what saves tensors only then must do so again.
        """
        standing: Tensor = _StandIn.apply(torch.empty(0, requires_grad=True), *self.like)
        return standing


class _StandIn(torch.autograd.Function):
    """Uninitialised memory with a graph that leads nowhere."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError("backward inside a recompute is not supported")


# --- recognising outputs --------------------------------------------------------------------------

_VIEWS = ("ViewBackward0", "UnsafeViewBackward0", "TransposeBackward0", "TBackward0")

_CAST = "ToCopyBackward0"


class _Made:
    """A frame's output, recognised by its storage or by the autograd node that made it."""

    __slots__ = ("dense", "frame", "node", "storage", "version")

    def __init__(self, output: Tensor, frame: Frame) -> None:
        self.frame = frame
        storage = output.untyped_storage()
        # Held weakly: the storage can be freed, and its address is not used again meanwhile.
        self.storage = StorageWeakRef(storage)
        self.version = output._version
        self.node = output.grad_fn
        self.dense = output.numel() * output.element_size() == storage.nbytes()


class Table:
    """Which frame made which storage."""

    __slots__ = ("by_node", "by_storage")

    def __init__(self) -> None:
        self.by_storage: dict[int, _Made] = {}
        self.by_node: dict[object, _Made] = {}

    def clear(self) -> None:
        """Forget all frames."""
        self.by_storage.clear()
        self.by_node.clear()

    def __contains__(self, tensor: Tensor) -> bool:
        made = self.by_storage.get(tensor.untyped_storage()._cdata)
        return made is not None and made.version == tensor._version

    def add(self, output: Tensor, frame: Frame) -> None:
        """Remember a frame's output."""
        made = _Made(output, frame)
        self.by_storage[output.untyped_storage()._cdata] = made
        if made.node is not None and made.dense:
            self.by_node[made.node] = made

    def find(self, tensor: Tensor) -> Reading | None:
        """Return a reading if the tensor is a frame's unmodified output, a view or a cast of it."""
        made = self.by_storage.get(tensor.untyped_storage()._cdata)
        if made is None or made.version != tensor._version:
            made = self.by_node.get(cast_from(tensor))
        return None if made is None else made.frame.reading(tensor)


def cast_from(tensor: Tensor) -> Any:
    """Return the autograd node whose output this is a copy of in another precision, or None.

    Autocast hands such copies to matmuls and convolutions; only the graph tells of what.
    """
    node = tensor.grad_fn
    if node is not None and node.name() in _VIEWS:
        node = node.next_functions[0][0]
    if node is None or node.name() != _CAST:
        return None
    whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
    return node.next_functions[0][0] if whole else None


# --- state a recompute must restore ---------------------------------------------------------------


def _autocast_states(args: Sequence[object]) -> tuple[tuple[str, torch.dtype | None], ...]:
    """Return autocast's precision on the CPU and on the arguments' device, None where it is off."""
    kinds = {"cpu"} | {a.device.type for a in args if isinstance(a, Tensor)}
    kinds.discard("meta")
    return tuple((kind, _autocast_state(kind)) for kind in kinds)


def _autocast_state(kind: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


class _RandomState:
    """The random generators of the CPU and of the input's device at one moment."""

    __slots__ = ("cpu", "device", "state")

    def __init__(self, device: torch.device) -> None:
        self.cpu = torch.get_rng_state()
        self.device = device
        self.state: Tensor | None = None
        if device.type != "cpu":
            self.state = torch.get_device_module(device).get_rng_state(device)

    @classmethod
    def before(cls, args: Sequence[object]) -> _RandomState | None:
        """Return the state before a call on these arguments; fake tensors draw no numbers."""
        tensor = next((a for a in args if isinstance(a, Tensor)), None)
        if tensor is None or tensor.is_meta or isinstance(tensor, FakeTensor):
            return None
        return cls(tensor.device)

    def was_used(self) -> bool:
        """True if a generator has moved since."""
        now = _RandomState(self.device)
        pairs = [(self.cpu, now.cpu), (self.state, now.state)]
        return any(a is not None and b is not None and not torch.equal(a, b) for a, b in pairs)

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Put the generators back to this moment, and afterwards to where they were."""
        now = _RandomState(self.device)
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
def _frozen_statistics(batch_norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Let BatchNorm normalise by the batch without moving its running statistics.

    Momentum 0 rather than absent statistics: the tensors that are saved must be the same ones.
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
