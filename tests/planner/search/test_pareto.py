"""Four oracles: closed form, brute force, Monte Carlo, and Optuna's own hypervolume."""

from __future__ import annotations

import math
import random
import subprocess
import sys

import numpy as np
import pytest
from optuna._hypervolume import compute_hypervolume

from planner.search.pareto import (
    HypervolumeStagnation,
    hypervolume,
    non_dominated,
    reference_point,
)
from profiler.errors import UsageError

COSTS = {1: ("minimize",), 2: ("minimize",) * 2, 3: ("minimize",) * 3}
MIXED = ("maximize", "minimize", "minimize")


def cloud(seed, n, dimensions, *, grid=None):
    rng = random.Random(seed)
    draw = rng.random if grid is None else lambda: rng.randrange(grid) / grid
    return [tuple(draw() for _ in range(dimensions)) for _ in range(n)]


def signed(points, directions):
    return [
        tuple(x if d == "minimize" else -x for x, d in zip(p, directions, strict=True))
        for p in points
    ]


# ---- the front


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("grid", [None, 5])
def test_front_is_the_brute_force_front(seed, grid):
    points = cloud(seed, 60, 3, grid=grid)
    violations = [random.Random(seed + i).choice([-1.0, 0.0, 0.5]) for i in range(60)]
    costs = np.array(signed(points, MIXED))
    feasible = [i for i in range(60) if violations[i] <= 0]
    expected = [
        i
        for i in feasible
        if not any((costs[j] <= costs[i]).all() and (costs[j] < costs[i]).any() for j in feasible)
    ]
    assert non_dominated(points, directions=MIXED, violations=violations) == expected


def test_front_of_mixed_directions():
    points = [(0.9, 100, 10), (0.8, 100, 10), (0.8, 50, 20), (0.9, 100, 10), (0.7, 60, 30)]
    assert non_dominated(points, directions=MIXED) == [0, 2, 3]


def test_a_dominating_infeasible_point_does_not_count():
    points = [(0.9, 1, 1), (0.5, 2, 2)]
    assert non_dominated(points, directions=MIXED, violations=[5.0, 0.0]) == [1]
    assert non_dominated(points, directions=MIXED, violations=[5.0, 1.0]) == []
    assert non_dominated([], directions=MIXED) == []


# ---- hypervolume


def test_closed_forms():
    assert hypervolume([(0.25,)], reference=(1,), directions=COSTS[1]) == 0.75
    assert hypervolume([(1, 2), (2, 1)], reference=(3, 3), directions=COSTS[2]) == 3
    assert hypervolume([(1, 1, 1)], reference=(3, 4, 5), directions=COSTS[3]) == 24
    # three unit-thick boxes that share a corner cube, by inclusion and exclusion
    arms = [(0, 2, 2), (2, 0, 2), (2, 2, 0)]
    assert hypervolume(arms, reference=(3, 3, 3), directions=COSTS[3]) == 3 * 3 - 3 + 1
    assert hypervolume([], reference=(1, 1), directions=COSTS[2]) == 0


def test_linear_staircase_converges_to_the_triangle():
    n = 1000
    stairs = [(i / n, 1 - i / n) for i in range(n + 1)]
    area = hypervolume(stairs, reference=(1, 1), directions=COSTS[2])
    assert area == pytest.approx(0.5 * (1 - 1 / n))


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("grid", [None, 4])
@pytest.mark.parametrize("seed", range(10))
def test_agrees_with_optuna(dimensions, grid, seed):
    points = cloud(seed, 40, dimensions, grid=grid)
    corner = np.full(dimensions, 1.0)
    ours = hypervolume(points, reference=tuple(corner), directions=COSTS[dimensions])
    assert ours == pytest.approx(compute_hypervolume(np.array(points), corner), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_monte_carlo_in_mixed_directions(seed):
    points = cloud(seed, 12, 3)
    exact = hypervolume(points, reference=(0, 1, 1), directions=MIXED)
    samples = np.random.default_rng(seed).random((100_000, 3))
    hit = np.zeros(len(samples), dtype=bool)
    for a, b, c in points:
        hit |= (samples[:, 0] <= a) & (samples[:, 1] >= b) & (samples[:, 2] >= c)
    sigma = math.sqrt(exact * (1 - exact) / len(samples))
    assert abs(hit.mean() - exact) < 5 * sigma


@pytest.mark.parametrize("seed", range(5))
def test_order_and_dominated_points_do_not_matter(seed):
    points = cloud(seed, 25, 3, grid=6)
    whole = hypervolume(points, reference=(1, 1, 1), directions=COSTS[3])
    shuffled = random.Random(seed).sample(points, len(points))
    front = [points[i] for i in non_dominated(points, directions=COSTS[3])]
    swapped = [(c, a, b) for a, b, c in points]
    for other in (shuffled, front, swapped, points + points):
        volume = hypervolume(other, reference=(1, 1, 1), directions=COSTS[3])
        assert volume == pytest.approx(whole, abs=1e-12)


def test_points_beyond_the_reference_count_for_nothing():
    points = [(0.5, 0.5), (2.0, 0.0), (0.0, 1.0), (0.0, math.inf)]
    assert hypervolume(points, reference=(1, 1), directions=COSTS[2]) == 0.25


def test_reference_point_is_worse_than_every_point():
    points = [(0.8, 10, 7), (0.9, 20, 7)]
    assert reference_point(points, directions=MIXED) == pytest.approx((0.79, 21, 7.7))


# ---- stop rule


def test_stops_only_after_a_window_without_growth():
    rule = HypervolumeStagnation(window=3, tolerance=0.01)
    assert not rule.should_stop([1.0, 1.0, 1.0])
    assert rule.should_stop([1.0, 1.0, 1.0, 1.0])
    assert rule.should_stop([0.5, 1.0, 1.0, 1.0, 1.009])
    assert not rule.should_stop([1.0, 1.0, 1.0, 1.02])
    assert not rule.should_stop([0.0, 0.0, 0.0, 0.0, 0.0])
    assert not rule.should_stop([0.0, 0.0, 0.0, 0.1])


def test_stop_rule_checks_itself():
    with pytest.raises(UsageError, match="window"):
        HypervolumeStagnation(window=0)
    with pytest.raises(UsageError, match="tolerance"):
        HypervolumeStagnation(tolerance=math.nan)


# ---- bad input


@pytest.mark.parametrize(
    ("points", "directions", "words"),
    [
        ([(1, 2)], MIXED, "needs 3 objectives"),
        ([(1, 2, math.nan)], MIXED, "not a number"),
        ([(1,)], ("up",), "'maximize' or 'minimize'"),
    ],
)
def test_malformed_points(points, directions, words):
    with pytest.raises(UsageError, match=words):
        non_dominated(points, directions=directions)


def test_malformed_volumes():
    with pytest.raises(UsageError, match="1 to 3"):
        hypervolume([(0,) * 4], reference=(1,) * 4, directions=("minimize",) * 4)
    with pytest.raises(UsageError, match="finite"):
        hypervolume([(0, 0)], reference=(1, math.inf), directions=COSTS[2])
    with pytest.raises(UsageError, match="one each"):
        non_dominated([(1, 2, 3)], directions=MIXED, violations=[])


def test_needs_no_numeric_package():
    code = (
        "import sys, planner.search.pareto; print({'torch', 'numpy', 'optuna'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
