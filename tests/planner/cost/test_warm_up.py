from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.cost.family_profiles import FamilyProfiles
from planner.cost.model import CostModel
from planner.cost.warm_up import profile_families
from profiler.devices.table import device_spec
from profiler.models.build import build_model
from profiler.models.unit_parts import parts_of_unit
from profiler.store import Store
from profiler.unit_options import COMMON_OPTIONS
from profiler.workload import Workload

DEVICE = "rtx-2060-super"
SMALL = Workload(model="test_vit", image_size=32, micro_batch=2)
WORKLOADS = [SMALL, SMALL.replace(method="lora", rank=4), SMALL.replace(method="head")]


PROFILE_IN_PARALLEL = """
import sys
from pathlib import Path
from planner.cost.family_profiles import FamilyProfiles
from planner.cost.warm_up import profile_families
from profiler.devices.table import device_spec
from profiler.store import Store
from test_warm_up import DEVICE, WORKLOADS, is_stored

fractions = []
profiles = FamilyProfiles(device_spec(DEVICE), Store(Path(sys.argv[1])))
profile_families(profiles, WORKLOADS, lambda _, fraction: fractions.append(fraction))
assert all(is_stored(profiles, workload) for workload in WORKLOADS)
assert fractions[-1] == 1.0
"""
"""Run in an interpreter of its own: once a backward has started autograd's threads, as in other
tests, a forked process cannot run one."""


def is_stored(profiles: FamilyProfiles, workload: Workload) -> bool:
    """Return whether the store has all that ``prepare`` makes with the default options."""
    return profiles.has_units(workload) and profiles.has_update(workload)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_profiles_made_in_parallel_equal_those_made_in_turn_and_need_no_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parents[3]
    env = os.environ | {"PYTHONPATH": f"{root}:{Path(__file__).parent}"}
    subprocess.run(
        [sys.executable, "-c", PROFILE_IN_PARALLEL, str(tmp_path)], cwd=root, env=env, check=True
    )
    in_turn = CostModel(device_spec(DEVICE))
    expected = {workload: in_turn.costs(workload, COMMON_OPTIONS) for workload in WORKLOADS}
    overheads = {w: in_turn.profiles.allocator.overhead(w) for w in WORKLOADS}

    def replay(*_: object, **__: object) -> None:
        raise AssertionError("replayed again")

    monkeypatch.setattr("profiler.replay.step_replay.replay_step", replay)
    monkeypatch.setattr("profiler.replay.step_replay.replay_update", replay)
    again = CostModel(device_spec(DEVICE), Store(tmp_path))
    for workload in WORKLOADS:
        numbers = again.costs(workload, COMMON_OPTIONS)
        for option in COMMON_OPTIONS:
            np.testing.assert_array_equal(numbers.stored[option], expected[workload].stored[option])
            np.testing.assert_array_equal(
                numbers.backward[option], expected[workload].backward[option]
            )
        assert numbers.base_bytes == expected[workload].base_bytes
        assert again.profiles.allocator.overhead(workload) == overheads[workload]


def test_what_is_stored_is_left_alone(tmp_path: Path) -> None:
    model = CostModel(device_spec(DEVICE), Store(tmp_path))
    model.prepare(SMALL)
    fractions: list[float] = []
    profile_families(model.profiles, [SMALL], lambda _, fraction: fractions.append(fraction))
    assert fractions == []


def test_further_micro_batches_of_a_stored_family_are_read_before_a_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call_each(function: Callable[[Any], object], items: list[Any], _: object) -> None:
        for item in items:
            function(item)

    # This process has run a backward, after which autograd refuses to run in a fork.
    monkeypatch.setattr("planner.cost.warm_up.map_forked", call_each)
    model = CostModel(device_spec(DEVICE), Store(tmp_path))
    model.prepare(SMALL)
    larger = SMALL.replace(micro_batch=4 * SMALL.micro_batch)
    assert not model.profiles.has_units(SMALL, {larger.micro_batch})
    profile_families(model.profiles, [SMALL, larger], lambda *_: None)
    assert FamilyProfiles(device_spec(DEVICE), Store(tmp_path)).has_units(larger)


def test_precisions_share_the_profile_of_an_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, bool, list[str]]] = []

    def call_each(
        function: Callable[[Any], object], items: list[Any], on_done: Callable[[Any, float], None]
    ) -> None:
        for item in items:
            optimizers = [load.optimizer for load in item.workloads]
            made.append((item.workloads[0].precision, item.is_update, optimizers))
            function(item)
            on_done(item, len(made) / len(items))

    monkeypatch.setattr("planner.cost.warm_up.map_forked", call_each)
    profiles = FamilyProfiles(device_spec(DEVICE), Store(tmp_path))
    half = SMALL.replace(precision="fp16", micro_batch=8)
    workloads = [SMALL, half, SMALL.replace(optimizer="sgd"), half.replace(optimizer="sgd")]
    profile_families(profiles, workloads, lambda *_: None)
    both = ["adamw", "sgd"]
    assert made == [("fp32", False, both), ("fp16", False, both), ("fp32", True, both)]
    assert all(is_stored(profiles, workload) for workload in workloads)


def test_a_store_in_memory_is_not_filled_in_parallel() -> None:
    model = CostModel(device_spec(DEVICE))
    profile_families(
        model.profiles, WORKLOADS, lambda *_: pytest.fail("nothing can be handed over")
    )
    assert not is_stored(model.profiles, SMALL)


@pytest.mark.parametrize("model", ["test_vit", "test_efficientnet"])
def test_stored_parts_of_units_are_those_of_the_model(model: str, tmp_path: Path) -> None:
    workload = SMALL.replace(model=model)
    built = build_model(workload, device="meta")
    expected = {unit: parts_of_unit(built.backbone, unit) for unit in built.units}
    assert any(parts.layers for parts in expected.values())
    for _ in range(2):  # the second reads the file
        profiles = FamilyProfiles(device_spec(DEVICE), Store(tmp_path))
        found = profiles.unit_parts(workload)
        assert found == expected
        assert list(found) == list(built.units)
    assert profiles.unit_parts(workload.replace(precision="fp16")) is found
