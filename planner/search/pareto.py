"""The Pareto front: finding it, measuring it, and choosing on it.

    non_dominated   indices of the feasible points no other feasible point is better than
    hypervolume     exact volume dominated up to a reference point, for one to three objectives
    choosers        BestScore, KneePoint, IdealPoint: one point of a front
    spread          k points of a front that together dominate the most
    HypervolumeStagnation   a stop rule for a search

A point is a sequence of numbers, one an objective; a direction says for each whether larger or
smaller is better. Inside, everything is minimised. Duplicates do not dominate each other.

Hypervolume, two objectives: sort and sum rectangles, O(n log n). Three: sweep over the third
objective and multiply each slab's height by the area that the points seen so far dominate in the
other two (the dimension sweep of Fonseca, Paquete and López-Ibáñez 2006, with a sorted list in
place of a tree), O(n²). More objectives are refused. ``spread`` is exact by enumeration when there
are few subsets, otherwise greedy, which reaches at least 1 - 1/e of the best volume because
hypervolume is submodular (Nemhauser, Wolsey and Fisher 1978; Guerreiro et al. 2016).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, Protocol

from profiler.errors import UsageError

Direction = Literal["maximise", "minimise"]

Point = Sequence[float]

# subsets that spread tries before it goes greedy: about a tenth of a second at most
EXACT_SUBSETS = 5_000


# ---- finding the front -------------------------------------------------------------------------


def non_dominated(
    points: Sequence[Point],
    *,
    directions: Sequence[Direction],
    violations: Sequence[float] | None = None,
) -> list[int]:
    """Return the indices of the front in the order given.

    Args:
        points: one row a candidate, one column an objective; infinities allowed, nan not.
        directions: one an objective.
        violations: how far each candidate breaks its constraints; above 0 is infeasible.
    """
    costs = _minimised(points, directions)
    if violations is not None and len(violations) != len(points):
        raise UsageError(f"{len(points)} points but {len(violations)} violations; give one each")
    allowed = [i for i in range(len(costs)) if violations is None or violations[i] <= 0]
    # a dominating point sorts first, so each need only be held against the front so far
    front: list[int] = []
    for i in sorted(allowed, key=lambda i: costs[i]):
        if not any(_dominates(costs[j], costs[i]) for j in front):
            front.append(i)
    return sorted(front)


def _dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


# ---- measuring it ------------------------------------------------------------------------------


def hypervolume(
    points: Sequence[Point], *, reference: Point, directions: Sequence[Direction]
) -> float:
    """Return the exact volume between the points and the reference, which is worse than they.

    Points that are not better than the reference in every objective count for nothing.
    """
    (corner,) = _minimised([reference], directions)
    if not all(map(math.isfinite, corner)):
        raise UsageError(f"the reference point must be finite, got {tuple(reference)!r}")
    costs = _minimised(points, directions)
    return _volume([c for c in costs if all(x < r for x, r in zip(c, corner, strict=True))], corner)


def reference_point(
    points: Sequence[Point], *, directions: Sequence[Direction], margin: float = 0.1
) -> tuple[float, ...]:
    """Return the worst value of each objective, worsened by a margin of its range.

    Where all points share a value the margin is taken of its size, so that no volume vanishes.
    """
    costs = _minimised(points, directions)
    if not costs:
        raise UsageError("no points to take a reference point from")
    corner = []
    for column, direction in zip(zip(*costs, strict=True), directions, strict=True):
        worst, extent = max(column), max(column) - min(column)
        cost = worst + margin * (extent or abs(worst) or 1.0)
        corner.append(cost if direction == "minimise" else -cost)
    return tuple(corner)


def _volume(costs: list[tuple[float, ...]], corner: tuple[float, ...]) -> float:
    match len(corner):
        case 1:
            return corner[0] - min((c[0] for c in costs), default=corner[0])
        case 2:
            return _area([(c[0], c[1]) for c in costs], (corner[0], corner[1]))
        case 3:
            return _sweep(costs, corner)
    raise UsageError(f"hypervolume of {len(corner)} objectives; this one is for 1 to 3")


def _area(costs: list[tuple[float, float]], corner: tuple[float, float]) -> float:
    total, lowest = 0.0, corner[1]
    for x, y in sorted(costs):
        if y < lowest:
            total += (corner[0] - x) * (lowest - y)
            lowest = y
    return total


def _sweep(costs: list[tuple[float, ...]], corner: tuple[float, ...]) -> float:
    """Sum slabs along the third objective; ``stairs`` is the two-dimensional front so far."""
    ordered = sorted(costs, key=lambda c: c[2])
    stairs: list[tuple[float, float]] = []
    flat = (corner[0], corner[1])
    total = area = 0.0
    for here, above in zip(ordered, [*ordered[1:], corner], strict=True):
        if _climb(stairs, (here[0], here[1])):
            area = _area(stairs, flat)
        total += area * (above[2] - here[2])
    return total


def _climb(stairs: list[tuple[float, float]], step: tuple[float, float]) -> bool:
    """Add a step to a staircase (x rising, y falling); False when it changes nothing."""
    at = bisect_left(stairs, step)
    if (at > 0 and stairs[at - 1][1] <= step[1]) or (at < len(stairs) and stairs[at] == step):
        return False
    end = at
    while end < len(stairs) and stairs[end][1] >= step[1]:
        end += 1
    stairs[at:end] = [step]
    return True


# ---- choosing on it ----------------------------------------------------------------------------


class Chooser(Protocol):
    """Picks one point of a front; the first of equals."""

    def choose(self, points: Sequence[Point], *, directions: Sequence[Direction]) -> int:
        """Return the index of the chosen point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BestScore:
    """The point with the highest score; a score of None (not known) never wins.

    Attributes:
        scores: one a point, larger is better.
    """

    scores: Sequence[float | None]

    def choose(self, points: Sequence[Point], *, directions: Sequence[Direction]) -> int:
        """Return the index of the highest score."""
        _normalised(points, directions)
        if len(self.scores) != len(points):
            raise UsageError(f"{len(points)} points but {len(self.scores)} scores; give one each")
        known = {i: score for i, score in enumerate(self.scores) if score is not None}
        if not known:
            raise UsageError("no point of the front has a score; choose by knee or ideal point")
        return max(known, key=lambda i: known[i])


