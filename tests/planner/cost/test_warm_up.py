from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from planner.cost.model import CostModel
from planner.cost.warm_up import prefetch
from profiler.store import Store
from profiler.unit_options import MENU
from profiler.workload import Workload

DEVICE = "rtx-2060-super"
SMALL = Workload(model="test_vit", image_size=32, micro_batch=2)
LOADS = [SMALL, SMALL.replace(method="lora", rank=4), SMALL.replace(method="head")]


PREFETCH = """
import sys
from pathlib import Path
from planner.cost import CostModel
from planner.prefetch import prefetch
from profiler.store import Store
from tests.planner.test_prefetch import DEVICE, LOADS

said = []
model = CostModel(DEVICE, Store(Path(sys.argv[1])))
prefetch(model, LOADS, lambda _, fraction: said.append(fraction))
assert all(model.is_prepared(load) for load in LOADS)
assert said[-1] == 1.0
"""
"""Run in an interpreter of its own: once a backward pass has started autograd's threads, as other
tests do, a forked process cannot run one, and the search makes its profiles in turn."""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_prefetched_profile_is_the_one_made_in_turn_and_needs_no_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", PREFETCH, str(tmp_path)], cwd=root, check=True)
    in_turn = CostModel(DEVICE)
    expected = {load: in_turn.numbers(load, MENU) for load in LOADS}
    slack = {load: in_turn.slack(load) for load in LOADS}

    def replay(*_: object, **__: object) -> None:
        raise AssertionError("replayed again")

    monkeypatch.setattr("profiler.replay.step_replay.replay_step", replay)
    monkeypatch.setattr("profiler.replay.step_replay.replay_update", replay)
    again = CostModel(DEVICE, Store(tmp_path))
    for load in LOADS:
        numbers = again.numbers(load, MENU)
        for option in MENU:
            np.testing.assert_array_equal(numbers.stored[option], expected[load].stored[option])
            np.testing.assert_array_equal(numbers.backward[option], expected[load].backward[option])
        assert numbers.base == expected[load].base
        assert again.slack(load) == slack[load]


def test_what_is_stored_is_left_alone(tmp_path: Path) -> None:
    model = CostModel(DEVICE, Store(tmp_path))
    model.prepare(SMALL)
    said: list[float] = []
    prefetch(model, [SMALL], lambda _, fraction: said.append(fraction))
    assert said == []


def test_a_store_in_memory_is_filled_in_turn() -> None:
    model = CostModel(DEVICE)
    prefetch(model, LOADS, lambda *_: pytest.fail("nothing can be handed over"))
    assert not model.is_prepared(SMALL)
