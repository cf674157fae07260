"""Makes a model follow a placement: the same code for replay, measurement and training.

    apply_placement   replaces the forwards of the units that a placement does not keep
    apply_adaptive    applies the run-time rule of arXiv:2607.02158, on entry of each unit
    AppliedPlacement  the replaced forwards; ``remove`` restores the modules' own forwards

    decision          effect
    recompute         The unit is one recomputable call (``module_call.py``).
    segment           The same, and the unit's input is a view of the output of the unit before. In
                      backward, restoring that view recomputes the unit before. This also fills that
                      unit's saved tensors for its own backward, so each unit of a segment is
                      recomputed only once. The input is kept instead if the model changes it
                      between the two units, or if the unit before saved nothing (a frozen prefix).
    offload           Tensors that the unit saves are copied to the host's memory, and back when its
                      backward needs them (``host_memory.py``).
    recompute-from-host  As recompute, and the unit's input waits in the host's memory.
    cheap             Calls of norms, activation functions, dropout and copies inside the unit are
                      recomputable (``cheap_ops.py``).
    light             The same for depthwise convolutions, attention and scans.
    lean              As light, and a cheap output is recomputed for each of its uses.
    unit/branch       The branch is one recomputable call. Its input is a view of the output of the
                      preceding norm, so the norm's output is dropped as well. The residual stream
                      stays in memory. So does the branch's output if an operation outside the
                      branch saves it (a trainable LayerScale). ``unit/branch: cheap`` confines
                      cheap to the branch and the preceding norm; inside a light unit it exempts the
                      branch from light.
    unit/layer        Recompute of a layer inside a cheap, light or lean unit: the output of the
                      layer's matmul or convolution is dropped like the cheap outputs.

A unit of several sibling modules is called through its first module (``forwards.UnitRun``).

Limits: a unit must not modify its own input in place (recomputing raises). Tensors that a custom
autograd function keeps without ``save_for_backward`` stay in memory (bitsandbytes: its quantised
weight).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from profiler.checkpointing.forwards import (
    AdaptiveUnit,
    OffloadedUnit,
    PreviousOutput,
    RecomputedUnit,
    ReplacedForward,
    SelectiveUnit,
    UnitPart,
    UnitRun,
    replace_adapters,
)
from profiler.checkpointing.recompute import recomputing
from profiler.errors import InputError
from profiler.models.checkpointable_units import find_units
from profiler.models.layers import is_layer
from profiler.models.methods.base import backbone_of
from profiler.models.unit_runs import modules_of
from profiler.placement import WHOLE_UNIT_DECISIONS, Decision, Placement

_WHOLE_WORDS = ", ".join(sorted(WHOLE_UNIT_DECISIONS))

__all__ = ["AppliedPlacement", "apply_adaptive", "apply_placement", "recomputing"]


class AppliedPlacement:
    """A model that follows a placement, until ``remove`` or the end of a ``with`` block.

    Attributes:
        units: the backbone's units in forward order.
    """

    def __init__(self, *, units: tuple[str, ...]) -> None:
        self.units = units
        self._forwards: list[ReplacedForward] = []
        self._runs: list[UnitRun] = []
        self._decisions: dict[str, Decision] = {}

    @property
    def placement(self) -> Placement:
        """The decisions in force; under the adaptive rule, those of the last forward."""
        return Placement(decisions=self._decisions)

    def remove(self) -> None:
        """Give every module its own forward back."""
        for forward in reversed(self._forwards):
            forward.remove()
        for run in self._runs:
            run.remove()
        self._forwards.clear()
        self._runs.clear()

    def __enter__(self) -> AppliedPlacement:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _module(self, backbone: nn.Module, unit: str) -> nn.Module:
        """Return the module that runs the unit: the unit itself, or a ``UnitRun``."""
        members = modules_of(backbone, unit)
        if len(members) == 1:
            return members[0]
        run = UnitRun(members)
        run.install()
        self._runs.append(run)
        return run

    def _add_recomputed(self, forward: ReplacedForward) -> None:
        # Replace adapters after the module that contains them. If that module is an adapter itself,
        # its forward is replaced twice; removal in reverse order restores the original.
        adapters = replace_adapters(forward.function.name, forward.module)
        self._forwards += [forward, *adapters]

    def _add_selective(
        self, name: str, module: nn.Module, placement: Placement, parts: Sequence[str]
    ) -> None:
        """Replace the forward of a unit with selective recomputation, and those of its parts."""
        decision = placement.decision(name)
        unit = SelectiveUnit(name, module, decision=decision)
        self._forwards.append(unit)
        for key in parts:
            part, own = module.get_submodule(key.partition("/")[2]), placement.decision(key)
            if own == Decision.RECOMPUTE and decision != Decision.KEEP and is_layer(part):
                unit.recomputation.drop_layer(part)
                continue
            forward = UnitPart(key, part, decision=own, recomputation=unit.recomputation)
            if own == Decision.RECOMPUTE:
                self._add_recomputed(forward)
            else:
                self._forwards.append(forward)


def apply_placement(
    model: nn.Module, placement: Placement, *, units: Sequence[str] | None = None
) -> AppliedPlacement:
    """Make a model follow a placement.

    Args:
        model: a backbone, or the model that a method made from a backbone.
        placement: decisions by unit name, in the backbone's own naming.
        units: the backbone's units in forward order; found if None.

    Raises:
        InputError: the placement names a unit or part that the model lacks, or combines decisions
            that exclude each other.
    """
    backbone = backbone_of(model)
    known = find_units(backbone) if units is None else tuple(units)
    _check(placement, known, backbone)
    applied = AppliedPlacement(units=known)
    applied._decisions = dict(placement.decisions)
    previous = PreviousOutput()  # shared: one unit registers its output, the next one takes it
    for name, after in zip(known, (*known[1:], None), strict=True):
        decision = placement.decision(name)
        parts = [key for key in placement.decisions if key.startswith(f"{name}/")]
        if decision == Decision.KEEP and not parts:
            continue
        module = applied._module(backbone, name)
        if decision not in WHOLE_UNIT_DECISIONS:
            applied._add_selective(name, module, placement, parts)
            continue
        if decision == Decision.OFFLOAD:
            applied._forwards.append(OffloadedUnit(name, module))
            continue
        goes_on = after is not None and placement.decision(after) == Decision.SEGMENT
        unit = RecomputedUnit(
            name,
            module,
            previous=previous if decision == Decision.SEGMENT else None,
            own_output=previous if goes_on else None,
            input_on_host=decision == Decision.RECOMPUTE_FROM_HOST,
        )
        applied._add_recomputed(unit)
    return applied


def apply_adaptive(
    model: nn.Module,
    *,
    budget_bytes: int,
    live_bytes: Callable[[], int],
    threshold: float = 0.5,
    units: Sequence[str] | None = None,
) -> AppliedPlacement:
    """Recompute a unit if live bytes at its entry reach a share of the budget.

    Source: ``inject_dynamic_checkpointing`` in the code of arXiv:2607.02158.

    Args:
        model: a backbone, or the model that a method made from a backbone.
        budget_bytes: memory budget.
        live_bytes: returns the bytes allocated now (``torch.cuda.memory_allocated`` on CUDA).
        threshold: share of the budget at and above which units are recomputed.
        units: the units that the rule decides about; the backbone's units if None.
    """
    backbone = backbone_of(model)
    known = find_units(backbone) if units is None else tuple(units)
    applied = AppliedPlacement(units=known)

    def is_tight() -> bool:
        return live_bytes() >= threshold * budget_bytes

    for name in known:
        module = applied._module(backbone, name)
        forward = AdaptiveUnit(name, module, is_tight=is_tight, decisions=applied._decisions)
        applied._add_recomputed(forward)
    return applied


# --- placements that cannot be applied ------------------------------------------------------------


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
    # a run of siblings has no parts: no module of the model has its name
    inner = modules[0].named_modules() if len(modules) == 1 else ()
    known = [name for name, _ in inner if name]
    if part not in known:
        raise _lacks(f"part of {unit!r}", part, known)
    whole, own = placement.decision(unit), placement.decision(f"{unit}/{part}")
    if whole in WHOLE_UNIT_DECISIONS or own not in (
        Decision.DROP_CHEAP,
        Decision.RECOMPUTE,
    ):
        raise InputError(
            f"the placement asks for {own} of {unit}/{part} within {whole} of {unit}; a part is "
            f"recompute or cheap, within a unit that is none of {_WHOLE_WORDS}"
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
