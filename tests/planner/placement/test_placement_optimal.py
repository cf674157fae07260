from __future__ import annotations

import itertools
import os
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array
from toy_chains import (
    all_choices,
    brute_force,
    brute_force_by_doubling,
    option,
    random_chain,
    told_step_by_step,
    uniform_chain,
)

from planner.placement.chain import Chain, ChainUnit, option_indices
from planner.placement.chain_cost import chain_arrays, peak_bytes
from planner.placement.optimal import Solution, SolutionStatus, frontier, smallest_feasible, solve
from planner.placement.pareto_labels import sweep_labels
from profiler.placement import Decision
from profiler.units import LiveBytes

# PLACEMENT_MORE=100 runs the comparisons with brute force on thousands of chains
MORE = int(os.environ.get("PLACEMENT_MORE", "1"))


def peak_and_seconds(solution: Solution) -> tuple[LiveBytes, float]:
    assert solution.peak_bytes is not None
    assert solution.recompute_seconds is not None
    return solution.peak_bytes, solution.recompute_seconds


def check_against_all_placements(rng, chain, *, segments=True, everything=None):
    """Solve budgets at, just below and between the peaks that there are."""
    peaks, seconds = everything or brute_force(chain, segments=segments)
    exact = rng.choice(peaks, 2)
    between = rng.integers(peaks.min() - 1, peaks.max() + 2, 2)
    for budget in (*exact, *(exact - 1), *between):
        found = solve(chain, int(budget), segments=segments)
        assert found.smallest_feasible_bytes == peaks.min()
        fits = peaks <= budget
        if not fits.any():
            assert found.status is SolutionStatus.INFEASIBLE
            assert found.indices is None
            continue
        assert found.status is SolutionStatus.OPTIMAL
        assert found.recompute_seconds == pytest.approx(seconds[fits].min(), rel=1e-9)
        assert found.peak_bytes <= budget
        told = told_step_by_step(chain, found.indices)
        assert told == (found.peak_bytes, pytest.approx(found.recompute_seconds))
        assert option_indices(chain, found.placement) == found.indices


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("joinable", [False, True])
def test_equals_brute_force(joinable, real):
    rng = np.random.default_rng(10 + joinable + 2 * real)
    for _ in range(60 * MORE):
        n = int(rng.integers(1, 7 if joinable else 9))
        chain = random_chain(rng, n, 3, joinable=joinable, real=real)
        check_against_all_placements(rng, chain)


@pytest.mark.parametrize("joinable", [False, True])
def test_equals_brute_force_where_bounds_decide(monkeypatch, joinable):
    """A first sweep of one label leaves everything to the bounds of the second."""
    monkeypatch.setattr("planner.placement.optimal.WIDTHS", (1, 10**6))
    monkeypatch.setattr("planner.placement.optimal.CORE_MOVES", 1)
    rng = np.random.default_rng(13 + joinable)
    for _ in range(60 * MORE):
        n = int(rng.integers(3, 7 if joinable else 9))
        chain = random_chain(rng, n, 3, joinable=joinable, real=True)
        check_against_all_placements(rng, chain)


def test_equals_brute_force_on_twelve_units_of_three_options():
    rng = np.random.default_rng(3)
    for real in (False, True) * 5 * MORE:
        chain = random_chain(rng, 12, 3, full=True, real=real)
        everything = brute_force_by_doubling(chain)
        assert len(everything[0]) == 3**12
        check_against_all_placements(rng, chain, everything=everything)


def test_long_menus_with_parts():
    rng = np.random.default_rng(4)
    for _ in range(10):
        chain = random_chain(rng, 4, 12)
        check_against_all_placements(rng, chain)


def test_without_segments_none_is_used():
    rng = np.random.default_rng(5)
    for _ in range(20):
        chain = random_chain(rng, 5, 2, joinable=True)
        check_against_all_placements(rng, chain, segments=False)


