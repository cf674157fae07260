"""The roofline against closed forms, for single operations, arrays and records alike."""

from __future__ import annotations

import numpy as np
import pytest

from profiler.replay.event_log import OperationRecord, Phase
from profiler.timing.roofline import Rates

RATES = Rates(
    flops_per_second=1e12,
    bytes_per_second=1e10,
    watts=None,
    source="made up",
    launch_seconds=1e-6,
    slowness={"slow": 3.0},
    refill_slowness={"slow": 2.0},
    recompute_python_seconds=1e-3,
)
ONE = np.zeros(1, dtype=np.int64)
#  FLOPs, bytes, launches, kind, seconds
OPERATIONS = [
    (2e9, 1e6, 1, "matmul", 2e-3),  # bound by arithmetic
    (1e6, 5e7, 1, "copy", 5e-3),  # bound by traffic
    (1e3, 1e3, 40, "loop", 4e-5),  # bound by its 40 launches
    (1e6, 5e7, 1, "slow", 1.5e-2),  # traffic, three times as slow
    (0, 0, 1, "slow", 1e-6),  # a launch is not slowed down
]


@pytest.mark.parametrize(("flops", "moved", "launches", "kind", "seconds"), OPERATIONS)
def test_an_operation_takes_its_longest_bound(flops, moved, launches, kind, seconds):
    (slowness,) = RATES.slowness_of([kind], ONE, is_refill=ONE > 0)
    bounds = RATES.bounds(flops, moved, launches=launches, slowness=slowness)
    assert bounds.shape == (3,)
    assert bounds.max() == pytest.approx(seconds, rel=1e-12)
    if launches == 1:
        found = RATES.seconds(flops, moved, slowness=slowness)
        assert float(found) == pytest.approx(seconds, rel=1e-12)


def test_records_and_arrays_have_the_same_seconds():
    flops, moved, launches, kinds, seconds = zip(*OPERATIONS, strict=True)
    slowness = RATES.slowness_of(kinds, np.arange(5), is_refill=np.zeros(5, dtype=bool))
    each = RATES.bounds(flops, moved, launches=launches, slowness=slowness).max(axis=0)
    np.testing.assert_allclose(each, seconds, rtol=1e-12)
    records = [
        OperationRecord(
            phase=Phase.BACKWARD,
            unit=0,
            flops=int(f),
            moved_bytes=int(m),
            kind=kind,
            launches=n,
            begins_refill=index < 2,
            intercepted=3 * (index == 1),
        )
        for index, (f, m, n, kind, _) in enumerate(OPERATIONS)
    ]
    assert RATES.total_seconds(records) == pytest.approx(sum(seconds) + 5e-3, rel=1e-12)
    assert RATES.total_seconds([]) == 0.0


def test_a_recomputed_operation_has_a_slowness_of_its_own():
    def record(phase: Phase, kind: str) -> OperationRecord:
        return OperationRecord(phase=phase, unit=0, flops=0, moved_bytes=int(5e7), kind=kind)

    seconds = [
        RATES.total_seconds([record(phase, kind)])
        for phase, kind in (
            (Phase.FORWARD, "slow"),
            (Phase.RECOMPUTE, "slow"),
            (Phase.RECOMPUTE, "copy"),
        )
    ]
    assert seconds == pytest.approx([1.5e-2, 1e-2, 5e-3], rel=1e-12)
