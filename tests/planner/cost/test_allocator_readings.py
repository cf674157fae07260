"""Reserved bytes of placements, put together from uniform steps, against their own replays."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.cost.model import NEAR_THE_BUDGET, CostModel
from profiler.devices.table import device_spec
from profiler.placement import Decision, Placement
from profiler.prediction.report import predict
from profiler.store import Store
from profiler.unit_options import COMMON_OPTIONS, KEPT, SpareTokenMixer
from profiler.units import MIB, DeviceBytes
from profiler.workload import Candidate, Workload

DEVICE = device_spec("rtx-3060")
VIT = Workload(model="test_vit", micro_batch=64, image_size=160, num_classes=10)
CONV = Workload(model="test_resnet", micro_batch=24, image_size=160, num_classes=10)
DEEP = Workload(model="deit_tiny_patch16_224", micro_batch=24, num_classes=10, precision="bf16")
LORA = DEEP.replace(method="lora", rank=24)
K, C, R, S = Decision.KEEP, Decision.DROP_CHEAP, Decision.RECOMPUTE, Decision.SEGMENT


def placed(cost: CostModel, workload: Workload, decisions: list[Decision]) -> Candidate:
    """Return a candidate whose units have some decisions, over and over."""
    units = cost.profiles.units(workload)
    own = {unit: decisions[i % len(decisions)] for i, unit in enumerate(units)}
    return Candidate(
        workload=workload, placement=Placement({u: d for u, d in own.items() if d != K})
    )


@pytest.mark.parametrize("decisions", [[K], [R], [C], [R, K], [K, C, R, R]])
@pytest.mark.parametrize(
    "workload",
    [
        VIT,
        VIT.replace(method="head", optimizer="sgd"),
        CONV.replace(optimizer="sgd", precision="bf16"),
        DEEP,
        LORA,
        LORA.replace(method="dora", optimizer="sgd"),
    ],
    ids=["vit", "head", "conv", "deep", "lora", "dora"],
)
def test_a_placement_reserves_what_its_replay_does(
    workload: Workload, decisions: list[Decision]
) -> None:
    cost = CostModel(DEVICE)
    candidate = placed(cost, workload, decisions)
    replayed = predict(candidate, device=DEVICE).memory
    assert cost.estimate(candidate).device_bytes == replayed.device_bytes


@pytest.mark.parametrize("decisions", [[R], [K, C, R, R], [K, R, S, S, C]])
@pytest.mark.parametrize("workload", [DEEP, LORA.replace(optimizer="sgd"), CONV])
def test_so_does_one_that_accumulates(workload: Workload, decisions: list[Decision]) -> None:
    """Small tensors are freed in a slightly other order, which can take a page more or less."""
    cost = CostModel(DEVICE)
    if workload == CONV and S in decisions:
        decisions = [C, R]  # its units continue no segment
    candidate = placed(cost, workload.replace(accumulation=3), decisions)
    replayed = predict(candidate, device=DEVICE).memory
    assert replayed.device_bytes == pytest.approx(
        cost.estimate(candidate).device_bytes, abs=2 * MIB
    )


@pytest.mark.parametrize("workload", [VIT, DEEP, LORA], ids=["vit", "deep", "lora"])
def test_so_does_a_placement_with_segments(workload: Workload) -> None:
    cost = CostModel(DEVICE)
    candidate = placed(cost, workload, [K, R, S, S, C])
    replayed = predict(candidate, device=DEVICE).memory
    assert cost.estimate(candidate).device_bytes == replayed.device_bytes


def test_sgd_takes_its_state_before_the_gradients_are_freed() -> None:
    """Nothing happens in its update but that its momentum is allocated, which is never freed."""
    workload = VIT.replace(method="partial_2", optimizer="sgd", micro_batch=8)
    candidate = Candidate(workload=workload)
    replayed = predict(candidate, device=DEVICE).memory
    assert CostModel(DEVICE).estimate(candidate).device_bytes == replayed.device_bytes


def test_only_candidates_near_to_a_budget_are_read() -> None:
    cost = CostModel(DEVICE)
    candidate = placed(cost, DEEP, [R, K])
    exact = cost.estimate(candidate)
    far = cost.estimate(candidate, DeviceBytes(exact.device_bytes * 2))
    assert far.device_bytes > exact.device_bytes  # the largest of several patterns
    at = DeviceBytes(round(far.device_bytes / (1 + NEAR_THE_BUDGET * 0.99)))
    assert cost.estimate(candidate, at).device_bytes == exact.device_bytes


def test_readings_are_kept_in_the_store(tmp_path: Path) -> None:
    cost = CostModel(DEVICE, Store(tmp_path))
    options = [COMMON_OPTIONS[i % 3] for i in range(12)]
    expected = cost.profiles.allocator.reading(LORA, options)
    again = CostModel(DEVICE, Store(tmp_path))
    again.profiles.allocator._placed_log = None  # type: ignore[method-assign, assignment]
    assert expected is not None
    assert again.profiles.allocator.reading(LORA, options) == expected


def test_two_searches_keep_the_readings_of_each_other(tmp_path: Path) -> None:
    costs = [CostModel(DEVICE, Store(tmp_path)) for _ in range(3)]
    placements = [[COMMON_OPTIONS[(i + shift) % 3] for i in range(12)] for shift in range(3)]
    made = [
        (cost.profiles.allocator.reading(LORA, options), cost.profiles.allocator.overhead(load))
        for cost, options, load in zip(
            costs, placements, [LORA.replace(micro_batch=size) for size in (1, 2, 3)], strict=True
        )
    ]
    first = costs[0].profiles.allocator
    first._placed_log = None  # type: ignore[method-assign, assignment]
    for (reading, overhead), options, size in zip(made, placements, (1, 2, 3), strict=True):
        assert first.reading(LORA, options) == reading
        assert first.overhead(LORA.replace(micro_batch=size)) == overhead


def test_options_of_a_few_units_have_no_reading() -> None:
    cost = CostModel(DEVICE)
    assert cost.profiles.allocator.reading(VIT, [KEPT] * 11 + [SpareTokenMixer()]) is None
