"""Lower bounds of the recompute time of a path under a budget, by Lagrangian duality.

``path_moves`` defines positions, moves (with stored, need and seconds), S and M. Let S be the bytes
stored before position a, and l >= 0 a price in seconds per byte. Two dual functions are computed on
a grid of prices:

    D_a(l) = min over paths from 0 to a      of (seconds + l * stored)
    E_a(l) = min over S and paths from a on  of (seconds - l * S)

For every l, a path with S bytes stored before a takes at least D_a(l) - l S before a and at least
E_a(l) + l S from a on. A path through a move therefore takes at least

    max over l of  D_start(l) + seconds + l * stored + E_stop(l)

The budget enters through the capacity c of each move: the move is feasible only if S <= c, where
c = min(budget - need, budget - stored - least M after the move). The least value of seconds + l S
over the paths to ``start`` with S <= c is at least

    C(l) = max over m >= l of  D_start(m) - (m - l) * c

because D_start(m) bounds seconds + m S, and (m - l) S <= (m - l) c. This gives the recursion
``D_stop(l) = min over moves of (C(l) + seconds + l * stored)``; the one for E mirrors it.

Every grid of prices gives valid bounds. The grid used here consists of the slopes of the convex
hulls of the units' options (stored against seconds), which contain the optimal price if only one
capacity binds.

Symbols: n positions, k moves at a position, q prices (at most ``MAX_PRICES``).
Cost: O(n k q) time, O(n k q) memory.
Source: Lagrangian relaxation of the multiple-choice knapsack problem, Kellerer, Pferschy and
Pisinger, Knapsack Problems (Springer 2004), chapter 11. Here each move has a capacity of its own
instead of a common capacity.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from planner.placement.path_moves import UNREACHABLE, PathMoves, groups_by
from profiler.arrays import Floats, Ints

MAX_PRICES = 128
"""Size of the grid of prices."""


class NoBounds:
    """Replaces ``DualBounds`` if no budget is given: M is unlimited, and all bounds are zero."""

    def __init__(self, moves: PathMoves) -> None:
        self.limits = [UNREACHABLE] * moves.positions

    def seconds_before(self, position: int, need: Ints) -> Floats:
        """Return [labels] zeros."""
        return np.zeros(len(need))


class DualBounds:
    """Lower bounds of the recompute time under a budget.

    Args:
        moves: moves that lie on a feasible path.
        heads: [positions] least S of each position.
        tails: [positions] least M of each position.
        budget: budget in live bytes.

    Attributes:
        limits: [positions] largest M that the least S of the position allows.
        through: [moves] lower bound of the time of every feasible path through the move.
    """

    def __init__(self, moves: PathMoves, heads: list[int], tails: list[int], budget: int) -> None:
        self.limits = [budget - head for head in heads]
        self._budget = budget
        self._prices = prices = _price_grid(moves)
        room = budget - np.array(tails)[moves.stop] - moves.stored
        caps = np.minimum(budget - moves.need, room)[:, None] * 1.0
        own = moves.seconds[:, None] + prices * moves.stored[:, None]
        self._before = _dual_before(moves, prices, own, caps)
        after = _dual_after(moves, prices, own, caps + moves.stored[:, None])
        self.through: Floats = (self._before[moves.start] + after).max(axis=1)
        # D is concave in the price, so max over l of D(l) - l * room is found by bisection: the
        # line of price k + 1 lies above the line of price k exactly for room < -breaks[k]. With the
        # sign changed, breaks ascend. D is infinite at a position without a path, where no label
        # can be; the 0 avoids inf - inf.
        reached = np.where(np.isfinite(self._before), self._before, 0.0)
        self._breaks = -np.diff(reached, axis=1) / np.diff(prices)

    def seconds_before(self, position: int, need: Ints) -> Floats:
        """Return [labels] a lower bound of the seconds of any feasible path to a position.

        Args:
            position: position of the labels.
            need: [labels] M of the labels; a path fits one if it stores at most budget - M.
        """
        room = (self._budget - need).astype(np.float64)
        line = np.searchsorted(self._breaks[position], -room)
        bound: Floats = self._before[position][line] - self._prices[line] * room
        return bound


def _dual_before(moves: PathMoves, prices: Floats, own: Floats, caps: Floats) -> Floats:
    """Return D [positions, prices]: least seconds + l * stored over the paths to a position.

    Args:
        moves: the moves.
        prices: [prices] ascending.
        own: [moves, prices] seconds + l * stored of each move.
        caps: [moves, 1] largest S before each move.
    """
    dual = np.full((moves.positions, len(prices)), math.inf)
    dual[0] = 0.0
    for stop, group in enumerate(groups_by(moves, moves.stop)):
        if len(group):
            # C(l): a running maximum over all prices m >= l, taken from the end of the grid
            tilt = prices * caps[group]
            below = dual[moves.start[group]] - tilt
            capped = np.maximum.accumulate(below[:, ::-1], axis=1)[:, ::-1] + tilt
            dual[stop] = (capped + own[group]).min(axis=0)
    return dual


def _dual_after(moves: PathMoves, prices: Floats, own: Floats, caps: Floats) -> Floats:
    """Return [moves, prices]: least seconds - l * S over paths that begin with the move.

    This is the recursion of D from the other end. The term in S is negative, so the running maximum
    is over prices m <= l. The capacity limits T = S + stored, the bytes after the move.

    Args:
        moves: the moves.
        prices: [prices] ascending.
        own: [moves, prices] seconds + l * stored of each move.
        caps: [moves, 1] largest T after each move.
    """
    dual = np.full((moves.positions, len(prices)), math.inf)
    # at the end no capacity bounds S, so -l * S has no minimum for any l > 0
    dual[-1] = np.where(prices > 0, -math.inf, 0.0)
    passed = np.empty_like(own)
    groups = groups_by(moves, moves.start)
    for start in reversed(range(moves.positions - 1)):
        group = groups[start]
        if len(group):
            tilt = prices * caps[group]
            capped = np.maximum.accumulate(dual[moves.stop[group]] + tilt, axis=1) - tilt
            passed[group] = capped + own[group]
            dual[start] = passed[group].min(axis=0)
    return passed


def _price_grid(moves: PathMoves) -> Floats:
    """Return the grid of prices: zero and the slopes of the convex hull of each unit's options."""
    edges = [0.0]
    single = moves.stop - moves.start == 1
    rows = zip(
        moves.start[single].tolist(),
        moves.stored[single].tolist(),
        moves.seconds[single].tolist(),
        strict=True,
    )
    by_unit: dict[int, list[tuple[int, float]]] = {}
    for start, stored, seconds in rows:
        by_unit.setdefault(start, []).append((stored, seconds))
    for options in by_unit.values():
        edges.extend(_hull_slopes(options))
    # a price so steep that l * S dwarfs all seconds adds more rounding error than bound
    span = max(int(np.abs(moves.stored).max()), 1) * len(by_unit)
    steepest = 1e3 * float(moves.seconds.sum()) / span
    grid = np.unique(np.minimum(edges, steepest))
    if len(grid) > MAX_PRICES:
        grid = grid[np.linspace(0, len(grid) - 1, MAX_PRICES).round().astype(np.int64)]
    # the differences in DualBounds need two prices; any price gives a valid bound
    return grid if len(grid) > 1 else np.array([0.0, 1.0 / span])


def _hull_slopes(options: list[tuple[int, float]]) -> list[float]:
    """Return the falling slopes, as positive numbers, of the convex hull of (bytes, seconds)."""
    hull: list[tuple[int, float]] = []
    for point in sorted(options):
        while len(hull) > 1 and _slope(hull[-2], point) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        if not hull or point[0] > hull[-1][0]:
            hull.append(point)
    rates = [_slope(a, b) for a, b in itertools.pairwise(hull)]
    return [rate for rate in rates if rate > 0]


def _slope(a: tuple[int, float], b: tuple[int, float]) -> float:
    return (a[1] - b[1]) / (b[0] - a[0]) if b[0] > a[0] else -math.inf
