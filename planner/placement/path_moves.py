"""The placement problem as paths of moves, and which of them fit.

The chain of ``chain.py`` is rewritten as *moves*. A move leads from position a (before unit a) to a
later position: an option of unit a leads to a+1, a segment of units a..b leads to b+1. It has

    stored   bytes it leaves for all that comes after it in forward
    need     highest live bytes while it runs forward or backward, above the stored bytes of the
             moves before it (static bytes and the gradients of later units are inside)
    seconds  recompute time

A placement is a path of moves; its peak is the largest S + need, S the stored bytes before a move.
The part of a path from position a on fits a budget exactly when S + M <= budget, with

    M = max(need, stored + M of the part from stop on)

M grows with the M after it, so the least M of every position follows in one pass from the end; the
least M at position 0 is the smallest feasible peak, and the proof that less is infeasible. In the
same way the least S of every position follows from the start, and with both a move that lies on no
feasible path is recognised. Linear in the number of moves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from planner.placement.chain import JOINED, Chain, Choice, Floats, Ints, Mask, Table, tabulate

# Relative gap below which two costs count as equal: sums of floats in another order differ by more
# than the last bit, and profiled seconds carry three digits.
TOLERANCE = 1e-9

NO_NEED = -(1 << 60)  # M of the end of the chain

UNREACHABLE = 1 << 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """All moves, sorted by start; arrays of one length."""

    start: Ints
    stop: Ints
    option: Ints  # index in the menu of unit ``start``; a longer move joins the units after it
    stored: Ints
    need: Ints
    seconds: Floats
    positions: int

    def pick(self, keep: Mask) -> Moves:
        """Return the moves of the mask."""
        return Moves(
            start=self.start[keep],
            stop=self.stop[keep],
            option=self.option[keep],
            stored=self.stored[keep],
            need=self.need[keep],
            seconds=self.seconds[keep],
            positions=self.positions,
        )


def all_moves(chain: Chain, *, segments: bool) -> Moves:
    """Return the moves of the chain that no other move of the same unit dominates."""
    t = tabulate(chain)
    parts = [_option_moves(chain, t)]
    if segments:
        parts.extend(_segment_moves(chain, t))
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(joined[0], kind="stable")
    start, stop, option, stored, need, seconds = (column[order] for column in joined)
    return Moves(
        start=start,
        stop=stop,
        option=option,
        stored=stored,
        need=need,
        seconds=seconds,
        positions=len(chain.units) + 1,
    )


_Columns = tuple[Ints, Ints, Ints, Ints, Ints, Floats]


def _option_moves(chain: Chain, t: Table) -> _Columns:
    need = chain.static_bytes + np.maximum(t.forward, t.gradients_after[:, None] + t.backward)
    kept = [
        (i, o)
        for i in range(len(chain.units))
        for o in _undominated(t.stored[i], need[i], t.seconds[i], int(t.count[i]))
    ]
    unit, option = np.array(kept, np.int64).T
    at = (unit, option)
    return unit, unit + 1, option, t.stored[at], need[at], t.seconds[at]


def _undominated(stored: Ints, need: Ints, seconds: Floats, count: int) -> list[int]:
    """Return the options that no other matches in all three numbers; of equal ones the first."""
    rows = list(zip(seconds.tolist(), stored.tolist(), need.tolist(), range(count), strict=False))
    kept: list[tuple[float, int, int, int]] = []
    for row in sorted(rows):
        if not any(k[1] <= row[1] and k[2] <= row[2] for k in kept):
            kept.append(row)
    return sorted(row[3] for row in kept)


def _segment_moves(chain: Chain, t: Table) -> Iterator[_Columns]:
    """Yield the segments of 2, 3, ... units; the byte rules are those of ``chain.py``."""
    rows = np.arange(len(chain.units))
    kept = t.stored[rows, t.keep]
    prefix = np.cumsum(kept) - kept
    rerun = prefix + t.forward[rows, t.keep]
    backward = prefix + t.gradients_after + t.backward[rows, t.keep]
    entered = t.forward[rows, t.recompute]
    follow = entered + np.concatenate([[0], t.boundary[:-1]])
    seconds = np.concatenate([[0.0], np.cumsum(t.forward_seconds)])
    last_seconds = t.seconds[rows, t.recompute]

    start = rows[t.can_join]
    highest = [entered[start], rerun[start], backward[start]]  # over the units of each segment
    for length in range(2, len(chain.units) + 1):
        longer = start + length - 1 < len(rows)
        last = start[longer] + length - 1
        longer[longer] = t.can_join[last] & t.continues[last]
        start, highest = start[longer], [h[longer] for h in highest]
        if not len(start):
            return
        end = start + length - 1
        highest = [
            np.maximum(h, v[end]) for h, v in zip(highest, (follow, rerun, backward), strict=True)
        ]
        again = highest[1] - prefix[start] + t.gradients_after[end] + t.boundary[end]
        need = np.maximum(highest[0], np.maximum(again, highest[2] - prefix[start]))
        cost = seconds[end] - seconds[start] + last_seconds[end]
        yield start, end + 1, t.recompute[start], t.boundary[end], chain.static_bytes + need, cost


def groups_by(moves: Moves, by: Ints) -> list[Ints]:
    """Return for each position the indices of the moves that have it in column ``by``."""
    order = np.argsort(by, kind="stable")
    edges = np.searchsorted(by[order], np.arange(1, moves.positions))
    return np.split(order, edges)


def least_tails(moves: Moves) -> list[int]:
    """Return for each position the least M of all paths from it to the end."""
    return _least_peaks(moves)[0]


def _least_peaks(moves: Moves) -> tuple[list[int], list[int]]:
    """Return for each position the least M, and the move that starts a path of it."""
    tails = [UNREACHABLE] * (moves.positions - 1) + [NO_NEED]
    best = [0] * moves.positions
    columns = (moves.start, moves.stop, moves.stored, moves.need)
    rows = list(zip(*(c.tolist() for c in columns), strict=True))
    for i in reversed(range(len(rows))):
        start, stop, stored, need = rows[i]
        tail = max(need, stored + tails[stop])
        if tail < tails[start]:
            tails[start], best[start] = tail, i
    return tails, best


def least_peak_path(moves: Moves) -> list[int]:
    """Return the moves of a path of least peak."""
    best = _least_peaks(moves)[1]
    path: list[int] = []
    position = 0
    while position < moves.positions - 1:
        path.append(best[position])
        position = int(moves.stop[path[-1]])
    return path


def feasible_moves(moves: Moves, tails: list[int], budget: int) -> tuple[Moves, list[int]]:
    """Return the moves that lie on a feasible path, and the least stored bytes at each position."""
    heads = [0] + [UNREACHABLE] * (moves.positions - 1)
    keep = np.zeros(len(moves.start), np.bool_)
    columns = (moves.start, moves.stop, moves.stored, moves.need)
    for i, (start, stop, stored, need) in enumerate(
        zip(*(c.tolist() for c in columns), strict=True)
    ):
        if heads[start] + max(need, stored + tails[stop]) <= budget:
            keep[i] = True
            heads[stop] = min(heads[stop], heads[start] + stored)
    return moves.pick(keep), heads


def choice_of(moves: Moves, path: list[int]) -> Choice:
    """Return the options of a path: a move over several units joins those after its first."""
    choice: list[int] = []
    for move in path:
        choice.append(int(moves.option[move]))
        choice.extend([JOINED] * (int(moves.stop[move]) - len(choice)))
    return tuple(choice)
