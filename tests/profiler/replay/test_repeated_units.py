"""A step of which most units were left out, against one in which all of them ran."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from profiler.devices.table import lookup
from profiler.models.build import BuiltModel, build_model
from profiler.models.unit_parts import parts_of_unit
from profiler.placement import KEEP_ALL, Decision, Placement
from profiler.prediction.parametric import profile_option
from profiler.replay.event_log import EventLog
from profiler.replay.repeated_units import (
    UnitRow,
    expand_log,
    find_rows,
    skip_units,
    unit_signatures,
)
from profiler.replay.step_replay import KernelMemory, ReplayOptions, replay_built_model, replay_step
from profiler.unit_options import options_of, uniform_placement
from profiler.workload import Candidate, Workload

GPU = lookup("rtx-2060-super")


def candidate(model: str, method: str, option: str = Decision.KEEP, **changes: object) -> Candidate:
    rank = 8 if method in ("lora", "adalora", "qlora") else None
    load = Workload(model=model, method=method, rank=rank, num_classes=10, micro_batch=4)
    load = load.replace(**changes)
    built = build_model(load, device="meta")
    parts = {unit: parts_of_unit(built.backbone, unit) for unit in built.units}
    options = {each.key: each for each in options_of(parts)}
    placement = uniform_placement(options[option], parts)
    return Candidate(workload=load, placement=placement)


def rows_of(built: BuiltModel, placement: Placement) -> tuple[UnitRow, ...]:
    return find_rows(unit_signatures(built.backbone, built.units), built.units, placement)


def of_three_units(given: Candidate) -> EventLog | None:
    built = build_model(given.workload, device="meta")
    rows = rows_of(built, given.placement)
    assert rows
    log = replay_built_model(built, given, device=GPU, optimizer=False, rows=rows)
    return expand_log(log, rows)


def whole(given: Candidate) -> EventLog:
    options = ReplayOptions(optimizer=False, kernel_memory=KernelMemory.NONE)
    return replay_step(given, device=GPU, options=options)


VIT = "vit_tiny_patch16_224"
CASES = [
    (VIT, "full", Decision.KEEP),
    (VIT, "full", Decision.DROP_CHEAP),
    (VIT, "full", Decision.RECOMPUTE),
    (VIT, "full", "parts:1"),
    (VIT, "full", "parts:all"),
    (VIT, "lora", "layers:2"),
    (VIT, "lora", Decision.RECOMPUTE),
    (VIT, "adalora", Decision.DROP_CHEAP),
    (VIT, "qlora", Decision.KEEP),
    (VIT, "head", Decision.KEEP),
    (VIT, "partial_k", Decision.KEEP),
    ("convnext_atto", "full", Decision.DROP_CHEAP),
    ("tiny_vit_5m_224", "lora", "layers:1"),
    ("vim_t", "bitfit", Decision.RECOMPUTE),
    ("mambavision_t", "full", Decision.DROP_CHEAP),
]


@pytest.mark.parametrize(("model", "method", "option"), CASES)
def test_the_log_is_that_of_a_whole_step(model: str, method: str, option: str) -> None:
    given = candidate(model, method, option)
    assert_same_log(of_three_units(given), whole(given))


def assert_same_log(told: EventLog | None, true: EventLog) -> None:
    assert told is not None
    for name in ("nbytes", "birth", "death", "owner", "phase", "unit"):
        np.testing.assert_array_equal(getattr(told, name), getattr(true, name), err_msg=name)
    named = [[log.operation_names[code] for code in log.operation] for log in (told, true)]
    assert named[0] == named[1]
    assert told.ticks == true.ticks
    assert told.marks == true.marks
    assert told.operations == true.operations
    assert told.boundary_bytes == true.boundary_bytes


ALTERNATING = [
    (VIT, "full", Decision.RECOMPUTE, 0),
    (VIT, "lora", Decision.DROP_CHEAP, 1),
    (VIT, "adalora", Decision.RECOMPUTE, 0),
    ("vim_t", "bitfit", Decision.RECOMPUTE, 1),
    ("convnext_tiny", "full", Decision.RECOMPUTE, 1),
]


@pytest.mark.parametrize(("model", "method", "option", "begin"), ALTERNATING)
def test_pairs_of_units_repeat_if_every_other_one_is_recomputed(
    model: str, method: str, option: Decision, begin: int
) -> None:
    given = candidate(model, method)
    built = build_model(given.workload, device="meta")
    every_other = Placement(dict.fromkeys(built.units[begin::2], option))
    given = Candidate(workload=given.workload, placement=every_other)
    assert any(row.period == 2 for row in rows_of(built, every_other))
    assert_same_log(of_three_units(given), whole(given))


def test_pairs_repeat_in_a_backbone_that_alternates() -> None:
    # every other block of Swin shifts its windows
    given = candidate("swin_small_patch4_window7_224", "full", micro_batch=2)
    assert_same_log(of_three_units(given), whole(given))


@pytest.mark.parametrize(
    ("model", "method", "option"),
    [
        ("mvitv2_tiny", "head", Decision.KEEP),  # units with two results
        ("xception41", "ssf", Decision.DROP_CHEAP),  # units that begin with a function in place
    ],
)
def test_units_that_cannot_be_left_out_all_run(model: str, method: str, option: Decision) -> None:
    given = candidate(model, method, option, micro_batch=2)
    options = ReplayOptions(optimizer=False, kernel_memory=KernelMemory.NONE, repeated_units=True)
    log, true = replay_step(given, device=GPU, options=options), whole(given)
    assert log.ticks == true.ticks
    assert log.peak_bytes == true.peak_bytes


@pytest.mark.parametrize(
    "option", [Decision.KEEP, Decision.DROP_CHEAP, Decision.RECOMPUTE, "parts:all"]
)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_profile_is_that_of_a_whole_step_under_autocast(method: str, option: str) -> None:
    # autocast's copies go in an order of its own, so the ticks may differ there
    given = candidate(VIT, method, option, precision="bf16", micro_batch=1009)
    told, true = of_three_units(given), whole(given)
    assert told is not None
    assert told.peak_bytes == true.peak_bytes
    first, second = (
        profile_option(
            given.workload.replace(rank=None),
            given.placement,
            partial(lambda log, _: log, log),
            GPU,
        )
        for log in (told, true)
    )
    for name in ("base", "stored", "cached", "gradients", "boundary"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    for name in ("forward", "backward", "accumulating", "head"):
        np.testing.assert_array_equal(getattr(first, name).lines, getattr(second, name).lines)
    for name in ("flops", "moved_bytes", "unit", "phase"):
        np.testing.assert_array_equal(getattr(first.work, name), getattr(second.work, name))


def rows(model: str, method: str = "full", placement: Placement = KEEP_ALL) -> tuple[UnitRow, ...]:
    load = Workload(model=model, method=method, num_classes=10)
    built = build_model(load, device="meta")
    return rows_of(built, placement)


def test_rows_are_units_that_are_alike() -> None:
    assert rows(VIT) == (UnitRow(0, 12),)
    assert rows("vim_t") == (UnitRow(0, 24),)
    # ResNet-18's stages have two blocks each; three are too few to leave one out
    assert rows("resnet18") == ()
    assert [row.count for row in rows("convnext_tiny")] == [9]


def test_a_row_ends_where_the_method_or_the_placement_changes() -> None:
    assert rows(VIT, "partial_k")[0].count < 12
    half = Placement(decisions={f"blocks.{i}": Decision.RECOMPUTE for i in range(5)})
    assert rows(VIT, placement=half) == (UnitRow(0, 5), UnitRow(5, 7))


def test_a_row_may_have_a_period_of_two() -> None:
    some = [f"blocks.{i}" for i in (1, 3, 5, 7)]
    placement = Placement(decisions=dict.fromkeys(some, Decision.RECOMPUTE))
    # blocks 8 to 11 are kept; blocks 0 to 7 are four pairs, and block 8 begins a row of its own
    assert rows(VIT, placement=placement) == (UnitRow(0, 8, 2), UnitRow(8, 4))
    # three pairs are too few
    assert rows(VIT, placement=Placement(dict.fromkeys(some[:3], Decision.RECOMPUTE))) == (
        UnitRow(6, 6),
    )


def test_a_unit_with_a_hook_is_like_no_other() -> None:
    built = build_model(Workload(model=VIT, method="full", num_classes=10), device="meta")
    built.backbone.get_submodule("blocks.4").register_forward_hook(lambda *_: None)
    assert rows_of(built, KEEP_ALL) == (UnitRow(0, 4), UnitRow(5, 7))


def test_a_row_whose_idle_units_do_something_is_not_told() -> None:
    given = candidate(VIT, "full")
    built = build_model(given.workload, device="meta")

    def double(_: nn.Module, __: object, out: Tensor) -> Tensor:
        return out * 2

    built.backbone.get_submodule("blocks.4").register_forward_hook(double)
    row = UnitRow(0, 12)
    log = replay_built_model(built, given, device=GPU, optimizer=False, rows=[row])
    assert expand_log(log, [row]) is None


def test_idle_units_hand_on_what_they_are_given() -> None:
    chain = nn.Sequential(*[nn.Linear(3, 3) for _ in range(5)])
    features = torch.randn(2, 3)
    whole_chain = chain(features)
    with skip_units(chain, tuple("01234"), [UnitRow(0, 5)]):
        expected = chain[4](chain[1](chain[0](features)))
        torch.testing.assert_close(chain(features), expected, rtol=0, atol=0)
    torch.testing.assert_close(chain(features), whole_chain, rtol=0, atol=0)
