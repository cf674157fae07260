"""The storages of a placement's step, put together from the steps of its options.

Each option was replayed in a step of its own, in which all units have it. The allocations inside a
unit depend on its own option alone. So the step of a placement that mixes options consists of
*pieces* of these steps, one between each two marks:

    step of keep        | enter 0 | exit 0 | enter 1 | exit 1 | ... | backward 1 | backward 0 |
    step of recompute   | enter 0 | exit 0 | enter 1 | exit 1 | ... | backward 1 | backward 0 |
    unit 0 keep, 1 rec. |       keep       |      recompute   | ... |  recompute |    keep    |

A storage that dies in another piece than the one of its birth (a unit's output, a gradient) has a
*counterpart* in the step of every option. It dies when its last user lets it go. The death of a
counterpart counts if its piece is part of the placement: the unit that lets go there has that
option. The latest of these deaths is the storage's. If there is none, the user's option is another
than that of any step in which it is the last user; the death is then put into its piece, as far
from the piece's end as in the step of the storage's own option.

**Segments.** In backward, the last unit of a segment first repeats the forwards of all earlier
ones, which then save the same tensors as a kept unit. So its piece begins with copies of their
forwards from the step of ``keep``, and their backwards come from there too. The input of a unit
that continues a segment dies when the unit has run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from profiler.arrays import Ints
from profiler.placement import Decision
from profiler.prediction.step_storages import StepStorages, marks_of
from profiler.replay.event_log import EventLog, Mark, MarkKind
from profiler.unit_options import KEPT, UnitOption, WholeUnit

_RECOMPUTED, _SEGMENT = WholeUnit(Decision.RECOMPUTE), WholeUnit(Decision.SEGMENT)

_PHASE, _ENTER, _EXIT, _BACKWARD = (
    list(MarkKind).index(kind)
    for kind in (MarkKind.PHASE, MarkKind.ENTER, MarkKind.EXIT, MarkKind.BACKWARD)
)

_Name = tuple[int, int]
"""Kind and value of the mark that a piece begins with; (-1, 0) before the first mark."""


class _CutStep:
    """A step cut at its marks.

    Attributes:
        step: the step.
        names: names of the pieces, in order of time.
        begin: [pieces + 1] last tick before each piece, then the last tick.
        first: [pieces + 1] index of the first storage that is born in each piece, then the number
            of storages.
        piece: [storages] piece of birth, -1 for storages that exist before the step.
        death_piece: [storages] piece of death, the number of pieces for those that survive.
    """

    def __init__(self, step: StepStorages) -> None:
        self.step = step
        kinds, values = step.marks[:, 1].tolist(), step.marks[:, 2].tolist()
        self.names: list[_Name] = [(-1, 0), *zip(kinds, values, strict=True)]
        ticks = int(step.ticks)
        self.begin = np.array([0, *step.marks[:, 0].tolist(), ticks], dtype=np.int64)
        self.first = np.searchsorted(step.birth, self.begin, side="right")
        self.piece = np.searchsorted(self.begin, step.birth, side="left") - 1
        pieces = np.searchsorted(self.begin, step.death, side="left") - 1
        self.death_piece = np.where(step.death > ticks, len(self.names), pieces)

    def roles(self) -> dict[tuple[object, ...], int]:
        """Return the storages that die in another piece than that of their birth, by their role.

        The role is the piece, the operation, the size, and the number among equal ones. The
        forwards allocate the same storages under every option. The backwards do not, so only those
        that die in another piece are numbered there.
        """
        step, crossing = self.step, self.piece != self.death_piece
        numbered = np.array([kind != _BACKWARD for kind, _ in self.names])
        chosen = np.flatnonzero((self.piece >= 0) & (crossing | numbered[self.piece]))
        names = step.operation_names[step.operation[chosen]].tolist()
        seen: dict[tuple[object, ...], int] = {}
        found: dict[tuple[object, ...], int] = {}
        sizes = map(tuple, step.sizes[chosen].tolist())
        rows = zip(chosen.tolist(), self.piece[chosen].tolist(), names, sizes, strict=True)
        for index, *kind in rows:
            number = seen[tuple(kind)] = seen.get(tuple(kind), 0) + 1
            found[*kind, number] = index
        return found


@dataclass(frozen=True, slots=True)
class _Piece:
    """A piece of a placement's step.

    Attributes:
        option: code of the option of whose step it is a piece.
        source: index of the piece in that step.
        is_copy: whether it repeats a forward in the backward of a segment.
    """

    option: int
    source: int
    is_copy: bool = False


class PlacedSteps:
    """Puts together the steps of placements over some options.

    Args:
        steps: step of each option; placements with segments need that of ``keep``.

    Raises:
        ValueError: the steps cannot be combined, because their marks have different orders.
    """

    def __init__(self, steps: Mapping[UnitOption, StepStorages]) -> None:
        self.options = tuple(steps)
        self._cuts = [_CutStep(step) for step in steps.values()]
        self._names = self._cuts[0].names
        resident = {int(cut.first[0]) for cut in self._cuts}
        if any(cut.names != self._names for cut in self._cuts) or len(resident) > 1:
            raise ValueError("the steps of the options have different pieces")
        if len(set(self._names)) < len(self._names):
            raise ValueError("a unit runs twice")
        self._resident = resident.pop()
        self._source = {name: index for index, name in enumerate(self._names)}
        self._roles = [cut.roles() for cut in self._cuts]
        self._counterparts: dict[tuple[int, int], Ints] = {}

    def log(self, options: Sequence[UnitOption], sizes: Sequence[Ints]) -> EventLog:
        """Return the log of a placement's step without an optimizer.

        Args:
            options: option of each unit, in forward order; ``segment`` is one as well.
            sizes: bytes of the storages of each step, in the order of ``self.options``.
        """
        placed = _Placed(self, self._pieces(options), options)
        source = [self._cuts[code].step for code in placed.used]

        def joined(column: str) -> Ints:
            return placed.gathered([getattr(step, column) for step in source])

        names = [step.operation_names.tolist() for step in source]
        every = dict.fromkeys(name for own in names for name in own)
        code = {name: number for number, name in enumerate(every)}
        codes = [np.array([code[name] for name in own]) for own in names]
        birth, death = placed.lifetimes()
        return EventLog(
            nbytes=placed.gathered([sizes[code] for code in placed.used]),
            birth=birth,
            death=death,
            owner=joined("owner"),
            phase=joined("phase"),
            unit=np.full(len(birth), -1),
            operation=placed.gathered(
                [own[step.operation] for own, step in zip(codes, source, strict=True)]
            ),
            reduction=np.full(len(birth), -1),
            reductions=(),
            operation_names=tuple(code),
            ticks=placed.ticks,
            marks=placed.marks(),
            units=(),
            boundary_bytes=(),
            operations=(),
        )

    def _pieces(self, options: Sequence[UnitOption]) -> list[_Piece]:
        """Return the pieces of a placement, in order of time."""
        code = {option: number for number, option in enumerate(self.options)}
        own = [code[_RECOMPUTED if option == _SEGMENT else option] for option in options]
        followed = [option == _SEGMENT for option in options[1:]] + [False]
        pieces: list[_Piece] = []
        current = own[0]
        for source, (kind, unit) in enumerate(self._names):
            if kind in (_ENTER, _EXIT):
                current = own[unit]
            elif kind == _BACKWARD:
                current = code[KEPT] if followed[unit] else own[unit]
                if not followed[unit]:
                    first = unit
                    while options[first] == _SEGMENT:
                        first -= 1
                    pieces += [
                        _Piece(code[KEPT], self._source[mark, before], is_copy=True)
                        for before in range(first, unit)
                        for mark in (_ENTER, _EXIT)
                    ]
            pieces.append(_Piece(current, source))
        return pieces

    def counterparts(self, one: int, other: int) -> Ints:
        """Return, for each storage of an option's step, its counterpart in another; -1 for none."""
        if (one, other) not in self._counterparts:
            found = np.full(len(self._cuts[one].piece), -1)
            theirs = self._roles[other]
            for role, index in self._roles[one].items():
                found[index] = theirs.get(role, -1)
            self._counterparts[one, other] = found
        return self._counterparts[one, other]


