"""The placement problem: a chain of units, each with a menu of options, and what a choice costs.

A training step runs the units 1..n forward and then backward. While it is at unit i, live bytes are

    forward   static + sum of stored_j, j < i                          + forward_bytes_i
    backward  static + sum of stored_j, j < i + gradients of units > i + backward_bytes_i

and the peak is the largest of these 2n numbers and of ``floor_bytes``. Every number of an option
is read from a profile; this module only adds them up, and says nothing of where they come from.

A *choice* is one index per unit: into its options, or ``JOINED``.

Segments (Chen et al. 2016, arXiv:1604.06174). A unit that is ``JOINED`` is recomputed together with
the unit before it, which is joined too or has its plain ``recompute`` option. Let a..b be such
a segment, ``keep_j`` and ``recompute_j`` the two plain options of unit j, and B = static + stored
bytes of everything before a. Nothing inside the segment stays but the output of b. Bytes assumed:

    forward of j     B + (boundary_{j-1} if j > a) + recompute_j.forward_bytes
    left by a..b     boundary_b
    recompute of j   B + sum_{a<=l<j} keep_l.stored + gradients of units > b
                       + boundary_b (the incoming gradient) + keep_j.forward_bytes
    backward of j    B + sum_{a<=l<j} keep_l.stored + gradients of units > j + keep_j.backward_bytes

The recompute is counted to the backward of b. Its seconds: the complete forward of a..b-1
(``forward_seconds``; where not known, the option's seconds) and ``recompute_b.recompute_seconds``,
which may be less than a forward because a recompute stops at the last tensor that is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from profiler.errors import InputError
from profiler.placement import CHEAP, KEEP, LEAN, LIGHT, RECOMPUTE, SEGMENT, Placement
from profiler.units import MIB

JOINED = -1
Choice = tuple[int, ...]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to run a unit.

    Attributes:
        decision: what a ``Placement`` says of the unit: ``keep``, ``cheap`` or ``recompute``.
        stored_bytes: growth of live bytes over the unit's forward, its output included.
        forward_bytes: highest live bytes while the unit runs forward, above its entry.
        backward_bytes: highest live bytes while it runs backward, recompute included, above static
            bytes, what all earlier units store and the gradients that later units left.
        recompute_seconds: time added to the step by this option.
        parts: decisions of sub-units, by name; ``decision`` is then what holds beside them, and not
            ``recompute``.
    """

    decision: str
    stored_bytes: int
    forward_bytes: int
    backward_bytes: int
    recompute_seconds: float
    parts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.decision not in {KEEP, CHEAP, LIGHT, LEAN, RECOMPUTE}:
            raise InputError(
                f"an option cannot have decision {self.decision!r}; "
                f"use {KEEP}, {CHEAP}, {LIGHT}, {LEAN} or {RECOMPUTE} "
                f"(segments are made of {RECOMPUTE} options)"
            )
        if not (math.isfinite(self.recompute_seconds) and self.recompute_seconds >= 0):
            raise InputError(
                f"recompute seconds must be zero or more, got {self.recompute_seconds}"
            )
        changed = {part: d for part, d in sorted(self.parts.items()) if d != KEEP}
        if changed and self.decision == RECOMPUTE:
            raise InputError(f"an option that says {RECOMPUTE} has no parts, got {dict(changed)}")
        object.__setattr__(self, "parts", MappingProxyType(changed))

    def __hash__(self) -> int:
        return hash((self.decision, self.stored_bytes, self.recompute_seconds))

    @property
    def label(self) -> str:
        """The decision in words: ``keep``, or ``attn: cheap, mlp: recompute``."""
        beside = [self.decision] if self.decision != KEEP or not self.parts else []
        return ", ".join([*beside, *(f"{part}: {d}" for part, d in self.parts.items())])

    @property
    def key(self) -> tuple[object, ...]:
        """What tells it from the unit's other options."""
        return (self.decision, *self.parts.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainUnit:
    """A unit and its menu. With a single option it is a fixed piece (stem, head, loss).

    Attributes:
        name: the unit's name in the backbone.
        options: its menu.
        gradient_bytes: parameter gradients that its backward leaves behind.
        boundary_bytes: its output alone; None where not known (it then joins no segment).
        forward_seconds: its complete forward; None where not known.
        continues: whether a segment may run on from the unit before into this one. False where
            something else holds what lies between, so that joining would not free it.
    """

    name: str
    options: tuple[Option, ...]
    gradient_bytes: int = 0
    boundary_bytes: int | None = None
    forward_seconds: float | None = None
    continues: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(self.options))
        if not self.options:
            raise InputError(f"unit {self.name!r} has no option; give it at least {KEEP}")
        if len({option.key for option in self.options}) < len(self.options):
            raise InputError(f"unit {self.name!r} lists the same decision twice")

    def plain(self, decision: str) -> int | None:
        """Return the index of the option with this decision for the whole unit, or None."""
        for index, option in enumerate(self.options):
            if option.decision == decision and not option.parts:
                return index
        return None

    @property
    def default(self) -> int:
        """The option to fall back on: ``keep``, else the one that recomputes least."""
        kept = self.plain(KEEP)
        if kept is not None:
            return kept
        return min(range(len(self.options)), key=lambda o: self.options[o].recompute_seconds)

    @property
    def can_join(self) -> bool:
        """True when it can be part of a segment of several units."""
        known = self.boundary_bytes is not None and self.plain(KEEP) is not None
        return known and self.plain(RECOMPUTE) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A training step as a chain of units.

    Attributes:
        units: in forward order.
        static_bytes: parameters, buffers, optimizer state and inputs.
        floor_bytes: a bound on the peak that no placement changes (the optimizer step).
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The numbers of a chain as arrays; n units, k options in the longest menu.

    Attributes:
        stored: [n, k] int; missing options are padded with zeros here and below.
        forward: [n, k] int.
        backward: [n, k] int.
        seconds: [n, k] float.
        count: [n] options of each unit.
        keep: [n] index of the plain ``keep`` option, 0 where there is none.
        recompute: [n] index of the plain ``recompute`` option, 0 where there is none.
        can_join: [n] bool.
        continues: [n] bool.
        boundary: [n] bytes of the output, 0 where not known.
        forward_seconds: [n] complete forward, the recompute option's seconds where not known.
        gradients_after: [n] gradients left by all later units.
    """

    stored: Ints
    forward: Ints
    backward: Ints
    seconds: Floats
    count: Ints
    keep: Ints
    recompute: Ints
    can_join: Mask
    continues: Mask
    boundary: Ints
    forward_seconds: Floats
    gradients_after: Ints


def tabulate(chain: Chain) -> Table:
    """Return the chain's numbers as arrays."""
    units = chain.units
    shape = (len(units), max(len(unit.options) for unit in units))
    stored, forward, backward = (np.zeros(shape, np.int64) for _ in range(3))
    seconds = np.zeros(shape)
    for i, unit in enumerate(units):
        count = len(unit.options)
        stored[i, :count] = [o.stored_bytes for o in unit.options]
        forward[i, :count] = [o.forward_bytes for o in unit.options]
        backward[i, :count] = [o.backward_bytes for o in unit.options]
        seconds[i, :count] = [o.recompute_seconds for o in unit.options]
    recompute = np.array([unit.plain(RECOMPUTE) or 0 for unit in units])
    gradients = np.array([unit.gradient_bytes for unit in units], np.int64)
    own = seconds[np.arange(len(units)), recompute]
    complete = [
        s if u.forward_seconds is None else u.forward_seconds
        for u, s in zip(units, own, strict=True)
    ]
    return Table(
        stored=stored,
        forward=forward,
        backward=backward,
        seconds=seconds,
        count=np.array([len(unit.options) for unit in units]),
        keep=np.array([unit.plain(KEEP) or 0 for unit in units]),
        recompute=recompute,
        can_join=np.array([unit.can_join for unit in units]),
        continues=np.array([unit.continues for unit in units]),
        boundary=np.array([unit.boundary_bytes or 0 for unit in units], np.int64),
        forward_seconds=np.array(complete, np.float64),
        gradients_after=gradients.sum() - np.cumsum(gradients),
    )


