"""A placement: for every unit of a backbone, which saved tensors stay and which are recomputed.

A *decision* is made for a unit. From most memory and no recomputation to least memory and most:

    word       member                 dropped after forward and recomputed in backward
    keep       KEEP                   nothing: the unit trains as without checkpointing
    cheap      DROP_CHEAP             outputs of normalisation, activation functions, dropout and
                                      copies
    light      DROP_CHEAP_AND_MIXING  the same, and outputs of depthwise convolutions, attention and
                                      scans. Outputs of matmuls and of other convolutions stay,
                                      among them queries, keys and values
    lean       DROP_PER_USE           the same as for ``light``. A cheap output is recomputed for
                                      each of its uses in backward, so it is in memory only briefly
    recompute  RECOMPUTE              everything inside the unit; its input stays
    segment    SEGMENT                everything inside the unit, and its input. The unit before
                                      recomputes the input; it must be ``recompute`` or ``segment``
                                      (Chen et al. 2016, arXiv:1604.06174)

Two decisions use the host's memory on a GPU (``profiler.checkpointing.host_memory``). On a CPU,
which has no other memory, nothing is moved:

    offload              OFFLOAD              nothing is recomputed: the saved tensors wait in the
                                              host's memory until the unit's backward
    recompute-from-host  RECOMPUTE_FROM_HOST  everything inside the unit; its input waits in the
                                              host's memory

The words stand in plan files and ``--json`` output; the code uses the members.

A decision can also be made for a part of a unit, written ``unit/part``: a branch
(``blocks.3/mlp``) or a layer (``blocks.3/mlp.fc1``). The unit's own decision then holds for the
rest of the unit, and must not be one on everything inside (``WHOLE_UNIT_DECISIONS``). If two
entries cover the same module, the finer one holds. Units that are not named are kept.

``Placement`` is a value: two policies that decide alike make equal placements. ``PolicyChoice``
names the policy that decided, with its parameters; ``profiler.workload.Candidate`` holds both.
This module does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Self

from msgspec import Meta

from profiler.errors import InputError
from profiler.json_records import MOST_UNITS, Name, one_line, read_record, shortened


class Decision(StrEnum):
    """Fate of the saved tensors of a unit, or of a unit's part (table above)."""

    KEEP = "keep"
    DROP_CHEAP = "cheap"
    DROP_CHEAP_AND_MIXING = "light"
    DROP_PER_USE = "lean"
    RECOMPUTE = "recompute"
    SEGMENT = "segment"
    OFFLOAD = "offload"
    RECOMPUTE_FROM_HOST = "recompute-from-host"


WHOLE_UNIT_DECISIONS = frozenset(
    {Decision.RECOMPUTE, Decision.SEGMENT, Decision.OFFLOAD, Decision.RECOMPUTE_FROM_HOST}
)
"""Decisions on everything inside a unit; its parts have no others then."""

HOST_DECISIONS = frozenset({Decision.OFFLOAD, Decision.RECOMPUTE_FROM_HOST})
"""Decisions that move tensors to the host's memory."""


LARGEST_PARAMETER = 1e18
"""Magnitude of a policy's parameter, such as a count of units or a budget in bytes."""

_COUNT_DIGITS = 9
"""Digits of a count in a policy's display name."""

_BY_WORD = {str(decision): decision for decision in Decision}

_KEEP = Decision.KEEP
"""The search builds and reads placements in its inner loop, and before Python 3.12 the attribute
of an enum is looked up by a Python function."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The decision for every unit.

    Attributes:
        decisions: decision (or its word) by ``unit`` or ``unit/part``, sorted by name. Entries that
            keep are left out, so that equal placements have equal decisions.

    Raises:
        InputError: a decision is not one of the table.
    """

    decisions: Mapping[str, Decision] = field(default_factory=dict)

    def __post_init__(self) -> None:
        changed = {}
        for name, word in sorted(self.decisions.items()):
            decision = _BY_WORD.get(word) if isinstance(word, str) else None
            if decision is None:
                raise InputError(
                    f"unknown decision {shortened(word)} for unit {shortened(name)}; "
                    f"use one of {', '.join(Decision)}"
                )
            if decision is not _KEEP:
                changed[name] = decision
        object.__setattr__(self, "decisions", MappingProxyType(changed))

    def __hash__(self) -> int:
        return hash(tuple(self.decisions.items()))

    def __reduce__(self) -> tuple[object, ...]:
        return Placement, (dict(self.decisions),)  # a mappingproxy cannot be pickled

    def decision(self, name: str) -> Decision:
        """Return the decision for a unit or ``unit/part``."""
        return self.decisions.get(name, _KEEP)

    @property
    def is_none(self) -> bool:
        """True when nothing is recomputed, and nothing moved to the host."""
        return not self.decisions

    @property
    def uses_host_memory(self) -> bool:
        """True when tensors of a unit wait in the host's memory."""
        return not HOST_DECISIONS.isdisjoint(self.decisions.values())


