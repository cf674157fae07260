"""The options of a unit: the ways to place it that are profiled, priced and compared.

A placement could decide about every layer on its own. That would be far too many combinations to
profile, so each unit has a short list of options, and an optimal placement picks one per unit:

    record                       key              decisions for the unit
    WholeUnit(decision)          keep, cheap, ... the decision, for the whole unit
    SpareTokenMixer()            depthwise        light, but the token mixer (attention or scan)
                                                  cheap: its output stays
    CheapBranch(n)               only:n           branch n cheap, the rest of the unit kept
    RecomputeBranches(n)         parts:n          branch n recomputed, the other branches cheap
    RecomputeBranches(None)      parts:all        every branch recomputed; joining operations stay
    RecomputeLayers(n)           layers:n         cheap, and the outputs of n layers dropped too
    RecomputeLayers(n, light)    light-layers:n   light, and the outputs of n layers dropped too
    RecomputeLayers(None, lean)  lean-layers      lean, and the outputs of all listed layers dropped

Branches count from 1. Layers are taken in the order of ``UnitParts.layers``: fewest multiplications
per output value first, which is the recompute time of a freed byte.

A unit with depthwise convolutions never uses ``cheap`` as the rest: recomputing the outputs of
depthwise convolutions costs least of all, so ``SpareTokenMixer`` takes its place.

The key is the option's name in the profile store, in ``units[].decision`` of a composed prediction
and in progress messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from profiler.placement import Decision, Placement

Decisions = dict[str, Decision]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitParts:
    """The parts of a unit that can have a decision of their own, by name within the unit.

    Attributes:
        branches: branches worth recomputing alone, such as an attention or an MLP.
        layers: matmuls and convolutions whose outputs can be dropped, cheapest to recompute per
            byte first. Depthwise convolutions are not among them.
        token_mixer: the attention or the scan, None without one.
        has_depthwise: True if the unit has depthwise convolutions.
    """

    branches: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    token_mixer: str | None = None
    has_depthwise: bool = False


PartsByUnit = Mapping[str, UnitParts]
"""Parts by unit name, in forward order."""


class UnitOption(msgspec.Struct, frozen=True, cache_hash=True):
    """One way to place a unit.

    Options are keys of every table in the search's inner loop. msgspec computes the hash once and
    compares in C, where a dataclass would call Python for each.
    """

    @property
    def key(self) -> str:
        """Name in the profile store and in JSON."""
        raise NotImplementedError

    def decisions(self, unit: str, parts: UnitParts) -> Decisions:
        """Return the decisions for a unit; none if the unit lacks the parts that they are about.

        Args:
            unit: name of the unit.
            parts: parts of the unit.
        """
        raise NotImplementedError


class WholeUnit(UnitOption, frozen=True, cache_hash=True):
    """One decision for the whole unit."""

    decision: Decision

    @property
    def key(self) -> str:
        """The decision's word."""
        return self.decision.value

    def decisions(self, unit: str, parts: UnitParts) -> Decisions:
        """Return the decision; every unit has this option."""
        return {} if self.decision == Decision.KEEP else {unit: self.decision}


class SpareTokenMixer(UnitOption, frozen=True, cache_hash=True):
    """Drop outputs of depthwise convolutions, but not of the attention or the scan."""

    @property
    def key(self) -> str:
        """``depthwise``."""
        return "depthwise"

    def decisions(self, unit: str, parts: UnitParts) -> Decisions:
        """Return the decisions for a unit with depthwise convolutions and a token mixer."""
        has_both = parts.has_depthwise and parts.token_mixer is not None
        return _cheapest(unit, parts) if has_both else {}


class CheapBranch(UnitOption, frozen=True, cache_hash=True):
    """Drop the cheap outputs of a branch; keep the rest of the unit."""

    branch: int

    @property
    def key(self) -> str:
        """``only:1``, ``only:2``, ..."""
        return f"only:{self.branch}"

    def decisions(self, unit: str, parts: UnitParts) -> Decisions:
        """Return the decisions for a unit with this branch and at least one more."""
        chosen = _branches(parts, self.branch)
        return {f"{unit}/{name}": Decision.DROP_CHEAP for name in chosen}


class RecomputeBranches(UnitOption, frozen=True, cache_hash=True):
    """Recompute one branch, or every branch if ``branch`` is None."""

    branch: int | None

    @property
    def key(self) -> str:
        """``parts:1``, ``parts:2``, ..., ``parts:all``."""
        return f"parts:{'all' if self.branch is None else self.branch}"

    def decisions(self, unit: str, parts: UnitParts) -> Decisions:
        """Return the decisions for a unit with this branch and at least one more."""
        chosen = _branches(parts, self.branch)
        recomputed = {f"{unit}/{name}": Decision.RECOMPUTE for name in chosen}
        if not chosen:
            return {}
        if parts.has_depthwise:
            # a token mixer inside a recomputed branch cannot have a decision of its own
            inside = tuple(f"{name}." for name in recomputed)
            rest = _cheapest(unit, parts).items()
            return {n: d for n, d in rest if not n.startswith(inside)} | recomputed
        cheap = {f"{unit}/{name}": Decision.DROP_CHEAP for name in parts.branches}
        return cheap | recomputed


