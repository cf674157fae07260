"""What a unit may do: the options that a placement is chosen from, and how each is written down.

An option is a word, since it is replayed, stored and drawn in one piece:

    a decision   for the whole unit (profiler/placement.py)
    depthwise    light, but attention (or a scan) is no more than cheap
    only:N       the N-th branch drops what is cheap, the rest of the unit is kept
    parts:N      the N-th branch is recomputed, the others drop what is cheap
    parts:all    every branch is recomputed, and what joins them stays
    layers:N     cheap, and the outputs of N layers go too: the N that are cheapest to run again
    lean-layers  lean, and the outputs of all these layers go too

In a unit with depthwise convolutions, branches and layers are beside ``depthwise`` and not beside
``cheap``: nothing is cheaper to drop. With ``light-`` in front, layers are beside ``light``.
Attention over all of an image, or a scan, is about as dear as a layer, so there is either.

Layers are taken in the order of multiplications for a value of their output, which is the time
that a freed byte costs. The costliest is left out: with it that would be nearly ``recompute``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from profiler.placement import Decision, Placement

MENU = (Decision.KEEP, Decision.DROP_CHEAP, Decision.RECOMPUTE)
"""Options that every unit has; its anatomy adds more."""

DEPTHWISE, LEAN_LAYERS = "depthwise", "lean-layers"

_ONLY, _PARTS, _LAYERS, _BESIDE_LIGHT = (
    "only:",
    "parts:",
    "layers:",
    f"{Decision.DROP_CHEAP_AND_MIXING}-",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """What of a unit can be decided apart, by names within the unit.

    Attributes:
        branches: worth checkpointing alone (an attention, an MLP).
        layers: whose outputs may be dropped, cheapest to run again first; no depthwise ones.
        token_mixer: the module that is its attention or its scan, None where there is none.
        has_depthwise: whether there are depthwise convolutions.
    """

    branches: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    token_mixer: str | None = None
    has_depthwise: bool = False


Anatomies = Mapping[str, Anatomy]
"""By unit, in forward order."""


def menu_of(anatomies: Anatomies) -> tuple[str, ...]:
    """Return every option that units of a backbone have."""
    units = anatomies.values()
    most_branches = max((len(unit.branches) for unit in units if len(unit.branches) > 1), default=0)
    branches = [*range(1, most_branches + 1)]
    most_layers = max((len(unit.layers) for unit in units), default=0)
    layers = [f"{_LAYERS}{n}" for n in range(1, most_layers + 1)]
    has_mixer = any(unit.token_mixer is not None for unit in units)
    has_depthwise = any(unit.has_depthwise for unit in units)
    return (
        *MENU,
        *([DEPTHWISE] if has_mixer and has_depthwise else []),
        *([Decision.DROP_CHEAP_AND_MIXING] if has_mixer or has_depthwise else []),
        Decision.DROP_PER_USE,
        *([LEAN_LAYERS] if layers else []),
        *(f"{_ONLY}{n}" for n in branches),
        *(f"{_PARTS}{n}" for n in ([*branches, "all"] if branches else [])),
        *layers,
        *(f"{_BESIDE_LIGHT}{option}" for option in layers if has_mixer),
    )


def option_of(unit: str, decisions: Mapping[str, Decision], anatomy: Anatomy) -> str | None:
    """Return the option that says this of a unit, None if there is no such option."""
    whole = decisions.get(unit, Decision.KEEP)
    if len(decisions) == (
        whole != Decision.KEEP
    ):  # the search asks for these thousands of times a second
        return whole
    menu = menu_of({unit: anatomy})
    return next((o for o in menu if decisions_of(unit, o, anatomy) == decisions), None)


def decisions_of(unit: str, option: str, anatomy: Anatomy) -> dict[str, Decision]:
    """Return what a placement says of one unit under an option: nothing if it has no such option.

    Args:
        unit: its name.
        option: of the menu.
        anatomy: of the unit.
    """
    plain = option.removeprefix(_BESIDE_LIGHT)
    beside = (
        _depthwise(unit, anatomy) if plain == option else {unit: Decision.DROP_CHEAP_AND_MIXING}
    )
    if option == Decision.KEEP:
        return {}
    if option == DEPTHWISE:
        return beside if anatomy.has_depthwise and anatomy.token_mixer is not None else {}
    if option == LEAN_LAYERS:
        return _by_layer(unit, len(anatomy.layers), {unit: Decision.DROP_PER_USE}, anatomy)
    if plain.startswith(_LAYERS):
        is_other = plain == option or anatomy.token_mixer is not None
        count = int(plain.removeprefix(_LAYERS)) if is_other else 0
        return _by_layer(unit, count, beside, anatomy)
    if plain.startswith((_ONLY, _PARTS)):
        return _by_branch(unit, plain, beside, anatomy)
    return {unit: Decision(option)}


def _by_layer(
    unit: str, count: int, beside: dict[str, Decision], anatomy: Anatomy
) -> dict[str, Decision]:
    dropped = anatomy.layers[:count]
    if not dropped or count > len(anatomy.layers):
        return {}
    return beside | {f"{unit}/{layer}": Decision.RECOMPUTE for layer in dropped}


def _depthwise(unit: str, anatomy: Anatomy) -> dict[str, Decision]:
    if not anatomy.has_depthwise:
        return {unit: Decision.DROP_CHEAP}
    mixer = (
        {}
        if anatomy.token_mixer is None
        else {f"{unit}/{anatomy.token_mixer}": Decision.DROP_CHEAP}
    )
    return {unit: Decision.DROP_CHEAP_AND_MIXING} | mixer


def _by_branch(
    unit: str, option: str, beside: dict[str, Decision], anatomy: Anatomy
) -> dict[str, Decision]:
    branches, (family, _, which) = anatomy.branches, option.partition(":")
    if len(branches) < 2 or (which != "all" and int(which) > len(branches)):
        return {}
    chosen = branches if which == "all" else (branches[int(which) - 1],)
    if f"{family}:" == _ONLY:
        return {f"{unit}/{name}": Decision.DROP_CHEAP for name in chosen}
    if anatomy.has_depthwise:
        inside = tuple(f"{unit}/{name}." for name in chosen)
        apart = {name: decision for name, decision in beside.items() if not name.startswith(inside)}
        return apart | {f"{unit}/{name}": Decision.RECOMPUTE for name in chosen}
    return {
        f"{unit}/{name}": Decision.RECOMPUTE if name in chosen else Decision.DROP_CHEAP
        for name in branches
    }


def uniform(option: str, anatomies: Anatomies) -> Placement:
    """Return the placement that gives every unit the same option, as far as it has it."""
    decisions: dict[str, Decision] = {}
    for unit, anatomy in anatomies.items():
        decisions |= decisions_of(unit, option, anatomy)
    return Placement(decisions=decisions)
