"""Make a model's forward follow a placement: the same code for replay, measuring and training.

Every decision is made of *frames* (profiler/checkpointing/recompute.py), calls that can be run again in backward:

    recompute  the unit is a frame
    segment    the unit is a frame that reads its input from the unit before it. Refilling it
               refills that one too, whose own backward then finds its slots full: one forward for
               the whole segment. Where the model puts something between the two units, or the unit
               before saved nothing (a frozen prefix), the input is kept instead
    cheap      norms, activation functions, dropout and copies inside the unit are frames
               (profiler/checkpointing/cheap_ops.py); what the rest of the unit saves of their outputs are readings
    light      as cheap, with depthwise convolutions, attention and scans among the frames
    lean       as light, and the frames of what is cheap run again rather than leave anything in
               memory
    unit/part  the branch is a frame that reads its input from the norm in front of it, so the
               norm's output goes too. What stays: the residual stream, and the branch's output
               where something outside the branch saves it (a trainable LayerScale).
               ``unit/part: cheap`` confines ``cheap`` to the branch and the norm in front of it;
               within a unit that is light, it says what is not
    unit/layer recompute of a single layer beside cheap, light or lean: its matmul or convolution is
               a frame among the cheap ones, so that its output goes
    adaptive   the paper's rule: on entering a unit, recompute it if live bytes have reached the
               threshold (facts/seeds.md section 1.2)

Under adapters a recomputed unit runs all but its last frozen layer: nobody needs that output again.

Nothing is framed when gradients are off, and a call that saves nothing (frozen, nothing before it
learns) costs nothing. Modules keep class, name and state: only the instance's ``forward`` changes.
A unit that is a run of siblings is called through its first module: that one runs them all, hooks
included, and the others hand on what they are given.

Limits: a unit must not modify its own input in place (refilling raises), and tensors that a custom
autograd function hides from ``save_for_backward`` (bitsandbytes: its quantised weight) stay.
"""

from __future__ import annotations

import difflib
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from profiler.checkpointing.cheap_ops import Scope, weight_cast
from profiler.checkpointing.recompute import Frame, Held, Recipe, Table, recomputing, running_frame
from profiler.errors import InputError
from profiler.models.checkpointable_units import find_units
from profiler.models.layers import is_layer, is_stochastic_depth
from profiler.models.methods.base import backbone_of
from profiler.models.unit_runs import modules_of
from profiler.placement import Decision, Placement

__all__ = ["AppliedPlacement", "apply_adaptive", "apply_placement", "recomputing"]


class _Call:
    """A module's replaced ``forward``. No closure, so that deep copies stay whole."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.module = module
        self.own_forward = module.__dict__.get("forward")
        self.recipe = Recipe.of_module(name, module)
        module.__dict__["forward"] = self

    def remove(self) -> None:
        del self.module.__dict__["forward"]
        if self.own_forward is not None:
            self.module.__dict__["forward"] = self.own_forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return self.follow(args, kwargs)
        return self.recipe.run(*args, **kwargs)

    def follow(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError

    def framed(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, hold: Callable[[Tensor], object]
    ) -> tuple[Any, Frame]:
        """Run the module as one frame."""
        frame = Frame(self.recipe, args, kwargs, hold=hold)
        return frame.run_first(args, kwargs), frame


class _Run(nn.Module):
    """Siblings that the model calls in a row, as one module that no model holds.

    Args:
        members: in forward order.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.output: Callable[[], Tensor | None] = _nothing

    def forward(self, x: Tensor) -> Tensor:
        """Call the members one after the other, each with its hooks."""
        for member in self.members:
            x = type(member)._call_impl(member, x)
        return x

    def enter(self, x: Tensor) -> Tensor:
        """Stand in for the first member: run them all."""
        output: Tensor = self(x)
        self.output = weakref.ref(output)
        return output

    def hand_on(self, x: Tensor) -> Tensor:
        """Stand in for another member: its work is done."""
        if self.output() is not x:
            raise RuntimeError(
                "a unit of several modules was not called as one run; keep this unit"
            )
        return x

    def install(self) -> None:
        """Put the members' calls, hooks and all, under the run."""
        for member in self.members:
            # in the instance, as `forward` is elsewhere: nn.Module.__call__ asks there
            member.__dict__["_call_impl"] = self.hand_on
        self.members[0].__dict__["_call_impl"] = self.enter

    def remove(self) -> None:
        """Give the members their own calls back."""
        for member in self.members:
            del member.__dict__["_call_impl"]


def _nothing() -> None:
    return None


class _Chain:
    """The output of the unit that ran last, for a segment to read."""

    def __init__(self) -> None:
        self.table = Table()

    def announce(self, output: object, frame: Frame) -> None:
        self.table.clear()
        if isinstance(output, Tensor) and frame.slots:
            self.table.add(output, frame)

    def hold(self, tensor: Tensor) -> object:
        return self.table.find(tensor) or Held(tensor)


