"""Composed placements against replays of the very candidate: bytes, seconds, budgets."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planner.cost.allocator_readings import RECOMPUTED
from planner.cost.family_profiles import FamilyProfiles
from planner.cost.model import CostModel
from planner.placement.policies import POLICIES
from profiler.device_rules.caching_allocator import (
    AllocatorSettings,
    CachingAllocator,
    configuration,
)
from profiler.devices.table import CPU, device_spec, workspaces_of
from profiler.errors import InfeasibleError, InputError, UsageError
from profiler.placement import HOST_DECISIONS, Decision, Placement, PolicyChoice
from profiler.prediction.allocator_steps import run_steps, workspace_bytes
from profiler.prediction.parametric import PROBE_RANKS
from profiler.prediction.report import predict, step_load
from profiler.replay.event_log import EventLog
from profiler.replay.step_replay import KernelMemory, ReplayOptions, replay_step
from profiler.store import Store
from profiler.timing.rates import published_rates
from profiler.timing.roofline import Rates
from profiler.unit_options import KEPT, WholeUnit, uniform_placement
from profiler.units import DeviceBytes
from profiler.workload import Candidate, Workload

WITHOUT_KERNEL_MEMORY = ReplayOptions(kernel_memory=KernelMemory.NONE)
RATES = Rates(flops_per_second=1e12, bytes_per_second=1e11, watts=50.0, source="made up")
VIT = Workload(model="test_vit", micro_batch=32, image_size=160, num_classes=10)
CONV = Workload(model="test_resnet", micro_batch=16, image_size=160, num_classes=10)
WORKLOADS = (VIT, CONV, VIT.replace(method="lora", rank=6), VIT.replace(accumulation=2))
NAMES = ("vit", "resnet", "vit-lora", "vit-two-micro-batches")
EACH_WORKLOAD = pytest.mark.parametrize("workload", WORKLOADS, ids=NAMES)
BF16 = VIT.replace(precision="bf16")
EACH_AND_BF16 = pytest.mark.parametrize("workload", (*WORKLOADS, BF16), ids=(*NAMES, "vit-bf16"))


@cache
def model() -> CostModel:
    return CostModel(CPU, Store.default(), roofline=RATES)


@cache
def kept(workload: Workload) -> int:
    return model().estimate(Candidate(workload=workload)).peak_bytes


@cache
def smallest(workload: Workload, **options: Any) -> int:
    with pytest.raises(InfeasibleError) as caught:
        model().place(workload, PolicyChoice("optimal"), 1, **options)
    assert caught.value.smallest_bytes is not None
    return caught.value.smallest_bytes


@cache
def replay_of(candidate: Candidate) -> EventLog:
    return replay_step(candidate, device=CPU, options=WITHOUT_KERNEL_MEMORY)


def replayed(candidate: Candidate) -> int:
    return replay_of(candidate).peak_bytes


@EACH_AND_BF16
@pytest.mark.parametrize("policy", [n for n, p in POLICIES.items() if not p.uses_host_memory])
def test_the_composed_peak_of_every_policy_is_the_replayed_one(
    workload: Workload, policy: str
) -> None:
    budget = (kept(workload) + smallest(workload)) // 2
    candidate = model().place(workload, PolicyChoice(policy), budget)
    relative = model().estimate(candidate).peak_bytes / replayed(candidate) - 1
    # autocast's copies of weights are counted in full where units are joined
    assert -0.0005 < relative < (0.015 if workload is BF16 else 0.005)


@EACH_AND_BF16
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_optimal_over_the_whole_menu_stays_within_its_budget_when_replayed(
    workload: Workload, share: float
) -> None:
    options = model().profiles.unit_options(workload)
    low = smallest(workload, options=options)
    budget = round(low + share * (kept(workload) - low))
    candidate = model().place(workload, PolicyChoice("optimal"), budget, options=options)
    assert model().estimate(candidate).peak_bytes <= budget
    assert replayed(candidate) <= budget * 1.0005


def test_light_is_on_the_menu_where_there_are_depthwise_convolutions_or_attention() -> None:
    def keys(name: str) -> set[str]:
        return {option.key for option in model().profiles.unit_options(VIT.replace(model=name))}

    assert "light" not in keys("resnet18")
    assert "light" in keys(VIT.model)
    mobile = VIT.replace(model="mobilenetv2_100")
    assert "light" in keys(mobile.model)
    assert {"depthwise", "parts:all", "light-layers:3"} <= keys("tiny_vit_5m_224")
    light, cheap = (
        model().place(mobile, PolicyChoice(policy), 1)
        for policy in (Decision.DROP_CHEAP_AND_MIXING, Decision.DROP_CHEAP)
    )
    peaks = [model().estimate(candidate).peak_bytes for candidate in (light, cheap)]
    assert peaks[0] < 0.95 * peaks[1]
    assert peaks[0] == pytest.approx(replayed(light), rel=0.005)


@EACH_WORKLOAD
def test_what_an_infeasible_budget_names_is_feasible_and_nothing_below_is(
    workload: Workload,
) -> None:
    budget = smallest(workload)
    assert (
        model().estimate(model().place(workload, PolicyChoice("optimal"), budget)).peak_bytes
        <= budget
    )
    with pytest.raises(InfeasibleError):
        model().place(workload, PolicyChoice("optimal"), budget - 1)


def test_optimal_is_never_slower_than_a_policy_of_the_same_peak() -> None:
    options = model().profiles.unit_options(VIT)
    for policy in ("cheap", "static", "every-k", "first-k", "last-k", "adaptive"):
        rival = model().place(VIT, PolicyChoice(policy), kept(VIT) * 4 // 5)
        peak = model().estimate(rival).peak_bytes
        ours = model().place(VIT, PolicyChoice("optimal"), peak, options=options)
        fast, slow = model().estimate(ours).step_seconds, model().estimate(rival).step_seconds
        assert fast is not None
        assert slow is not None
        assert fast <= slow * (1 + 1e-9)


@EACH_WORKLOAD
@pytest.mark.parametrize("policy", ["none", "cheap", "static", "optimal"])
def test_composed_seconds_are_those_of_the_replay(workload: Workload, policy: str) -> None:
    budget = (kept(workload) + smallest(workload)) // 2
    candidate = model().place(workload, PolicyChoice(policy), budget)
    log = replay_of(candidate)
    expected = RATES.step_cost(step_load(log, RATES, workload)).seconds
    assert model().estimate(candidate).step_seconds == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("policy", ["none", "cheap", "static", "chen"])
@pytest.mark.parametrize("images", [2, 256])
def test_composed_host_time_and_power_are_those_of_the_replay(images: int, policy: str) -> None:
    workload = VIT.replace(micro_batch=images)
    rates = published_rates(device_spec("rtx-3060"), precision="fp32")
    assert rates is not None
    cost = CostModel(CPU, Store.default(), roofline=rates)
    candidate = cost.place(workload, PolicyChoice(policy), kept(workload))
    log = replay_of(candidate)
    expected, load = rates.step_cost(step_load(log, rates, workload)), cost.estimate(candidate).load
    assert load is not None
    found = rates.step_cost(load)
    assert (found.seconds == found.host_seconds) == (images == 2)
    assert found.host_seconds == pytest.approx(expected.host_seconds, rel=0.01)
    assert found.seconds == pytest.approx(expected.seconds, rel=0.01)
    assert found.watts == pytest.approx(expected.watts, rel=0.01)


def test_recomputing_a_linear_layer_is_billed_without_its_reshape() -> None:
    """A linear layer ends in ``_unsafe_view``, which moves nothing."""
    log = replay_of(Candidate(workload=VIT))
    copies = [op for op in log.operations if op.flops == 0 and op.moved_bytes == 0]
    assert not copies
    assert "aten._unsafe_view.default" not in log.operation_names


def test_a_decision_that_no_option_says_is_refused() -> None:
    unit = model().profiles.units(VIT)[0]
    odd = Placement(decisions={f"{unit}/attn.qkv": Decision.DROP_CHEAP})
    with pytest.raises(UsageError, match="match no option"):
        model().estimate(Candidate(workload=VIT, placement=odd))
    unknown = Placement(decisions={"nowhere": Decision.DROP_CHEAP})
    with pytest.raises(InputError, match="nowhere"):
        model().estimate(Candidate(workload=VIT, placement=unknown))


def test_an_unknown_policy_is_refused_and_none_keeps_all() -> None:
    with pytest.raises(UsageError, match="unknown checkpoint policy"):
        model().place(VIT, PolicyChoice("magic"), DeviceBytes(10**9))
    assert model().place(VIT, PolicyChoice("none"), DeviceBytes(1)) == Candidate(workload=VIT)


@pytest.mark.parametrize(
    ("method", "policy", "micro_batch"),
    [
        ("full", "none", 16),
        ("full", "static", 3),
        ("full", "cheap", 8),
        ("lora", "static", 128),
        ("lora", "none", 48),
        ("head", "static", 16),
    ],
)
def test_the_overhead_of_a_uniform_placement_is_that_of_its_replay(
    method: str, policy: str, micro_batch: int
) -> None:
    small = Workload(model="test_vit", image_size=32, method=method)
    rank = PROBE_RANKS[0] if method == "lora" else None
    load = small.replace(rank=rank, micro_batch=micro_batch)
    priced = CostModel(device_spec("rtx-2060-super"))
    candidate = priced.place(load, policy, DeviceBytes(10**12))
    allocator = CachingAllocator(AllocatorSettings.parse(configuration()))
    options = ReplayOptions(optimizer=method == "full")  # other methods have little state
    log = replay_step(candidate, device=priced.device, options=options)
    workspaces = workspaces_of(priced.device)
    run_steps(allocator, log, steps=2, workspaces=workspaces)
    live = log.peak_bytes + workspace_bytes(log, workspaces)
    used = {"none": KEPT, "static": RECOMPUTED, "cheap": WholeUnit(Decision.DROP_CHEAP)}[policy]
    found = priced.profiles.allocator.overhead(load, [used])
    assert found.unused_bytes == allocator.peak_reserved_bytes - live
    assert found.allocated == allocator.peak_allocated_bytes / live


def test_overheads_at_all_micro_batches_are_kept_in_the_store(tmp_path: Path) -> None:
    load = Workload(model="test_vit", image_size=32, micro_batch=16)
    store, device = Store(tmp_path), device_spec("rtx-3060")
    fresh = FamilyProfiles(device, Store.in_memory())
    expected = {b: fresh.allocator.overhead(load.replace(micro_batch=b)) for b in (5, 16, 24)}
    FamilyProfiles(device, store).prepare_units(load, micro_batches={5})
    FamilyProfiles(device, store).allocator.overhead(load.replace(micro_batch=24))
    again = FamilyProfiles(device, store)
    again._replay = None  # type: ignore[method-assign, assignment]
    found = {b: again.allocator.overhead(load.replace(micro_batch=b)) for b in expected}
    assert found == expected


def test_a_mixed_placement_has_at_least_the_overhead_of_each_of_its_options() -> None:
    """The alternating placement of RepVGG reserves a third more than it uses."""
    priced = CostModel(device_spec("rtx-3060"))
    load = Workload(model="repvgg_a0", micro_batch=96, precision="bf16", num_classes=10)
    overhead = priced.profiles.allocator.overhead
    kept, recomputed = overhead(load, [KEPT]), overhead(load, [RECOMPUTED])
    mixed = overhead(load, [KEPT, RECOMPUTED])
    assert mixed.unused_bytes > max(kept.unused_bytes, recomputed.unused_bytes)
    every_other = priced.place(load, "every-2", DeviceBytes(10**12))
    replayed = predict(every_other, device=priced.device).memory
    assert replayed.reserved_bytes is not None
    assert priced.estimate(every_other).reserved_bytes == pytest.approx(
        replayed.reserved_bytes, rel=0.02
    )


@pytest.mark.parametrize("units", [1, 3])
def test_the_number_of_units_that_learn_makes_a_family_of_its_own(units: int) -> None:
    load = VIT.replace(method="partial_k", rank=units)
    candidate = Candidate(workload=load)
    assert model().estimate(candidate).peak_bytes == pytest.approx(replayed(candidate), rel=0.0005)


def test_a_profile_of_an_option_does_not_depend_on_the_ranks_asked_before() -> None:
    load = Workload(model="test_vit", method="vpt_shallow", rank=10, num_classes=10, micro_batch=2)
    device, light = device_spec("rtx-3060"), WholeUnit(Decision.DROP_PER_USE)
    before = FamilyProfiles(device)
    before.option(load.replace(rank=4), light)
    for name in ("stored", "base"):
        mine, fresh = (
            getattr(p.option(load, light), name) for p in (before, FamilyProfiles(device))
        )
        np.testing.assert_array_equal(mine, fresh)


@pytest.mark.parametrize("decision", sorted(HOST_DECISIONS))
@pytest.mark.parametrize("method", ["lora", "full"])
def test_composed_memory_and_time_on_the_host_are_those_of_the_replay(
    decision: Decision, method: str
) -> None:
    load = VIT.replace(method=method, rank=4 if method == "lora" else None, micro_batch=24)
    cost = CostModel(device_spec("rtx-3060"), Store.default())
    placement = uniform_placement(WholeUnit(decision), cost.profiles.unit_parts(load))
    candidate = Candidate(workload=load, placement=placement)
    ours, oracle = cost.predict(candidate), predict(candidate, device=cost.device)
    assert ours.memory.peak_bytes == pytest.approx(oracle.memory.peak_bytes, rel=1e-3)
    assert ours.memory.host_bytes == oracle.memory.host_bytes > 0
    assert ours.step_seconds == pytest.approx(oracle.step_seconds, rel=1e-3)


def test_a_segment_beside_a_unit_on_the_host_is_estimated() -> None:
    cost = CostModel(device_spec("rtx-3060"), Store.default())
    load = VIT.replace(model="convnext_atto")
    units = [unit for unit in cost.profiles.units(load) if unit.startswith("stages.2.blocks")]
    words = ("recompute", "segment", "offload", "recompute-from-host")
    placement = Placement({unit: Decision(word) for unit, word in zip(units, words, strict=False)})
    candidate = Candidate(workload=load, placement=placement)
    oracle = predict(candidate, device=cost.device)
    assert cost.estimate(candidate).peak_bytes == pytest.approx(oracle.memory.peak_bytes, rel=0.02)
    assert cost.estimate(candidate).step_seconds == pytest.approx(oracle.step_seconds, rel=0.01)