KEEP_ALL = Placement()


@dataclass(frozen=True, slots=True)
class PolicyChoice:
    """The policy that decided a placement.

    Attributes:
        name: policy name: ``none``, ``static``, ``every-k``, ``adaptive``, ``optimal``, ...
        parameters: finite numbers by name, such as ``k`` or ``threshold``.

    Raises:
        InputError: a parameter is not a finite number of magnitude <= ``LARGEST_PARAMETER``.
    """

    name: str = "none"
    parameters: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for parameter, value in self.parameters.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number and abs(value) <= LARGEST_PARAMETER):  # NaN is not
                raise InputError(
                    f"parameter {shortened(parameter)} of policy {shortened(self.name)} must be a "
                    f"finite number of magnitude <= {LARGEST_PARAMETER:g}, got {shortened(value)}"
                )
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))

    def __hash__(self) -> int:
        return hash((self.name, frozenset(self.parameters.items())))

    def __reduce__(self) -> tuple[object, ...]:
        return PolicyChoice, (self.name, dict(self.parameters))

    @property
    def display_name(self) -> str:
        """The name with its count filled in: ``every-3`` for ``every-k`` with k = 3."""
        stem, _, last = self.name.rpartition("-")
        count: object = self.parameters.get("k")
        is_counted = last == "k" and isinstance(count, int) and 0 <= count < 10**_COUNT_DIGITS
        return f"{stem}-{count}" if is_counted else self.name

    @classmethod
    def from_display_name(cls, text: str, parameters: Mapping[str, float] | None = None) -> Self:
        """Return the choice that ``display_name`` writes as this text.

        Plan files before schema 1.1 have no parameters and write ``every-k`` without its count.
        """
        counted = re.fullmatch(rf"(.+)-([0-9]{{1,{_COUNT_DIGITS}}})", text)
        if counted is None:
            return cls(text, parameters or {})
        return cls(f"{counted[1]}-k", {"k": int(counted[2]), **(parameters or {})})


NO_POLICY = PolicyChoice()
"""Keep everything."""


def placement_to_json(placement: Placement, policy: PolicyChoice) -> dict[str, object]:
    """Return a placement and its policy as plain data for a plan file."""
    return {
        "policy": policy.display_name,
        "parameters": dict(policy.parameters),
        "decisions": {name: str(decision) for name, decision in placement.decisions.items()},
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _PlacementObject:
    """The JSON object of a placement. Plans of schema 1.0 have no parameters."""

    policy: Name = "none"
    parameters: dict[str, int | float] = field(default_factory=dict)
    decisions: Annotated[dict[Name, str], Meta(max_length=MOST_UNITS)] = field(default_factory=dict)


def placement_from_json(
    data: object, *, part: str = "placement", dropped: list[str] | None = None
) -> tuple[Placement, PolicyChoice]:
    """Read the object that ``placement_to_json`` returns.

    Args:
        data: JSON object.
        part: name of the object in error messages.
        dropped: see `profiler.json_records.read_record`.

    Raises:
        InputError: the data is not a placement with its policy.
    """
    found = read_record(_PlacementObject, data, part=part, dropped=dropped)
    try:
        policy = PolicyChoice.from_display_name(found.policy, found.parameters)
        return Placement(found.decisions), policy  # type: ignore[arg-type]  # checks the words
    except InputError as error:
        raise InputError(one_line(part, str(error))) from error
