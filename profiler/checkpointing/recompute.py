"""Recomputation of a call: saved tensors are dropped in forward and recomputed in backward.

``RecomputableCall.recompute`` runs the call again. It starts in backward, when autograd unpacks a
saved tensor that was dropped.

    forward     The call runs under autograd's pack hook. The graph stores an empty SavedTensor for
                each tensor that the call saves. The call stores each input as a KeptInput (the
                tensor itself), or as an OutputView if the input is the output of an earlier
                recomputable call. That output is then dropped as well.
    backward    Autograd unpacks a SavedTensor. If it is filled, its tensor is returned. If it is
                empty, ``recompute`` runs:
                  1. Take the inputs. An empty OutputView first recomputes the call that made it.
                  2. Restore autocast and the random generators. Set BatchNorm's momentum to 0, so
                     that its running statistics are not updated twice.
                  3. Run the function again. The pack hook sees the same tensors in the same order
                     and fills every empty SavedTensor that is still alive.
                  4. Stop at the last one (an exception, as in torch.utils.checkpoint). If the
                     output is needed too, run to the end and fill the OutputViews.
                Autograd frees each SavedTensor, and with it the tensor, after its last use.

    RecomputableFunction   the called function: a module's forward or a torch function
    RecomputableCall       its inputs, autocast state and random state; ``recompute``
    SavedTensor            placeholder for a saved tensor in the autograd graph
    OutputView             placeholder for a view or a cast of a call's *output*, held by an
                           operation that saved it or by a later call that takes it as input
    KeptInput              an input that stays in memory

    module_call.py         calls of a unit or a branch, all tensors saved inside dropped
    function_call.py       calls of a torch function, chosen by cheap_ops.py

This is non-reentrant checkpointing: graph, hooks and gradients are those of the plain model.
References lead from a tensor's users to the call that made it, never back, so calls are freed
together with the graph.

A call with ``per_use`` set restores only some of its dropped tensors. The request decides which:

    a view, as an input of another call with ``per_use``   this view
    a view, for any other use                              all views of the output
    a saved tensor, for the call's own backward            all saved tensors, and no view

Sources: Chen et al. 2016 (arXiv:1604.06174); ``torch/utils/checkpoint.py`` with
``use_reentrant=False``, from which early stop and lifetimes of recomputed tensors are taken.
``torch.utils.checkpoint`` has no output views: if an operation outside a unit saves the unit's
output, the output stays in memory.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm

from profiler.checkpointing.forward_state import (
    SEQUENCES,
    RandomState,
    autocast_states,
    frozen_statistics,
)

_recomputing: ContextVar[bool] = ContextVar("recomputing", default=False)

_running: ContextVar[RecomputableCall | None] = ContextVar("running", default=None)


def recomputing() -> bool:
    """Return True while a call is recomputed for backward."""
    return _recomputing.get()


def running_call() -> RecomputableCall | None:
    """Return the call under way: the forward of a module call, or any recomputation."""
    return _running.get()


@contextlib.contextmanager
def running(call: RecomputableCall) -> Iterator[None]:
    """Make a call the one that ``running_call`` returns."""
    token = _running.set(call)
    try:
        yield
    finally:
        _running.reset(token)


class _AllFilledError(Exception):
    """Stops a recomputation early: every SavedTensor that is still alive is filled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecomputableFunction:
    """A function that can be called a second time.

    Attributes:
        name: name for error messages.
        run: the function.
        stochastic: True if it may draw random numbers.
        batch_norms: BatchNorm layers inside, whose running statistics a second run must not update.
        output_from_saved: faster way to the output, a function of (small saved tensors, the call's
            arguments) that returns None where it does not apply. None for a function without one.
        output_serves_backward: True if the backward computes the same gradient from the output as
            from the saved input.
    """

    name: str
    run: Callable[..., Any]
    stochastic: bool
    batch_norms: tuple[_BatchNorm, ...] = ()
    output_from_saved: Callable[..., Tensor | None] | None = None
    output_serves_backward: bool = False

    @classmethod
    def of_module(cls, name: str, module: nn.Module) -> RecomputableFunction:
        """Return the present forward of a module, which may be a replaced one."""
        # any layer inside may draw random numbers; without one, the random state is dropped after
        # the first forward (``forget_unused_random_state``)
        norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
        tracking = tuple(norm for norm in norms if norm.running_mean is not None)
        return cls(name=name, run=module.forward, stochastic=True, batch_norms=tracking)


# --- in place of a tensor -------------------------------------------------------------------------


