"""Lower bounds of the time of a path under a budget, by Lagrangian duality.

With S the bytes stored before position a, and l a slope in seconds per byte,

    D_a(l) = min over paths to a of (seconds + l stored)
    E_a(l) = min over S and paths from a on of (seconds - l S)

bound the time before and after the position: at least D_a(l) - l S, and at least E_a(l) + l S, for
every l. A move with cap c = budget - need allows S <= c only. The minimum of D under that is again

    max over m >= l of D(m) - (m - l) c

so that ``D_stop(l) = min over moves of (seconds + l stored + that)``, and the mirror image for E.
All on a grid of slopes: any grid gives valid bounds, and those of the edges of the units' convex
menus contain the best one where a single constraint binds. A path through a move takes at least
the largest over l of D_start(l) + seconds + l stored + E_stop(l).

Symbols: n positions, q slopes (``SLOPES``), k moves at a position: O(n k q) time.
Source: Lagrangian relaxation of the multiple-choice knapsack, Kellerer, Pferschy and Pisinger,
Knapsack Problems (2004), chapter 11; here with a cap for every move in place of one capacity.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from planner.placement.chain import Floats, Ints
from planner.placement.path_moves import UNREACHABLE, Moves, groups_by

SLOPES = 128


class Unbounded:
    """No budget and no bound: the sweep then finds the whole curve."""

    def __init__(self, moves: Moves) -> None:
        self.limits = [UNREACHABLE] * moves.positions

    def at(self, position: int, need: Ints) -> Floats:
        """Return zero for every label."""
        return np.zeros(len(need))


class Bounds:
    """Lower bounds under a budget, by the two dual functions on a grid of slopes.

    Attributes:
        limits: for each position the largest M that some path before it allows.
        through: for each move a lower bound of all feasible paths with it.
    """

    def __init__(self, moves: Moves, heads: list[int], tails: list[int], budget: int) -> None:
        self.limits = [budget - head for head in heads]
        self._budget = budget
        self._slopes = slopes = _slopes(moves)
        room = budget - np.array(tails)[moves.stop] - moves.stored
        caps = np.minimum(budget - moves.need, room)[:, None] * 1.0
        own = moves.seconds[:, None] + slopes * moves.stored[:, None]
        self._before = _dual_before(moves, slopes, own, caps)
        after = _dual_after(moves, slopes, own, caps + moves.stored[:, None])
        self.through: Floats = (self._before[moves.start] + after).max(axis=1)
        # line k + 1 of a concave dual lies above line k for room below breaks[k], descending
        reached = np.where(np.isfinite(self._before), self._before, 0.0)
        self._breaks = -np.diff(reached, axis=1) / np.diff(slopes)

    def at(self, position: int, need: Ints) -> Floats:
        """Return the bound of the seconds before a position, for labels with these M."""
        room = (self._budget - need).astype(np.float64)
        line = np.searchsorted(self._breaks[position], -room)
        bound: Floats = self._before[position][line] - self._slopes[line] * room
        return bound


def _dual_before(moves: Moves, slopes: Floats, own: Floats, caps: Floats) -> Floats:
    """Return D [positions, slopes]: least seconds + l * stored of the paths to a position."""
    dual = np.full((moves.positions, len(slopes)), math.inf)
    dual[0] = 0.0
    for stop, group in enumerate(groups_by(moves, moves.stop)):
        if len(group):
            tilt = slopes * caps[group]
            below = dual[moves.start[group]] - tilt
            capped = np.maximum.accumulate(below[:, ::-1], axis=1)[:, ::-1] + tilt
            dual[stop] = (capped + own[group]).min(axis=0)
    return dual


def _dual_after(moves: Moves, slopes: Floats, own: Floats, caps: Floats) -> Floats:
    """Return [moves, slopes]: least seconds - l * S of the paths from S on that begin with a move.

    As D, from the other end: a larger S is dearer, and a move allows T = S + stored <= cap.
    """
    dual = np.full((moves.positions, len(slopes)), math.inf)
    dual[-1] = np.where(slopes > 0, -math.inf, 0.0)
    passed = np.empty_like(own)
    groups = groups_by(moves, moves.start)
    for start in reversed(range(moves.positions - 1)):
        group = groups[start]
        if len(group):
            tilt = slopes * caps[group]
            capped = np.maximum.accumulate(dual[moves.stop[group]] + tilt, axis=1) - tilt
            passed[group] = capped + own[group]
            dual[start] = passed[group].min(axis=0)
    return passed


def _slopes(moves: Moves) -> Floats:
    """Return the grid of seconds per byte: the edges of each unit's convex menu, and zero."""
    edges = [0.0]
    single = moves.stop - moves.start == 1
    rows = zip(
        moves.start[single].tolist(),
        moves.stored[single].tolist(),
        moves.seconds[single].tolist(),
        strict=True,
    )
    menus: dict[int, list[tuple[int, float]]] = {}
    for start, stored, seconds in rows:
        menus.setdefault(start, []).append((stored, seconds))
    for menu in menus.values():
        edges.extend(_hull_slopes(menu))
    # steeper edges would bring more rounding error than bound
    span = max(int(np.abs(moves.stored).max()), 1) * len(menus)
    steepest = 1e3 * float(moves.seconds.sum()) / span
    grid = np.unique(np.minimum(edges, steepest))
    if len(grid) > SLOPES:
        grid = grid[np.linspace(0, len(grid) - 1, SLOPES).round().astype(np.int64)]
    return grid if len(grid) > 1 else np.array([0.0, 1.0 / span])


def _hull_slopes(menu: list[tuple[int, float]]) -> list[float]:
    """Return the falling slopes, as positive numbers, of the lower convex hull of a menu."""
    hull: list[tuple[int, float]] = []
    for point in sorted(menu):
        while len(hull) > 1 and _rate(hull[-2], point) >= _rate(hull[-2], hull[-1]):
            hull.pop()
        if not hull or point[0] > hull[-1][0]:
            hull.append(point)
    rates = [_rate(a, b) for a, b in itertools.pairwise(hull)]
    return [rate for rate in rates if rate > 0]


def _rate(a: tuple[int, float], b: tuple[int, float]) -> float:
    return (a[1] - b[1]) / (b[0] - a[0]) if b[0] > a[0] else -math.inf