class RecomputeLayers(UnitOption, frozen=True, cache_hash=True):
    """Drop cheap outputs, and the outputs of the first layers of ``UnitParts.layers``.

    Attributes:
        count: number of layers, None for all.
        rest: decision for the rest of the unit: cheap, light or lean.
    """

    count: int | None
    rest: Decision = Decision.DROP_CHEAP

    @property
    def key(self) -> str:
        """``layers:1``, ``light-layers:1``, ..., ``lean-layers``."""
        rest = "" if self.rest == Decision.DROP_CHEAP else f"{self.rest}-"
        return f"{rest}layers" + ("" if self.count is None else f":{self.count}")

    def decisions(self, unit: str, parts: UnitParts) -> Decisions:
        """Return the decisions for a unit with so many layers."""
        count = len(parts.layers) if self.count is None else self.count
        # without a token mixer, light drops no more than the option with cheap does
        has_rest = self.rest != Decision.DROP_CHEAP_AND_MIXING or parts.token_mixer is not None
        if not (0 < count <= len(parts.layers) and has_rest):
            return {}
        is_cheap = self.rest == Decision.DROP_CHEAP
        rest = _cheapest(unit, parts) if is_cheap else {unit: self.rest}
        return rest | {f"{unit}/{layer}": Decision.RECOMPUTE for layer in parts.layers[:count]}


def _cheapest(unit: str, parts: UnitParts) -> Decisions:
    """Return the decisions that cost least per freed byte: cheap, with depthwise convolutions."""
    if not parts.has_depthwise:
        return {unit: Decision.DROP_CHEAP}
    mixer = parts.token_mixer
    spared = {} if mixer is None else {f"{unit}/{mixer}": Decision.DROP_CHEAP}
    return {unit: Decision.DROP_CHEAP_AND_MIXING} | spared


def _branches(parts: UnitParts, branch: int | None) -> tuple[str, ...]:
    """Return one branch or all branches; none where the unit has no such branch, or only one."""
    if len(parts.branches) < 2:
        return ()
    return parts.branches if branch is None else parts.branches[branch - 1 : branch]


_WHOLE = {decision: WholeUnit(decision) for decision in Decision}

_KEEP_OPTION = Decision.KEEP

KEPT = _WHOLE[_KEEP_OPTION]

COMMON_OPTIONS: tuple[UnitOption, ...] = (
    KEPT,
    _WHOLE[Decision.DROP_CHEAP],
    _WHOLE[Decision.RECOMPUTE],
)
"""Options of every unit."""

HOST_OPTIONS: tuple[UnitOption, ...] = (
    _WHOLE[Decision.OFFLOAD],
    _WHOLE[Decision.RECOMPUTE_FROM_HOST],
)
"""Options of every unit that use the host's memory; only some policies use them."""

ALL_LAYERS = RecomputeLayers(None, Decision.DROP_PER_USE)


def options_of(parts_by_unit: PartsByUnit) -> tuple[UnitOption, ...]:
    """Return every option that at least one of the units has, common ones first."""
    units = parts_by_unit.values()
    most_branches = max((len(unit.branches) for unit in units if len(unit.branches) > 1), default=0)
    branches = range(1, most_branches + 1)
    layers = range(1, max((len(unit.layers) for unit in units), default=0) + 1)
    has_mixer = any(unit.token_mixer is not None for unit in units)
    has_depthwise = any(unit.has_depthwise for unit in units)
    light = Decision.DROP_CHEAP_AND_MIXING
    options: list[UnitOption] = [*COMMON_OPTIONS]
    if has_mixer and has_depthwise:
        options.append(SpareTokenMixer())
    if has_mixer or has_depthwise:
        options.append(_WHOLE[light])
    options.append(_WHOLE[Decision.DROP_PER_USE])
    if layers:
        options.append(ALL_LAYERS)
    options += [CheapBranch(n) for n in branches]
    options += [RecomputeBranches(n) for n in ([*branches, None] if branches else [])]
    options += [RecomputeLayers(n) for n in layers]
    if has_mixer:
        options += [RecomputeLayers(n, light) for n in layers]
    return tuple(options)


def option_with(
    unit: str, decisions: Mapping[str, Decision], parts: UnitParts
) -> UnitOption | None:
    """Return the option with these decisions for a unit, None if there is none.

    Args:
        unit: name of the unit.
        decisions: the placement's entries for the unit and its parts.
        parts: parts of the unit.
    """
    whole = decisions.get(unit, _KEEP_OPTION)
    # one decision for the whole unit, or none: the search comes here thousands of times a second
    if len(decisions) == (whole is not _KEEP_OPTION):
        return _WHOLE[whole]
    options = options_of({unit: parts})
    return next((o for o in options if o.decisions(unit, parts) == decisions), None)


def uniform_placement(option: UnitOption, parts_by_unit: PartsByUnit) -> Placement:
    """Return the placement with the same option for every unit that has it; others are kept."""
    decisions: Decisions = {}
    for unit, parts in parts_by_unit.items():
        decisions |= option.decisions(unit, parts)
    return Placement(decisions=decisions)
