"""The work of a measured run: operations of its replayed step."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from profiler.arrays import Floats
from profiler.replay.event_log import OperationRecord, Phase
from profiler.workload import Workload


def work_of(operations: Iterable[OperationRecord], workload: Workload) -> Floats:
    """Return FLOPs, moved bytes, launches and repetitions [operations, 4] of a replayed step.

    A replay has at most two micro-batches. The repetitions scale their operations to all
    micro-batches of the step.
    """
    shown = min(workload.accumulation, 2)
    rows = [
        (
            op.flops,
            op.moved_bytes,
            op.launches,
            1.0 if op.phase == Phase.OPTIMIZER else workload.accumulation / shown,
        )
        for op in operations
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 4)
