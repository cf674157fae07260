"""The Pareto front of a search, its hypervolume, and a stop rule that reads the hypervolume.

    non_dominated           indices of the feasible points that no other feasible point dominates
    hypervolume             exact volume between points and a reference, one to three objectives
    reference_point         a reference that every given point dominates
    HypervolumeStagnation   ends a search whose front no longer grows

A point holds one number per objective. A direction states for each objective whether larger or
smaller is better. All functions first turn the objectives into costs, which are minimised. A point
dominates another if it is no worse in every objective and better in one, so equal points do not
dominate each other.

The hypervolume of two objectives is a sum of rectangles over the sorted points, O(n log n). With
three objectives, the points are swept along the third one. The height of each slab is multiplied by
the area that the points seen so far dominate in the first two objectives, O(n^2). This is the
dimension sweep of Fonseca, Paquete and López-Ibáñez (2006, "An improved dimension-sweep algorithm
for the hypervolume indicator"), with a sorted list in place of their balanced tree. More than three
objectives are refused. Optuna 5.0 has a hypervolume as well, but only in the private module
``optuna._hypervolume``; the tests compare against it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from profiler.errors import UsageError, check_whole_number

Direction = Literal["maximize", "minimize"]
"""Whether larger or smaller values of an objective are better."""

Costs = tuple[float, ...]
"""The objectives of a point, each turned so that smaller is better."""

REFERENCE_MARGIN = 0.1
"""Share of an objective's range by which the reference point is worse than every point."""


# ---- the front ---------------------------------------------------------------------------------


def non_dominated(
    points: Sequence[Sequence[float]],
    *,
    directions: Sequence[Direction],
    violations: Sequence[float] | None = None,
) -> list[int]:
    """Return the indices of the Pareto front, ascending.

    Args:
        points: [candidates, objectives]. Infinite values are allowed, NaN is not.
        directions: [objectives] ``maximize`` or ``minimize``.
        violations: [candidates] excess over the constraint; a candidate above 0 is infeasible and
            neither enters the front nor dominates. None if there is no constraint.

    Raises:
        UsageError: the shapes do not match, a direction is unknown, or an objective is NaN.
    """
    costs = _as_costs(points, directions)
    if violations is not None and len(violations) != len(points):
        raise UsageError(f"{len(points)} points but {len(violations)} violations; give one each")
    feasible = [i for i in range(len(costs)) if violations is None or violations[i] <= 0]
    # In lexicographic order a point comes after every point that dominates it, so each point needs
    # to be compared with the front found so far only.
    front: list[int] = []
    for i in sorted(feasible, key=lambda i: costs[i]):
        if not any(_dominates(costs[j], costs[i]) for j in front):
            front.append(i)
    return sorted(front)


def _dominates(a: Costs, b: Costs) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


# ---- hypervolume -------------------------------------------------------------------------------


def hypervolume(
    points: Sequence[Sequence[float]],
    *,
    reference: Sequence[float],
    directions: Sequence[Direction],
) -> float:
    """Return the exact volume that the points dominate up to the reference.

    Args:
        points: [candidates, objectives]. A point that is not better than the reference in every
            objective adds nothing.
        reference: [objectives] finite values.
        directions: [objectives] ``maximize`` or ``minimize``.

    Raises:
        UsageError: the reference is not finite, or there are more than three objectives.
    """
    (corner,) = _as_costs([reference], directions)
    if not all(map(math.isfinite, corner)):
        raise UsageError(f"the reference point must be finite, got {tuple(reference)!r}")
    inside = [
        costs
        for costs in _as_costs(points, directions)
        if all(x < limit for x, limit in zip(costs, corner, strict=True))
    ]
    match len(corner):
        case 1:
            return corner[0] - min((c[0] for c in inside), default=corner[0])
        case 2:
            return _area([(c[0], c[1]) for c in inside], (corner[0], corner[1]))
        case 3:
            return _volume(inside, corner)
    raise UsageError(f"hypervolume takes 1 to 3 objectives, got {len(corner)}")


