"""The work of a measured run: operations of its replayed step, and the kind of its backbone."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

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


@cache
def backbone_kind(model: str) -> str:
    """Return the kind of a backbone: ``scan``, ``attention`` or ``convolution``.

    The kind is read from the class names of its modules, which needs no forward.
    """
    from profiler.models import backbones

    image_size = backbones.native_image_size(model)
    built = backbones.build(model, num_classes=10, image_size=image_size, device="meta")
    names = [type(module).__name__ for module in built.modules()]
    if any("Mixer" in name and ("Vim" in name or "Mamba" in name) for name in names):
        return "scan"
    return "attention" if any("Attention" in name for name in names) else "convolution"
