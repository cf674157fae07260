"""A placement: for every unit of a backbone, what is kept for backward and what is recomputed.

Decisions, from most memory and no recompute to least memory and most recompute:

    keep       the unit's activations stay, as without checkpointing
    cheap      outputs that are cheap to recompute (normalisation, activation functions, dropout)
               are dropped; outputs of matmuls, convolutions and scans stay
    light      as cheap, and what depthwise convolutions, attention and scans give is dropped too:
               they do few operations for the size of their output. Queries, keys and values stay
    lean       as light, and what is cheap is recomputed for every use, so that less of the unit is
               there at any time while it runs backward
    recompute  only the unit's input stays; its whole forward runs again in backward
    segment    as recompute, and its input does not stay either: it is recomputed from the unit
               before it, which must be ``recompute`` or ``segment`` (segments of several units,
               as in Chen et al. 2016, arXiv:1604.06174)

A unit may also be split: a decision for a *sub-unit* is named ``unit/part`` (``blocks.3/mlp``, or
a single layer: ``blocks.3/mlp.fc1``), and the unit's own holds beside it, unless that is
``recompute`` or ``segment`` (the finer entry wins; a layer may be named inside a ``cheap`` branch).
Units not named are kept. This module knows nothing of torch: a placement is data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Self

from profiler.errors import InputError

KEEP = "keep"
CHEAP = "cheap"
LIGHT = "light"
LEAN = "lean"
RECOMPUTE = "recompute"
SEGMENT = "segment"
DECISIONS = (KEEP, CHEAP, LIGHT, LEAN, RECOMPUTE, SEGMENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What every unit does with its activations.

    Attributes:
        policy: who decided: ``none``, ``static``, ``adaptive``, ``optimal``, ``every-k``, ...
        decisions: unit name to decision; units that are kept may be left out.
    """

    policy: str = "none"
    decisions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for unit, decision in self.decisions.items():
            if decision not in DECISIONS:
                raise InputError(
                    f"placement of unit {unit!r}: unknown decision {decision!r}; "
                    f"use one of {', '.join(DECISIONS)}"
                )
        kept_out = {u: d for u, d in sorted(self.decisions.items()) if d != KEEP}
        object.__setattr__(self, "decisions", MappingProxyType(kept_out))

    def __hash__(self) -> int:
        return hash((self.policy, tuple(self.decisions.items())))

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.policy, dict(self.decisions)))

    def decision(self, unit: str) -> str:
        """Return the decision for a unit."""
        return self.decisions.get(unit, KEEP)

    @property
    def is_none(self) -> bool:
        """True when nothing is recomputed."""
        return not self.decisions

    def to_json(self) -> dict[str, object]:
        """Return plain data for a plan file."""
        return {"policy": self.policy, "decisions": dict(self.decisions)}

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            InputError: the data is not a placement.
        """
        if not isinstance(data, Mapping):
            raise InputError(f"a placement must be a JSON object, got {type(data).__name__}")
        policy, decisions = data.get("policy", "none"), data.get("decisions", {})
        if not isinstance(policy, str) or not isinstance(decisions, Mapping):
            raise InputError("a placement needs a policy name and an object of decisions")
        return cls(policy=policy, decisions={str(u): str(d) for u, d in decisions.items()})


def _rebuild(policy: str, decisions: dict[str, str]) -> Placement:
    return Placement(policy=policy, decisions=decisions)


NONE = Placement()