class _Placed:
    """The pieces of a placement in order of time.

    Attributes:
        used: codes of the options that have pieces here.
        ticks: length of the step.
    """

    def __init__(
        self, steps: PlacedSteps, pieces: list[_Piece], options: Sequence[UnitOption]
    ) -> None:
        self.steps, self.pieces, self.options = steps, pieces, options
        self.cuts, self.names = steps._cuts, steps._names
        self.used = sorted({piece.option for piece in pieces})
        lengths = [
            int(self.cuts[p.option].begin[p.source + 1] - self.cuts[p.option].begin[p.source])
            for p in pieces
        ]
        self.start = np.cumsum([0, *lengths])
        self.ticks = int(self.start[-1])
        # [options, pieces of a step + 1] position of each piece, -1 if it is no part
        self.position = np.full((len(self.cuts), len(self.names) + 1), -1)
        self.main = np.full(len(self.names), -1)
        for number, piece in enumerate(pieces):
            self.position[piece.option, piece.source] = number
            if not piece.is_copy:
                self.main[piece.source] = number
        self._chosen()

    def _chosen(self) -> None:
        """Choose the storages of each used option, and sort all by their pieces."""
        rows: dict[int, list[Ints]] = {code: [] for code in self.used}
        homes: dict[int, list[Ints]] = {code: [] for code in self.used}
        for number, piece in enumerate(self.pieces):
            first = self.cuts[piece.option].first
            row = np.arange(first[piece.source], first[piece.source + 1])
            rows[piece.option].append(row)
            homes[piece.option].append(np.full(len(row), number))
        self.rows = [np.concatenate(rows[code]) for code in self.used]
        self.homes = [np.concatenate(homes[code]) for code in self.used]
        self.order = np.argsort(np.concatenate(self.homes), kind="stable")
        self.resident = np.arange(self.steps._resident)

    def gathered(self, columns: Sequence[Ints]) -> Ints:
        """Return a column of all storages from those of the used options' steps."""
        chosen = [column[rows] for column, rows in zip(columns, self.rows, strict=True)]
        resident = columns[0][self.resident]
        return np.concatenate([resident, np.concatenate(chosen)[self.order]]).astype(np.int64)

    def marks(self) -> tuple[Mark, ...]:
        """Return the marks; copies have none."""
        begins = zip(self.pieces, self.start.tolist(), strict=False)
        rows = [
            (tick, *self.names[piece.source])
            for piece, tick in begins
            if not piece.is_copy and piece.source
        ]
        return marks_of(rows)

    def lifetimes(self) -> tuple[Ints, Ints]:
        """Return [storages] births and deaths."""
        births, deaths = [], []
        for code, rows, homes in zip(self.used, self.rows, self.homes, strict=True):
            cut = self.cuts[code]
            shift = self.start[homes] - cut.begin[cut.piece[rows]]
            births.append(cut.step.birth[rows] + shift)
            deaths.append(self._deaths(code, rows, homes, shift))
        none = np.zeros(len(self.resident), dtype=np.int64)
        birth = np.concatenate([none, np.concatenate(births)[self.order]])
        death = np.concatenate([none + self.ticks + 1, np.concatenate(deaths)[self.order]])
        return birth, death

    def _deaths(self, code: int, rows: Ints, homes: Ints, shift: Ints) -> Ints:
        """Return the deaths of an option's storages."""
        cut = self.cuts[code]
        death = cut.step.death[rows] + shift
        last = cut.death_piece[rows]
        death[last == len(self.names)] = self.ticks + 1
        crossing = np.flatnonzero((last != cut.piece[rows]) & (last < len(self.names)))
        rows, homes = rows[crossing], homes[crossing]
        latest = np.full(len(rows), -1)
        for other in self.used:
            theirs = rows if other == code else self.steps.counterparts(code, other)[rows]
            step, begin = self.cuts[other].step, self.cuts[other].begin
            pieces = self.cuts[other].death_piece[theirs]
            at = self.position[other, pieces]
            found = self.start[at] + step.death[theirs] - begin[np.minimum(pieces, len(begin) - 1)]
            counts = (theirs >= 0) & (at >= homes)
            latest = np.maximum(latest, np.where(counts, found, -1))
        unknown = np.flatnonzero(latest < 0)
        latest[unknown] = [
            self._assumed(cut, int(rows[i]), int(homes[i])) for i in unknown.tolist()
        ]
        self._free_inputs(cut, code, rows, latest)
        death[crossing] = latest
        return death

    def _assumed(self, cut: _CutStep, row: int, home: int) -> int:
        """Return the death of a storage whose last user is not known."""
        last = int(cut.death_piece[row])
        at = int(self.main[last])
        if at < home:
            return int(self.start[home + 1])
        from_end = int(cut.begin[last + 1]) - int(cut.step.death[row])
        return max(int(self.start[at]), int(self.start[at + 1]) - from_end)

    def _free_inputs(self, cut: _CutStep, code: int, rows: Ints, death: Ints) -> None:
        """Set the deaths of the inputs of units that continue a segment."""
        if self.steps.options[code] != _RECOMPUTED:
            return
        source = self.steps._source
        for unit in (u for u, option in enumerate(self.options) if option == _SEGMENT):
            born = cut.piece[rows] == source[_ENTER, unit - 1]
            stored = cut.death_piece[rows] == source.get((_BACKWARD, unit), -1)
            death[born & stored] = self.start[self.main[source[_EXIT, unit]]]
