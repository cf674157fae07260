"""The tables against a step played unit by unit."""

from __future__ import annotations

import numpy as np
import pytest

from planner.cost.peak_tables import PeakTables, TableIndices
from planner.cost.unit_costs import UnitCosts
from profiler.timing.step_load import LOAD_SUMS, SECONDS
from profiler.unit_options import COMMON_OPTIONS, KEPT, UnitOption

OPTIONS = COMMON_OPTIONS


def random_costs(units: int, seed: int, *, floor: float = 0.0, caches: bool = False) -> UnitCosts:
    rng = np.random.default_rng(seed)

    def table() -> dict[UnitOption, np.ndarray]:
        return {option: rng.integers(0, 1000, units).astype(float) for option in OPTIONS}

    return UnitCosts(
        base_bytes=float(rng.integers(0, 5000)),
        floor_bytes=floor,
        stored=table(),
        cached=table() if caches else dict.fromkeys(OPTIONS, np.zeros(units)),
        forward=table(),
        backward=table(),
        head_bytes={KEPT: float(rng.integers(0, 3000))},
        gradients=rng.integers(0, 500, units + 1).astype(float),
        recompute={o: rng.integers(0, 1000, (units, LOAD_SUMS)).astype(float) for o in OPTIONS},
        forward_load=np.zeros((units, LOAD_SUMS)),
        step=np.array([1.0, 0.0, 0.0, 0.0]),
        update=np.array([0.5, 0.0, 0.0, 0.0]),
    )


def played(costs: UnitCosts, chosen: list[UnitOption]) -> float:
    """Walk through forward and backward and note the highest level."""
    level = peak = costs.base_bytes
    cached = 0.0
    for index, option in enumerate(chosen):
        peak = max(peak, level + cached + costs.forward[option][index])
        level += costs.stored[option][index]
        cached += costs.cached[option][index]
    peak = max(peak, level + cached + costs.head_bytes[KEPT])
    gradients = costs.gradients[-1]
    for index in reversed(range(len(chosen))):
        level -= costs.stored[chosen[index]][index]
        peak = max(peak, level + gradients + costs.backward[chosen[index]][index])
        gradients += costs.gradients[index]
    return max(peak, costs.floor_bytes)


@pytest.mark.parametrize("caches", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_peak_is_that_of_the_step_played_out(seed: int, *, caches: bool) -> None:
    rng = np.random.default_rng(100 + seed)
    units = int(rng.integers(1, 9))
    costs = random_costs(units, seed, caches=caches)
    tables = PeakTables.of(costs, OPTIONS)
    for _ in range(20):
        chosen = [OPTIONS[i] for i in rng.integers(0, len(OPTIONS), units)]
        peak, load = tables.at(TableIndices.of(chosen, OPTIONS))
        assert peak == pytest.approx(played(costs, chosen))
        expected = sum(costs.recompute[option][i] for i, option in enumerate(chosen))
        np.testing.assert_array_equal(load, expected)


def test_keeping_all_is_one_of_the_choices() -> None:
    costs = random_costs(6, 1)
    tables = PeakTables.of(costs, OPTIONS)
    kept, load = tables.at(TableIndices.of([KEPT] * 6, OPTIONS))
    assert kept == tables.kept_bytes == PeakTables.of(costs, (KEPT,)).kept_bytes
    assert load[SECONDS] == costs.recompute_seconds(KEPT).sum()


def test_the_update_may_need_more_than_the_step() -> None:
    costs = random_costs(4, 2, floor=1e9)
    assert PeakTables.of(costs, OPTIONS).at(TableIndices.of([OPTIONS[1]] * 4, OPTIONS))[0] == 1e9
    assert PeakTables.of(costs, OPTIONS).kept_bytes == 1e9
