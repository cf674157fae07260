"""Notes of a method on a backbone, for every report of a workload."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from profiler.workload import Workload


@cache
def method_notes(workload: Workload) -> tuple[str, ...]:
    """Return the method's remarks on the backbone, and one on frozen scales of zero."""
    from profiler.models import backbones
    from profiler.models.build import build_model
    from profiler.models.methods import get_method
    from profiler.models.zero_scales import zero_scale_note

    backbone = backbones.shared_shapes(
        workload.model,
        num_classes=workload.num_classes,
        image_size=workload.image_size,
    )
    remarks = get_method(workload.method).notes(backbone, workload)
    note = zero_scale_note(build_model(workload, device="meta").model, workload)
    return (*remarks, *([] if note is None else [note]))
