"""A replayed step against the CPU allocator's own account of a real one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from profiler.device_rules.cpu_allocator import memory_events, peak_and_growth, peak_during
from profiler.devices.table import CPU, lookup
from profiler.errors import InputError, UsageError
from profiler.models.build import build_model
from profiler.placement import Decision, Placement
from profiler.replay.event_log import Phase
from profiler.replay.step_replay import KernelMemory, ReplayOptions, replay_step, replay_update
from profiler.replay.unit_spans import first_spans
from profiler.running.measurement import Fetch, build_step
from profiler.training_step import TrainingStep
from profiler.workload import Candidate, Workload

GPU = lookup("rtx-2060-super")
ANY_BATCH = ReplayOptions(kernel_memory=KernelMemory.ANY_BATCH)
SIZE, CLASSES = 64, 10


def workload(model: str, method: str = "full", **changes: object) -> Workload:
    base = Workload(model=model, method=method, image_size=SIZE, num_classes=CLASSES, micro_batch=2)
    return base.replace(**changes)


def placed(load: Workload, decision: Decision | None, *, every: int = 1) -> Candidate:
    if decision is None:
        return Candidate(workload=load)
    units = build_model(load, device="meta").units[::every]
    return Candidate(workload=load, placement=Placement(decisions=dict.fromkeys(units, decision)))


def real_peak(candidate: Candidate) -> int:
    made: list[tuple[TrainingStep, list[Fetch]]] = []

    def run() -> None:
        step, batches = made[0]
        step.run(batches)

    def prepare() -> None:
        made.append(build_step(candidate, device="cpu"))
        run()

    return peak_during(prepare, run)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


VIT, TINY, RESNET, MOBILE = "test_vit", "vit_tiny_patch16_224", "resnet18", "mobilenetv2"
CASES = [
    (workload(VIT), None),
    (workload(VIT), Decision.RECOMPUTE),
    (workload(VIT, "head"), None),
    (workload(VIT, "bitfit", micro_batch=3, grad_clip=1.0, optimizer="sgd"), Decision.DROP_CHEAP),
    (workload(VIT, micro_batch=6, precision="bf16"), Decision.RECOMPUTE),
    (workload(VIT, accumulation=3), None),
    (workload(VIT, "lora", rank=4), None),
    (workload(VIT, "lora", precision="bf16"), Decision.DROP_CHEAP),
    (workload(VIT, "lora", dropout=0.1, drop_path=0.1), Decision.RECOMPUTE),
    (workload(TINY, precision="bf16", micro_batch=1, accumulation=2), Decision.RECOMPUTE),
    (workload(RESNET, "full", grad_clip=1.0), Decision.DROP_CHEAP),
    (workload(RESNET, "bn_head", optimizer="sgd", precision="bf16"), None),
    (workload(RESNET, "lora", accumulation=2), Decision.RECOMPUTE),
    (workload(MOBILE, "full", precision="bf16", micro_batch=1), Decision.DROP_CHEAP),
    (workload(MOBILE), Decision.DROP_CHEAP_AND_MIXING),
    (workload("tiny_vit_5m_224", "lora", precision="bf16"), Decision.DROP_CHEAP_AND_MIXING),
    (workload(MOBILE), Decision.DROP_PER_USE),
    (workload(TINY, "lora", rank=4), Decision.DROP_PER_USE),
    (workload("tiny_vit_5m_224", "lora", precision="bf16"), Decision.DROP_PER_USE),
    # relative position biases: the math attention in bf16, again in backward
    (workload("tiny_vit_5m", "bitfit", precision="bf16"), Decision.RECOMPUTE),
]
SCALAR_BYTES = 8
"""Autograd keeps a Python number that it multiplied by as a tensor; a replay does not see it."""
SCALARS = 40
GENERATOR_BYTES = 5056
"""What ``torch.get_rng_state`` returns: a real recomputed unit keeps it while it runs, and until
backward if it drew numbers."""


def name_of(case: object) -> str:
    if not isinstance(case, Workload):
        return str(case)
    parts = [case.model, case.method, case.precision, case.optimizer, f"b{case.micro_batch}"]
    if case.accumulation > 1:
        parts.append(f"x{case.accumulation}")
    return "-".join(parts)


@pytest.mark.parametrize(("load", "decision"), CASES, ids=name_of)
def test_replayed_peak_is_the_allocators(load: Workload, decision: str | None) -> None:
    candidate = placed(load, decision)
    log = replay_step(candidate, device=CPU)
    draws = load.dropout or load.drop_path
    states = len(log.units) if draws else 1 if decision == Decision.RECOMPUTE else 0
    unseen = SCALARS * SCALAR_BYTES + states * GENERATOR_BYTES
    assert 0 <= real_peak(candidate) - log.peak_bytes <= unseen


def test_a_mixed_placement_is_replayed_too() -> None:
    load = workload(VIT, "bitfit", micro_batch=4, optimizer="sgd")
    first, second, *_ = build_model(load, device="meta").units
    placement = Placement(decisions={first: Decision.RECOMPUTE, second: Decision.SEGMENT})
    candidate = Candidate(workload=load, placement=placement)
    log = replay_step(candidate, device=CPU)
    assert 0 <= real_peak(candidate) - log.peak_bytes <= SCALARS * SCALAR_BYTES + GENERATOR_BYTES
    # the second unit's backward needs its input, so both run again in it
    both = log.flops(Phase.FORWARD, unit=0) + log.flops(Phase.FORWARD, unit=1)
    assert 0.5 * both < log.flops(Phase.RECOMPUTE, unit=1) <= both
    assert log.flops(Phase.RECOMPUTE) == log.flops(Phase.RECOMPUTE, unit=1)


def test_owners_are_sums_over_the_model() -> None:
    load = workload(VIT, "lora", rank=4)
    log = replay_step(Candidate(workload=load), device=CPU)
    model = build_model(load).model
    learning = [p for p in model.parameters() if p.requires_grad]
    held = sum(p.nbytes for p in learning)
    highest = log.max_by_owner()
    assert highest.parameter == sum(p.nbytes for p in model.parameters())
    assert highest.buffer == sum(b.nbytes for b in model.buffers())
    assert highest.gradient == held
    assert highest.optimizer == 2 * held + 4 * len(learning)  # two moments, and a step counter each
    assert highest.input == load.micro_batch * (3 * SIZE * SIZE * 4 + 8)
    assert log.owners_at(log.peak_tick).total == log.peak_bytes


def test_a_step_leaves_what_it_found_and_its_loss() -> None:
    log = replay_step(Candidate(workload=workload(VIT)), device=CPU)
    live = log.live_bytes()
    assert live[-1] - live[0] == 4


@pytest.mark.parametrize("decision", [None, Decision.RECOMPUTE, Decision.DROP_CHEAP])
def test_operations_do_not_depend_on_the_batch(decision: str | None) -> None:
    small, large = (
        replay_step(placed(workload(VIT, micro_batch=b), decision), device=GPU, options=ANY_BATCH)
        for b in (2, 200)
    )
    assert len(small.operations) == len(large.operations)
    assert len(small.nbytes) == len(large.nbytes)
    for phase in (Phase.FORWARD, Phase.BACKWARD, Phase.RECOMPUTE):
        assert large.flops(phase) == 100 * small.flops(phase)


def test_recompute_repeats_the_units_forward() -> None:
    none, static = (
        replay_step(placed(workload(VIT), d), device=GPU) for d in (None, Decision.RECOMPUTE)
    )
    assert none.flops(Phase.RECOMPUTE) == 0
    assert static.flops(Phase.FORWARD) == none.flops(Phase.FORWARD)
    assert static.flops(Phase.BACKWARD) == none.flops(Phase.BACKWARD)
    for index in range(len(static.units)):
        forward = static.flops(Phase.FORWARD, unit=index)
        # the last linear layer's output is not needed, so a recompute stops before it
        assert 0.5 * forward < static.flops(Phase.RECOMPUTE, unit=index) <= forward


def test_units_run_in_order_and_back() -> None:
    log = replay_step(Candidate(workload=workload(VIT)), device=GPU)
    forward, backward = first_spans(log, Phase.FORWARD), first_spans(log, Phase.BACKWARD)
    assert sorted(forward) == sorted(backward) == list(range(len(log.units)))
    enters = [forward[i].begin for i in range(len(log.units))]
    backwards = [backward[i].begin for i in range(len(log.units))]
    assert enters == sorted(enters)
    assert backwards == sorted(backwards, reverse=True)


def test_no_weight_is_allocated() -> None:
    load = workload("vit_large_patch16_224", precision="bf16")  # 1.2 GB of weights
    events = memory_events(lambda: replay_step(Candidate(workload=load), device=GPU))
    assert peak_and_growth(events)[0] < 2**20


def test_micro_batches_beyond_two_show_nothing_new() -> None:
    two, five = (
        replay_step(Candidate(workload=workload(VIT, accumulation=n)), device=GPU) for n in (2, 5)
    )
    assert two.peak_bytes == five.peak_bytes


def test_the_update_alone_has_the_steps_state() -> None:
    load = workload(VIT, "lora", rank=4)
    whole = replay_step(Candidate(workload=load), device=CPU).max_by_owner()
    update = replay_update(Candidate(workload=load), device=CPU).max_by_owner()
    assert update.optimizer == whole.optimizer
    assert update.gradient == whole.gradient
    assert update.activation == 0


def test_published_flops_ignore_groups() -> None:
    load = workload(MOBILE)
    ours, published = (
        replay_step(
            Candidate(workload=load),
            device=GPU,
            options=ReplayOptions(optimizer=False, published_flops=p),
        )
        for p in (False, True)
    )
    assert published.flops(Phase.BACKWARD) > 5 * ours.flops(Phase.BACKWARD)


def test_what_cannot_be_replayed_is_one_line() -> None:
    strange = Placement(decisions={"blocks.99": Decision.RECOMPUTE})
    with pytest.raises(InputError, match=r"blocks\.99"):
        replay_step(Candidate(workload=workload(VIT), placement=strange), device=GPU)
    with pytest.raises(UsageError, match="BatchNorm"):
        replay_step(Candidate(workload=workload(VIT, "bn_head")), device=GPU)
