"""Selective recomputation inside a unit: drop the outputs of functions that are cheap to recompute.

While ``SelectiveRecomputation`` is active, every call of a cheap torch function becomes a
``FunctionCall``. An operation that saves the call's output stores an empty ``OutputView`` instead.
Matmuls, convolutions, attention and scans run once, and their saved outputs stay in memory. A ViT
block of width D stores 16 D values per token; dropping the outputs of the two norms (2 D) and of
GELU (4 D) leaves 10 D.

    call of a torch function
      ├─ not cheap ─────────────────────────► runs as it is; saves OutputViews of cheap outputs
      └─ cheap ─► runs as a FunctionCall, its saved tensors held
                    ├─ its inputs are available ─► its saved tensors are dropped, and the output is
                    │                              registered for later OutputViews
                    └─ they are not ─────────────► its saved tensors stay, as in the plain model

Dropping an output frees memory only if the inputs stay anyway. An input is *available* if an
operation saved it already (LayerNorm and GELU save their inputs), if it is itself the output of a
FunctionCall (BatchNorm, then ReLU, then dropout), if it is a parameter, or if it is small. A ReLU
behind an addition and a dropout behind a matmul have no available input.

Under autocast, the low-precision copies of weights are dropped too. In a plain model these copies
take two bytes per weight until backward.

Three settings extend the set of dropped tensors:

    drop_mixing     Functions that mix no channels count as cheap. A depthwise convolution does k*k
                    multiplications per output value, where a pointwise one does hundreds. Attention
                    does two for each token attended to (98 in a 7x7 window, 394 in a ViT at 224
                    pixels); it is recognised as one function and as products of activations. A scan
                    does seven for each of its 8 or 16 states. Beside its output, it returns a state
                    for every 16 tokens.
    drop_layer      The matmul or convolution of a named layer becomes a FunctionCall too.
    per_use         A cheap output is recomputed for each of its uses (``recompute.py``). Together
                    with ``drop_layer``, backward never holds all tensors of the unit at once.

Calls are intercepted by a ``TorchFunctionMode``. It works below modules, so ``nn.SiLU`` and
``F.silu`` are the same call. An in-place function runs in place in forward, as in the plain model.
A recomputation runs it in place only if nothing else needs the input.

Tried and rejected: torch's selective checkpointing (``create_selective_checkpoint_contexts``) that
saves the outputs of matmuls, convolutions and attention. On ViT-S blocks in float32 it stores
11.0 D where this module stores 10.0 D, because it must keep the unit's input and every matmul's
output, even if no operation saves the output. Its step takes 1.02 to 1.07 of the plain step's time;
with this module the step takes 0.97 to 1.01 (one CPU core, batch 8 and 1, best of several). In
bfloat16 both store the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from profiler.checkpointing.cheap_functions import (
    ARITHMETIC,
    ATTENTION,
    BATCH_NORM_ON_CPU,
    CONVOLUTIONS,
    MULTIPLYING,
    PRODUCTS,
    SAVE_NO_INPUT,
    SCAN,
    is_depthwise_call,
    recomputable_function,
    weight_cast,
    weight_cast_call,
)
from profiler.checkpointing.forward_state import values_among
from profiler.checkpointing.function_call import FunctionCall
from profiler.checkpointing.output_table import OutputTable, cast_source
from profiler.checkpointing.recompute import (
    KeptInput,
    OutputView,
    RecomputableFunction,
    SavedTensor,
    unpack,
)
from profiler.device_rules.cuda_dispatch import runs_on_cpu

_SMALL = 16
"""A tensor is small if it has at most 1/16 of the values of the call's largest tensor (a mean per
token, for example). Storing it costs less than recomputing it."""


class _KeptTensors:
    """Tensors that stay in memory from a unit's forward until its backward, by storage."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Tensor, int]] = {}

    def clear(self) -> None:
        self._kept.clear()

    def add(self, tensor: Tensor) -> Tensor:
        """Register a tensor that an operation saved and return it without its graph."""
        kept = tensor.detach()  # held in the table, so no other storage can get this address
        self._kept[_address(tensor)] = (kept, tensor._version)
        return kept

    def add_input(self, kept: KeptInput) -> None:
        """Register an input that a call keeps."""
        self._kept.setdefault(_address(kept.tensor), (kept.tensor, kept.version))

    def has(self, tensor: Tensor, version: int | None = None) -> bool:
        """Return True for a tensor of this version (the present one if None) that stays."""
        entry = self._kept.get(_address(tensor))
        return entry is not None and entry[1] == (tensor._version if version is None else version)


