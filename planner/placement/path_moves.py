"""The placement problem as a path problem on a directed acyclic graph, and feasibility of a budget.

The nodes are *positions* 0..n: position a lies before unit a, position n at the end of the chain.
The edges are called *moves*. An option of unit a is a move from a to a+1; a segment of the units
a..b is a move from a to b+1. A placement is a path from 0 to n. A move has

    stored   bytes it stores for the rest of the forward
    need     highest live bytes while it runs forward or backward, above the bytes stored by the
             moves before it (static bytes and gradients of later units are included)
    seconds  recompute time

With S = bytes stored by the moves before a move, the peak of a path is the largest S + need. Let M
be the highest live bytes of the part of a path from position a on, above the S of that position:

    M = max(need, stored + M of the rest of the path)

This part fits a budget exactly if S + M <= budget. M never decreases when the M of the rest
increases. Therefore one pass from the end gives the least M of every position. The least M at
position 0 is the smallest feasible peak, which also proves that every smaller budget is infeasible.
One pass from the start gives the least S of every position. A move with least S + max(need, stored
+ least M) > budget lies on no feasible path.

Cost: linear in the number of moves. Without segments there is one move per option; with segments
there are up to n (n - 1) / 2 more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from planner.placement.chain import JOINED, Chain, OptionIndices
from planner.placement.chain_cost import ChainArrays, chain_arrays
from profiler.arrays import Floats, Ints, Mask

SECONDS_TOLERANCE = 1e-9
"""Relative difference below which two recompute times count as equal.

Sums of the same floats in another order differ by more than the last bit, and profiled seconds are
exact to about three digits only.
"""

NO_NEED = -(1 << 60)
"""M at the end of the chain: no move follows."""

UNREACHABLE = 1 << 60
"""S or M of a position without a path; larger than any budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathMoves:
    """Moves sorted by start, as arrays [moves].

    Attributes:
        start: position before the move.
        stop: position after the move.
        option: option index of unit ``start``; a move over several units joins the others to it.
        stored: bytes stored for the rest of the forward.
        need: highest live bytes above the bytes stored before the move.
        seconds: recompute seconds.
        positions: number of positions, n + 1.
    """

    start: Ints
    stop: Ints
    option: Ints
    stored: Ints
    need: Ints
    seconds: Floats
    positions: int

    def pick(self, keep: Mask) -> PathMoves:
        """Return the moves selected by a mask [moves]."""
        return PathMoves(
            start=self.start[keep],
            stop=self.stop[keep],
            option=self.option[keep],
            stored=self.stored[keep],
            need=self.need[keep],
            seconds=self.seconds[keep],
            positions=self.positions,
        )


def all_moves(chain: Chain, *, segments: bool) -> PathMoves:
    """Return the moves of a chain, without options dominated by another option of their unit.

    Args:
        chain: chain of n units.
        segments: whether to include segments of several units.
    """
    t = chain_arrays(chain)
    parts = [_option_moves(chain, t)]
    if segments:
        parts.extend(_segment_moves(chain, t))
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(joined[0], kind="stable")
    start, stop, option, stored, need, seconds = (column[order] for column in joined)
    return PathMoves(
        start=start,
        stop=stop,
        option=option,
        stored=stored,
        need=need,
        seconds=seconds,
        positions=len(chain.units) + 1,
    )


_Columns = tuple[Ints, Ints, Ints, Ints, Ints, Floats]
"""Start, stop, option, stored, need and seconds of some moves."""


def _option_moves(chain: Chain, t: ChainArrays) -> _Columns:
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
    """Return the options not dominated in all three numbers; of equal options only the first."""
    rows = list(zip(seconds.tolist(), stored.tolist(), need.tolist(), range(count), strict=False))
    kept: list[tuple[float, int, int, int]] = []
    # ascending seconds: an option kept before is at least as fast, so only bytes are compared
    for row in sorted(rows):
        if not any(k[1] <= row[1] and k[2] <= row[2] for k in kept):
            kept.append(row)
    return sorted(row[3] for row in kept)


def _segment_moves(chain: Chain, t: ChainArrays) -> Iterator[_Columns]:
    """Yield all segments of 2, 3, ... units; bytes and seconds as defined in ``chain_cost``.

    ``highest`` holds three running maxima over the units of each segment, so that a segment of
    length L follows from the one of length L - 1 with the same start in constant time.
    """
    rows = np.arange(len(chain.units))
    # rerun and backward count kept bytes from the start of the chain; subtracting prefix[start]
    # below counts them from the start of the segment
    kept = t.stored[rows, t.keep]
    prefix = np.cumsum(kept) - kept
    rerun = prefix + t.forward[rows, t.keep]
    backward = prefix + t.gradients_after + t.backward[rows, t.keep]
    entered = t.forward[rows, t.recompute]
    follow = entered + np.concatenate([[0], t.boundary[:-1]])
    seconds = np.concatenate([[0.0], np.cumsum(t.forward_seconds)])
    last_seconds = t.seconds[rows, t.recompute]

    start = rows[t.can_join]
    highest = [entered[start], rerun[start], backward[start]]
    for length in range(2, len(chain.units) + 1):
        longer = start + length - 1 < len(rows)
        last = start[longer] + length - 1
        longer[longer] = t.can_join[last] & t.may_continue_segment[last]
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


def groups_by(moves: PathMoves, by: Ints) -> list[Ints]:
    """Return for each position the indices of the moves with that position in column ``by``."""
    order = np.argsort(by, kind="stable")
    edges = np.searchsorted(by[order], np.arange(1, moves.positions))
    return np.split(order, edges)


def least_tails(moves: PathMoves) -> list[int]:
    """Return for each position the least M over all paths from there to the end."""
    return _least_peaks(moves)[0]


def _least_peaks(moves: PathMoves) -> tuple[list[int], list[int]]:
    """Return for each position the least M and the first move of a path with that M."""
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


def least_peak_path(moves: PathMoves) -> list[int]:
    """Return the moves of a path of least peak."""
    best = _least_peaks(moves)[1]
    path: list[int] = []
    position = 0
    while position < moves.positions - 1:
        path.append(best[position])
        position = int(moves.stop[path[-1]])
    return path


def free_path(moves: PathMoves) -> list[int] | None:
    """Return the only path without recompute time; None if there is none, or more than one."""
    free = np.flatnonzero(moves.seconds == 0)
    start, stop = moves.start[free], moves.stop[free]
    positions = np.arange(moves.positions - 1)
    if not (np.array_equal(start, positions) and np.array_equal(stop, positions + 1)):
        return None
    path: list[int] = free.tolist()
    return path


def peak_of_path(moves: PathMoves, path: list[int]) -> int:
    """Return the highest live bytes of a path."""
    stored = moves.stored[path]
    peak: int = (np.cumsum(stored) - stored + moves.need[path]).max().item()
    return peak


def feasible_moves(moves: PathMoves, tails: list[int], budget: int) -> tuple[PathMoves, list[int]]:
    """Return the moves on feasible paths, and the least S of each position."""
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


def indices_of_path(moves: PathMoves, path: list[int]) -> OptionIndices:
    """Return the option indices of a path; a longer move joins the units after its first."""
    indices: list[int] = []
    for move in path:
        indices.append(int(moves.option[move]))
        indices.extend([JOINED] * (int(moves.stop[move]) - len(indices)))
    return tuple(indices)
