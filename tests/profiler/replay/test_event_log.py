"""A log made by hand: every number here can be added up on paper."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from profiler.records import OWNERS
from profiler.replay.event_log import EventLog, Mark, MarkKind, OperationRecord, Phase
from profiler.replay.recorder import Recorder

PARAMETER, GRADIENT, ACTIVATION, TEMPORARY = (
    OWNERS.index(name) for name in ("parameter", "gradient", "activation", "temporary")
)

#             bytes birth death owner
STORAGES = [
    (100, 0, 11, PARAMETER),  # there before and after: death beyond the last tick
    (30, 1, 8, ACTIVATION),
    (7, 2, 3, TEMPORARY),
    (50, 4, 6, ACTIVATION),
    (20, 5, 10, GRADIENT),
    (60, 7, 9, TEMPORARY),
]
#        tick: 0    1    2    3    4    5    6    7    8    9    10
LIVE = [100, 130, 137, 130, 180, 200, 150, 210, 180, 120, 100]


def operation(phase: Phase, unit: int, flops: int) -> OperationRecord:
    return OperationRecord(phase=phase, unit=unit, flops=flops, moved_bytes=8)


def hand_made() -> EventLog:
    table = np.array(STORAGES, dtype=np.int64)
    zeros = np.zeros(len(table), dtype=np.int64)
    return EventLog(
        nbytes=table[:, 0],
        birth=table[:, 1],
        death=table[:, 2],
        owner=table[:, 3],
        phase=zeros,
        unit=zeros - 1,
        operation=zeros,
        reduction=zeros - 1,
        reductions=(),
        operation_names=("(given)",),
        ticks=10,
        marks=(Mark(0, MarkKind.PHASE, Phase.FORWARD), Mark(5, MarkKind.PHASE, Phase.BACKWARD)),
        units=("a", "b"),
        boundary_bytes=(0, 0),
        operations=(
            operation(Phase.FORWARD, 0, 5),
            operation(Phase.FORWARD, 1, 7),
            operation(Phase.RECOMPUTE, 1, 7),
            operation(Phase.BACKWARD, 1, 14),
        ),
    )


def test_live_bytes_after_each_tick() -> None:
    assert hand_made().live_bytes().tolist() == LIVE


def test_peak_is_the_highest_and_its_tick_the_first() -> None:
    log = hand_made()
    assert (log.peak_bytes, log.peak_tick) == (max(LIVE), LIVE.index(max(LIVE)))


def test_owners_at_a_tick_add_up_to_live_bytes() -> None:
    log = hand_made()
    at_peak = log.owners_at(log.peak_tick)
    assert (at_peak.parameter, at_peak.activation) == (100, 30)
    assert (at_peak.gradient, at_peak.temporary) == (20, 60)
    for tick, live in enumerate(LIVE):
        assert log.owners_at(tick).total == live


def test_highest_of_each_owner_at_whatever_moment() -> None:
    highest = hand_made().max_by_owner()
    assert (highest.parameter, highest.activation) == (100, 80)
    assert (highest.gradient, highest.temporary, highest.optimizer) == (20, 60, 0)


def test_selected_storages_only() -> None:
    log = hand_made()
    gradients = log.live_bytes(select=log.owner == GRADIENT)
    assert gradients.tolist() == [0] * 5 + [20] * 5 + [0]


def test_rounding_is_per_storage() -> None:
    rounded = hand_made().rounded(64)
    assert rounded.nbytes.tolist() == [128, 64, 64, 64, 64, 64]
    assert rounded.peak_bytes == 128 + 64 * 3
    assert rounded.rounded(64).nbytes.tolist() == rounded.nbytes.tolist()


def test_allocator_events_are_in_order_and_add_up() -> None:
    log = hand_made()
    live, level, seen = 0, {}, []
    events, ticks = log.allocator_events()
    assert ticks.tolist() == sorted(ticks)
    for key in events.tolist():
        if key >= 0:
            assert key not in level
            level[key] = int(log.nbytes[key])
            live += level[key]
        else:
            live -= level.pop(-1 - key)
        seen.append(live)
    assert seen == LIVE  # one event a tick, the parameters at tick 0
    assert list(level) == [0]  # what outlives the step is never freed


def test_flops_of_a_phase_and_of_a_unit() -> None:
    log = hand_made()
    assert log.flops(Phase.FORWARD) == 12
    assert log.flops(Phase.FORWARD, unit=1) == 7
    assert log.flops(Phase.OPTIMIZER) == 0


def test_an_empty_log_has_no_bytes() -> None:
    empty = np.zeros(0, dtype=np.int64)
    columns = ("nbytes", "birth", "death", "owner", "phase", "unit", "operation")
    log = replace(hand_made(), **dict.fromkeys(columns, empty), operations=())
    assert log.peak_bytes == 0
    assert log.owners_at(3).total == 0
    assert [len(each) for each in log.allocator_events()] == [0, 0]


def test_a_recorder_follows_storages_not_tensors() -> None:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    recorder = Recorder(("unit",))
    with FakeTensorMode(), recorder:
        with recorder.clock.in_phase("forward"):
            first = torch.empty(10)  # 40 bytes
            view = first.view(2, 5)
            second = view + 1  # 40 bytes; the view is none
            del first, second
        with recorder.clock.in_phase("backward"):
            third = view * 2.0  # the view kept the first storage
            del view
        log = recorder.log()
        assert log.live_bytes().max() == 80
        assert log.nbytes.tolist() == [40, 40, 40]
        assert (log.death - log.birth > 0).all()
        assert log.live_bytes()[-1] == third.nbytes
    assert [OWNERS[code] for code in log.owner[:2]] == ["activation", "temporary"]


@pytest.mark.parametrize("inplace", ["add_", "mul_"])
def test_a_recorder_counts_nothing_for_work_in_place(inplace: str) -> None:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    recorder = Recorder(())
    with FakeTensorMode(), recorder, recorder.clock.in_phase("forward"):
        tensor = torch.empty(10)
        getattr(tensor, inplace)(2.0)
        assert len(recorder.storages.rows) == 1