class SelectiveRecomputation(TorchFunctionMode):
    """Makes the cheap calls of a unit recomputable, forward by forward.

    Args:
        drop_mixing: True to count depthwise convolutions, attention and scans as cheap.
        per_use: True to recompute a cheap output for each of its uses.
    """

    def __init__(self, *, drop_mixing: bool = False, per_use: bool = False) -> None:
        super().__init__()
        self._drop_mixing, self._per_use = drop_mixing, per_use
        self._dropped_layers: list[nn.Module] = []
        self._dropped_weights: set[int] = set()
        self._drops = True
        self._paused = False
        self._outputs = OutputTable()
        self._kept = _KeptTensors()
        self._call: FunctionCall | None = None
        self._inputs: dict[int, tuple[int, int]] = {}

    def drop_layer(self, layer: nn.Module) -> None:
        """Drop the output of a layer's matmul or convolution as well."""
        self._dropped_layers.append(layer)

    @contextlib.contextmanager
    def active(self, *, drops: bool) -> Iterator[None]:
        """Watch one forward of the unit.

        Args:
            drops: True to drop cheap outputs. If False, nothing is dropped outside the unit's
                parts, but outputs are registered so that a part can recompute its input.
        """
        self._drops = drops
        # collected at each forward, since a parameter may have been replaced meanwhile
        weights = (p for layer in self._dropped_layers for p in layer.parameters())
        self._dropped_weights = {id(weight) for weight in weights}
        try:
            with self, saved_tensors_hooks(self._pack, unpack):
                yield
        finally:
            self._outputs.clear()
            self._kept.clear()

    @contextlib.contextmanager
    def in_part(self, *, drops: bool, paused: bool = False) -> Iterator[None]:
        """Apply a part's own decision during its forward. ``drop_mixing`` is off there.

        Args:
            drops: see ``active``.
            paused: True for a part that is one ModuleCall: every call inside runs as it is.
        """
        before = self._drops, self._paused, self._drop_mixing
        self._drops, self._paused, self._drop_mixing = drops, paused, False
        try:
            yield
        finally:
            self._drops, self._paused, self._drop_mixing = before

    def store_input(self, tensor: Tensor) -> object:
        """Return an OutputView for an input that can be recomputed, else a KeptInput."""
        if isinstance(tensor, nn.Parameter):
            return tensor
        if self._kept.has(tensor):  # in memory anyway, so recomputing it would free nothing
            return KeptInput(tensor)
        return self._outputs.find(tensor) or KeptInput(tensor)

    # --- calls

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[object] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Run a call, as a FunctionCall if its function is cheap or its layer is dropped."""
        kwargs = kwargs or {}
        function = None if self._paused else recomputable_function(func)
        if function is None or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if function.name in MULTIPLYING:
            # before the casts, which replace the weights by which a dropped layer is recognised
            is_dropped = self._is_dropped(args, kwargs)
            args = tuple(self._cast_if_frozen(arg) for arg in args)
            if not is_dropped and not self._is_dropped_mixing(function, args, kwargs):
                return func(*args, **kwargs)
        tensors = list(values_among((*args, *kwargs.values()), Tensor))
        if all(isinstance(tensor, nn.Parameter) for tensor in tensors):
            return func(*args, **kwargs)  # the output's size does not grow with the batch
        # such a call saves no input, so only earlier operations can have made its inputs available
        if function.name in SAVE_NO_INPUT and not self._are_available(tensors):
            return func(*args, **kwargs)
        if function.name == "batch_norm" and runs_on_cpu(tensors[0]):
            function = BATCH_NORM_ON_CPU

        # the pack hook reads _call and _inputs while the function runs
        self._inputs = {_address(t): (t._version, t.numel()) for t in tensors}
        self._call = call = FunctionCall(function, args, kwargs, store_input=self.store_input)
        call.per_use = self._per_use and not self._is_costly(call)
        try:
            output = func(*args, **kwargs)
        finally:
            self._call = None
        self._drop_or_release(call, output, inplace=bool(kwargs.get("inplace")))
        return output

    def _is_dropped_mixing(
        self, function: RecomputableFunction, args: Sequence[object], kwargs: dict[str, object]
    ) -> bool:
        if not (self._drop_mixing and self._drops):
            return False
        if function.name in CONVOLUTIONS:
            return is_depthwise_call(args, kwargs)
        if function.name in PRODUCTS:  # of activations, as in an attention written out
            return next(values_among((*args, *kwargs.values()), nn.Parameter), None) is None
        return function.name in (ATTENTION, SCAN)

    def _is_costly(self, call: FunctionCall) -> bool:
        """Return True for a layer, and for a call that would recompute a layer at each use.

        An adapter adds its output to the frozen layer's. The sum saves no input, so with
        ``per_use`` each use of the sum would run the frozen layer again.
        """
        views = values_among((*call.args, *call.kwargs.values()), OutputView)
        keeps_no_input = call.function.name in SAVE_NO_INPUT | ARITHMETIC
        is_layer = call.function.name in MULTIPLYING
        return is_layer or (keeps_no_input and any(not view.call.per_use for view in views))

    def _is_dropped(self, args: Sequence[object], kwargs: dict[str, object]) -> bool:
        tensors = (*args, *kwargs.values())
        return self._drops and any(id(tensor) in self._dropped_weights for tensor in tensors)

    def _cast_if_frozen(self, weight: object) -> object:
        """Cast a frozen weight as autocast would, and register the cast.

        Autocast's own copy of a frozen weight has no graph, so ``OutputTable`` could not recognise
        it.
        """
        if not self._drops or not isinstance(weight, nn.Parameter) or weight.requires_grad:
            return weight
        cast, call = weight_cast(weight)
        if call is not None:
            self._outputs.add(cast, call)
        return cast

    def _drop_or_release(self, call: FunctionCall, output: object, *, inplace: bool) -> None:
        """Drop the call's saved tensors if that frees memory; else keep them, free the inputs."""
        held = [
            (i, saved) for i, ref in enumerate(call.saved) if isinstance(saved := ref(), OutputView)
        ]
        if (
            isinstance(output, Tensor)
            and self._is_new_output(output, inplace=inplace)
            and (self._has_available_inputs(call, output) or self._keep_inputs(call))
        ):
            for i, saved in held:
                call.drop(i, saved, output)
            call.forget_unused_random_state()
            self._outputs.add(output, call)
        else:
            call.release_inputs()
            for _, saved in held:
                if saved.tensor is not None:
                    self._kept.add(saved.tensor)

    def _is_new_output(self, output: Tensor, *, inplace: bool) -> bool:
        """Return False for a view of an input, and for an input that was modified.

        An input that a function modified with ``inplace=True`` counts as new if the output fills
        its storage.
        """
        version, _ = self._inputs.get(_address(output), (None, 0))
        if version is None:
            return True
        is_whole = output.numel() * output.element_size() == output.untyped_storage().nbytes()
        return inplace and is_whole and version != output._version

    # --- availability of inputs

    def _are_available(self, tensors: Sequence[Tensor]) -> bool:
        """Return True if all inputs of a call are available before the call saves anything."""
        largest = max((tensor.numel() for tensor in tensors), default=0)
        return all(
            isinstance(tensor, nn.Parameter)
            or self._kept.has(tensor)
            or tensor in self._outputs
            or tensor.numel() * _SMALL <= largest
            for tensor in tensors
        )

    def _has_available_inputs(self, call: FunctionCall, output: Tensor) -> bool:
        """Return True if all inputs are available, those that the call has saved included."""
        inputs = list(values_among((*call.args, *call.kwargs.values()), (KeptInput, OutputView)))
        largest = max([output.numel(), *(i.shape.numel() for i in inputs)])
        return all(
            isinstance(i, OutputView)
            or self._kept.has(i.tensor, i.version)
            or i.shape.numel() * _SMALL <= largest
            for i in inputs
        )

    def _keep_inputs(self, call: FunctionCall) -> bool:
        """Keep the inputs of a product or an attention; return False for every other function.

        A product saves reshaped copies of its inputs. Attention with a trainable bias runs as
        several operations, which save other tensors than its inputs. The inputs are no larger than
        these saved tensors, so keeping the inputs and dropping the saved tensors costs no memory.
        """
        if call.function.name not in PRODUCTS | {ATTENTION}:
            return False
        for kept in values_among((*call.args, *call.kwargs.values()), KeptInput):
            self._kept.add_input(kept)
        return True

    # --- saved tensors

    def _pack(self, tensor: Tensor) -> Tensor | SavedTensor:
        """Pack hook for all tensors that the unit saves, inside cheap calls and outside."""
        call = self._call
        if call is not None and self._drops and self._is_made_by_call(tensor):
            is_statistics = call.function.output_from_saved is not None
            if self._is_large(tensor, call) and not is_statistics:
                return call.pack_held(tensor)
            # with ``per_use``, recomputing a view fills no saved tensor, so small ones stay
            if is_statistics or not call.per_use:
                return call.pack_small(tensor)
        if call is not None:
            call.skip()  # the recomputation does not fill it, but counts it as the forward does
        if self._kept.has(tensor):
            return tensor.detach()
        view = self._view_of_output(tensor) if self._drops else None
        return self._kept.add(tensor) if view is None else view

    def _view_of_output(self, tensor: Tensor) -> OutputView | None:
        """Return an empty view if a tensor can be recomputed by a call or a weight cast."""
        view = self._outputs.find(tensor)
        if view is not None:
            assert isinstance(view.call, FunctionCall)
            view.call.drop_small()  # recomputing the output fills them too (``function_call.py``)
        elif tensor.dtype in (torch.bfloat16, torch.float16):
            # of a trainable weight: its AccumulateGrad node holds the weight as ``variable``
            weight = getattr(cast_source(tensor), "variable", None)
            if isinstance(weight, nn.Parameter):
                return weight_cast_call(weight, tensor.dtype).view_of_output(tensor)
        return view

    def _is_made_by_call(self, tensor: Tensor) -> bool:
        """Return True for a saved tensor that is neither an input of the call nor kept anyway."""
        version, _ = self._inputs.get(_address(tensor), (None, 0))
        return version != tensor._version and not self._kept.has(tensor)

    def _is_large(self, tensor: Tensor, call: FunctionCall) -> bool:
        """Return True if a saved tensor is worth dropping; attention's always count as large."""
        largest = max((numel for _, numel in self._inputs.values()), default=0)
        return tensor.numel() * _SMALL > largest or call.function.name == ATTENTION


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
