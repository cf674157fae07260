"""Find the units of any backbone: the pieces that can be checkpointed, in forward order.

*Blocks* are modules, and structure alone tells them, so that this costs no forward:

    chain   a Sequential or ModuleList with an element that holds two or more weights (a block),
            or that is itself a chain or a stage
    stage   a module with a chain among its direct children; above the first chain, among all
            its descendants (a tower inside a wrapper)
    block   an element of a chain that is neither chain nor stage; what stands beside a chain
            inside a stage and is not a bare layer (down-sampling, patch merging); a stem of two
            or more layers in front of the first chain

A *weight* is a parameter of two or more dimensions. A layer that peft wrapped counts as the layer
it wraps. A model without any chain (RegNet, VGG) falls back to its direct children with several
weights. Registration order stands for forward order. That, disjointness, and one call per forward
with a tensor in and a tensor out are what ``tests/profiler/test_discovery.py`` holds against real
forwards.

*Runs* are what lies between: the ResNet's ``conv1, bn1, act1, maxpool`` are siblings that its own
forward calls in a row. One forward on ``meta`` tells them: modules outside every block, each given
exactly the output of the one before, which nobody else sees, as far as features have positions
(up to the pooling; what follows is small, and the loss needs it at once). A run of two or more
layers with a weight among them is a unit, named by its modules: ``conv1+bn1+act1+maxpool``. A
backbone whose forward does not run on ``meta`` has no runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeGuard

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd as _Convolution
from torch.overrides import TorchFunctionMode

from profiler.errors import UnknownNameError
from profiler.unit_options import Anatomy

JOINT = "+"
"""Between the names of a run's modules."""
IMAGE_SIZE = 224


