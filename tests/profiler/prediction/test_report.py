"""Reports of the replayed rung: they add up, and they say the same as the log they come from."""

from __future__ import annotations

import pytest

from planner.cost.place_by_policy import default_cost_model
from profiler.device_rules.caching_allocator import (
    AllocatorSettings,
    CachingAllocator,
    SimulatedOutOfMemory,
    configuration,
)
from profiler.devices.table import (
    CPU,
    cuda_context,
    device_label,
    device_spec,
    lookup,
    workspaces_of,
)
from profiler.errors import UnknownNameError
from profiler.models.build import build_model
from profiler.models.parameter_count import count_parameters
from profiler.placement import Decision, Placement
from profiler.prediction.allocator_steps import BLOCK_BYTES, run_steps, workspace_bytes
from profiler.prediction.report import predict, report_of, step_flops, unit_reports
from profiler.records import OWNERS, Report, Rung
from profiler.replay.step_replay import replay_step
from profiler.units import MIB
from profiler.workload import Candidate, Workload

CARD = lookup("rtx-2060-super")
LOAD = Workload(model="test_vit", micro_batch=4, image_size=64, num_classes=10)


def recomputed(load: Workload) -> Candidate:
    units = build_model(load, device="meta").units
    placement = Placement(decisions=dict.fromkeys(units, Decision.RECOMPUTE))
    return Candidate(workload=load, placement=placement)


@pytest.fixture(scope="module")
def on_card() -> Report:
    return predict(recomputed(LOAD), device=CARD)


def test_on_a_cpu_device_bytes_are_the_peak() -> None:
    candidate = Candidate(workload=LOAD)
    memory = predict(candidate, device=CPU).memory
    log = replay_step(candidate, device=CPU)
    assert memory.peak_bytes == memory.device_bytes == log.peak_bytes
    assert memory.reserved_bytes is None
    assert memory.at_peak is not None
    assert memory.at_peak.total == memory.peak_bytes


def test_on_a_card_workspace_and_context_come_on_top(on_card: Report) -> None:
    memory, spec = on_card.memory, CARD
    workspaces, context = workspaces_of(spec), cuda_context(spec).nbytes
    log = replay_step(recomputed(LOAD), device=CARD)
    allocator = CachingAllocator(AllocatorSettings.parse(configuration()))
    run_steps(allocator, log, steps=3, workspaces=workspaces)
    assert memory.peak_bytes == allocator.peak_allocated_bytes
    taken = workspace_bytes(log, workspaces)
    assert memory.peak_bytes >= log.rounded(BLOCK_BYTES).peak_bytes + taken
    assert memory.reserved_bytes is not None
    assert memory.reserved_bytes >= memory.peak_bytes
    assert memory.reserved_bytes % (2 << 20) == 0
    assert memory.device_bytes == memory.reserved_bytes + context


def test_a_step_needs_more_than_it_reserves_if_a_cap_would_refuse_a_block() -> None:
    """LoRA in fp16 at this batch; a cap at the bytes that it reserves refuses a block."""
    workload = Workload(
        model="vit_s", method="lora", micro_batch=52, precision="fp16", num_classes=100
    )
    device = lookup("rtx-3060")
    log = replay_step(Candidate(workload=workload), device=device)
    settings = AllocatorSettings.parse(configuration())
    memory = report_of(Candidate(workload=workload), log, device=device, settings=settings).memory
    assert memory.needed_bytes is not None
    cap = memory.needed_bytes - cuda_context(device).nbytes
    assert memory.reserved_bytes is not None
    assert cap > memory.reserved_bytes
    rounded, workspaces = log.rounded(BLOCK_BYTES), workspaces_of(device)
    with pytest.raises(SimulatedOutOfMemory):
        capped = CachingAllocator(settings, limit_bytes=memory.reserved_bytes)
        run_steps(capped, rounded, steps=3, workspaces=workspaces)
    run_steps(CachingAllocator(settings, limit_bytes=cap), rounded, steps=3, workspaces=workspaces)


def test_owners_add_up_to_the_peak_and_never_exceed_their_own_highest(on_card: Report) -> None:
    at_peak, highest = on_card.memory.at_peak, on_card.memory.max_by_group
    assert at_peak is not None
    assert highest is not None
    assert at_peak.total == on_card.memory.peak_bytes
    for owner in OWNERS:
        assert getattr(at_peak, owner) <= getattr(highest, owner)


