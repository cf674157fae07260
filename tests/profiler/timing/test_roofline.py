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
    recompute_python_seconds=1e-3,
)
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
    (slowness,) = RATES.slowness_of([kind])
    bounds = RATES.bounds(flops, moved, launches=launches, slowness=slowness)
    assert bounds.shape == (3,)
    assert bounds.max() == pytest.approx(seconds, rel=1e-12)
    if launches == 1:
        found = RATES.seconds(flops, moved, slowness=slowness)
        assert float(found) == pytest.approx(seconds, rel=1e-12)


def test_records_and_arrays_have_the_same_seconds():
    flops, moved, launches, kinds, seconds = zip(*OPERATIONS, strict=True)
    slowness = RATES.slowness_of(kinds)
    each = RATES.bounds(flops, moved, launches=launches, slowness=slowness).max(axis=0)
    np.testing.assert_allclose(each, seconds, rtol=1e-12)
    records = [
        OperationRecord(
            phase=Phase.RECOMPUTE,
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
