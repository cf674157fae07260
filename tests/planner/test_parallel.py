from __future__ import annotations

import os
import time

import pytest
import torch

from planner import parallel
from planner.parallel import map_forked

several_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")


@several_cores
def test_results_come_from_other_processes_by_index() -> None:
    seen: list[tuple[int, float]] = []
    results = map_forked(
        lambda n: (n * n, os.getpid()), [3, 4, 5], lambda item, done: seen.append((item, done))
    )
    assert {index: square for index, (square, _) in results.items()} == {0: 9, 1: 16, 2: 25}
    assert os.getpid() not in {process for _, process in results.values()}
    assert sorted(item for item, _ in seen) == [3, 4, 5]
    assert seen[-1][1] == 1.0


@several_cores
@pytest.mark.timeout(60)
def test_threads_of_the_parent_are_not_waited_for() -> None:
    square = torch.ones(512, 512)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (square @ square).sum()  # OpenMP's threads are there now, and will not be after the fork
        results = map_forked(lambda n: float((n * square @ square).sum()), [1, 2], lambda *_: None)
    finally:
        torch.set_num_threads(before)
    assert results == {0: 512.0**3, 1: 2 * 512.0**3}


@several_cores
def test_what_fails_is_left_out() -> None:
    results = map_forked(lambda n: 12 // n, [1, 0, 3], lambda *_: None)
    assert results == {0: 12, 2: 4}


@several_cores
def test_a_process_that_dies_takes_nothing_with_it_but_its_results() -> None:
    def die(n: int) -> int:
        if n:
            os._exit(1)
        return n

    assert set(map_forked(die, [1, 1, 1], lambda *_: None)) == set()


@several_cores
@pytest.mark.timeout(60)
def test_calls_that_hang_are_killed_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "LONGEST_CALL_SECONDS", 1.0)
    workers: list[int] = []

    def call(n: int) -> int:
        if n:
            time.sleep(3600)
        return os.getpid()

    results = map_forked(call, [0, 1, 1], lambda *_: None)
    workers += results.values()
    assert set(results) == {0}
    with pytest.raises(ProcessLookupError):
        os.kill(workers[0], 0)


def test_one_item_is_the_callers() -> None:
    assert map_forked(lambda n: n, [1], lambda *_: None) == {}