def live_bytes(chain: Chain, choices: Ints, table: Table | None = None) -> tuple[Ints, Ints]:
    """Return live bytes while each unit runs forward, and while it runs backward.

    Args:
        chain: the chain of n units.
        choices: [m, n] valid choices, one a row.
        table: the chain's table, where it is at hand.

    Returns:
        Two arrays [m, n].
    """
    t = table or tabulate(chain)
    rows = np.arange(len(chain.units))
    joined = choices == JOINED
    leads = _next(joined)
    picked = np.where(joined, t.recompute, choices)

    # [Left behind] a segment leaves the output of its last unit, counted at that unit
    left = np.where(joined, t.boundary, t.stored[rows, picked])
    left[leads] = 0
    before = chain.static_bytes + np.cumsum(left, axis=1) - left
    entry = np.where(joined, _shift(t.boundary), 0)
    forward: Ints = before + entry + t.forward[rows, picked]
    backward: Ints = before + t.gradients_after + t.backward[rows, picked]
    if not joined.any():
        return forward, backward

    # [Segments] recomputed as if every unit of the segment were kept
    kept = t.stored[rows, t.keep]
    prefix = np.cumsum(kept) - kept
    head = np.maximum.accumulate(np.where(joined, 0, rows), axis=1)
    inner = prefix - prefix[head]
    in_segment = joined | leads
    keep_backward = before + inner + t.gradients_after + t.backward[rows, t.keep]
    backward = np.where(in_segment, keep_backward, backward)
    rerun = _running_maximum(before + inner + t.forward[rows, t.keep], joined)
    rerun += t.gradients_after + t.boundary
    last = joined & ~leads
    return forward, np.where(last, np.maximum(backward, rerun), backward)