def milp_seconds(chain, budget):
    """The same problem as a mixed-integer program: one binary per option."""
    t = chain_arrays(chain)
    pairs = [(i, o) for i, unit in enumerate(chain.units) for o in range(len(unit.options))]
    unit = np.array([i for i, _ in pairs])
    at = tuple(np.array(pairs).T)
    need = chain.static_bytes + np.maximum(t.forward, t.gradients_after[:, None] + t.backward)
    rows, columns, values = [], [], []
    for i in range(len(chain.units)):
        earlier, own = np.flatnonzero(unit < i), np.flatnonzero(unit == i)
        columns += [*earlier, *own]
        values += [*t.stored[at][earlier], *need[at][own]]
        rows += [i] * (len(earlier) + len(own))
    shape = (len(chain.units), len(pairs))
    peak = coo_array((values, (rows, columns)), shape=shape).tocsc()
    one = coo_array((np.ones(len(pairs)), (unit, np.arange(len(pairs)))), shape=shape).tocsc()
    result = milp(
        t.seconds[at],
        integrality=np.ones(len(pairs)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(peak, ub=budget), LinearConstraint(one, 1, 1)],
        options={"mip_rel_gap": 0},
    )
    return result.fun if result.success else None


def test_agrees_with_milp_on_chains_of_fifty():
    rng = np.random.default_rng(6)
    for _ in range(6):
        chain = random_chain(rng, 50, 4)
        least = smallest_feasible(chain).peak_bytes
        most = frontier(chain)[-1].peak_bytes
        for share in (0.0, 0.1, 0.4, 0.8):
            budget = int(least + share * (most - least))
            found = solve(chain, budget)
            assert found.status is SolutionStatus.OPTIMAL
            assert found.recompute_seconds == pytest.approx(milp_seconds(chain, budget), abs=1e-6)
        assert milp_seconds(chain, max(least - 1, 0)) is None or least == chain.floor_bytes


def test_infeasible_is_proved_and_the_smallest_budget_feasible():
    rng = np.random.default_rng(7)
    for _ in range(40):
        chain = random_chain(rng, int(rng.integers(1, 6)), 3, joinable=bool(rng.integers(2)))
        peaks, seconds = brute_force(chain)
        least = smallest_feasible(chain)
        assert least.status is SolutionStatus.OPTIMAL
        assert least.peak_bytes == peaks.min()
        assert least.recompute_seconds == seconds[peaks == peaks.min()].min()
        below = solve(chain, least.peak_bytes - 1)
        assert below.status is SolutionStatus.INFEASIBLE
        assert below.smallest_feasible_bytes == least.peak_bytes
        assert below.placement is None
        assert below.recompute_seconds is None
        assert below.bound_seconds is None


def test_frontier_is_every_undominated_placement():
    rng = np.random.default_rng(8)
    for _ in range(40):
        chain = random_chain(rng, int(rng.integers(1, 7)), 3, joinable=bool(rng.integers(2)))
        peaks, seconds = brute_force(chain)
        expected, cheapest = [], np.inf
        for peak in np.unique(peaks):
            here = seconds[peaks == peak].min()
            if here < cheapest:
                cheapest = here
                expected.append((peak, here))
        curve = frontier(chain)
        assert [(s.peak_bytes, s.recompute_seconds) for s in curve] == expected
        assert {s.status for s in curve} == {SolutionStatus.OPTIMAL}


@pytest.mark.parametrize("labels", [4096, 4])
def test_frontier_is_monotone_and_reachable(monkeypatch, labels):
    monkeypatch.setattr("planner.placement.optimal.FRONTIER_LABELS", labels)
    chain = random_chain(np.random.default_rng(9), 20, 4, real=True)
    curve = frontier(chain)
    points = [peak_and_seconds(solution) for solution in curve]
    peaks, seconds = [peak for peak, _ in points], [added for _, added in points]
    assert peaks == sorted(set(peaks))
    assert seconds == sorted(set(seconds), reverse=True)
    assert peaks[0] == smallest_feasible(chain).peak_bytes
    for point in curve:
        assert peak_bytes(chain, point.indices) == point.peak_bytes


def test_a_narrow_search_says_feasible_with_a_true_bound():
    rng = np.random.default_rng(11)
    seen = set()
    for _ in range(20):
        chain = random_chain(rng, 30, 4, real=True)
        least, most = smallest_feasible(chain).peak_bytes, frontier(chain)[-1].peak_bytes
        budget = (least + most) // 2
        exact, narrow = solve(chain, budget), solve(chain, budget, max_labels=1)
        assert exact.status is SolutionStatus.OPTIMAL
        assert narrow.peak_bytes <= budget
        assert narrow.bound_seconds <= exact.recompute_seconds * (1 + 1e-9)
        assert narrow.recompute_seconds >= exact.recompute_seconds * (1 - 1e-9)
        seen.add(narrow.status)
    assert SolutionStatus.FEASIBLE in seen


