"""One evaluator for every placement, ours and the peers': PyTorch's own estimators on fake tensors.

Peak: live tensor bytes of one forward and backward (no optimizer state), from budgetplan's replay,
cross-checked against ``torch.distributed._tools.MemTracker``. Time: the A100 roofline of
``torch.distributed._tools.RuntimeEstimator`` with ``prim.device`` queries not billed as traffic
(facts/peers.md B2), which is neither trained on nor known to the planner.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed._tools.runtime_estimator import RuntimeEstimator
from torch.nn import functional as F
from torch.utils import _runtime_estimation

from profiler.assembly import assemble
from profiler.checkpointing import apply_placement
from profiler.replay import replay, to_fake
from profiler.workload import Candidate

_runtime_estimation._IGNORE_OPS.add(torch.ops.prim.device)


@contextmanager
def _pretended_accelerator():
    """RuntimeEstimator refuses to start without one, though it then reads a data sheet only."""
    original = torch.accelerator.is_available
    torch.accelerator.is_available = lambda: True
    try:
        yield
    finally:
        torch.accelerator.is_available = original


def _make_fake(assembly, candidate):
    to_fake(assembly.model)
    apply_placement(assembly.model, candidate.placement, units=assembly.units)
    return assembly.model


def _one_pass(model, workload):
    size = workload.image_size
    images = torch.empty(workload.micro_batch, 3, size, size)
    labels = torch.empty(workload.micro_batch, dtype=torch.long)
    F.cross_entropy(model(images), labels).backward()


def step_milliseconds(candidate: Candidate, prepare=None) -> float:
    """A100 roofline of one forward and backward; ``prepare`` may wrap the model otherwise."""
    assembly = assemble(candidate.workload, device="meta")
    with FakeTensorMode(allow_non_fake_inputs=True), _pretended_accelerator():
        model = _make_fake(assembly, candidate)
        if prepare is not None:
            prepare(model)
        estimator = RuntimeEstimator(gpu_type="NVIDIA A100")
        with estimator(estimate_mode_type="operator-level-cost-model"):
            _one_pass(model, candidate.workload)
        return estimator.total_runtime


def live_peak_bytes(candidate: Candidate) -> int:
    """Peak of live bytes of one forward and backward, from budgetplan's recorder."""
    return replay(candidate, target="cpu", optimizer=False, inside_kernels=False).peak_bytes


def tracked_peak_bytes(candidate: Candidate, prepare=None) -> int:
    """The same from PyTorch's MemTracker."""
    assembly = assemble(candidate.workload, device="meta")
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = _make_fake(assembly, candidate)
        if prepare is not None:
            prepare(model)
        tracker = MemTracker()
        tracker.track_external(model)
        with tracker:
            _one_pass(model, candidate.workload)
        peak = tracker.get_tracker_snapshot("peak")
    return int(next(iter(peak.values()))["Total"])
