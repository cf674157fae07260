"""Drop what is cheap to recompute: the outputs of norms, activation functions, dropout and copies.

While a scope is active, every call of a cheap torch function becomes a frame (profiler/checkpointing/recompute.py),
and what the rest of the unit saves of its output is a reading. Matmuls, convolutions, attention and
scans are no cheap functions: they run once, and what they give stays.

A frame frees memory only if its inputs are there anyway, which is known once the call was made. An
input is *available* if somebody saved it already (LayerNorm and GELU save their own inputs), if it
is itself the output of such a frame (BatchNorm, then ReLU, then dropout), if it is a parameter, or
if it is small. Otherwise (a ReLU behind an addition, dropout behind a matmul) the frame is given
up, and all stays as in the plain model.

Under autocast the copies of the weights are dropped too: they are as cheap as copies get, and a
plain model keeps two bytes for every weight until backward.

A *light* scope counts what mixes no channels among the cheap calls. A depthwise convolution does
k*k multiplications for every value of its output, where the pointwise ones beside it do hundreds;
attention does two for every token that is looked at (98 in a window of 7 x 7, 394 in a ViT at 224
pixels), as one function or as products of activations; a scan does seven for each of its 8 or
16 states, and gives a state for every 16 tokens beside its output. Any other layer can be *dropped*
by name: then its matmul or convolution is a frame like the cheap ones. In a *lean* scope the cheap
ones are lean frames: where its layers are dropped too, a unit running backward is at no time there
as a whole, as one that is recomputed is.

Calls are watched function by function through a ``TorchFunctionMode``, so it makes no difference
whether a model writes ``nn.SiLU`` or ``F.silu``. Under autocast, where consumers save a copy in
lower precision, the copy is recognised by its place in the autograd graph. In-place functions run
in place the first time, as the model wants, and out of place when recomputed.

A ViT block stores 16 D values per token; this drops the two norms' outputs (2 D) and GELU's (4 D).

Tried and lost: torch's selective checkpointing (``create_selective_checkpoint_contexts``) saving
what matmuls, convolutions and attention return. On ViT-S blocks in float32 it stores 11.0 D where
this stores 10.0 D (it must keep the unit's input and every matmul's output, saved by somebody or
not), and takes 1.02 to 1.07 of the plain step's time where this takes 0.97 to 1.01 (one CPU core,
batch 8 and 1, best of several). In bfloat16 both store the same.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from profiler.checkpointing.recompute import (
    SEVERAL,
    Frame,
    Held,
    Reading,
    Recipe,
    Slot,
    Table,
    cast_from,
    unpack,
)
from profiler.device_rules.cuda_dispatch import runs_on_cpu

_NORMS = {"layer_norm", "rms_norm", "group_norm", "batch_norm"}

_ACTIVATIONS = {
    *("celu", "elu", "exp", "gelu", "glu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu"),
    *("mish", "relu", "relu6", "rsqrt", "selu", "sigmoid", "silu", "softmax", "softplus"),
    *("softsign", "tanh"),
}

_ARITHMETIC = {"mul", "__mul__", "__rmul__", "div", "__truediv__", "pow", "__pow__", "square"}

_DROPOUTS = {"alpha_dropout", "dropout", "dropout1d", "dropout2d", "dropout3d"}

_COPIES_AND_SUMS = {
    *("add", "__add__", "__radd__", "sub", "__sub__", "__rsub__", "neg", "__neg__"),
    *("to", "float", "half", "bfloat16", "type_as", "contiguous", "reshape", "flatten", "clone"),
    *("cat", "concat", "stack", "flip", "roll", "pad"),
}

_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}

_ATTENTION, _SCAN = "scaled_dot_product_attention", "selective_scan"

_PRODUCTS = {"matmul", "__matmul__", "bmm"}

_MULTIPLYING = _CONVOLUTIONS | _PRODUCTS | {"linear", _ATTENTION, _SCAN}

_BATCH_NORM_ARGUMENTS = tuple(inspect.signature(nn.functional.batch_norm).parameters)

_CONVOLUTION_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")

_CHEAP = _NORMS | _ACTIVATIONS | _ARITHMETIC | _DROPOUTS | _COPIES_AND_SUMS

_OUTPUT_SERVES = {"hardtanh", "relu6"}
"""Their backward asks where the input was within bounds: there, and only there, is the output."""

_SAVE_NO_INPUT = (
    _COPIES_AND_SUMS | _DROPOUTS | {"exp", "relu", "rsqrt", "sigmoid", "softmax", "tanh"}
)
"""Their inputs must be available beforehand: what they save is a mask, their output, or nothing."""

_SMALL = 16
"""What has at most 1/16 of its neighbour's values (a mean per token), or of what is made of it, is
kept without asking."""


def _is_depthwise(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Say whether a call of ``F.conv2d`` or its like with these arguments is depthwise."""
    named = dict(zip(_CONVOLUTION_ARGUMENTS, args, strict=False)) | kwargs
    weight: Tensor = named["weight"]  # [outputs, inputs / groups, ...]
    return named.get("groups", 1) > 1 and weight.shape[1] == 1