def test_more_memory_never_costs_time():
    chain = random_chain(np.random.default_rng(12), 40, 4, real=True)
    least, most = smallest_feasible(chain).peak_bytes, frontier(chain)[-1].peak_bytes
    curve = [solve(chain, int(b)).recompute_seconds for b in np.linspace(least, most, 15)]
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(curve))


def test_uniform_blocks_recompute_a_prefix():
    """The closed form of a uniform chain: k recomputed blocks bring the peak to P(k)."""
    chain = uniform_chain(12, a=100, x=10, m0=500, work=5)
    for k in range(1, 12):
        peak = 500 + 10 * k + 100 * (11 - k) + 105
        found = solve(chain, peak, segments=False)
        assert found.recompute_seconds == k
        assert solve(chain, peak - 1, segments=False).recompute_seconds == k + 1 or k == 11
    assert smallest_feasible(chain, segments=False).peak_bytes == 500 + 11 * 10 + 105


def test_large_budget_keeps_everything():
    chain = uniform_chain(5)
    found = solve(chain, 10**9)
    assert found.recompute_seconds == 0
    assert found.placement.is_none
    assert {
        unit.options[o].decision for unit, o in zip(chain.units, found.indices, strict=True)
    } == {Decision.KEEP}


def test_segments_reach_below_single_units():
    """Where outputs are most of what is stored, only segments bring the peak down."""
    chain = uniform_chain(9, a=20, x=15, m0=0, work=0)
    single = smallest_feasible(chain, segments=False)
    joined = smallest_feasible(chain)
    assert joined.peak_bytes < single.peak_bytes
    assert joined.peak_bytes == brute_force(chain)[0].min()


def test_shrinking_units():
    """Live bytes may fall over a frozen unit's forward."""
    units = uniform_chain(3).units
    down = ChainUnit(name="down", options=(option(Decision.KEEP, -40, 20, 30, 0.0),))
    chain = Chain(units=(units[0], down, *units[1:]))
    rng = np.random.default_rng(14)
    for _ in range(5):
        check_against_all_placements(rng, chain)


def test_every_choice_is_enumerated():
    chain = uniform_chain(3)
    rows = {tuple(row) for row in all_choices(chain).tolist()}
    assert len(rows) == 13  # 2^3 without segments, 4 with one of two units, 1 of three
    assert chain.units[0].plain_index(Decision.RECOMPUTE) == 1


def free_when_kept(rng, chain, *, second_free_unit=None):
    """Return a chain in which keeping costs no time and all else does, except in one unit."""
    units = []
    for i, unit in enumerate(chain.units):
        options = []
        for each in unit.options:
            is_free = each is unit.options[0] or (i == second_free_unit and each is unit.options[1])
            seconds = 0.0 if is_free else float(rng.integers(1, 10))
            options.append(replace(each, recompute_seconds=seconds))
        units.append(replace(unit, options=tuple(options)))
    return replace(chain, units=tuple(units))


@pytest.mark.parametrize("joinable", [False, True])
def test_if_all_can_be_kept_nothing_is_solved(joinable, monkeypatch):
    rng = np.random.default_rng(70 + joinable)
    solved = []

    def sweep(*args, **options):
        solved.append(args)
        return sweep_labels(*args, **options)

    monkeypatch.setattr("planner.placement.optimal.sweep_labels", sweep)
    for _ in range(20 * MORE):
        chain = free_when_kept(rng, random_chain(rng, 5, 3, joinable=joinable, full=True))
        kept = peak_bytes(chain, (0,) * len(chain.units))
        found = solve(chain, LiveBytes(kept))
        assert found.indices == (0,) * len(chain.units)
        assert (found.status, found.recompute_seconds) == (SolutionStatus.OPTIMAL, 0.0)
        assert found.peak_bytes == kept
        assert not solved
        check_against_all_placements(rng, chain)
        solved.clear()


def test_of_two_ways_without_time_the_smaller_one_is_found():
    rng = np.random.default_rng(80)
    for _ in range(20 * MORE):
        chain = free_when_kept(rng, random_chain(rng, 4, 3, full=True), second_free_unit=2)
        peaks, seconds = brute_force(chain, segments=True)
        found = solve(chain, LiveBytes(int(peaks.max())))
        assert found.recompute_seconds == 0.0
        assert found.peak_bytes == peaks[seconds == 0].min()
        check_against_all_placements(rng, chain)
