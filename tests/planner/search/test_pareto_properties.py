"""The front over any points, with ties, infinities and infeasible ones."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from planner.search.pareto import Direction, non_dominated

VALUES = st.one_of(
    st.integers(-3, 3).map(float), st.sampled_from([math.inf, -math.inf]), st.floats(-10, 10)
)


@st.composite
def problems(
    draw: st.DrawFn,
) -> tuple[list[tuple[float, ...]], tuple[Direction, ...], list[float]]:
    width = draw(st.integers(1, 4))
    points = draw(st.lists(st.tuples(*[VALUES] * width), max_size=14))
    one: st.SearchStrategy[Direction] = st.sampled_from(["maximize", "minimize"])
    directions = draw(st.tuples(*[one] * width))
    violations = draw(st.lists(st.sampled_from([-1.0, 0.0, 0.5]), min_size=len(points),
                               max_size=len(points)))  # fmt: skip
    return points, directions, violations


def dominates(
    a: tuple[float, ...], b: tuple[float, ...], directions: tuple[Direction, ...]
) -> bool:
    """Pareto's definition, word for word."""
    pairs = [
        (x, y) if way == "maximize" else (-x, -y)
        for x, y, way in zip(a, b, directions, strict=True)
    ]
    return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)


@given(problem=problems())
def test_the_front_is_what_no_feasible_point_dominates(
    problem: tuple[list[tuple[float, ...]], tuple[Direction, ...], list[float]],
) -> None:
    points, directions, violations = problem
    feasible = [i for i, violation in enumerate(violations) if violation <= 0]
    front = non_dominated(points, directions=directions, violations=violations)
    assert front == [
        i
        for i in feasible
        if not any(dominates(points[j], points[i], directions) for j in feasible)
    ]
