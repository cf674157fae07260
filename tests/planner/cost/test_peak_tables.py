"""The tables against a step played unit by unit."""

from __future__ import annotations

import numpy as np
import pytest

from planner.cost.peak_tables import Choice, Numbers, Tables
from profiler.placement import Decision

OPTIONS = (Decision.KEEP, Decision.DROP_CHEAP, Decision.RECOMPUTE)


def random_numbers(units: int, seed: int, *, floor: float = 0.0, caches: bool = False) -> Numbers:
    rng = np.random.default_rng(seed)

    def table() -> dict[str, np.ndarray]:
        return {option: rng.integers(0, 1000, units).astype(float) for option in OPTIONS}

    return Numbers(
        base=float(rng.integers(0, 5000)),
        floor=floor,
        stored=table(),
        cached=table() if caches else dict.fromkeys(OPTIONS, np.zeros(units)),
        forward=table(),
        backward=table(),
        head={Decision.KEEP: float(rng.integers(0, 3000))},
        gradients=rng.integers(0, 500, units + 1).astype(float),
        again=table(),
        step_seconds=1.0,
        update_seconds=0.5,
    )


def played(numbers: Numbers, chosen: list[str]) -> float:
    """Walk through forward and backward and note the highest level."""
    level = peak = numbers.base
    cached = 0.0
    for index, option in enumerate(chosen):
        peak = max(peak, level + cached + numbers.forward[option][index])
        level += numbers.stored[option][index]
        cached += numbers.cached[option][index]
    peak = max(peak, level + cached + numbers.head[Decision.KEEP])
    gradients = numbers.gradients[-1]
    for index in reversed(range(len(chosen))):
        level -= numbers.stored[chosen[index]][index]
        peak = max(peak, level + gradients + numbers.backward[chosen[index]][index])
        gradients += numbers.gradients[index]
    return max(peak, numbers.floor)


@pytest.mark.parametrize("caches", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_peak_is_that_of_the_step_played_out(seed: int, *, caches: bool) -> None:
    rng = np.random.default_rng(100 + seed)
    units = int(rng.integers(1, 9))
    numbers = random_numbers(units, seed, caches=caches)
    tables = Tables.of(numbers, OPTIONS)
    for _ in range(20):
        chosen = [str(option) for option in rng.choice(OPTIONS, units)]
        peak, again = tables.at(Choice.of(chosen, OPTIONS))
        assert peak == pytest.approx(played(numbers, chosen))
        assert again == sum(numbers.again[option][i] for i, option in enumerate(chosen))


def test_keeping_all_is_one_of_the_choices() -> None:
    numbers = random_numbers(6, 1)
    tables = Tables.of(numbers, OPTIONS)
    kept, again = tables.at(Choice.of([Decision.KEEP] * 6, OPTIONS))
    assert kept == tables.kept_bytes == Tables.of(numbers, (Decision.KEEP,)).kept_bytes
    assert again == numbers.again[Decision.KEEP].sum()


def test_the_update_may_need_more_than_the_step() -> None:
    numbers = random_numbers(4, 2, floor=1e9)
    assert Tables.of(numbers, OPTIONS).at(Choice.of([Decision.DROP_CHEAP] * 4, OPTIONS))[0] == 1e9
    assert Tables.of(numbers, OPTIONS).kept_bytes == 1e9