def live_bytes_of(chain: Chain, choice: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return live bytes of one choice while each unit runs forward, and while it runs backward."""
    forward, backward = live_bytes(chain, check_choice(chain, choice))
    return forward[0].tolist(), backward[0].tolist()


def peak_bytes_many(chain: Chain, choices: Ints) -> Ints:
    """Return the peak of every row of ``choices`` [m, n]."""
    forward, backward = live_bytes(chain, choices)
    highest: Ints = np.maximum(forward.max(axis=1), backward.max(axis=1))
    return np.maximum(highest, chain.floor_bytes)


def unit_seconds_many(chain: Chain, choices: Ints, table: Table | None = None) -> Floats:
    """Return the recompute seconds of each unit [m, n] for every row of ``choices`` [m, n]."""
    t = table or tabulate(chain)
    joined = choices == JOINED
    picked = np.where(joined, t.recompute, choices)
    own = t.seconds[np.arange(len(chain.units)), picked]
    return np.where(_next(joined), t.forward_seconds, own)


def peak_bytes(chain: Chain, choice: Sequence[int]) -> int:
    """Return the highest live bytes of the step."""
    return int(peak_bytes_many(chain, check_choice(chain, choice))[0])


def recompute_seconds(chain: Chain, choice: Sequence[int]) -> float:
    """Return the time that recomputing adds to the step."""
    return math.fsum(unit_seconds_many(chain, check_choice(chain, choice))[0])


def check_choice(chain: Chain, choice: Sequence[int]) -> Ints:
    """Return the choice as an array [1, n].

    Raises:
        InputError: it does not name one option of every unit, or joins units that cannot be joined.
    """
    if len(choice) != len(chain.units):
        raise InputError(
            f"the chain has {len(chain.units)} units, the choice {len(choice)} entries"
        )
    for i, (unit, index) in enumerate(zip(chain.units, choice, strict=True)):
        if index == JOINED:
            _check_joined(chain, choice, i)
        elif not 0 <= index < len(unit.options):
            raise InputError(f"unit {unit.name!r} has {len(unit.options)} options, got {index}")
    return np.array([choice], np.int64)


def _check_joined(chain: Chain, choice: Sequence[int], i: int) -> None:
    unit = chain.units[i]
    if not (i and unit.continues and unit.can_join and chain.units[i - 1].can_join):
        raise InputError(f"unit {unit.name!r} cannot join a segment with the unit before it")
    if choice[i - 1] not in {JOINED, chain.units[i - 1].plain(RECOMPUTE)}:
        raise InputError(
            f"unit {unit.name!r} joins a segment, so {chain.units[i - 1].name!r} before it "
            f"must be {RECOMPUTE} or {SEGMENT}"
        )


def to_placement(chain: Chain, choice: Sequence[int], *, policy: str) -> Placement:
    """Return what the choice says of every unit and part."""
    check_choice(chain, choice)
    decisions: dict[str, str] = {}
    for unit, index in zip(chain.units, choice, strict=True):
        if index == JOINED:
            decisions[unit.name] = SEGMENT
            continue
        option = unit.options[index]
        decisions[unit.name] = option.decision
        decisions.update({f"{unit.name}/{part}": d for part, d in option.parts.items()})
    return Placement(policy=policy, decisions=decisions)


def to_choice(chain: Chain, placement: Placement) -> Choice:
    """Return the choice that a placement makes of this chain.

    Raises:
        InputError: the placement names a unit that the chain lacks, or a decision that the unit
            does not offer.
    """
    names = {unit.name for unit in chain.units}
    parts: dict[str, dict[str, str]] = {}
    for name, decision in placement.decisions.items():
        unit_name, _, part = name.rpartition("/")
        if name not in names and unit_name not in names:
            raise InputError(f"the placement names {name!r}, which this backbone does not have")
        if name not in names:
            parts.setdefault(unit_name, {})[part] = decision
    choice = tuple(_option_of(unit, placement, parts.get(unit.name, {})) for unit in chain.units)
    check_choice(chain, choice)
    return choice


def _option_of(unit: ChainUnit, placement: Placement, parts: Mapping[str, str]) -> int:
    decision = placement.decision(unit.name)
    if decision == SEGMENT:
        return JOINED
    if decision == KEEP and not parts and unit.plain(KEEP) is None:
        return unit.default
    key = (decision, *sorted(parts.items()))
    for index, option in enumerate(unit.options):
        if option.key == key:
            return index
    offered = "; ".join(option.label for option in unit.options)
    raise InputError(f"unit {unit.name!r} does not offer {key!r}; it offers {offered}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a placement table.

    Attributes:
        unit: its name.
        decision: what is done with it, in words.
        stored_bytes: what it leaves for backward.
        freed_bytes: how much less that is than if it were kept.
        recompute_seconds: time it adds.
        seconds_per_freed_mib: the price, or None where nothing is freed.
        forward_bytes: live bytes while it runs forward.
        backward_bytes: live bytes while it runs backward.
        binding: the phase in which it sets the peak of the whole step, or None.
    """

    unit: str
    decision: str
    stored_bytes: int
    freed_bytes: int
    recompute_seconds: float
    seconds_per_freed_mib: float | None
    forward_bytes: int
    backward_bytes: int
    binding: Literal["forward", "backward"] | None


def explain(chain: Chain, choice: Sequence[int]) -> tuple[Row, ...]:
    """Return a table: what each unit keeps, what that frees and costs, and who sets the peak."""
    checked = check_choice(chain, choice)
    forward, backward = (live[0].tolist() for live in live_bytes(chain, checked))
    seconds = unit_seconds_many(chain, checked)[0].tolist()
    peak = max(*forward, *backward, chain.floor_bytes)
    rows = []
    for i, (unit, index) in enumerate(zip(chain.units, choice, strict=True)):
        stored = _left_behind(chain, choice, i)
        freed = unit.options[unit.default].stored_bytes - stored
        phase: Literal["forward", "backward"] = "forward" if forward[i] == peak else "backward"
        rows.append(
            Row(
                unit=unit.name,
                decision=SEGMENT if index == JOINED else unit.options[index].label,
                stored_bytes=stored,
                freed_bytes=freed,
                recompute_seconds=seconds[i],
                seconds_per_freed_mib=seconds[i] / (freed / MIB) if freed > 0 else None,
                forward_bytes=forward[i],
                backward_bytes=backward[i],
                binding=phase if peak in {forward[i], backward[i]} else None,
            )
        )
    return tuple(rows)


def _left_behind(chain: Chain, choice: Sequence[int], i: int) -> int:
    """Return the bytes that unit i stores, none inside a segment."""
    unit, index = chain.units[i], choice[i]
    if i + 1 < len(choice) and choice[i + 1] == JOINED:
        return 0
    if index == JOINED:
        return unit.boundary_bytes or 0
    return unit.options[index].stored_bytes


def _next(joined: Mask) -> Mask:
    """Return for each unit whether the unit after it is joined to it."""
    result = np.zeros_like(joined)
    result[:, :-1] = joined[:, 1:]
    return result


def _shift(values: Ints) -> Ints:
    """Return each unit's predecessor's value."""
    return np.concatenate([[0], values[:-1]])


def _running_maximum(values: Ints, joined: Mask) -> Ints:
    """Return the maximum along each row since the last unit that is not joined."""
    result = values.copy()
    for i in range(1, values.shape[1]):
        carried = np.maximum(result[:, i], result[:, i - 1])
        result[:, i] = np.where(joined[:, i], carried, result[:, i])
    return result
