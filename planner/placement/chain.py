"""The placement problem: a chain of units, each with a list of options.

Pieces:

    Chain, ChainUnit, ChainOption   a training step, its units, and the options of each unit
    OptionIndices                   a solution: one option index per unit, or ``JOINED``
    to_placement, option_indices    conversion between a solution and a ``Placement``

An option states how many bytes a unit stores for backward, how many bytes it needs while it runs,
and how many seconds of recomputation it adds. All numbers come from a profile;
``planner.placement.chain_cost`` adds them up to the peak and the recompute time of a step.

A unit whose index is ``JOINED`` belongs to a *segment* (Chen et al. 2016, arXiv:1604.06174): it is
recomputed together with the unit before it, and only the output of the last unit of the segment is
stored. The first unit of a segment has the ``recompute`` option without parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from profiler.arrays import Ints
from profiler.errors import InputError
from profiler.placement import Decision, Placement

JOINED = -1
"""Index of a unit that is recomputed in one segment with the unit before it."""

OptionIndices = tuple[int, ...]
"""For each unit an index into its options, or ``JOINED``."""

_DECISIONS = tuple(d for d in Decision if d != Decision.SEGMENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainOption:
    """One way to run a unit.

    Attributes:
        decision: decision for the whole unit, any except ``segment``.
        stored_bytes: growth of live bytes over the unit's forward, its output included.
        forward_bytes: highest live bytes during the unit's forward, above the level at its entry.
        backward_bytes: highest live bytes during its backward, recomputation included, above static
            bytes, bytes stored by earlier units and gradients of later units.
        recompute_seconds: time that this option adds to the step.
        parts: decisions for branches and layers of the unit by name, in addition to ``decision``;
            none if the decision is ``recompute``. An option without parts is *plain*.
    """

    decision: Decision
    stored_bytes: int
    forward_bytes: int
    backward_bytes: int
    recompute_seconds: float
    parts: Mapping[str, Decision] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.decision not in _DECISIONS:
            raise InputError(
                f"an option cannot have decision {str(self.decision)!r}; "
                f"use one of {', '.join(_DECISIONS)} "
                f"(segments are made of {Decision.RECOMPUTE} options)"
            )
        if not (math.isfinite(self.recompute_seconds) and self.recompute_seconds >= 0):
            raise InputError(
                f"recompute seconds must be zero or more, got {self.recompute_seconds}"
            )
        changed = {part: d for part, d in sorted(self.parts.items()) if d != Decision.KEEP}
        if changed and self.decision == Decision.RECOMPUTE:
            raise InputError(
                f"an option with decision {Decision.RECOMPUTE} cannot have parts, "
                f"got {_label(self.decision, changed)}"
            )
        object.__setattr__(self, "parts", MappingProxyType(changed))

    # ``parts`` has no hash, so the generated method would fail; equal options still hash alike
    def __hash__(self) -> int:
        return hash((self.decision, self.stored_bytes, self.recompute_seconds))

    @property
    def label(self) -> str:
        """Decision and parts as text: ``keep``, or ``attn: cheap, mlp: recompute``."""
        return _label(self.decision, self.parts)

    @property
    def key(self) -> tuple[object, ...]:
        """Decision and parts as a key that is unique among the unit's options."""
        return (self.decision, *self.parts.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainUnit:
    """A unit and its options. A unit with one option is fixed (stem, head, loss).

    Attributes:
        name: module name of the unit in the backbone.
        options: at least one option; no two with the same decision and parts.
        gradient_bytes: parameter gradients that its backward leaves live.
        boundary_bytes: size of its output; None if unknown, and the unit then joins no segment.
        forward_seconds: time of its complete forward; None if unknown.
        may_continue_segment: True if a segment may contain both this unit and the unit before it.
            False if another reference keeps the tensor between the two alive, so that joining them
            would free nothing.
    """

    name: str
    options: tuple[ChainOption, ...]
    gradient_bytes: int = 0
    boundary_bytes: int | None = None
    forward_seconds: float | None = None
    may_continue_segment: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(self.options))
        if not self.options:
            raise InputError(f"unit {self.name!r} has no option; give it at least {Decision.KEEP}")
        if len({option.key for option in self.options}) < len(self.options):
            raise InputError(f"unit {self.name!r} lists the same decision twice")

    def plain_index(self, decision: Decision) -> int | None:
        """Return the index of the option with this decision and no parts, or None."""
        for index, option in enumerate(self.options):
            if option.decision == decision and not option.parts:
                return index
        return None

    @property
    def default_index(self) -> int:
        """Index of ``keep``; if the unit lacks it, of the option with least recompute time."""
        kept = self.plain_index(Decision.KEEP)
        if kept is not None:
            return kept
        return min(range(len(self.options)), key=lambda o: self.options[o].recompute_seconds)

    @property
    def can_join(self) -> bool:
        """True if the unit can be part of a segment of several units.

        The bytes and seconds of a segment follow from the plain ``keep`` and ``recompute`` options
        and the size of the output (``chain_cost``), so the unit must have all three.
        """
        known = self.boundary_bytes is not None and self.plain_index(Decision.KEEP) is not None
        return known and self.plain_index(Decision.RECOMPUTE) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A training step as a chain of units.

    Attributes:
        units: units in forward order, with distinct names.
        static_bytes: parameters, buffers, optimizer state and inputs.
        floor_bytes: live bytes of the optimizer step, a lower bound of the peak that no placement
            changes.
    """

    units: tuple[ChainUnit, ...]
    static_bytes: int = 0
    floor_bytes: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", tuple(self.units))
        if not self.units:
            raise InputError("a chain needs at least one unit")
        if len({unit.name for unit in self.units}) < len(self.units):
            raise InputError("a chain must not name two units alike")


def check_indices(chain: Chain, indices: Sequence[int]) -> Ints:
    """Return option indices as an array [1, n].

    Raises:
        InputError: an index is missing or out of range, or joins units that cannot be joined.
    """
    if len(indices) != len(chain.units):
        raise InputError(f"the chain has {len(chain.units)} units, got {len(indices)} indices")
    for i, (unit, index) in enumerate(zip(chain.units, indices, strict=True)):
        if index == JOINED:
            _check_joined(chain, indices, i)
        elif not 0 <= index < len(unit.options):
            raise InputError(f"unit {unit.name!r} has {len(unit.options)} options, got {index}")
    return np.array([indices], np.int64)


def _check_joined(chain: Chain, indices: Sequence[int], i: int) -> None:
    unit = chain.units[i]
    if not (i and unit.may_continue_segment and unit.can_join and chain.units[i - 1].can_join):
        raise InputError(f"unit {unit.name!r} cannot join a segment with the unit before it")
    if indices[i - 1] not in {JOINED, chain.units[i - 1].plain_index(Decision.RECOMPUTE)}:
        raise InputError(
            f"unit {unit.name!r} joins a segment, so {chain.units[i - 1].name!r} before it "
            f"must be {Decision.RECOMPUTE} or {Decision.SEGMENT}"
        )


def to_placement(chain: Chain, indices: Sequence[int]) -> Placement:
    """Return the decisions of every unit and part."""
    check_indices(chain, indices)
    decisions: dict[str, Decision] = {}
    for unit, index in zip(chain.units, indices, strict=True):
        if index == JOINED:
            decisions[unit.name] = Decision.SEGMENT
            continue
        option = unit.options[index]
        decisions[unit.name] = option.decision
        decisions.update({f"{unit.name}/{part}": d for part, d in option.parts.items()})
    return Placement(decisions=decisions)


def option_indices(chain: Chain, placement: Placement) -> OptionIndices:
    """Return the option of each unit that has the decisions of a placement.

    Raises:
        InputError: the chain lacks a unit of the placement, or the unit lacks such an option.
    """
    names = {unit.name for unit in chain.units}
    parts: dict[str, dict[str, Decision]] = {}
    for name, decision in placement.decisions.items():
        unit_name, _, part = name.rpartition("/")
        if name not in names and unit_name not in names:
            raise InputError(f"the placement names {name!r}, which this backbone does not have")
        if name not in names:
            parts.setdefault(unit_name, {})[part] = decision
    indices = tuple(
        _option_index(unit, placement.decision(unit.name), parts.get(unit.name, {}))
        for unit in chain.units
    )
    check_indices(chain, indices)
    return indices


def _option_index(unit: ChainUnit, decision: Decision, parts: Mapping[str, Decision]) -> int:
    if decision == Decision.SEGMENT:
        return JOINED
    # a placement leaves out units that are kept, among them fixed units without a keep option
    if decision == Decision.KEEP and not parts and unit.plain_index(Decision.KEEP) is None:
        return unit.default_index
    key = (decision, *sorted(parts.items()))
    for index, option in enumerate(unit.options):
        if option.key == key:
            return index
    asked = _label(decision, dict(sorted(parts.items())))
    offered = "; ".join(option.label for option in unit.options)
    raise InputError(f"unit {unit.name!r} does not offer {asked!r}; it offers {offered}")


def _label(decision: Decision, parts: Mapping[str, Decision]) -> str:
    beside = [decision] if decision != Decision.KEEP or not parts else []
    return ", ".join([*beside, *(f"{part}: {d}" for part, d in parts.items())])
