"""A replay on a model that other replays used before, against one on a new model."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from profiler.devices.table import lookup
from profiler.errors import InputError, UsageError
from profiler.models.build import build_model
from profiler.models.unit_parts import parts_of_unit
from profiler.placement import KEEP_ALL, Decision, Placement
from profiler.replay import reused_models
from profiler.replay.event_log import EventLog
from profiler.replay.reused_models import MOST_MODELS, reused_model
from profiler.replay.step_replay import KernelMemory, ReplayOptions, replay_step, replay_update
from profiler.unit_options import options_of, uniform_placement
from profiler.workload import OPTIMIZERS, Candidate, Workload

PROFILE = ReplayOptions(optimizer=False, kernel_memory=KernelMemory.ANY_BATCH, repeated_units=True)


@pytest.fixture(autouse=True)
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reused_models, "_models", {})


def assert_equal_logs(log: EventLog, expected: EventLog) -> None:
    for each in fields(EventLog):
        mine, other = getattr(log, each.name), getattr(expected, each.name)
        if isinstance(mine, np.ndarray):
            np.testing.assert_array_equal(mine, other, err_msg=each.name)
        else:
            assert mine == other, each.name


def replay(load: Workload, placement: Placement) -> EventLog:
    given = Candidate(workload=load, placement=placement)
    return replay_step(given, device=lookup("rtx-3060"), options=PROFILE)


@pytest.mark.parametrize(
    ("model", "method"),
    [
        ("vit_tiny_patch16_224", "full"),
        ("vit_tiny_patch16_224", "adalora"),
        ("swin_tiny_patch4_window7_224", "side"),
        ("resnet18", "bn_head"),
        ("test_efficientnet", "ssf"),
        ("mvitv2_tiny", "bitfit"),  # the replay of three units fails, and that of all follows
    ],
)
def test_a_model_is_as_new_after_a_replay(
    model: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = 4 if method in ("adalora", "side") else None
    load = Workload(model=model, method=method, rank=rank, micro_batch=2, num_classes=10)
    built = build_model(load, device="meta")
    parts = {unit: parts_of_unit(built.backbone, unit) for unit in built.units}
    some = options_of(parts)[1::4]
    placements = [KEEP_ALL, *(uniform_placement(option, parts) for option in some)]
    placements.append(Placement(dict.fromkeys(built.units[::2], Decision.RECOMPUTE)))
    expected = []
    for placement in placements:
        monkeypatch.setattr(reused_models, "_models", {})
        expected.append(replay(load, placement))
    for placement, log in [*zip(placements, expected, strict=True)][::-1]:
        assert_equal_logs(replay(load, placement), log)


@pytest.mark.parametrize("method", ["full", "lora", "adalora"])
def test_an_update_on_a_used_model_is_that_on_a_new_one(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = None if method == "full" else 4
    load = Workload(model="test_vit", method=method, rank=rank, micro_batch=2, num_classes=10)
    device = lookup("rtx-3060")
    given = [Candidate(workload=load.replace(optimizer=name)) for name in OPTIMIZERS]
    expected = []
    for candidate in given:
        monkeypatch.setattr(reused_models, "_models", {})
        expected.append(replay_update(candidate, device=device))
    for candidate, log in [*zip(given, expected, strict=True)] * 2:
        assert_equal_logs(replay_update(candidate, device=device), log)


def test_a_used_model_does_not_hide_that_a_method_refuses_an_optimizer() -> None:
    load = Workload(model="test_vit", method="galore", rank=4, micro_batch=2, num_classes=10)
    device = lookup("rtx-3060")
    replay_update(Candidate(workload=load), device=device)
    with pytest.raises(UsageError, match="does not combine with sgd"):
        replay_update(Candidate(workload=load.replace(optimizer="sgd")), device=device)


def test_a_model_is_not_lent_again_after_an_error() -> None:
    load = Workload(model="test_vit", num_classes=10, micro_batch=2)
    with pytest.raises(InputError), reused_model(load):
        raise InputError("stopped")
    assert not reused_models._models


def test_two_models_are_kept() -> None:
    load = Workload(model="test_vit", num_classes=10, micro_batch=2)
    lent = []
    for rank in (4, 8, 4, 16, 8):
        with reused_model(load.replace(method="lora", rank=rank)) as model:
            lent.append(model)
    assert lent[2] is lent[0]
    assert lent[4] is not lent[1]  # rank 8 was used before 4 and 16
    assert len(reused_models._models) == MOST_MODELS


def test_a_change_of_timms_fused_attention_is_another_model() -> None:
    from timm.layers import set_fused_attn, use_fused_attn

    load = Workload(model="test_vit", image_size=160, num_classes=1000)

    def levels() -> tuple[bool, bool]:
        with reused_model(load) as model:
            kept = model.built.model.blocks[0].attn.fused_attn
        return kept, build_model(load, device="meta").model.blocks[0].attn.fused_attn

    was_on = use_fused_attn()
    try:
        for is_on in (True, False, True):
            set_fused_attn(is_on)
            assert levels() == (is_on, is_on)
    finally:
        set_fused_attn(was_on)
