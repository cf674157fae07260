"""Rates of a processor by kind of operation. No speed is asserted: sleeping has a known one."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from planner.cost.model import CostModel
from planner.placement.chain import option_indices
from planner.placement.chain_cost import recompute_seconds
from profiler.checkpointing.recompute import RecomputableCall
from profiler.devices.table import CPU, device_spec
from profiler.placement import Decision, Placement, PolicyChoice
from profiler.prediction.report import predict
from profiler.replay.event_log import OperationRecord, Phase
from profiler.replay.step_replay import ReplayOptions, replay_step
from profiler.running.measurement import build_step
from profiler.store import Store
from profiler.timing import cpu_rates
from profiler.timing.cpu_rates import KindTimer
from profiler.timing.cpu_spread import cpu_spread
from profiler.timing.operation_tally import OperationTally
from profiler.timing.roofline import Rates
from profiler.workload import Candidate, Workload

TIMES_THE_PROCESSOR = True
pytestmark = pytest.mark.slow

PLAIN = Rates(flops_per_second=1e9, bytes_per_second=1e6, watts=None, source="made up")
CONVOLUTIONS = Workload(
    model="test_efficientnet", method="full", micro_batch=3, image_size=64, num_classes=5
)
MOBILENET = CONVOLUTIONS.replace(model="mobilenetv2_050")


@pytest.fixture
def _own_rates(tmp_path, monkeypatch):
    """A store of its own, and launches so short that on a busy machine, too, all kinds count."""
    plain = replace(cpu_rates.plain_cpu_rates(), launch_seconds=1e-9)
    monkeypatch.setattr(cpu_rates, "plain_cpu_rates", lambda: plain)
    monkeypatch.setenv("BUDGETPLAN_CACHE", str(tmp_path))
    cpu_rates._stored.cache_clear()
    yield
    cpu_rates._stored.cache_clear()


def test_an_operation_is_run_once_for_each_shape_and_counted_every_time(monkeypatch):
    monkeypatch.setattr(cpu_rates, "_clock", lambda: time.perf_counter)  # sleep takes no processor
    monkeypatch.setattr(cpu_rates, "_SECONDS", {})
    calls = []

    def sleeping(x: torch.Tensor) -> torch.Tensor:
        if x.device.type == "cpu":  # on meta, its results are only sized
            calls.append(x.shape)
            time.sleep(0.01 * len(x))
        return x

    timer = KindTimer(PLAIN)
    with FakeTensorMode():
        one, two = torch.empty(1, 3), torch.empty(2, 3)
    for tensor, moved in ((one, 1000), (two, 3000), (two, 3000)):
        timer.time(
            "sleep", sleeping, (tensor,), {}, flops=0, moved_bytes=moved, phase=Phase.FORWARD
        )
    assert len(calls) == 2 * (1 + 3)
    # 10 + 20 + 20 ms asleep, where 1 + 3 + 3 ms were expected of the copies
    assert 50 / 7 <= timer.slowness()["sleep"] < 3 * 50 / 7


def test_recomputed_operations_are_timed_on_warm_caches(monkeypatch):
    monkeypatch.setattr(cpu_rates, "_fastest_cold_seconds", lambda run: 8e-3)
    monkeypatch.setattr(cpu_rates, "_fastest_seconds", lambda run: 2e-3)
    monkeypatch.setattr(cpu_rates, "_SECONDS", {})
    timer = KindTimer(PLAIN, times_refills=True)
    with FakeTensorMode():
        x = torch.empty(1 << 18)
    moved = 2 * 4 << 18
    for kind, phase in (
        ("aten::relu", Phase.FORWARD),
        ("aten::relu", Phase.RECOMPUTE),
        ("aten::neg", Phase.BACKWARD),
    ):
        relu = torch.ops.aten.relu.default
        timer.time(kind, relu, (x,), {}, flops=0, moved_bytes=moved, phase=phase)
    expected = float(PLAIN.seconds(0, moved))
    cold, warm = 8e-3 / expected, 2e-3 / expected
    assert timer.slowness() == pytest.approx({"aten::relu": cold, "aten::neg": cold})
    assert timer.refill_slowness() == pytest.approx({"aten::relu": warm})


def test_an_operation_without_zeros_or_as_short_as_a_launch_does_not_count():
    def refuses(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("not on zeros")

    timer = KindTimer(PLAIN)
    small = torch.empty(1)
    phase = Phase.FORWARD
    timer.time("refuses", refuses, (small,), {}, flops=0, moved_bytes=8, phase=phase)
    slow_launch = KindTimer(
        Rates(
            flops_per_second=1e9,
            bytes_per_second=1e6,
            watts=None,
            source="made up",
            launch_seconds=10.0,
        )
    )
    slow_launch.time("add", torch.add, (small, small), {}, flops=0, moved_bytes=12, phase=phase)
    assert timer.slowness() == {}
    assert slow_launch.slowness() == {}


@pytest.mark.usefixtures("_own_rates")
def test_rates_are_of_a_backbone_and_kept_on_disk(monkeypatch):
    # a busy machine's timings are not kept; this one's two timings are equal
    base = cpu_rates.plain_cpu_rates()
    rates = base.flops_per_second, base.bytes_per_second
    monkeypatch.setattr(cpu_rates, "time_product_and_copy", lambda: rates)
    first = cpu_rates.cpu_rates(MOBILENET)
    assert {
        "aten::native_batch_norm",
        "aten::native_batch_norm, given statistics",
        "aten::convolution",
        "aten::convolution, depthwise",
        "aten::convolution, pointwise",
        "aten::convolution_backward, depthwise",
    } <= first.slowness.keys()
    assert all(value > 0 for value in first.slowness.values())
    near = MOBILENET.replace(micro_batch=6, accumulation=2, optimizer="sgd")
    assert cpu_rates.cpu_rates(near) is first
    cpu_rates._stored.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(cpu_rates, "_time_kinds", lambda family: pytest.fail("timed again"))
        assert cpu_rates.cpu_rates(near) == first
    assert cpu_rates.cpu_rates(MOBILENET.replace(micro_batch=1)) != first
    assert first.update_slowness > 0
    assert first.spread == cpu_spread("training step", threads=torch.get_num_threads())
    assert cpu_rates.cpu_rates(MOBILENET.replace(precision="bf16")).spread.coverage is None


def test_the_timed_update_is_small_however_large_the_parameters_are(monkeypatch):
    updated = []

    class CountingAdamW(torch.optim.AdamW):
        def __init__(self, parameters, **options):
            updated.append([p.numel() for p in parameters])
            super().__init__(parameters, **options)

    monkeypatch.setattr(torch.optim, "AdamW", CountingAdamW)
    monkeypatch.setattr(cpu_rates, "_UPDATED_VALUES", 1000)
    # a classifier of a million classes, then parameters of which the first three fit
    for shapes in ([(1_000_000, 2048), (5,)], [(30, 30), (50,), (50,), (1,)]):
        assert cpu_rates.time_update(shapes, PLAIN).other_slowness > 0
    assert updated[1::2] == [[1000], [900, 50, 50]]


def test_an_update_of_many_small_parameters_takes_its_own_launches(monkeypatch):
    """An update of 100 biases is bound by launches, which are shorter than those of a forward."""
    plain = replace(PLAIN, bytes_per_second=1e12, launch_seconds=1e-3)
    launches = 1e-5
    updates = []

    def timed(step):
        updates.append(step.__self__.param_groups[0]["params"])
        tally = OperationTally(Phase.OPTIMIZER)
        with tally:
            step()
        return launches * len(tally.records)

    monkeypatch.setattr(cpu_rates, "_fastest_seconds", timed)
    rates = cpu_rates.time_update([(192,)] * 100, plain)
    assert [len(each) for each in updates] == [cpu_rates._TIMED_SCALARS, 100]
    assert rates.launch_seconds == pytest.approx(launches)
    whole = replace(
        plain, update_slowness=rates.other_slowness, update_launch_seconds=rates.launch_seconds
    )
    record = OperationRecord(phase=Phase.OPTIMIZER, unit=-1, flops=0, moved_bytes=768)
    assert whole.for_update().total_seconds([record] * 50) == pytest.approx(50 * launches)
    assert whole.total_seconds([record]) == pytest.approx(1e-3)


def test_all_operations_of_equal_units_count_towards_their_kinds(monkeypatch):
    """A stage of many equal blocks weighs as many times as it has blocks."""
    counted: Counter[str] = Counter()

    class CountingTimer(KindTimer):
        def time(self, kind, func, args, kwargs, *, flops, moved_bytes, phase):
            counted[kind] += 1

    monkeypatch.setattr(cpu_rates, "KindTimer", CountingTimer)
    monkeypatch.setattr(cpu_rates, "plain_cpu_rates", lambda: PLAIN)
    family = Workload(
        model="vit_tiny_patch16_224", method="full", micro_batch=1, image_size=32, num_classes=2
    )
    cpu_rates._time_kinds(family)
    candidate = Candidate(workload=family)
    log = replay_step(candidate, device=CPU, options=ReplayOptions(optimizer=False))
    attention = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert counted[attention] == sum(op.kind == attention for op in log.operations) == 12


def test_timings_that_disagree_are_those_of_a_busy_machine():
    assert cpu_rates.differ_little((1e9, 1e6), (1e9, 1.05e6))
    assert not cpu_rates.differ_little((1e9, 1e6), (1e9, 1.2e6))
    assert not cpu_rates.differ_little((1.2e9, 1e6), (1e9, 1e6))


@pytest.mark.usefixtures("_own_rates")
def test_timings_of_a_busy_machine_are_not_stored(monkeypatch, tmp_path):
    base = np.array([1e9, 1e6, 1e-6, 1e-6, 1.0, 1e-6])
    timed = cpu_rates.TimedKinds(
        base=base,
        kinds=np.array(["add"]),
        slowness=np.array([2.0]),
        refill_slowness=np.array([1.5]),
    )
    after = iter([(1e9, 2e6), (1e9, 1e6)])
    monkeypatch.setattr(cpu_rates, "time_product_and_copy", lambda: next(after))
    monkeypatch.setattr(cpu_rates, "_time_kinds", lambda family: timed)
    assert cpu_rates.cpu_rates(CONVOLUTIONS).slowness == {"add": 2.0}
    assert not list(tmp_path.glob("*.npz"))
    cpu_rates._stored.cache_clear()
    cpu_rates.cpu_rates(CONVOLUTIONS)
    assert len(list(tmp_path.glob("*.npz"))) == 1


@pytest.mark.parametrize(("size", "timed"), [(1, 1), (2, 4), (3, 4), (8, 16), (7, 4), (300, 16)])
def test_the_nearest_timed_batch_by_ratio(size, timed):
    assert cpu_rates._nearest((1, 4, 16), size) == timed


@pytest.mark.usefixtures("_own_rates")
@pytest.mark.parametrize("option", [Decision.DROP_CHEAP, Decision.DROP_CHEAP_AND_MIXING])
def test_composed_and_replayed_times_use_the_same_rates(option):
    cost = CostModel(CPU, Store.default())
    candidate = cost.place(CONVOLUTIONS, PolicyChoice(option), 1)
    composed, replayed = cost.predict(candidate), predict(candidate, device=CPU)
    assert composed.step_seconds == pytest.approx(replayed.step_seconds, rel=0.01)
    # by hand, one operation after the other
    rates = cpu_rates.cpu_rates(CONVOLUTIONS)
    again = [
        op for op in replay_step(candidate, device=CPU).operations if op.phase == Phase.RECOMPUTE
    ]
    by_hand = sum(
        max(
            max(op.flops / rates.flops_per_second, op.moved_bytes / rates.bytes_per_second)
            * rates.refill_slowness.get(op.kind, 1.0),
            rates.launch_seconds,
        )
        + (op.begins_refill + op.intercepted) * rates.recompute_python_seconds
        for op in again
    )
    assert rates.recompute_python_seconds > 0
    chain = cost.chain(CONVOLUTIONS)
    assert recompute_seconds(chain, option_indices(chain, candidate.placement)) == pytest.approx(
        by_hand, rel=0.01
    )
    assert any(op.kind == "aten::native_batch_norm, given statistics" for op in again)


@pytest.mark.parametrize("option", [Decision.DROP_CHEAP, Decision.DROP_PER_USE, Decision.RECOMPUTE])
def test_a_replay_begins_as_many_refills_as_a_real_step_runs(option, monkeypatch):
    run_again = []

    def counted(call, *args, **kwargs):
        run_again.append(call.function.name)
        return recompute(call, *args, **kwargs)

    units = CostModel(CPU).profiles.units(MOBILENET)
    placement = Placement(decisions=dict.fromkeys(units, option))
    candidate = Candidate(workload=MOBILENET, placement=placement)
    log = replay_step(candidate, device=CPU)
    step, batches = build_step(candidate, device="cpu")
    recompute = RecomputableCall.recompute
    monkeypatch.setattr(RecomputableCall, "recompute", counted)
    step.run(batches)
    begun = [op for op in log.operations if op.begins_refill]
    assert {op.phase for op in begun} == {Phase.RECOMPUTE}
    assert len(begun) == len(run_again) > 0


def test_the_forward_of_a_unit_that_recomputes_is_intercepted_once():
    units = CostModel(CPU).profiles.units(MOBILENET)
    decisions = dict.fromkeys(units[::2], Decision.DROP_CHEAP)
    log = replay_step(
        Candidate(workload=MOBILENET, placement=Placement(decisions=decisions)), device=CPU
    )
    intercepted: Counter[int] = Counter()
    forward: Counter[int] = Counter()
    for op in log.operations:
        intercepted[op.unit] += op.intercepted
        forward[op.unit] += op.phase == Phase.FORWARD
    recomputing = {op.unit for op in log.operations if op.phase == Phase.RECOMPUTE}
    assert recomputing
    for index in range(len(units)):
        assert intercepted[index] == (forward[index] if index in recomputing else 0)


def test_a_gpu_has_no_kinds_and_collects_statistics_again():
    cost = CostModel(device_spec("rtx-3060"))
    rates = cost.rates(CONVOLUTIONS)
    assert rates is not None
    assert rates.slowness == {}
    assert rates.recompute_python_seconds == 0
    units = cost.profiles.units(CONVOLUTIONS)
    placement = Placement(decisions=dict.fromkeys(units, Decision.DROP_CHEAP))
    candidate = Candidate(workload=CONVOLUTIONS, placement=placement)
    kinds = {op.kind for op in replay_step(candidate, device=cost.device).operations}
    assert "aten::native_batch_norm" in kinds
    assert not any("given" in kind for kind in kinds)
