"""One evaluator for every placement, ours and the peers': fake tensors, PyTorch's own time estimate.

Peak: live tensor bytes of one forward and backward (no optimizer state), from budgetplan's replay,
cross-checked against ``torch.distributed._tools.MemTracker``. Time: the A100 roofline of
``torch.distributed._tools.RuntimeEstimator`` with ``prim.device`` queries and
allocations not billed as traffic, which is not the planner's own. A peer changes the model itself
(``alter``) instead of handing in a placement.
"""

from __future__ import annotations

import contextlib
import io
from contextlib import contextmanager

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed._tools.runtime_estimator import RuntimeEstimator
from torch.nn import functional as F
from torch.utils import _runtime_estimation
from torch.utils.flop_counter import flop_registry

from profiler.checkpointing.apply import apply_placement
from profiler.devices.table import CPU
from profiler.models.build import build_model
from profiler.replay.fake_model import to_fake
from profiler.replay.step_replay import replay_built_model
from profiler.timing.roofline import Rates
from profiler.workload import Candidate

_runtime_estimation._IGNORE_OPS.add(torch.ops.prim.device)
_runtime_estimation._IGNORE_OPS.add(torch.ops.aten.new_empty)  # a scan's scratch: it moves nothing
# torch 2.14 bills the CPU's flash attention no FLOPs, 2.15 as many as CUDA's
_ATEN = torch.ops.aten
for cpu, cuda in {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _ATEN._scaled_dot_product_flash_attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: (
        _ATEN._scaled_dot_product_flash_attention_backward
    ),
}.items():
    flop_registry.setdefault(cpu, flop_registry[cuda])

EVALUATOR_RATES = Rates(
    flops_per_second=29.25e12,
    bytes_per_second=2.04e12,
    watts=None,
    source="what RuntimeEstimator bills an A100 in fp32: 1.5 x 19.5 TFLOP/s and 2.04 TB/s",
)


@contextmanager
def pretended_accelerator():
    """RuntimeEstimator refuses to start without one, though it then reads a data sheet only."""
    original = torch.accelerator.is_available
    torch.accelerator.is_available = lambda: True
    try:
        yield
    finally:
        torch.accelerator.is_available = original


def altered(candidate: Candidate, alter=None):
    """Return the built model on ``meta``, changed by a peer if there is one."""
    built = build_model(candidate.workload, device="meta")
    if alter is not None:
        alter(built.backbone)
    return built


def one_pass(model, workload) -> None:
    """Run every micro-batch of a step forward and backward."""
    size = workload.image_size
    for _ in range(workload.accumulation):
        images = torch.empty(workload.micro_batch, 3, size, size)
        labels = torch.empty(workload.micro_batch, dtype=torch.long)
        F.cross_entropy(model(images), labels).backward()


def step_milliseconds(candidate: Candidate, alter=None) -> float:
    """A100 roofline of the forwards and backwards of one step."""
    built = altered(candidate, alter)
    with FakeTensorMode(allow_non_fake_inputs=True), pretended_accelerator():
        to_fake(built.model)
        apply_placement(built.model, candidate.placement, units=built.units)
        estimator = RuntimeEstimator(gpu_type="NVIDIA A100")
        with contextlib.redirect_stdout(io.StringIO()):
            with estimator(estimate_mode_type="operator-level-cost-model"):
                one_pass(built.model, candidate.workload)
        return float(estimator.total_runtime)


def live_peak_bytes(candidate: Candidate, alter=None) -> int:
    """Peak of live bytes of the forwards and backwards of one step, from budgetplan's recorder."""
    workload = candidate.workload
    shown = workload.replace(accumulation=min(workload.accumulation, 2))
    short = Candidate(workload=shown, placement=candidate.placement)
    return replay_built_model(altered(short, alter), short, device=CPU, optimizer=False).peak_bytes


def tracked_peak_bytes(candidate: Candidate, alter=None) -> int:
    """The same from PyTorch's MemTracker."""
    built = altered(candidate, alter)
    with FakeTensorMode(allow_non_fake_inputs=True):
        to_fake(built.model)
        apply_placement(built.model, candidate.placement, units=built.units)
        tracker = MemTracker()
        tracker.track_external(built.model)
        with tracker:
            one_pass(built.model, candidate.workload)
        peak = tracker.get_tracker_snapshot("peak")
    return int(next(iter(peak.values()))["Total"])
