"""The forwards that stand in for a module's own while a placement is applied.

    RecomputedUnit     decision recompute, recompute-from-host or segment: one ModuleCall
    OffloadedUnit      decision offload: saved tensors wait on the host
    SelectiveUnit      decision cheap, light or lean: selective recomputation inside the unit
    UnitPart           a branch of a SelectiveUnit with a decision of its own
    AdaptiveUnit       the paper's rule: recompute if enough memory is in use on entry
    FrozenLayer        the layer under an adapter; a recomputation may skip it (module_call.py)
    AdapterModule      an adapter or a dropout in a recomputed module
    UnitRun            several sibling modules that together are one unit
    PreviousOutput     the output of the unit before, which the next unit of a segment recomputes

Class, name and state of the module stay; only ``forward`` of the instance changes. The objects are
no closures, so a deep copy of the model copies them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from profiler.checkpointing.cheap_functions import weight_cast
from profiler.checkpointing.cheap_ops import SelectiveRecomputation
from profiler.checkpointing.host_memory import (
    OffloadedInput,
    SavedOnHost,
    first_tensor,
    unpack_from_host,
)
from profiler.checkpointing.module_call import ModuleCall
from profiler.checkpointing.output_table import OutputTable
from profiler.checkpointing.recompute import (
    KeptInput,
    RecomputableCall,
    RecomputableFunction,
    StoreInput,
    running_call,
)
from profiler.device_rules.cuda_dispatch import runs_on_cpu
from profiler.models.layers import is_stochastic_depth
from profiler.placement import Decision


class ReplacedForward:
    """A module's ``forward`` until ``remove``.

    Args:
        name: name of the module for error messages.
        module: the module.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self.module = module
        self.own_forward = module.__dict__.get("forward")
        self.function = RecomputableFunction.of_module(name, module)
        module.__dict__["forward"] = self

    def remove(self) -> None:
        """Give the module its own forward back."""
        del self.module.__dict__["forward"]
        if self.own_forward is not None:
            self.module.__dict__["forward"] = self.own_forward

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Run the module; without gradients nothing is saved, and its own forward is enough."""
        if torch.is_grad_enabled():
            return self.run(args, kwargs)
        return self.function.run(*args, **kwargs)

    def run(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Run the module with its decision."""
        raise NotImplementedError

    def as_module_call(
        self, args: tuple[object, ...], kwargs: dict[str, object], *, store_input: StoreInput
    ) -> tuple[Any, ModuleCall]:
        """Run the module with everything inside dropped; return output and call."""
        call = ModuleCall(self.function, args, kwargs, store_input=store_input)
        return call.run_first(args, kwargs), call


class PreviousOutput:
    """The output of the unit that ran last, and the call that recomputes it."""

    def __init__(self) -> None:
        self.table = OutputTable()

    def set(self, output: object, call: ModuleCall) -> None:
        """Register an output, unless its call saved nothing and cannot be recomputed."""
        self.table.clear()
        if isinstance(output, Tensor) and call.saved:
            self.table.add(output, call)

    def store_input(self, tensor: Tensor) -> object:
        """Return a view of the output for the next unit; keep any other input."""
        return self.table.find(tensor) or KeptInput(tensor)


class RecomputedUnit(ReplacedForward):
    """A unit with everything inside dropped.

    Args:
        name: name of the unit.
        module: the unit.
        previous: output of the unit before, which this unit continues as a segment; None to keep
            the input.
        own_output: where to register the output for the next unit; None if that is no segment.
        input_on_host: whether the input waits on the host.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        *,
        previous: PreviousOutput | None,
        own_output: PreviousOutput | None,
        input_on_host: bool = False,
    ) -> None:
        super().__init__(name, module)
        self.previous, self.own_output = previous, own_output
        self.input_on_host = input_on_host

    def run(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Run the unit and hand its output on to the next unit of the segment."""
        store_input: StoreInput = KeptInput
        if self.previous is not None:
            store_input = self.previous.store_input
        elif self.input_on_host:
            store_input = self._store_on_host(first_tensor(args, kwargs))
        output, call = self.as_module_call(args, kwargs, store_input=store_input)
        if self.previous is not None:
            self.previous.table.clear()
        if self.own_output is not None:
            self.own_output.set(output, call)
        return output

    @staticmethod
    def _store_on_host(given: Tensor | None) -> StoreInput:
        """Return the function that moves the unit's input, and keeps its other arguments."""
        if given is None or runs_on_cpu(given):
            return KeptInput
        return lambda tensor: OffloadedInput(tensor) if tensor is given else KeptInput(tensor)