@dataclass(frozen=True, slots=True, kw_only=True)
class KneePoint:
    """The point farthest on the good side of the plane through the ends of the front.

    With every objective scaled to [0, 1] the plane is sum(x) = 1 (Das 1999, the normal-boundary
    knee), so the farthest point is the one with the least sum.
    """

    def choose(self, points: Sequence[Point], *, directions: Sequence[Direction]) -> int:
        """Return the index of the knee."""
        return _least([sum(row) for row in _normalised(points, directions)])


@dataclass(frozen=True, slots=True, kw_only=True)
class IdealPoint:
    """The point nearest (Euclidean, scaled to [0, 1]) to the best of every objective at once."""

    def choose(self, points: Sequence[Point], *, directions: Sequence[Direction]) -> int:
        """Return the index of the nearest point."""
        return _least([math.hypot(*row) for row in _normalised(points, directions)])


def spread(
    points: Sequence[Point],
    *,
    k: int,
    directions: Sequence[Direction],
    reference: Point | None = None,
) -> list[int]:
    """Return the indices, ascending, of at most k points that together dominate the most.

    Args:
        points: the front; other points are allowed and are simply not worth choosing.
        k: how many to keep.
        directions: one an objective.
        reference: corner of the volume; ``reference_point(points)`` when not given.
    """
    if k < 1:
        raise UsageError(f"k must be a positive integer, got {k!r}")
    if len(points) <= k:
        _minimised(points, directions)
        return list(range(len(points)))
    corner = reference_point(points, directions=directions) if reference is None else reference

    def volume(chosen: Iterable[int]) -> float:
        rows = [points[i] for i in chosen]
        return hypervolume(rows, reference=corner, directions=directions)

    if math.comb(len(points), k) <= EXACT_SUBSETS:
        return list(max(combinations(range(len(points)), k), key=volume))
    chosen: list[int] = []
    for _ in range(k):
        rest = [i for i in range(len(points)) if i not in chosen]
        chosen.append(max(rest, key=lambda i: volume([*chosen, i])))
    return sorted(chosen)


# ---- stopping a search -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class HypervolumeStagnation:
    """Stop when the last ``window`` trials raised the hypervolume by less than ``tolerance``.

    While the hypervolume is zero nothing feasible was found, and the search goes on.

    Attributes:
        window: trials without progress that are borne.
        tolerance: growth over the window, relative to its start, that still counts as none.
    """

    window: int = 50
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        if self.window < 1:
            raise UsageError(f"window must be a positive integer, got {self.window!r}")
        if not self.tolerance >= 0:
            raise UsageError(f"tolerance must be 0 or more, got {self.tolerance!r}")

    def should_stop(self, history: Sequence[float]) -> bool:
        """Say whether to stop, given the hypervolume after each trial, oldest first."""
        if len(history) <= self.window:
            return False
        before, now = history[-1 - self.window], history[-1]
        return before > 0 and now - before <= self.tolerance * before


# ---- shared ------------------------------------------------------------------------------------


def _minimised(points: Sequence[Point], directions: Sequence[Direction]) -> list[tuple[float, ...]]:
    """Check the shape and turn every objective into a cost."""
    for direction in directions:
        if direction not in ("maximise", "minimise"):
            raise UsageError(f"a direction is 'maximise' or 'minimise', got {direction!r}")
    rows = []
    for point in points:
        if len(point) != len(directions):
            raise UsageError(f"point {tuple(point)!r} needs {len(directions)} objectives")
        row = tuple(
            float(x) if d == "minimise" else -float(x)
            for x, d in zip(point, directions, strict=True)
        )
        if any(map(math.isnan, row)):
            raise UsageError(f"point {tuple(point)!r} has an objective that is not a number")
        rows.append(row)
    return rows


def _normalised(
    points: Sequence[Point], directions: Sequence[Direction]
) -> list[tuple[float, ...]]:
    """Scale every cost to [0, 1] over the points; an objective they share counts as 0."""
    costs = _minimised(points, directions)
    if not costs:
        raise UsageError("the front is empty, there is nothing to choose")
    if not all(math.isfinite(x) for row in costs for x in row):
        raise UsageError("a front to choose on must have finite objectives")
    columns = list(zip(*costs, strict=True))
    low = [min(column) for column in columns]
    extent = [max(column) - min(column) for column in columns]
    return [
        tuple((x - lo) / e if e > 0 else 0.0 for x, lo, e in zip(row, low, extent, strict=True))
        for row in costs
    ]


def _least(values: Sequence[float]) -> int:
    return min(range(len(values)), key=lambda i: values[i])