class SavedTensor:
    """Placeholder for a saved tensor in the autograd graph: empty, or filled."""

    __slots__ = ("__weakref__", "call", "dtype", "shape", "tensor")

    def __init__(self, call: RecomputableCall, like: Tensor) -> None:
        self.call = call
        self.tensor: Tensor | None = None
        self.shape, self.dtype = like.shape, like.dtype

    def unpack(self, *, only_this: bool = False) -> Tensor:
        """Return the tensor; if it was dropped, recompute the call first.

        Args:
            only_this: whether a call with ``per_use`` restores no other view.

        Raises:
            RuntimeError: the recomputation saved fewer or other tensors than the forward.
        """
        if self.tensor is None:
            self._restore(only_this=only_this)
        if self.tensor is None:
            raise _different(self.call, "fewer tensors than its first forward")
        return self.tensor

    def _restore(self, *, only_this: bool) -> None:
        self.call.recompute(self, only_this=only_this)

    def fill(self, tensor: Tensor) -> None:
        """Hold a recomputed tensor."""
        if tensor.shape != self.shape or tensor.dtype != self.dtype:
            got, expected = (tuple(tensor.shape), tensor.dtype), (tuple(self.shape), self.dtype)
            raise _different(self.call, f"{got} where its first forward saved {expected}")
        self.tensor = tensor.detach()  # frees the recomputation's graph, in which no backward runs


class OutputView(SavedTensor):
    """A view or a cast of a call's output."""

    __slots__ = ("geometry", "requires_grad")

    def __init__(self, call: RecomputableCall, like: Tensor) -> None:
        super().__init__(call, like)
        self.geometry = (like.shape, like.stride(), like.storage_offset())
        self.requires_grad = like.requires_grad

    def take(self, *, only_this: bool) -> Tensor:
        """Return the tensor and empty the view: a recomputation needs each input once."""
        tensor = self.unpack(only_this=only_this)
        self.tensor = None
        return tensor

    def _restore(self, *, only_this: bool) -> None:
        # a filled view of the same dtype shares the output's storage: striding replaces a
        # recomputation
        for other in self.call.filled_views():
            if other.tensor is not None and other.dtype == self.dtype:
                self.tensor = other.tensor.as_strided(*self.geometry)
                return
        super()._restore(only_this=only_this)

    def fill_from(self, output: Tensor) -> None:
        """Hold this view or cast of a recomputed output."""
        if output.dtype != self.dtype:
            output = output.to(self.dtype)
        self.tensor = output.as_strided(*self.geometry)