@cache
def _recipe(function: Callable[..., Any]) -> Recipe | None:
    name = getattr(function, "__name__", "")
    if name not in _CHEAP | _MULTIPLYING or function is torch.batch_norm:
        return None
    run = _batch_norm_again if name == "batch_norm" else function
    return Recipe(
        name=name,
        run=run,
        stochastic=name in _DROPOUTS or name == _ATTENTION,
        output_serves=name in _OUTPUT_SERVES,
    )


def _batch_norm_again(*args: Any, **kwargs: Any) -> Tensor:
    """``F.batch_norm`` that leaves the running statistics alone."""
    named = dict(zip(_BATCH_NORM_ARGUMENTS, args, strict=False)) | kwargs | {"momentum": 0.0}
    return nn.functional.batch_norm(**named)


def _normalised(statistics: list[Tensor | None], *args: Any, **kwargs: Any) -> Tensor | None:
    """Return what ``F.batch_norm`` gave in training, from the statistics of that call.

    The CPU's kernel computes ``x * alpha + (bias - mean * alpha)`` in either mode, alpha being the
    weight over the deviation (``batch_norm_cpu_collect_linear_and_constant_terms``, native/cpu/
    batch_norm_kernel.cpp): given as the weight beside a variance of one, the result is the same to
    the bit. Collecting statistics takes most of a first run (16 x 96 x 56 x 56 on one thread of a
    Xeon: 9.8 ms with, 1.6 ms without).
    """
    named = dict(zip(_BATCH_NORM_ARGUMENTS, args, strict=False)) | kwargs
    weight: Tensor | None = named.get("weight")
    if not named.get("training") or len(statistics) != 2:
        return None
    mean, inverse_deviation = statistics
    if mean is None or inverse_deviation is None:
        return None
    if mean.dtype != torch.float32 or (weight is not None and weight.dtype != torch.float32):
        return None
    return nn.functional.batch_norm(
        named["input"],
        mean,
        torch.ones_like(mean),
        inverse_deviation if weight is None else inverse_deviation * weight.detach(),
        named.get("bias"),
        training=False,
        eps=0.0,
    ).detach()


_BATCH_NORM_ON_CPU = Recipe(
    name="batch_norm", run=_batch_norm_again, stochastic=False, from_saved=_normalised
)

_CAST_WEIGHT = Recipe(name="cast of a weight", run=torch.Tensor.to, stochastic=False)


def _weight_frame(weight: Tensor, dtype: torch.dtype) -> Frame:
    return Frame(_CAST_WEIGHT, (weight, dtype), {}, hold=lambda kept: kept)


def weight_cast(weight: Tensor) -> tuple[Tensor, Frame | None]:
    """Do what autocast would do to a weight, and say which frame can do it again.

    Returns:
        The copy and its frame; the weight itself and None where autocast leaves it alone.
    """
    device_type = weight.device.type
    if weight.dtype != torch.float32 or not torch.is_autocast_enabled(device_type):
        return weight, None
    frame = _weight_frame(weight, torch.get_autocast_dtype(device_type))
    return weight.to(torch.get_autocast_dtype(device_type)), frame


