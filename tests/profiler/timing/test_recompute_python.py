"""Python seconds of recomputation: counts of the timed blocks, and the average over operations."""

from __future__ import annotations

import itertools
import time

import pytest
import torch

from profiler.placement import Decision
from profiler.timing import recompute_python
from profiler.timing.recompute_python import (
    FOOTPRINTS,
    IN_REAL_STEPS,
    recompute_python_seconds,
)

BLOCKS = {
    recompute_python._AttentionBlock: (1, 4, 8),
    recompute_python._ConvBlock: (1, 4, 4, 4),
}


def ticking() -> recompute_python.Clock:
    """A clock that advances by a second with every look."""
    ticks = itertools.count()
    return lambda: float(next(ticks))


@pytest.mark.parametrize(
    ("block", "decision", "refills", "recomputed"),
    [
        (recompute_python._AttentionBlock, Decision.DROP_CHEAP, 3, 3),  # norms, activation
        (recompute_python._AttentionBlock, Decision.RECOMPUTE, 1, 8),  # to the last saved tensor
        (recompute_python._ConvBlock, Decision.RECOMPUTE, 1, 6),
    ],
)
def test_counts_of_a_block_are_those_of_a_replay(block, decision, refills, recomputed):
    caches = recompute_python._Caches(ticking())
    run = recompute_python._Run(block(caches), torch.zeros(BLOCKS[block]), decision, caches)
    assert (run.refills, run.recomputed) == (refills, recomputed)


def test_seconds_of_the_kernels_between_do_not_count():
    caches = recompute_python._Caches(ticking())
    block = recompute_python._AttentionBlock(caches)
    run = recompute_python._Run(block, torch.zeros(1, 4, 8), Decision.DROP_CHEAP, caches)
    # a look at the clock before and after the step, and two for each kernel between
    assert run._seconds(FOOTPRINTS[0]) == 1.0
    seconds = run._seconds(FOOTPRINTS[-1])
    assert seconds - caches.seconds == 1.0
    # eight in each of four blocks, in forward and in backward
    assert caches.seconds == 4 * 8 * 2


def test_parts_follow_one_another_through_a_buffer_larger_than_the_caches():
    caches = recompute_python._Caches(time.perf_counter)
    caches.set_footprint(FOOTPRINTS[-1])
    assert caches._parts is not None
    places = [next(caches._parts).data_ptr() for _ in range(33)]
    assert len(set(places)) == 32
    assert places[32] == places[0]


def test_the_cost_is_the_average_over_the_operations_less_counted_launches(monkeypatch):
    costs = (1e-5, 2e-5, 3e-5, 4e-5, 8e-5)
    monkeypatch.setattr(recompute_python, "_timed_costs", lambda clock, threads: (costs, 0.5))

    def cost(*moved: int) -> float:
        found = recompute_python_seconds(moved, clock=time.perf_counter, launch_seconds=4e-6)
        return found / IN_REAL_STEPS

    assert cost() == 0.0
    assert cost(FOOTPRINTS[1]) == pytest.approx(2e-5 - 2e-6)
    assert cost(1) == cost(FOOTPRINTS[0]) == pytest.approx(1e-5 - 2e-6)
    assert cost(1 << 30) == pytest.approx(8e-5 - 2e-6)
    assert cost(1 << 17) == pytest.approx(2.5e-5 - 2e-6)  # half-way by ratio
    assert cost(1 << 14, 1 << 18) == pytest.approx((1e-5 + 3e-5) / 2 - 2e-6)
    monkeypatch.setattr(recompute_python, "_timed_costs", lambda clock, threads: (costs, 9.0))
    assert cost(1) == 0.0


def test_each_footprint_is_timed_and_costs_time():
    seconds, recomputed = recompute_python._timed_costs(time.thread_time, torch.get_num_threads())
    assert len(seconds) == len(FOOTPRINTS)
    assert all(cost > 0 for cost in seconds)
    assert 0.3 < recomputed < 0.7