def test_units_tell_stored_boundary_and_decision(on_card: Report) -> None:
    tokens, width = 1 + (64 // 16) ** 2, 64
    output = LOAD.micro_batch * tokens * width * 4
    log = replay_step(recomputed(LOAD), device=CARD).rounded(BLOCK_BYTES)
    assert len(on_card.units) == len(log.units)
    for unit in on_card.units:
        assert unit.decision == Decision.RECOMPUTE
        assert unit.boundary_bytes == output
        # a recomputed unit stores what it gives, rounded to blocks
        assert unit.stored_bytes == -(-output // BLOCK_BYTES) * BLOCK_BYTES
        assert unit.working_bytes is not None
        assert unit.working_bytes > unit.stored_bytes
        assert 0 < unit.recompute_flops <= unit.forward_flops < unit.backward_flops


def test_flops_of_a_vision_transformer_are_closed_form() -> None:
    candidate = Candidate(workload=LOAD)
    flops = step_flops(replay_step(candidate, device=CARD), LOAD)
    model = build_model(LOAD, device="meta").model
    tokens = 1 + (64 // 16) ** 2
    width, depth, classes = model.embed_dim, len(model.blocks), LOAD.num_classes
    hidden = model.blocks[0].mlp.fc1.out_features
    block = tokens * width * (4 * width + 2 * hidden) + 2 * tokens**2 * width
    patches = (tokens - 1) * 3 * 16 * 16 * width
    head = width * classes
    assert flops.forward == 2 * LOAD.micro_batch * (depth * block + patches + head)
    # twice the forward, but the image needs no gradient
    products = 2 * 2 * LOAD.micro_batch * (depth * block + head)
    assert flops.backward >= products + 2 * LOAD.micro_batch * patches
    assert flops.recompute == 0


def test_accumulation_multiplies_all_but_the_update() -> None:
    one, four = (
        predict(Candidate(workload=LOAD.replace(accumulation=n)), device=CARD) for n in (1, 4)
    )
    assert one.flops is not None
    assert four.flops is not None
    assert four.flops.forward == 4 * one.flops.forward
    assert four.flops.backward == 4 * one.flops.backward
    assert four.flops.optimizer == one.flops.optimizer
    assert four.memory.peak_bytes >= one.memory.peak_bytes
    assert [u.forward_flops for u in four.units] == [u.forward_flops for u in one.units]
    assert one.step_seconds is not None
    assert four.step_seconds is not None
    assert one.step_seconds < four.step_seconds < 4 * one.step_seconds


def test_a_report_survives_json(on_card: Report) -> None:
    data = on_card.to_json()
    assert Report.from_json(data) == on_card
    assert data["schema"] == "budgetplan.prediction/1"
    assert data["rung"] == Rung.REPLAYED
    assert data["memory"]["device_bytes"] == on_card.memory.device_bytes


def test_parameters_are_counted() -> None:
    counts = count_parameters(LOAD.replace(method="lora", rank=4))
    model = build_model(LOAD.replace(method="lora", rank=4)).model
    assert counts.total == sum(p.numel() for p in model.parameters())
    assert counts.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_four_bit_weights_count_as_weights() -> None:
    plain, packed = (count_parameters(LOAD.replace(method=m, rank=4)) for m in ("lora", "qlora"))
    assert packed.total == plain.total
    assert packed.trainable == plain.trainable


def test_steps_fed_to_the_allocator_leave_it_as_before() -> None:
    log = replay_step(Candidate(workload=LOAD), device=CARD).rounded(BLOCK_BYTES)
    once, often = CachingAllocator(), CachingAllocator()
    run_steps(once, log, steps=1)
    run_steps(often, log, steps=4)
    assert once.peak_allocated_bytes == often.peak_allocated_bytes == log.peak_bytes
    assert often.allocated_bytes == once.allocated_bytes == int(log.live_bytes()[0])


@pytest.mark.parametrize(("recomputes", "taken"), [(False, [1, 2, 3]), (True, [1, 2, 3, 4])])
def test_a_product_with_a_bias_takes_a_workspace_of_its_own_once_in_each_thread(
    recomputes: bool, taken: list[int]
) -> None:
    candidate = recomputed(LOAD) if recomputes else Candidate(workload=LOAD)
    log = replay_step(candidate, device=CARD).rounded(BLOCK_BYTES)
    sizes = [MIB << number for number in range(4)]
    allocator = CachingAllocator()
    run_steps(allocator, log, steps=3, workspaces=sizes)
    added = sum(sizes[number - 1] for number in taken)
    assert workspace_bytes(log, sizes) == added
    assert allocator.peak_allocated_bytes == log.peak_bytes + added
    assert workspace_bytes(log, sizes[:2]) == sum(sizes[:2])


def test_without_a_roofline_there_is_no_time() -> None:
    candidate = Candidate(workload=LOAD)
    log = replay_step(candidate, device=CARD)
    assert all(row.forward_seconds is None for row in unit_reports(log, candidate, None))


@pytest.mark.parametrize("composed", [False, True])
def test_a_time_that_the_launches_of_the_host_decide_is_said_to_be_assumed(composed: bool) -> None:
    device = lookup("h200")

    def of(method: str, micro_batch: int) -> Report:
        workload = Workload(
            model="test_vit", method=method, micro_batch=micro_batch, image_size=160, num_classes=10
        )
        candidate = Candidate(workload=workload)
        if composed:
            return default_cost_model(device).predict(candidate)
        return predict(candidate, device=device)

    tiny, same, large = of("head", 1), of("head", 8), of("full", 2048)
    assert tiny.step_seconds == same.step_seconds, "the kernels of 8 images end as early"
    assert [report.host_decides for report in (tiny, same, large)] == [True, True, False]
    notes = [any("host's launches" in note for note in r.notes) for r in (tiny, same, large)]
    assert notes == [True, True, False]
    assert [any("kernel rates" in note for note in r.notes) for r in (tiny, large)] == [False, True]


def test_devices_are_named() -> None:
    assert device_label("cpu").kind == "cpu"
    assert device_label(CARD.name).memory_bytes == CARD.memory_bytes
    assert device_spec("cpu").is_cuda is False
    with pytest.raises(UnknownNameError, match="rtx"):
        device_spec("rtx-2060-supper")


def test_the_report_of_a_log_needs_no_second_replay() -> None:
    candidate = Candidate(workload=LOAD)
    log = replay_step(candidate, device=CPU)
    assert report_of(candidate, log, device=CPU).memory == predict(candidate, device=CPU).memory