class Scope(TorchFunctionMode):
    """What is known during one forward of a unit.

    Args:
        light: whether depthwise convolutions, attention and scans are cheap.
        lean: whether what is cheap is run again for every use.
    """

    def __init__(self, *, light: bool = False, lean: bool = False) -> None:
        super().__init__()
        self._light, self._lean = light, lean
        self._dropped: list[nn.Module] = []
        self._dropped_weights: set[int] = set()
        self._lazy = True
        self._paused = False
        self._table = Table()
        self._kept: dict[int, tuple[Tensor, int]] = {}
        self._frame: Frame | None = None
        self._inputs: dict[int, tuple[int, int]] = {}

    def drop(self, layer: nn.Module) -> None:
        """Count what a layer calls among the cheap calls."""
        self._dropped.append(layer)

    @contextlib.contextmanager
    def active(self, *, lazy: bool) -> Iterator[None]:
        """Follow one forward of the unit.

        Args:
            lazy: whether what is saved may be a reading; otherwise only parts read.
        """
        self._lazy = lazy
        # asked anew: a weight may have been replaced since
        self._dropped_weights = {id(p) for layer in self._dropped for p in layer.parameters()}
        try:
            with self, saved_tensors_hooks(self._pack, unpack):
                yield
        finally:
            self._table.clear()
            self._kept.clear()

    @contextlib.contextmanager
    def switched(self, *, lazy: bool, paused: bool = False) -> Iterator[None]:
        """Treat a part of the unit differently: there nothing is light.

        Args:
            lazy: as for ``active``.
            paused: leave all calls alone, as inside a part that is one frame.
        """
        before = self._lazy, self._paused, self._light
        self._lazy, self._paused, self._light = lazy, paused, False
        try:
            yield
        finally:
            self._lazy, self._paused, self._light = before

    def hold(self, tensor: Tensor) -> object:
        """Return what stands for a frame's input until a refill needs it."""
        if isinstance(tensor, nn.Parameter):
            return tensor
        if self._is_kept(tensor):
            return Held(tensor)
        return self._table.find(tensor) or Held(tensor)

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Frame the call if its function is cheap."""
        kwargs = kwargs or {}
        recipe = None if self._paused else _recipe(func)
        if recipe is None or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if recipe.name in _MULTIPLYING:
            is_dropped = self._is_dropped(args, kwargs)
            args = tuple(self._cast_if_frozen(arg) for arg in args)
            if not is_dropped and not self._is_light(recipe, args, kwargs):
                return func(*args, **kwargs)
        tensors = list(_each((*args, *kwargs.values()), Tensor))
        if all(isinstance(tensor, nn.Parameter) for tensor in tensors):
            return func(*args, **kwargs)  # as large for one image as for many
        if recipe.name in _SAVE_NO_INPUT and not self._are_there(tensors):
            return func(*args, **kwargs)
        if recipe.name == "batch_norm" and runs_on_cpu(tensors[0]):
            recipe = _BATCH_NORM_ON_CPU
        self._inputs = {_address(t): (t._version, t.numel()) for t in tensors}
        self._frame = frame = Frame(recipe, args, kwargs, hold=self.hold)
        frame.lean = self._lean and not self._is_dear(frame)
        try:
            output = func(*args, **kwargs)
        finally:
            self._frame = None
        self._settle(frame, output, inplace=bool(kwargs.get("inplace")))
        return output

    def _is_light(self, recipe: Recipe, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        if not (self._light and self._lazy):
            return False
        if recipe.name in _CONVOLUTIONS:
            return _is_depthwise(args, kwargs)
        if recipe.name in _PRODUCTS:
            return not any(_each((*args, *kwargs.values()), nn.Parameter))
        return recipe.name in (_ATTENTION, _SCAN)

    def _is_dear(self, frame: Frame) -> bool:
        """True for a layer, and for what reads a dear output that it does not keep for itself.

        An adapter's sum: run again for every use, it would run the frozen layer again.
        """
        read = _each((*frame.args, *frame.kwargs.values()), Reading)
        keeps_no_input = frame.recipe.name in _SAVE_NO_INPUT | _ARITHMETIC
        is_layer = frame.recipe.name in _MULTIPLYING
        return is_layer or (keeps_no_input and any(not reading.frame.lean for reading in read))

    def _is_dropped(self, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        tensors = (*args, *kwargs.values())
        return self._lazy and any(id(tensor) in self._dropped_weights for tensor in tensors)

    def _cast_if_frozen(self, weight: Any) -> Any:
        """Do what autocast would do to a frozen weight: the graph would not tell of this copy."""
        if not self._lazy or not isinstance(weight, nn.Parameter) or weight.requires_grad:
            return weight
        cast, frame = weight_cast(weight)
        if frame is not None:
            self._table.add(cast, frame)
        return cast

    def _settle(self, frame: Frame, output: object, *, inplace: bool) -> None:
        """Decide whether the call is recomputed: known once it has saved what it saves."""
        slots = [
            (i, slot) for i, ref in enumerate(frame.slots) if isinstance(slot := ref(), Reading)
        ]
        if (
            isinstance(output, Tensor)
            and self._gives_new(output, inplace=inplace)
            and (self._is_available(frame, output) or self._keep_inputs(frame))
        ):
            for i, slot in slots:
                frame.drop(i, slot, output)
            frame.forget_unused_random_state()
            self._table.add(output, frame)
        else:
            frame.give_up()
            for _, slot in slots:
                if slot.tensor is not None:
                    self._keep(slot.tensor)

    def _gives_new(self, output: Tensor, *, inplace: bool) -> bool:
        """False for views of an input, and for inputs modified in part or behind our back."""
        version, _ = self._inputs.get(_address(output), (None, 0))
        if version is None:
            return True
        is_whole = output.numel() * output.element_size() == output.untyped_storage().nbytes()
        return inplace and is_whole and version != output._version

    def _are_there(self, tensors: Sequence[Tensor]) -> bool:
        """True if inputs that the call itself will not save are available, or small."""
        largest = max((tensor.numel() for tensor in tensors), default=0)
        return all(
            isinstance(tensor, nn.Parameter)
            or self._is_kept(tensor)
            or tensor in self._table
            or tensor.numel() * _SMALL <= largest
            for tensor in tensors
        )

    def _is_available(self, frame: Frame, output: Tensor) -> bool:
        """True if every input of the frame is there anyway when it is needed again, or small."""
        inputs = list(_each((*frame.args, *frame.kwargs.values()), (Held, Reading)))
        largest = max([output.numel(), *(i.shape.numel() for i in inputs)])
        return all(
            isinstance(i, Reading)
            or self._is_kept(i.tensor, i.version)
            or i.shape.numel() * _SMALL <= largest
            for i in inputs
        )

    def _keep_inputs(self, frame: Frame) -> bool:
        """Keep the inputs of a product that has saved copies of them instead: they are as large.

        So does attention where there is a bias that learns: it runs in operators of its own.
        """
        if frame.recipe.name not in _PRODUCTS | {_ATTENTION}:
            return False
        for held in _each((*frame.args, *frame.kwargs.values()), Held):
            self._kept.setdefault(_address(held.tensor), (held.tensor, held.version))
        return True

    # --- what is saved

    def _pack(self, tensor: Tensor) -> Tensor | Slot:
        if self._frame is not None and self._lazy and self._is_new(tensor):
            is_statistics = self._frame.recipe.from_saved is not None
            if self._is_large(tensor) and not is_statistics:
                return self._frame.pack_filled(tensor)
            if is_statistics or not self._frame.lean:
                return self._frame.pack_passenger(tensor)
        if self._frame is not None:
            self._frame.skip_slot()
        if self._is_kept(tensor):
            return tensor.detach()
        reading = self._read(tensor) if self._lazy else None
        return self._keep(tensor) if reading is None else reading

    def _read(self, tensor: Tensor) -> Reading | None:
        reading = self._table.find(tensor)
        if reading is not None:
            reading.frame.drop_passengers()
        elif tensor.dtype in (torch.bfloat16, torch.float16):
            weight = getattr(cast_from(tensor), "variable", None)
            if isinstance(weight, nn.Parameter):
                return _weight_frame(weight, tensor.dtype).reading(tensor)
        return reading

    def _is_new(self, tensor: Tensor) -> bool:
        """True for what a cheap call saves of its own making."""
        version, _ = self._inputs.get(_address(tensor), (None, 0))
        return version != tensor._version and not self._is_kept(tensor)

    def _is_large(self, tensor: Tensor) -> bool:
        """True if that is worth dropping; attention runs again in any case."""
        assert self._frame is not None
        largest = max((numel for _, numel in self._inputs.values()), default=0)
        return tensor.numel() * _SMALL > largest or self._frame.recipe.name == _ATTENTION

    def _keep(self, tensor: Tensor) -> Tensor:
        kept = tensor.detach()
        self._kept[_address(tensor)] = (kept, tensor._version)
        return kept

    def _is_kept(self, tensor: Tensor, version: int | None = None) -> bool:
        entry = self._kept.get(_address(tensor))
        return entry is not None and entry[1] == (tensor._version if version is None else version)


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _each(values: Iterable[object], kind: type | tuple[type, ...]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, kind):
            yield value
        elif isinstance(value, SEVERAL):
            yield from _each(value, kind)