def reference_point(
    points: Sequence[Sequence[float]], *, directions: Sequence[Direction]
) -> tuple[float, ...]:
    """Return the worst value of each objective, made worse by ``REFERENCE_MARGIN`` of its range.

    If all points share a value, the margin is taken of that value, so that the volume does not
    vanish.

    Args:
        points: [candidates, objectives], at least one.
        directions: [objectives] ``maximize`` or ``minimize``.

    Raises:
        UsageError: there are no points.
    """
    costs = _as_costs(points, directions)
    if not costs:
        raise UsageError("a reference point needs at least one point, got none")
    reference = []
    for column, direction in zip(zip(*costs, strict=True), directions, strict=True):
        worst, extent = max(column), max(column) - min(column)
        cost = worst + REFERENCE_MARGIN * (extent or abs(worst) or 1.0)
        reference.append(cost if direction == "minimize" else -cost)
    return tuple(reference)


def _area(costs: list[tuple[float, float]], corner: tuple[float, float]) -> float:
    total, lowest = 0.0, corner[1]
    for x, y in sorted(costs):
        if y < lowest:
            total += (corner[0] - x) * (lowest - y)
            lowest = y
    return total


def _volume(costs: list[Costs], corner: Costs) -> float:
    """Sum slabs along the third objective.

    ``staircase`` holds the two-dimensional front of the points up to the current slab.
    """
    ordered = sorted(costs, key=lambda c: c[2])
    staircase: list[tuple[float, float]] = []
    flat = (corner[0], corner[1])
    total = area = 0.0
    for here, above in zip(ordered, [*ordered[1:], corner], strict=True):
        if _insert_step(staircase, (here[0], here[1])):
            area = _area(staircase, flat)
        total += area * (above[2] - here[2])
    return total


def _insert_step(staircase: list[tuple[float, float]], step: tuple[float, float]) -> bool:
    """Insert a step into a staircase (x ascending, y descending); return False if dominated."""
    at = bisect_left(staircase, step)
    if (at > 0 and staircase[at - 1][1] <= step[1]) or staircase[at : at + 1] == [step]:
        return False
    end = at
    while end < len(staircase) and staircase[end][1] >= step[1]:
        end += 1
    staircase[at:end] = [step]
    return True


# ---- stop rule ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class HypervolumeStagnation:
    """Ends a search if the last ``window`` trials raised the hypervolume by too little.

    A hypervolume of zero means that no feasible point was found yet; the search then continues.

    Attributes:
        window: number of trials over which the growth is measured.
        tolerance: largest growth, relative to the hypervolume before the window, that ends the
            search.
    """

    window: int = 50
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        check_whole_number("window", self.window, least=1)
        if not self.tolerance >= 0:
            raise UsageError(f"tolerance must be 0 or more, got {self.tolerance!r}")

    def should_stop(self, history: Sequence[float]) -> bool:
        """Return whether to stop.

        Args:
            history: [trials] hypervolume after each trial, oldest first.
        """
        if len(history) <= self.window:
            return False
        before, now = history[-1 - self.window], history[-1]
        return before > 0 and now - before <= self.tolerance * before


# ---- costs -------------------------------------------------------------------------------------


def _as_costs(points: Sequence[Sequence[float]], directions: Sequence[Direction]) -> list[Costs]:
    """Return [candidates, objectives] costs; refuse wrong shapes, directions and NaN."""
    for direction in directions:
        if direction not in ("maximize", "minimize"):
            raise UsageError(f"a direction is 'maximize' or 'minimize', got {direction!r}")
    rows = []
    for point in points:
        if len(point) != len(directions):
            raise UsageError(f"point {tuple(point)!r} needs {len(directions)} objectives")
        row = tuple(
            float(x) if direction == "minimize" else -float(x)
            for x, direction in zip(point, directions, strict=True)
        )
        if any(map(math.isnan, row)):
            raise UsageError(f"point {tuple(point)!r} has an objective that is not a number")
        rows.append(row)
    return rows