def find_units(model: nn.Module, *, override: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names of a backbone's units, blocks and runs, in forward order.

    Args:
        model: a backbone (``backbone_of`` a wrapped model), on any device.
        override: names to use instead of what would be found.

    Raises:
        UnknownNameError: an overriding name is not a module of the backbone.
    """
    if override:
        known = dict(model.named_modules())
        for name in [part for unit in override for part in unit.split(JOINT)]:
            if name not in known:
                raise UnknownNameError(kind="unit", name=name, known=known)
        return tuple(override)
    blocks = find_blocks(model)
    loose = [name for group in _loose_siblings(model, blocks) for name in group]
    return _with_runs(model, blocks, loose) if loose else blocks


def find_blocks(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the units that are modules of the backbone, in forward order."""
    found = tuple(_tower(model, prefix=""))
    return found or tuple(name for name, child in model.named_children() if _weights(child) > 1)


def modules_of(model: nn.Module, unit: str) -> tuple[nn.Module, ...]:
    """Return the modules of a unit in forward order: one for a block, all of them for a run."""
    return tuple(model.get_submodule(name) for name in unit.split(JOINT))


def parts_of(model: nn.Module, unit: str) -> tuple[str, ...]:
    """Return the names, within a unit, of the branches worth checkpointing alone.

    These are the unit's children with two or more weights (an attention, an MLP), provided that
    something else of the unit has parameters as well. Squeeze-and-excite gates (``se``) work on
    pooled features and store next to nothing. A run has none.
    """
    if JOINT in unit:
        return ()
    children = [(n, m) for n, m in model.get_submodule(unit).named_children() if _layers(m)]
    if len(children) < 2:
        return ()
    return tuple(name for name, child in children if _weights(child) > 1 and name != "se")


def layers_of(model: nn.Module, unit: str) -> tuple[str, ...]:
    """Return the names, within a unit, of the layers whose outputs are worth dropping.

    These are its matmuls and convolutions but the depthwise ones, in the order of multiplications
    for a value of their output (in forward order where equal), without the last of that order: to
    drop all of them is nearly to recompute the unit. Gates (``se``) have no outputs worth a word.
    """
    if JOINT in unit:
        return ()
    found = [
        (multiplications, name)
        for name, module in _outermost_named(model.get_submodule(unit))
        if is_layer(module) and "se" not in name.split(".")
        if not _is_depthwise(layer := _wrapped(module))
        if (multiplications := _multiplications(layer))
    ]
    return tuple(name for _, name in sorted(found, key=lambda pair: pair[0])[:-1])


def is_layer(module: nn.Module) -> bool:
    """True for one matmul or convolution, peft's adapters around it included.

    Quantised ones are none: what they call is not known to be run again as it was.
    """
    layer = _wrapped(module)
    exact = all(parameter.dtype.is_floating_point for parameter in layer.parameters())
    return isinstance(layer, nn.Linear | _Convolution) and exact


def anatomy_of(model: nn.Module, unit: str) -> Anatomy:
    """Return what of a unit can be decided apart."""
    inside = [inner for module in modules_of(model, unit) for inner in module.modules()]
    return Anatomy(
        branches=parts_of(model, unit),
        layers=layers_of(model, unit),
        token_mixer=_token_mixer_in(model, unit),
        has_depthwise=any(map(_is_depthwise, inside)),
    )


def _token_mixer_in(model: nn.Module, unit: str) -> str | None:
    """Return the name, within a unit, of the module that is its attention or scan by class name."""
    if JOINT in unit:
        return None
    inside = model.get_submodule(unit).named_modules()
    return next((n for n, m in inside if n and _mixes_tokens(type(m).__name__)), None)


def _mixes_tokens(class_name: str) -> bool:
    return "Attention" in class_name or class_name == "SelectiveScan"


def _wrapped(module: nn.Module) -> nn.Module:
    """Return the layer that peft wrapped, or the module itself."""
    layer = getattr(module, "base_layer", module)
    return layer if isinstance(layer, nn.Module) else module


def _is_depthwise(module: nn.Module) -> bool:
    """True for a convolution that treats every channel by itself."""
    return isinstance(module, _Convolution) and module.groups == module.in_channels > 1


def _multiplications(layer: nn.Module) -> int:
    """Return how many a value of its output takes."""
    if isinstance(layer, _Convolution):
        return layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    assert isinstance(layer, nn.Linear)
    return layer.in_features


def _tower(module: nn.Module, *, prefix: str) -> Iterator[str]:
    """Yield the units of a module that holds chains at some depth, up to its last chain."""
    if _is_chain(module):
        yield from _stage(module, prefix=prefix)
        return
    children = list(module.named_children())
    towers = [any(map(_is_chain, child.modules())) for _, child in children]
    last = max((i for i, holds in enumerate(towers) if holds), default=-1)
    for (name, child), holds in zip(children[: last + 1], towers, strict=False):
        path = f"{prefix}.{name}" if prefix else name
        if holds:
            yield from _tower(child, prefix=path)
        elif _layers(child) > 1 and _weights(child):
            yield path


def _stage(module: nn.Module, *, prefix: str) -> Iterator[str]:
    """Yield the units of a chain or a stage."""
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if _is_chain(child) or _is_stage(child) or _is_plain_run(child):
            yield from _stage(child, prefix=path)
        elif _weights(child) and any(True for _ in child.children()):
            yield path


def _is_chain(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList) and any(
        _is_chain(child) or _weights(child) > 1 for child in module.children()
    )


def _is_stage(module: nn.Module) -> bool:
    return any(_is_chain(child) for child in module.children())


def _is_plain_run(module: nn.Module) -> bool:
    """True for a Sequential of composite modules, such as MobileNetV3's last ``blocks.5``."""
    return type(module) is nn.Sequential and all(_layers(c) > 1 for c in module.children())


def _layers(module: nn.Module) -> int:
    """Count the layers with parameters of their own."""
    return sum(
        1
        for layer in _outermost(module)
        if hasattr(layer, "base_layer") or any(True for _ in layer.parameters(recurse=False))
    )


def _weights(module: nn.Module) -> int:
    """Count the layers with a parameter of two or more dimensions."""
    return sum(
        1
        for layer in _outermost(module)
        if any(p.dim() > 1 for p in layer.parameters(recurse=hasattr(layer, "base_layer")))
    )


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module and its descendants, but nothing inside a layer that peft wrapped."""
    return (inner for _, inner in _outermost_named(module))


def _outermost_named(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    yield name, module
    if not hasattr(module, "base_layer"):
        for own, child in module.named_children():
            yield from _outermost_named(child, f"{name}.{own}".lstrip("."))


# --- runs -----------------------------------------------------------------------------------------


def _loose_siblings(model: nn.Module, blocks: Sequence[str]) -> Iterator[list[str]]:
    """Yield modules outside blocks that are registered in a row and could make a unit.

    That is most often none, and saves the forward. The classifier is not among them.
    """
    holders = {"": None} | {block[:i]: None for block in blocks for i in _dots(block)}
    heads = _classifiers(model)
    for holder in holders:
        group: list[str] = []
        for name, child in [*model.get_submodule(holder).named_children(), ("", nn.Identity())]:
            path = f"{holder}.{name}".lstrip(".")
            is_loose = path not in holders and path not in blocks
            if name and is_loose and heads.isdisjoint(map(id, child.modules())):
                group.append(path)
                continue
            if _is_worth_a_unit([model.get_submodule(each) for each in group]):
                yield group
            group = []


def _dots(name: str) -> list[int]:
    return [i for i, letter in enumerate(name) if letter == "."]


def _classifiers(model: nn.Module) -> set[int]:
    """Return the identities of what timm calls the classifier."""
    get_classifier = getattr(model, "get_classifier", None)
    found = get_classifier() if get_classifier is not None else None
    return {id(m) for m in (found if isinstance(found, tuple | list) else [found])}


def _is_worth_a_unit(modules: Sequence[nn.Module]) -> bool:
    """True for two or more layers with a weight among them, as for a stem that is one module."""
    return sum(map(_layers, modules)) > 1 and any(map(_weights, modules))


def _with_runs(model: nn.Module, blocks: tuple[str, ...], loose: Sequence[str]) -> tuple[str, ...]:
    """Return the blocks with the runs where the forward has them."""
    calls = _calls(model, [*blocks, *loose])
    names = [call.name for call in calls]
    if [name for name in names if name in blocks] != list(blocks):
        return blocks
    units: list[str] = []
    run: list[str] = []
    for call in calls:
        if not (call.follows and run and call.name in loose and call.is_plain):
            units += _unit_of(model, run)
            run = []
        if call.name in blocks:
            units.append(call.name)
        elif call.is_plain and names.count(call.name) == 1:
            run.append(call.name)
    return tuple(units + _unit_of(model, run))


def _unit_of(model: nn.Module, run: Sequence[str]) -> list[str]:
    modules = [model.get_submodule(name) for name in run]
    return [JOINT.join(run)] if _is_worth_a_unit(modules) else []


class _Call:
    """One call of a block or a loose module in a traced forward.

    Attributes:
        name: of the module.
        after: the call whose output is its only argument, and since whose end nothing was done.
        uses: how often its output was given to anything.
        is_plain: one tensor in and one tensor out, which still has positions.
    """

    def __init__(self, name: str, *, after: _Call | None, has_one_argument: bool) -> None:
        self.name, self.after = name, after
        self.uses = 0
        self.is_plain = has_one_argument

    @property
    def follows(self) -> bool:
        """True if it takes the output of the call before it, and nothing else does."""
        return self.after is not None and self.after.uses == 1


class _Trace(TorchFunctionMode):
    """Notes the calls of some modules, and what is done with tensors between them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self._open: _Call | None = None
        self._last: _Call | None = None
        self._makers: dict[int, tuple[Tensor, _Call]] = {}  # the tensor keeps its id its own

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Note the use of what calls returned, outside of calls."""
        if self._open is None:
            self.use((*args, *(kwargs or {}).values()))
            self._last = None
        return func(*args, **(kwargs or {}))

    def use(self, values: Iterable[object]) -> None:
        """Count a use of every output among some values."""
        for value in values:
            if isinstance(value, list | tuple):
                self.use(value)
            elif id(value) in self._makers:
                self._makers[id(value)][1].uses += 1

    def enter(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the beginning of a call."""
        one = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        maker = self._makers.get(id(args[0])) if one else None
        after = maker[1] if maker is not None and maker[1] is self._last else None
        self.use((*args, *kwargs.values()))
        self._open = _Call(name, after=after, has_one_argument=one)

    def leave(self, output: object) -> None:
        """Note the end of a call."""
        call = self._open
        assert call is not None
        call.is_plain = call.is_plain and isinstance(output, Tensor) and _has_positions(output)
        if isinstance(output, Tensor):
            self._makers[id(output)] = (output, call)
        self._open, self._last = None, call
        self.calls.append(call)


def _has_positions(features: Tensor) -> bool:
    return sum(size > 1 for size in features.shape[1:]) > 1


def _calls(model: nn.Module, names: Sequence[str]) -> list[_Call]:
    """Run one forward on ``meta`` and return the calls of some modules in order."""
    trace, handles = _Trace(), []
    for name in names:
        module = model.get_submodule(name)
        enter, leave = partial(_enter, trace, name), partial(_leave, trace)
        handles += [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave),
        ]
    try:
        with torch.no_grad(), trace:
            trace.use([run_on_meta(model)])
    except Exception:  # not on meta
        return []
    finally:
        for handle in handles:
            handle.remove()
    return trace.calls


def run_on_meta(model: nn.Module) -> Any:
    """Run a model's forward on shapes alone, at the image size it was trained at.

    Raises:
        Exception: whatever the forward may do that meta tensors, or images of this size, cannot.
    """
    config = getattr(model, "pretrained_cfg", None) or {}
    _, height, width = config.get("input_size", (3, IMAGE_SIZE, IMAGE_SIZE))
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    # BatchNorm wants two images
    return functional_call(model, shapes, torch.empty(2, 3, height, width, device="meta"))


def _enter(trace: _Trace, name: str, _: object, args: Any, kwargs: Any) -> None:
    trace.enter(name, args, kwargs)


def _leave(trace: _Trace, _module: object, _args: object, output: object) -> None:
    trace.leave(output)


def is_stochastic_depth(module: nn.Module) -> TypeGuard[DropPath]:
    """True for timm's ``DropPath``, which drops the residual branches of random images."""
    return isinstance(module, DropPath)