class _Recomputed(_Call):
    """A unit that is one frame.

    Args:
        name: for messages.
        module: the unit.
        reads: the chain its input may be read from.
        announces: the chain its output is announced to, if the next unit reads it.
    """

    def __init__(
        self, name: str, module: nn.Module, *, reads: _Chain | None, announces: _Chain | None
    ) -> None:
        super().__init__(name, module)
        self.reads, self.announces = reads, announces

    def follow(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hold = Held if self.reads is None else self.reads.hold
        output, frame = self.framed(args, kwargs, hold=hold)
        if self.reads is not None:
            self.reads.table.clear()
        if self.announces is not None:
            self.announces.announce(output, frame)
        return output


class _Scoped(_Call):
    """A unit whose cheap calls are frames."""

    def __init__(self, name: str, module: nn.Module, *, decision: Decision) -> None:
        super().__init__(name, module)
        self.scope = Scope(
            light=decision in (Decision.DROP_CHEAP_AND_MIXING, Decision.DROP_PER_USE),
            lean=decision == Decision.DROP_PER_USE,
        )
        self.lazy = decision in (
            Decision.DROP_CHEAP,
            Decision.DROP_CHEAP_AND_MIXING,
            Decision.DROP_PER_USE,
        )

    def follow(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self.scope.active(lazy=self.lazy):
            return self.recipe.run(*args, **kwargs)


class _Part(_Call):
    """A branch of a scoped unit with a decision of its own."""

    def __init__(self, name: str, module: nn.Module, *, decision: Decision, scope: Scope) -> None:
        super().__init__(name, module)
        self.decision, self.scope = decision, scope

    def follow(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.decision == Decision.RECOMPUTE:
            with self.scope.switched(lazy=False, paused=True):
                return self.framed(args, kwargs, hold=self.scope.hold)[0]
        with self.scope.switched(lazy=self.decision == Decision.DROP_CHEAP):
            return self.recipe.run(*args, **kwargs)


class _Adaptive(_Call):
    """A unit that decides on entry."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        *,
        is_tight: Callable[[], bool],
        log: dict[str, Decision],
    ) -> None:
        super().__init__(name, module)
        self.is_tight, self.log = is_tight, log

    def follow(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.log[self.recipe.name] = Decision.RECOMPUTE if self.is_tight() else Decision.KEEP
        if self.log[self.recipe.name] == Decision.RECOMPUTE:
            return self.framed(args, kwargs, hold=Held)[0]
        return self.recipe.run(*args, **kwargs)


class _FrozenLayer(_Call):
    """The layer under an adapter: where it is the last one, a refill does without it."""

    def follow(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        frame = running_frame()
        weights = list(self.module.parameters())
        if frame is None or any(weight.requires_grad for weight in weights):
            return self.recipe.run(*args, **kwargs)
        known: dict[int, Frame | None] = {w.untyped_storage()._cdata: None for w in weights}
        layer = self.recipe.run
        if type(self.module) is nn.Linear:
            # As autocast would do; but its copy could not be recognised.
            cast, made_by = weight_cast(self.module.weight)
            known[cast.untyped_storage()._cdata] = made_by
            layer = _linear_with(cast, self.module.bias)
        return frame.run_frozen(layer, args, kwargs, weights=known)


def _linear_with(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    return lambda x: F.linear(x, weight, bias)


class _Trusted(_Call):
    """An adapter or a dropout: what it saves without a graph is its own, not the frozen layer's."""

    def follow(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        frame = running_frame()
        if frame is None:
            return self.recipe.run(*args, **kwargs)
        before, frame.trusted = frame.trusted, True
        try:
            return self.recipe.run(*args, **kwargs)
        finally:
            frame.trusted = before


def _adapters_in(name: str, module: nn.Module) -> list[_Call]:
    """Replace the forwards that let a frame do without its last frozen layer."""
    layers = [(m, getattr(m, "base_layer", None)) for m in module.modules()]
    frozen = [(m, layer) for m, layer in layers if isinstance(layer, nn.Module)]
    if not frozen:
        return []
    dropouts = [m for m in module.modules() if isinstance(m, nn.Dropout) or is_stochastic_depth(m)]
    calls: list[_Call] = [_FrozenLayer(name, layer) for _, layer in frozen]
    return calls + [_Trusted(name, m) for m in (*(m for m, _ in frozen), *dropouts)]


class AppliedPlacement:
    """A model that follows a placement, until ``remove`` (or the end of a ``with`` block).

    Attributes:
        units: the backbone's units in forward order.
    """

    def __init__(self, *, units: tuple[str, ...]) -> None:
        self.units = units
        self._calls: list[_Call] = []
        self._runs: list[_Run] = []
        self._decisions: dict[str, Decision] = {}

    @property
    def placement(self) -> Placement:
        """What the model follows; for the adaptive rule, what it decided in the last forward."""
        return Placement(decisions=self._decisions)

    def _module(self, backbone: nn.Module, unit: str) -> nn.Module:
        """Return the module whose forward is the unit's."""
        members = modules_of(backbone, unit)
        if len(members) == 1:
            return members[0]
        run = _Run(members)
        run.install()
        self._runs.append(run)
        return run

    def _recompute(self, call: _Call) -> None:
        # in the order of installation: an adapter may be the very module of the call
        self._calls += [call, *_adapters_in(call.recipe.name, call.module)]

    def remove(self) -> None:
        """Give every module its own forward back."""
        for call in reversed(self._calls):
            call.remove()
        for run in self._runs:
            run.remove()
        self._calls.clear()
        self._runs.clear()

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
    known = find_units(backbone) if units is None else tuple(units)
    _check(placement, known, backbone)
    applied = AppliedPlacement(units=known)
    applied._decisions = dict(placement.decisions)
    chain = _Chain()
    for name, after in zip(known, (*known[1:], None), strict=True):
        decision = placement.decision(name)
        parts = [key for key in placement.decisions if key.startswith(f"{name}/")]
        if decision == Decision.KEEP and not parts:
            continue
        module = applied._module(backbone, name)
        if decision in (Decision.RECOMPUTE, Decision.SEGMENT):
            reads = chain if decision == Decision.SEGMENT else None
            read = after is not None and placement.decision(after) == Decision.SEGMENT
            unit = _Recomputed(name, module, reads=reads, announces=chain if read else None)
            applied._recompute(unit)
        else:
            scoped = _Scoped(name, module, decision=decision)
            applied._calls.append(scoped)
            for key in parts:
                branch = module.get_submodule(key.partition("/")[2])
                own = placement.decision(key)
                if own == Decision.RECOMPUTE and decision != Decision.KEEP and is_layer(branch):
                    scoped.scope.drop(branch)
                    continue
                part = _Part(key, branch, decision=own, scope=scoped.scope)
                if own == Decision.RECOMPUTE:
                    applied._recompute(part)
                else:
                    applied._calls.append(part)
    return applied


def apply_adaptive(
    model: nn.Module,
    *,
    budget_bytes: int,
    live_bytes: Callable[[], int],
    threshold: float = 0.5,
    units: Sequence[str] | None = None,
) -> AppliedPlacement:
    """Make a model follow the paper's rule: recompute what is entered with the budget half used.

    Source: ``inject_dynamic_checkpointing`` of the paper's code (facts/seeds.md section 1.2).

    Args:
        model: a backbone, or what a method made of it.
        budget_bytes: the budget.
        live_bytes: bytes allocated now (``torch.cuda.memory_allocated`` on CUDA).
        threshold: share of the budget from which on units are recomputed.
        units: the units the rule is asked for; found when not given.
    """
    backbone = backbone_of(model)
    known = find_units(backbone) if units is None else tuple(units)
    applied = AppliedPlacement(units=known)

    def is_tight() -> bool:
        return live_bytes() >= threshold * budget_bytes

    for name in known:
        module = applied._module(backbone, name)
        applied._recompute(_Adaptive(name, module, is_tight=is_tight, log=applied._decisions))
    return applied


# --- refusing what cannot be ----------------------------------------------------------------------


def _check(placement: Placement, units: tuple[str, ...], backbone: nn.Module) -> None:
    for name, decision in placement.decisions.items():
        unit, _, part = name.partition("/")
        if unit not in units:
            raise _lacks("unit", unit, units)
        if part:
            _check_part(placement, unit, part, modules_of(backbone, unit))
        elif decision == Decision.SEGMENT:
            _check_segment(placement.decisions, unit, units)


def _check_part(placement: Placement, unit: str, part: str, modules: tuple[nn.Module, ...]) -> None:
    # a run has no parts: its modules are not the model's child of one name
    inner = modules[0].named_modules() if len(modules) == 1 else ()
    known = [name for name, _ in inner if name]
    if part not in known:
        raise _lacks(f"part of {unit!r}", part, known)
    whole, own = placement.decision(unit), placement.decision(f"{unit}/{part}")
    if whole in (Decision.RECOMPUTE, Decision.SEGMENT) or own not in (
        Decision.DROP_CHEAP,
        Decision.RECOMPUTE,
    ):
        raise InputError(
            f"the placement asks for {own} of {unit}/{part} within {whole} of {unit}; "
            "a part is recompute or cheap, within a unit that is neither recompute nor segment"
        )
    for other in placement.decisions:
        is_layer = (
            placement.decision(other) == Decision.RECOMPUTE
            and own == Decision.DROP_CHEAP
            and whole != Decision.KEEP
        )
        if other.startswith(f"{unit}/{part}.") and not is_layer:
            raise InputError(f"the placement names {unit}/{part} and {other} inside it; keep one")


def _check_segment(decisions: Mapping[str, Decision], unit: str, units: tuple[str, ...]) -> None:
    before = units[units.index(unit) - 1] if unit != units[0] else None
    if before is None or decisions.get(before) not in (Decision.RECOMPUTE, Decision.SEGMENT):
        raise InputError(
            f"the placement makes {unit!r} a segment with the unit before it ({before}), "
            "which is not recomputed; recompute both, or make it `recompute`"
        )


def _lacks(kind: str, name: str, known: Sequence[str]) -> InputError:
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    advice = f"did you mean {', '.join(near)}?" if near else "see `budgetplan profile`"
    return InputError(f"the placement names {kind} {name!r}, which the model lacks; {advice}")
