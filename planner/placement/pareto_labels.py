"""Label-setting dynamic programming: the Pareto front of M against seconds at every position.

A label stands for one path from a position to the end of the chain. It holds M (``path_moves``) and
C, the recompute seconds of that path. Putting a move before the path gives the label

    M' = max(need, stored + M)        C' = seconds + C

at the start of the move. Both are monotone in M and C. If a label has no smaller M and no smaller C
than another label at the same position, it can be dropped: for every path before it, the other
label gives a path that is at least as good. This dominance is exact for any bytes and seconds;
bytes are never rounded into buckets. The labels at position 0 are the whole curve of peak against
time.

Identical units produce few labels; arbitrary units can produce exponentially many. Two rules keep
the lists short. A label is pruned if its seconds plus the lower bound of the path before it
(``lower_bounds``) reach the best time known. If more labels than ``width`` remain, some are
dropped, and the smallest bound among them is returned: no path lost with them is faster.

Symbols: n positions, k moves at a position, L labels at a position (at most the width).
Cost: O(n k L log L) time, O(n L) memory.
Source: dynamic programming with lists, Kellerer, Pferschy and Pisinger, Knapsack Problems (2004),
section 3.4; for paths with resource limits, Desrochers and Soumis, INFOR 26 (1988).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from planner.placement.lower_bounds import DualBounds, NoBounds
from planner.placement.path_moves import NO_NEED, SECONDS_TOLERANCE, PathMoves, groups_by
from profiler.arrays import Floats, Ints, Mask


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoLabels:
    """Pareto labels at a position, M ascending and C descending, as arrays [labels].

    Attributes:
        need: M, the live bytes needed above the bytes stored before the position.
        seconds: C, the recompute seconds from the position to the end.
        parent: index of the rest of the path among the labels at the move's stop.
        move: first move of the path.
    """

    need: Ints
    seconds: Floats
    parent: Ints
    move: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSweep:
    """Result of a pass from the end of the chain to its start.

    Attributes:
        labels: Pareto labels of every position.
        dropped_seconds: smallest lower bound among labels dropped for the width; infinite if none.
    """

    labels: list[ParetoLabels]
    dropped_seconds: float


def sweep_labels(
    moves: PathMoves, bounds: DualBounds | NoBounds, *, width: int, best_seconds: float
) -> LabelSweep:
    """Extend labels from the end of the chain to its start.

    Args:
        moves: moves that paths may use.
        bounds: limits of M and lower bounds of the time before a position.
        width: largest number of labels kept at a position.
        best_seconds: best time known; only labels that can improve on it are kept.
    """
    none = np.zeros(0, np.int64)
    empty = ParetoLabels(need=none, seconds=np.zeros(0), parent=none, move=none)
    labels = [empty] * moves.positions
    end = np.zeros(1, np.int64)
    labels[-1] = ParetoLabels(need=np.array([NO_NEED]), seconds=np.zeros(1), parent=end, move=end)
    starts = groups_by(moves, moves.start)
    dropped = math.inf
    goal = best_seconds * (1 - SECONDS_TOLERANCE)
    for position in range(moves.positions - 2, -1, -1):
        longer = _prepend_moves(moves, starts[position], labels, bounds.limits[position])
        fresh = _undominated_labels(longer)
        bound = fresh.seconds + bounds.seconds_before(position, fresh.need)
        keep = bound < goal
        index = np.flatnonzero(keep)
        if len(index) > width:
            chosen = _narrow(fresh.need[index], bound[index], width)
            dropped = min(dropped, float(bound[index[~chosen]].min()))
            index = index[chosen]
        labels[position] = _select(fresh, index)
    return LabelSweep(labels=labels, dropped_seconds=dropped)


def _prepend_moves(
    moves: PathMoves, group: Ints, labels: list[ParetoLabels], limit: int
) -> ParetoLabels:
    """Put each move of a group before each label at its stop; return labels with M <= limit."""
    group = group[np.argsort(moves.stop[group], kind="stable")]
    stop = moves.stop[group]
    # the labels at all stops in one array, and for each move the index of its first one
    used, at_stop = np.unique(stop, return_inverse=True)
    sizes = np.array([len(labels[each].need) for each in used], np.int64)
    none = np.zeros(0, np.int64)
    ahead_need = np.concatenate([none, *(labels[each].need for each in used)])
    ahead_seconds = np.concatenate([np.zeros(0), *(labels[each].seconds for each in used)])
    first, count = (np.cumsum(sizes) - sizes)[at_stop], sizes[at_stop]
    # each move once for each label at its stop
    parent = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    move, label = np.repeat(group, count), parent + np.repeat(first, count)
    need = np.maximum(moves.need[move], moves.stored[move] + ahead_need[label])
    kept = np.flatnonzero(need <= limit)
    move, label = move[kept], label[kept]
    return ParetoLabels(
        need=need[kept],
        seconds=moves.seconds[move] + ahead_seconds[label],
        parent=parent[kept],
        move=move,
    )


def _undominated_labels(labels: ParetoLabels) -> ParetoLabels:
    """Return the labels that no other dominates, M ascending and C descending."""
    order = np.argsort(labels.need, kind="stable")
    seconds = labels.seconds[order]
    if not len(seconds):
        return labels
    # in the order of M, a label must be faster than all before it; of equal M, the last is fastest
    before = np.concatenate([[math.inf], np.minimum.accumulate(seconds)[:-1]])
    order = order[seconds < before]
    need = labels.need[order]
    last = np.append(need[1:] != need[:-1], True)
    return _select(labels, order[last])


def _narrow(need: Ints, bound: Floats, width: int) -> Mask:
    """Return a mask [labels] of at most ``width`` labels.

    Half of the width takes the labels of smallest bound; the other half takes the best label from
    each of equally wide ranges of M. The second half matters if seconds are nearly proportional to
    bytes: all bounds are then nearly equal, and only a spread of M lets a path end close to the
    budget.
    """
    chosen = np.zeros(len(need), np.bool_)
    half = max(width // 2, 1)
    chosen[np.argpartition(bound, half - 1)[:half]] = True
    span = int(need[-1] - need[0]) + 1
    ranges = (need - need[0]) * (1.0 / span) * (width - half)
    order = np.lexsort((bound, ranges.astype(np.int64)))
    ordered = ranges[order].astype(np.int64)
    first = np.append(True, ordered[1:] != ordered[:-1])
    # with width 1, the first half has taken the only label
    chosen[order[first]] |= width > half
    return chosen


def _select(labels: ParetoLabels, index: Ints) -> ParetoLabels:
    return ParetoLabels(
        need=labels.need[index],
        seconds=labels.seconds[index],
        parent=labels.parent[index],
        move=labels.move[index],
    )


def path_of_label(moves: PathMoves, sweep: LabelSweep, index: int) -> list[int]:
    """Return the moves of the path of a label at position 0."""
    path: list[int] = []
    position = 0
    while position < moves.positions - 1:
        labels = sweep.labels[position]
        path.append(int(labels.move[index]))
        index = int(labels.parent[index])
        position = int(moves.stop[path[-1]])
    return path