class OffloadedUnit(ReplacedForward):
    """A unit whose saved tensors wait on the host; on a CPU they stay."""

    def run(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Run the unit under hooks that move its saved tensors."""
        given = first_tensor(args, kwargs)
        if given is None or runs_on_cpu(given):
            return self.function.run(*args, **kwargs)
        saved = SavedOnHost(self.module, given)
        with saved_tensors_hooks(saved.pack, unpack_from_host):
            return self.function.run(*args, **kwargs)


class SelectiveUnit(ReplacedForward):
    """A unit whose cheap outputs are dropped, or that is kept and has parts."""

    def __init__(self, name: str, module: nn.Module, *, decision: Decision) -> None:
        super().__init__(name, module)
        self.recomputation = SelectiveRecomputation(
            drop_mixing=decision in (Decision.DROP_CHEAP_AND_MIXING, Decision.DROP_PER_USE),
            per_use=decision == Decision.DROP_PER_USE,
        )
        self.drops = decision != Decision.KEEP

    def run(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Run the unit under selective recomputation."""
        with self.recomputation.active(drops=self.drops):
            return self.function.run(*args, **kwargs)


class UnitPart(ReplacedForward):
    """A branch of a SelectiveUnit: recomputed, or with its cheap outputs dropped."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        *,
        decision: Decision,
        recomputation: SelectiveRecomputation,
    ) -> None:
        super().__init__(name, module)
        self.decision, self.recomputation = decision, recomputation

    def run(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Run the branch; its input is a view of the preceding norm's output."""
        if self.decision == Decision.RECOMPUTE:
            store_input = self.recomputation.store_input
            with self.recomputation.in_part(drops=False, paused=True):
                return self.as_module_call(args, kwargs, store_input=store_input)[0]
        with self.recomputation.in_part(drops=self.decision == Decision.DROP_CHEAP):
            return self.function.run(*args, **kwargs)


class AdaptiveUnit(ReplacedForward):
    """A unit whose decision is made on entry.

    Args:
        name: name of the unit.
        module: the unit.
        is_tight: returns True if the unit is to be recomputed.
        decisions: gets the decision under the unit's name.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        *,
        is_tight: Callable[[], bool],
        decisions: dict[str, Decision],
    ) -> None:
        super().__init__(name, module)
        self.is_tight, self.decisions = is_tight, decisions

    def run(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Decide, then run the unit."""
        is_tight = self.is_tight()
        self.decisions[self.function.name] = Decision.RECOMPUTE if is_tight else Decision.KEEP
        if is_tight:
            return self.as_module_call(args, kwargs, store_input=KeptInput)[0]
        return self.function.run(*args, **kwargs)


# --- adapters in a recomputed module --------------------------------------------------------------


class FrozenLayer(ReplacedForward):
    """The layer under an adapter, which a recomputation may skip."""

    def run(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Run the layer under the module call around it."""
        call = running_call()
        weights = list(self.module.parameters())
        if not isinstance(call, ModuleCall) or any(weight.requires_grad for weight in weights):
            return self.function.run(*args, **kwargs)
        storages: dict[int, RecomputableCall | None] = {
            w.untyped_storage()._cdata: None for w in weights
        }
        layer = self.function.run
        if type(self.module) is nn.Linear:
            # autocast's own copy of the weight would look like an activation
            cast, cast_call = weight_cast(self.module.weight)
            storages[cast.untyped_storage()._cdata] = cast_call
            layer = _linear_with(cast, self.module.bias)
        return call.run_frozen(layer, args, kwargs, storages=storages)


def _linear_with(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    return lambda x: F.linear(x, weight, bias)


class AdapterModule(ReplacedForward):
    """An adapter or a dropout: tensors without a graph that it saves are not the frozen layer's."""

    def run(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Run the module, with the module call around it informed."""
        call = running_call()
        if not isinstance(call, ModuleCall):
            return self.function.run(*args, **kwargs)
        before, call.in_adapter = call.in_adapter, True
        try:
            return self.function.run(*args, **kwargs)
        finally:
            call.in_adapter = before


def replace_adapters(name: str, module: nn.Module) -> list[ReplacedForward]:
    """Replace the forwards of adapters, of their frozen layers and of dropouts inside a module."""
    layers = [(m, getattr(m, "base_layer", None)) for m in module.modules()]
    adapters = [(m, layer) for m, layer in layers if isinstance(layer, nn.Module)]
    if not adapters:
        return []
    dropouts = [m for m in module.modules() if isinstance(m, nn.Dropout) or is_stochastic_depth(m)]
    forwards: list[ReplacedForward] = [FrozenLayer(name, layer) for _, layer in adapters]
    return forwards + [AdapterModule(name, m) for m in (*(m for m, _ in adapters), *dropouts)]


# --- units of several modules ---------------------------------------------------------------------


class UnitRun(nn.Module):
    """Siblings that the model calls in a row, as one module that is not part of the model.

    The first member's call runs all members, with their hooks. The calls of the other members
    return their argument, the output of the run, unchanged.

    Args:
        members: the siblings in forward order.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self._output: weakref.ref[Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Call the members one after the other, each with its hooks."""
        for member in self.members:
            x = type(member)._call_impl(member, x)
        return x

    def install(self) -> None:
        """Replace the members' calls."""
        for member in self.members:
            # in the instance, where nn.Module.__call__ looks up _call_impl
            member.__dict__["_call_impl"] = self._pass_on
        self.members[0].__dict__["_call_impl"] = self._run_all

    def remove(self) -> None:
        """Give the members their own calls back."""
        for member in self.members:
            del member.__dict__["_call_impl"]

    def _run_all(self, x: Tensor) -> Tensor:
        output: Tensor = self(x)
        self._output = weakref.ref(output)
        return output

    def _pass_on(self, x: Tensor) -> Tensor:
        if self._output is None or self._output() is not x:
            raise RuntimeError(
                "a unit of several modules was not called as one run; keep this unit"
            )
        return x
