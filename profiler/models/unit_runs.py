"""Runs and the order of units, found by one traced forward on ``meta``.

The stem of a ResNet is no module: ``conv1, bn1, act1, maxpool`` are siblings that the model's own
forward calls one after another. Module structure does not show that, so one forward on ``meta``
(shapes only) is traced. A run is a sequence of modules outside every block such that

    each is called once, with exactly the output of the module before it as its only argument;
    nothing else uses that output;
    outputs still have positions. After pooling they are small, and the loss needs them at once.

Two or more layers, a weight layer among them, are needed for a unit. Its name joins the names of
the modules: ``conv1+bn1+act1+maxpool``.

The same forward shows in which order blocks run. Modules can be registered in another order:
Xception registers a shortcut before the branch that runs first, and CoaT all patch embeddings
before all blocks. Blocks that the forward does not call, calls twice or calls inside another block
(CoaT's relative positions) are no units.

If the forward cannot run on ``meta``, there are no runs, and blocks stay in order of registration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from profiler.models.backbones.timm_interface import classifiers, run_on_meta
from profiler.models.layers import count_layers, count_weight_layers

RUN_SEPARATOR = "+"
"""Stands between the module names in the name of a run."""


def modules_of(model: nn.Module, unit: str) -> tuple[nn.Module, ...]:
    """Return the modules of a unit in forward order: one for a block, several for a run."""
    return tuple(model.get_submodule(name) for name in unit.split(RUN_SEPARATOR))


def with_runs(model: nn.Module, blocks: tuple[str, ...]) -> tuple[str, ...]:
    """Return blocks and runs in forward order.

    Args:
        model: a backbone, on any device.
        blocks: names of the units that are modules, in order of registration.
    """
    loose = [name for group in _loose_siblings(model, blocks) for name in group]
    if not loose and _is_order_certain(model, blocks):
        return blocks  # ViTs; no forward is needed
    trace = _traced_forward(model, [*blocks, *loose])
    names = [call.name for call in trace.calls]
    once = {name for name in names if names.count(name) == 1} - trace.nested
    called = once.intersection(blocks)
    if not called:
        return blocks
    units: list[str] = []
    run: list[str] = []
    for call in trace.calls:
        if not (run and call.follows and call.is_plain and call.name in loose):
            units += _unit_of(model, run)
            run = []
        if call.name in called:
            units.append(call.name)
        elif call.is_plain and call.name in once:
            run.append(call.name)
    return tuple(units + _unit_of(model, run))


def _is_order_certain(model: nn.Module, blocks: Sequence[str]) -> bool:
    """Return whether blocks run in order of registration.

    That is so in a Sequential or a ModuleList. The forward of any other module can call its
    children in any order.
    """
    children: dict[str, set[str]] = {}
    for block in blocks:
        names = block.split(".")
        for depth, name in enumerate(names):
            children.setdefault(".".join(names[:depth]), set()).add(name)
    return all(
        len(names) == 1 or isinstance(model.get_submodule(holder), nn.Sequential | nn.ModuleList)
        for holder, names in children.items()
    )


def _unit_of(model: nn.Module, run: Sequence[str]) -> list[str]:
    """Return the name of the unit that a run makes; nothing if the run is not worth a unit."""
    return [RUN_SEPARATOR.join(run)] if _is_worth_a_unit(model, run) else []


def _is_worth_a_unit(model: nn.Module, names: Sequence[str]) -> bool:
    """Return whether modules hold two or more layers, a weight layer among them."""
    modules = [model.get_submodule(name) for name in names]
    return sum(map(count_layers, modules)) > 1 and any(map(count_weight_layers, modules))


def _loose_siblings(model: nn.Module, blocks: Sequence[str]) -> Iterator[list[str]]:
    """Yield groups of modules outside blocks that are registered in a row and could make a unit.

    The classifier ends a group.
    """
    # Modules that contain a block, by name; the model itself is "".
    holders = {"": None} | {block[:i]: None for block in blocks for i in _dots(block)}
    heads = set(map(id, classifiers(model)))
    for holder in holders:
        group: list[str] = []
        for name, child in [*model.get_submodule(holder).named_children(), ("", nn.Identity())]:
            path = f"{holder}.{name}".lstrip(".")
            is_loose = path not in holders and path not in blocks
            if name and is_loose and heads.isdisjoint(map(id, child.modules())):
                group.append(path)
                continue
            if _is_worth_a_unit(model, group):
                yield group
            group = []


def _dots(name: str) -> list[int]:
    return [i for i, letter in enumerate(name) if letter == "."]


class _ModuleCall:
    """One call of a module in the traced forward.

    Attributes:
        name: name of the module.
        after: the call that returned its only argument, if no operation ran between the two calls.
        uses: how often its output was passed to an operation or a module.
        is_plain: whether it takes one tensor and returns one tensor that has positions.
    """

    def __init__(self, name: str, *, after: _ModuleCall | None, has_one_argument: bool) -> None:
        self.name, self.after = name, after
        self.uses = 0
        self.is_plain = has_one_argument

    @property
    def follows(self) -> bool:
        """Whether it alone uses the output of the call before it."""
        return self.after is not None and self.after.uses == 1


class _Trace(TorchFunctionMode):
    """Records the calls of some modules, and every use of their outputs between the calls.

    Attributes:
        calls: calls outside all other recorded calls, in order.
        nested: names of modules that were called inside another recorded call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_ModuleCall] = []
        self.nested: set[str] = set()
        self._depth = 0
        self._open: _ModuleCall | None = None
        self._last: _ModuleCall | None = None
        # By id of the output. Holding the tensor keeps its id from being reused.
        self._makers: dict[int, tuple[Tensor, _ModuleCall]] = {}

    def watch(self, module: nn.Module, name: str) -> list[RemovableHandle]:
        """Register hooks that record the calls of a module; return their handles."""

        def before(_: object, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            self._depth += 1
            if self._depth > 1:
                self.nested.add(name)
            else:
                self._begin(name, args, kwargs)

        def after(_: object, _args: object, output: object) -> None:
            self._depth -= 1
            if not self._depth:
                self._end(output)

        return [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after),
        ]

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Count the uses by an operation outside the recorded calls."""
        if self._open is None:
            self.count_uses((*args, *(kwargs or {}).values()))
            self._last = None
        return func(*args, **(kwargs or {}))

    def count_uses(self, values: Iterable[object]) -> None:
        """Count one use of every output among some values, nested in lists or not."""
        for value in values:
            if isinstance(value, list | tuple):
                self.count_uses(value)
            elif id(value) in self._makers:
                self._makers[id(value)][1].uses += 1

    def _begin(self, name: str, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        is_one = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        maker = self._makers.get(id(args[0])) if is_one else None
        after = maker[1] if maker is not None and maker[1] is self._last else None
        self.count_uses((*args, *kwargs.values()))
        self._open = _ModuleCall(name, after=after, has_one_argument=is_one)

    def _end(self, output: object) -> None:
        call = self._open
        assert call is not None
        call.is_plain = call.is_plain and isinstance(output, Tensor) and _has_positions(output)
        if isinstance(output, Tensor):
            self._makers[id(output)] = (output, call)
        self._open, self._last = None, call
        self.calls.append(call)


def _has_positions(features: Tensor) -> bool:
    """Return whether features have two or more axes beside the batch that are longer than one."""
    return sum(size > 1 for size in features.shape[1:]) > 1


def _traced_forward(model: nn.Module, names: Sequence[str]) -> _Trace:
    """Run one forward on ``meta`` and return the trace of some modules; empty if it fails."""
    trace = _Trace()
    handles = [handle for n in names for handle in trace.watch(model.get_submodule(n), n)]
    try:
        with torch.no_grad(), trace:
            trace.count_uses([run_on_meta(model)])
    except Exception:  # the forward needs values, or images of another size
        return _Trace()
    finally:
        for handle in handles:
            handle.remove()
    return trace