class KeptInput:
    """An input of a call that stays in memory."""

    __slots__ = ("requires_grad", "shape", "tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        # a detached tensor shares the version counter, so later in-place changes can be detected
        self.tensor, self.shape = tensor.detach(), tensor.shape
        self.requires_grad = tensor.requires_grad
        self.version = tensor._version

    def take(self, *, only_this: bool) -> Tensor:
        """Return the tensor.

        Raises:
            RuntimeError: the tensor was modified in place since the forward.
        """
        if self.tensor._version != self.version:
            raise RuntimeError(
                "the input of a recomputed unit was modified in place after its forward; "
                "keep this unit, or switch its in-place operations off"
            )
        return self.tensor


StoreInput = Callable[[Tensor], object]
"""Maps an input to its stand-in in the call: a KeptInput, an OutputView or a parameter itself. An
OffloadedInput (host_memory.py) is a KeptInput."""


def unpack(packed: SavedTensor | Tensor) -> Tensor:
    """Unpack hook: return the saved tensor, recomputed if it was dropped."""
    return packed.unpack() if isinstance(packed, SavedTensor) else packed


def _no_backward(_: object) -> Tensor:
    raise RuntimeError("backward inside a recompute is not supported")


def _different(call: RecomputableCall, what: str) -> RuntimeError:
    return RuntimeError(
        f"recomputing {call.function.name} saved {what}; "
        "its forward depends on something that changed in between, so keep this unit"
    )


# --- the call -------------------------------------------------------------------------------------


class RecomputableCall:
    """One call whose saved tensors and output can be recomputed.

    Args:
        function: the called function.
        args: positional arguments.
        kwargs: keyword arguments.
        store_input: function from each tensor among the arguments to its stand-in.

    Attributes:
        per_use: True if a request restores only some of the dropped tensors (module docstring).
        saved: weak references to the SavedTensor of each tensor that the call saved, in order. They
            are weak so that a tensor that backward has used is not recomputed again. ``no_tensor``
            stands for a saved tensor that this call does not restore: positions count the calls of
            the pack hook.
        views: weak references to the views of the output.
        position: index into ``saved`` of the last tensor saved by the recomputation under way.
    """

    __slots__ = (
        "__weakref__",
        "args",
        "autocast",
        "function",
        "kwargs",
        "per_use",
        "position",
        "random",
        "saved",
        "views",
    )

    def __init__(
        self,
        function: RecomputableFunction,
        args: Sequence[object],
        kwargs: dict[str, object],
        *,
        store_input: StoreInput,
    ) -> None:
        self.function = function
        self.per_use = False
        self.args = [map_tensors(value, store_input) for value in args]
        self.kwargs = {key: map_tensors(value, store_input) for key, value in kwargs.items()}
        given = (*args, *kwargs.values())
        self.autocast = autocast_states(given)
        self.random = RandomState.before(given) if function.stochastic else None
        self.saved: list[Callable[[], SavedTensor | None]] = []
        self.views: list[weakref.ref[OutputView]] = []
        self.position = -1

    # -- first forward

    def pack_empty(self, tensor: Tensor) -> SavedTensor:
        """Drop a tensor that the call saves."""
        saved = SavedTensor(self, tensor)
        self.saved.append(weakref.ref(saved))
        return saved

    def skip(self) -> None:
        """Count a saved tensor that this call does not restore."""
        self.saved.append(no_tensor)

    def view_of_output(self, like: Tensor) -> OutputView:
        """Return an empty view of the output with the shape, strides and dtype of ``like``."""
        view = OutputView(self, like)
        self.views.append(weakref.ref(view))
        return view

    def forget_unused_random_state(self) -> None:
        """Drop the random state if the forward drew no random number."""
        if self.random is not None and not self.random.was_used():
            self.random = None

    # -- recomputation

    def filled_views(self) -> Iterator[OutputView]:
        """Yield the views of the output that hold their tensor."""
        for ref in self.views:
            view = ref()
            if view is not None and view.tensor is not None:
                yield view

    def is_output_wanted(self) -> bool:
        """Return True if a view of the output is alive and empty."""
        return any(is_empty(ref()) for ref in self.views)

    def recompute(self, requested: SavedTensor, *, only_this: bool) -> None:
        """Run the function again and fill the empty saved tensors and views that are alive.

        Args:
            requested: the tensor that is needed now. With ``per_use``, only views are restored if
                it is a view, and only saved tensors if it is a saved tensor.
            only_this: with ``per_use``, restore no other view than ``requested``.
        """
        wanted = [view for ref in self.views if (view := ref()) is not None and view.tensor is None]
        empty = {i for i, ref in enumerate(self.saved) if is_empty(ref())}
        if self.per_use:
            is_view = any(requested is view for view in wanted)
            wanted = [v for v in wanted if is_view and (v is requested or not only_this)]
            empty = set() if is_view else empty
        # before this call's state is restored: taking an input may recompute the call that made it
        args = [map_tensors(value, self._take) for value in self.args]
        kwargs = {key: map_tensors(value, self._take) for key, value in self.kwargs.items()}
        token = _recomputing.set(True)
        try:
            with running(self), self._restored_state():
                output = self._run_again(args, kwargs, empty=empty, output_wanted=bool(wanted))
        finally:
            _recomputing.reset(token)
        for view in wanted:
            view.fill_from(output)

    def _run_again(
        self, args: list[object], kwargs: dict[str, object], *, empty: set[int], output_wanted: bool
    ) -> Tensor:
        """Run the function and fill saved tensors; return the output, empty after an early stop.

        Args:
            args: arguments.
            kwargs: keyword arguments.
            empty: positions in ``saved`` to fill.
            output_wanted: True to run to the end even when all positions are filled.
        """
        self.position, last = -1, max(empty, default=-1)

        def fill_next(tensor: Tensor) -> None:
            self.position += 1
            saved = self.saved[self.position]() if self.position in empty else None
            if saved is not None and saved.tensor is None:
                saved.fill(tensor)
            if self.position >= last and not output_wanted:
                raise _AllFilledError

        # gradients are enabled even for the output alone: without them some operations run another
        # kernel, whose results differ
        with contextlib.suppress(_AllFilledError), torch.enable_grad():
            with saved_tensors_hooks(fill_next, _no_backward):
                output: Tensor = self.function.run(*args, **kwargs)
            return output.detach()
        return torch.empty(0)

    def _take(self, value: Tensor | KeptInput | OutputView) -> Tensor:
        if isinstance(value, Tensor):
            return value
        tensor = value.take(only_this=self.per_use).detach()
        return tensor.requires_grad_() if value.requires_grad else tensor

    def _restored_state(self) -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        for kind, dtype in self.autocast:
            if dtype is not None or torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, dtype, enabled=dtype is not None))
        if self.random is not None:
            stack.enter_context(self.random.restored())
        if self.function.batch_norms:
            stack.enter_context(frozen_statistics(self.function.batch_norms))
        return stack


def no_tensor() -> None:
    """Replace the weak reference to a saved tensor that a call does not restore; return None."""


def is_empty(saved: SavedTensor | None) -> bool:
    """Return True if a saved tensor is alive and dropped."""
    return saved is not None and saved.tensor is None


_TENSORS = (KeptInput, OutputView, Tensor)


def map_tensors(value: object, change: Callable[[Any], object]) -> object:
    """Apply a function to the tensors of an argument, or to their stand-ins.

    Lists, tuples (named ones too) and dicts keep their type, since a forward may look at it.
    """
    if isinstance(value, _TENSORS):
        return change(value)
    if isinstance(value, SEQUENCES):
        mapped = [map_tensors(item, change) for item in value]
        if type(value) is list:
            return mapped
        kind: Any = type(value)
        return kind._make(mapped) if hasattr(kind, "_make") else kind(mapped)
    if isinstance(value, dict):
        filled = copy.copy(value)  # a dict of another class has attributes of its own
        for key, item in value.items():
            filled[key] = map_tensors(item, change)
        return filled
    return value
