"""What a unit may do: the options that a placement is chosen from, and how each is written down.

An option is a word, since it is replayed, stored and drawn in one piece:

    a decision   for the whole unit (profiler/placement.py)
    parts:N      the N-th branch is recomputed, the others drop what is cheap
    parts:all    every branch is recomputed, and what joins them stays
    layers:N     cheap, and the outputs of N layers go too: the N that are cheapest to run again

With ``light-`` in front the unit is light beside those branches or layers. ``light`` options stand
in for the plain ones in a backbone with depthwise convolutions.

Layers are taken in the order of multiplications for a value of their output, which is the time
that a freed byte costs. The costliest is left out: with it that would be nearly ``recompute``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from profiler.placement import CHEAP, KEEP, LEAN, LIGHT, RECOMPUTE, Placement

MENU = (KEEP, CHEAP, RECOMPUTE)
"""Options that every unit has; its anatomy adds more."""
_PARTS, _LAYERS, _BESIDE = "parts:", "layers:", f"{LIGHT}-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """What of a unit can be decided apart, by names within the unit.

    Attributes:
        branches: worth checkpointing alone (an attention, an MLP).
        layers: whose outputs may be dropped, cheapest to run again first; no depthwise ones.
        has_depthwise: whether there are depthwise convolutions.
    """

    branches: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    has_depthwise: bool = False


Anatomies = Mapping[str, Anatomy]
"""By unit, in forward order."""


def menu_of(anatomies: Anatomies) -> tuple[str, ...]:
    """Return every option that units of a backbone have."""
    is_light = any(unit.has_depthwise for unit in anatomies.values())
    finer = finer_options(anatomies, light=is_light)
    return (*MENU, *([LIGHT] if is_light else []), LEAN, *finer)


def finer_options(anatomies: Anatomies, *, light: bool) -> tuple[str, ...]:
    """Return the options that decide on branches and layers, beside cheap or beside light."""
    branches = [len(unit.branches) for unit in anatomies.values() if len(unit.branches) > 1]
    layers = [len(unit.layers) for unit in anatomies.values()]
    which = [*range(1, max(branches) + 1), "all"] if branches else []
    options = [f"{_PARTS}{n}" for n in which]
    options += [f"{_LAYERS}{n}" for n in range(1, max(layers, default=0) + 1)]
    return tuple(f"{_BESIDE if light else ''}{option}" for option in options)


def decisions_of(unit: str, option: str, anatomy: Anatomy) -> dict[str, str]:
    """Return what a placement says of one unit under an option: nothing if it has no such option.

    Args:
        unit: its name.
        option: of the menu.
        anatomy: of the unit.
    """
    if option == KEEP:
        return {}
    plain = option.removeprefix(_BESIDE)
    beside = CHEAP if plain == option else LIGHT
    if plain.startswith(_LAYERS):
        count = int(plain.removeprefix(_LAYERS))
        if count > len(anatomy.layers):
            return {}
        return {unit: beside} | {f"{unit}/{n}": RECOMPUTE for n in anatomy.layers[:count]}
    if plain.startswith(_PARTS):
        return _by_branch(unit, plain.removeprefix(_PARTS), beside, anatomy.branches)
    return {unit: option}


def _by_branch(unit: str, which: str, beside: str, branches: Sequence[str]) -> dict[str, str]:
    if len(branches) < 2 or (which != "all" and int(which) > len(branches)):
        return {}
    again = branches if which == "all" else (branches[int(which) - 1],)
    if beside == LIGHT:
        return {unit: LIGHT} | {f"{unit}/{name}": RECOMPUTE for name in again}
    return {f"{unit}/{name}": RECOMPUTE if name in again else CHEAP for name in branches}


def uniform(option: str, anatomies: Anatomies) -> Placement:
    """Return the placement that gives every unit the same option, as far as it has it."""
    decisions: dict[str, str] = {}
    for unit, anatomy in anatomies.items():
        decisions |= decisions_of(unit, option, anatomy)
    return Placement(policy=option, decisions=decisions)
