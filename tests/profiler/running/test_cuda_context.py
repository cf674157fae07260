"""The CUDA context of this process, on a GPU that other processes use as well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from profiler.devices import nvml
from profiler.devices.table import ASSUMED_CONTEXT, lookup
from profiler.errors import DeviceError
from profiler.running.cuda_context import read_context
from profiler.running.emulated.gpu import emulated_environment
from profiler.running.emulated.libraries import why_not_emulated
from profiler.units import GIB, KIB, MIB

CONTEXT = 180 * MIB


def gpu_where(processes: list[Any], monkeypatch: pytest.MonkeyPatch) -> nvml.NvmlGpu:
    """Return a GPU whose driver reports these processes."""
    library = types.SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: "NVIDIA GeForce RTX 3060",
        nvmlDeviceGetMemoryInfo=lambda handle: types.SimpleNamespace(total=12 * GIB, used=11 * GIB),
        nvmlDeviceGetCudaComputeCapability=lambda handle: (8, 6),
        nvmlDeviceGetComputeRunningProcesses=lambda handle: processes,
    )
    monkeypatch.setattr(nvml, "_nvml", lambda: library)
    return nvml.NvmlGpu()


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of 12 GiB with 1 GiB free, of which this process has reserved 2 GiB."""
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 2 * GIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (GIB, 12 * GIB))


def process(pid: int, nbytes: int | None) -> Any:
    return types.SimpleNamespace(pid=pid, usedGpuMemory=nbytes)


@pytest.mark.usefixtures("shared")
def test_the_memory_of_other_processes_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = process(os.getpid(), 2 * GIB + CONTEXT)
    gpu = gpu_where([process(1, 8 * GIB), mine], monkeypatch)
    found = read_context(gpu)
    assert found.nbytes == CONTEXT
    assert "read by NVML" in found.note


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize(
    "processes",
    [
        [],
        [process(1, 8 * GIB)],
        [process(os.getpid(), None)],  # Windows
        [process(os.getpid(), 3 * MIB)],  # another process, outside of this container
    ],
)
def test_a_context_that_cannot_be_read_is_assumed(
    processes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = gpu_where(processes, monkeypatch)
    for each in (gpu, DeviceError("no NVML")):
        found = read_context(each)
        assert found.nbytes == ASSUMED_CONTEXT.nbytes
        assert "assumed" in found.note


@pytest.mark.usefixtures("shared")
def test_it_is_at_most_what_is_in_use_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10 * GIB - 9 * MIB, 12 * GIB))
    assert read_context(gpu_where([], monkeypatch)).nbytes == 9 * MIB


@pytest.fixture(scope="module")
def runs() -> Any:
    """What real runs did on an emulated RTX 3060, on a machine without a C compiler."""
    reason = why_not_emulated()
    if reason:
        pytest.skip(reason)
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(here / "cuda_runs_child.py")],
        env=os.environ
        | emulated_environment(lookup("rtx-3060"))
        | {"PYTHONPATH": str(here.parents[2]), "PATH": "/nowhere", "CC": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("run", ["measurement", "validation"])
def test_a_real_run_is_capped_at_the_budget_less_the_context(runs: Any, run: str) -> None:
    assert runs[run]["cap_bytes"] == pytest.approx(2 * GIB - ASSUMED_CONTEXT.nbytes, abs=KIB)


def test_a_measurement_that_fits_without_the_context_only_runs_out_of_memory(runs: Any) -> None:
    assert runs["measurement"]["error"] == ""
    assert runs["too small"]["error"] == "OutOfMemoryError"


@pytest.mark.parametrize("run", ["measurement", "validation", "cells"])
def test_real_runs_have_the_planned_settings(runs: Any, run: str) -> None:
    """Without a C compiler, PyTorch's own Triton kernels cannot be started."""
    assert not runs[run]["compiles"]
    assert not runs[run]["benchmark"]
