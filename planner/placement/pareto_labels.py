"""Pareto labels: every part of a path that could still be part of the best one.

From the end of the chain towards its start, a part of a path is a label (M, C): its need as in
``moves.py`` and its seconds. Putting a move in front gives

    M' = max(need, stored + M)        C' = C + seconds

and both are monotone, so of two labels at a position the one that is no better in M and in C can
be dropped: the dominance is exact, with any bytes and seconds. What is left at position 0 is the
whole curve of peak against time. Identical units make few labels; arbitrary ones can make
exponentially many, and then the bounds of ``bounds.py`` prune, and a sweep keeps no more than its
width and remembers the least bound of what it dropped. Bytes are never rounded.

L labels a position, k moves: O(n k L log L) time, O(n L) memory.
Source: dynamic programming with lists, Kellerer, Pferschy and Pisinger (2004), section 3.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from planner.placement.chain import Floats, Ints, Mask
from planner.placement.lower_bounds import Bounds, Unbounded
from planner.placement.path_moves import NO_NEED, TOLERANCE, Moves, groups_by


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Pareto labels of one position, M ascending and C descending."""

    need: Ints
    seconds: Floats
    parent: Ints  # index among the labels of the move's stop
    move: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Labels of every position, and the least bound of all labels that did not fit the width."""

    labels: list[Labels]
    dropped_seconds: float


def sweep_labels(
    moves: Moves, bounds: Bounds | Unbounded, *, width: int, best_seconds: float
) -> Sweep:
    """Extend labels from the end of the chain to its start, at most ``width`` a position."""
    none = np.zeros(0, np.int64)
    labels = [Labels(need=none, seconds=np.zeros(0), parent=none, move=none)] * moves.positions
    end = np.zeros(1, np.int64)
    labels[-1] = Labels(need=np.array([NO_NEED]), seconds=np.zeros(1), parent=end, move=end)
    starts = groups_by(moves, moves.start)
    dropped = math.inf
    goal = best_seconds * (1 - TOLERANCE)
    for position in range(moves.positions - 2, -1, -1):
        fresh = _pareto(_extend(moves, starts[position], labels, bounds.limits[position]))
        bound = fresh.seconds + bounds.at(position, fresh.need)
        keep = bound < goal
        index = np.flatnonzero(keep)
        if len(index) > width:
            chosen = _narrow(fresh.need[index], bound[index], width)
            dropped = min(dropped, float(bound[index[~chosen]].min()))
            index = index[chosen]
        labels[position] = _select(fresh, index)
    return Sweep(labels=labels, dropped_seconds=dropped)


def _extend(moves: Moves, group: Ints, labels: list[Labels], limit: int) -> Labels:
    """Put every move of the group in front of every label of its stop; keep M within the limit."""
    pieces: list[Labels] = []
    for stop in np.unique(moves.stop[group]):
        ahead, same = labels[stop], group[moves.stop[group] == stop]
        need = np.maximum(moves.need[same, None], moves.stored[same, None] + ahead.need)
        seconds = moves.seconds[same, None] + ahead.seconds
        move, parent = np.nonzero(need <= limit)
        at = (move, parent)
        pieces.append(Labels(need=need[at], seconds=seconds[at], parent=parent, move=same[move]))
    if len(pieces) == 1:
        return pieces[0]
    none = np.zeros(0, np.int64)
    return Labels(
        need=np.concatenate([none, *(p.need for p in pieces)]),
        seconds=np.concatenate([np.zeros(0), *(p.seconds for p in pieces)]),
        parent=np.concatenate([none, *(p.parent for p in pieces)]),
        move=np.concatenate([none, *(p.move for p in pieces)]),
    )


def _pareto(labels: Labels) -> Labels:
    """Return the labels that no other dominates, M ascending and C descending."""
    order = np.argsort(labels.need, kind="stable")
    seconds = labels.seconds[order]
    if not len(seconds):
        return labels
    before = np.concatenate([[math.inf], np.minimum.accumulate(seconds)[:-1]])
    order = order[seconds < before]
    need = labels.need[order]
    last = np.append(need[1:] != need[:-1], True)
    return _select(labels, order[last])


def _narrow(need: Ints, bound: Floats, width: int) -> Mask:
    """Choose at most ``width`` labels: half of least bound, half the best of equal ranges of M.

    Where seconds are nearly proportional to bytes all bounds are alike, and the spread in M is
    what lets some path come close to the budget.
    """
    chosen = np.zeros(len(need), np.bool_)
    half = max(width // 2, 1)
    chosen[np.argpartition(bound, half - 1)[:half]] = True
    span = int(need[-1] - need[0]) + 1
    ranges = (need - need[0]) * (1.0 / span) * (width - half)
    order = np.lexsort((bound, ranges.astype(np.int64)))
    ordered = ranges[order].astype(np.int64)
    first = np.append(True, ordered[1:] != ordered[:-1])
    chosen[order[first]] |= width > half
    return chosen


def _select(labels: Labels, index: Ints) -> Labels:
    return Labels(
        need=labels.need[index],
        seconds=labels.seconds[index],
        parent=labels.parent[index],
        move=labels.move[index],
    )


def path_of(moves: Moves, sweep: Sweep, index: int) -> list[int]:
    """Return the moves that a label of position 0 stands for."""
    path: list[int] = []
    position = 0
    while position < moves.positions - 1:
        labels = sweep.labels[position]
        path.append(int(labels.move[index]))
        index = int(labels.parent[index])
        position = int(moves.stop[path[-1]])
    return path
