"""On a real GPU: a replayed step against the CUDA allocator's own peaks (marker ``gpu``)."""

from __future__ import annotations

import pytest
import torch

from profiler.devices.nvml import open_gpu
from profiler.devices.table import DEVICES, device_spec
from profiler.errors import OutOfMemoryError
from profiler.placement import Decision, Placement
from profiler.prediction.report import predict
from profiler.running.measurement import measure
from profiler.units import MIB
from profiler.workload import Candidate, Workload

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

BLOCKS = {f"blocks.{index}": Decision.RECOMPUTE for index in range(12)}


@pytest.fixture(scope="module")
def device() -> str:
    name = open_gpu().spec.name
    if name not in DEVICES:
        pytest.skip(f"{name} is not in the device table")
    return name


@pytest.mark.parametrize(
    "candidate",
    [
        Candidate(workload=Workload(model="vit_t", micro_batch=64)),
        Candidate(workload=Workload(model="vit_t", micro_batch=64, precision="bf16")),
        Candidate(workload=Workload(model="vit_t", method="lora", micro_batch=128)),
        Candidate(
            workload=Workload(model="vit_t", micro_batch=128),
            placement=Placement(decisions=BLOCKS),
        ),
    ],
    ids=["full", "full-bf16", "lora", "static"],
)
def test_replayed_bytes_are_the_allocators(device: str, candidate: Candidate):
    predicted = predict(candidate, device=device_spec(device)).memory
    measured = measure(candidate, device=device).memory
    assert predicted.peak_bytes == pytest.approx(measured.peak_bytes, rel=0.05)
    assert predicted.reserved_bytes == pytest.approx(measured.reserved_bytes, rel=0.10)


def test_the_cap_is_hard(device: str):
    candidate = Candidate(workload=Workload(model="vit_t", micro_batch=64))
    needed = measure(candidate, device=device).memory.peak_bytes
    assert needed is not None
    with pytest.raises(OutOfMemoryError):
        measure(candidate, device=device, cap_bytes=needed - 128 * MIB)


def test_a_measurement_knows_its_energy_or_says_why_not(device: str):
    report = measure(Candidate(workload=Workload(model="vit_t", micro_batch=128)), device=device)
    assert report.step_seconds is not None and report.step_seconds > 0
    assert report.energy_joules is not None or len(report.notes) > 1
