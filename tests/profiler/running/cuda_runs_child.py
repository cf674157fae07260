"""Real runs on the emulated GPU of this process: their cap and their settings."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from planner.training.validation_messages import ValidationRequest
from planner.training.validation_run import run_validation
from profiler.running.measurement import MeasurementRequest, run_measurement
from profiler.timing.calibration_cells import CellsRequest, run_cells
from profiler.units import GIB, MIB
from profiler.workload import Candidate, Workload

CANDIDATE = Candidate(
    workload=Workload(model="test_vit", method="head", num_classes=10, micro_batch=8, image_size=32)
)


def silent(text: str, done: float) -> None:
    """Show no progress."""


def measurement(cap_bytes: int) -> object:
    """Measure a few steps."""
    request = MeasurementRequest(
        candidate=CANDIDATE, device="cuda", cap_bytes=cap_bytes, steps=1, warmup=1
    )
    return run_measurement(request, silent)


def validation(cap_bytes: int) -> object:
    """Train a few steps on digits; the emulated kernels make no loss."""
    request = ValidationRequest(
        candidate=CANDIDATE, device="cuda", budget_bytes=cap_bytes, data="digits", steps=2, seed=0,
        weights=None, pretrained=False, recipe=None, training_seconds=9.0, test_seconds=9.0,
    )  # fmt: skip
    return run_validation(request, silent)


def cells(cap_bytes: int) -> object:
    """Time a calibration cell, which has no cap."""
    return run_cells(CellsRequest(device="cuda", candidates=(CANDIDATE,), rounds=1), silent)


def state_after(run: Callable[[int], object], cap_bytes: int) -> dict[str, Any]:
    """Return the error of a run and the settings that it has made."""
    native: Any = torch.backends.python_native
    native.triton.enabled, torch.backends.cudnn.benchmark = True, True
    torch.cuda.set_per_process_memory_fraction(1.0)
    try:
        run(cap_bytes)
        error = ""
    except Exception as raised:
        error = type(raised).__name__
    total = torch.cuda.get_device_properties(0).total_memory
    return {
        "error": error,
        "cap_bytes": round(torch.cuda.get_per_process_memory_fraction() * total),
        "compiles": native.triton.enabled,
        "benchmark": torch.backends.cudnn.benchmark,
    }


found = {
    "too small": state_after(measurement, 301 * MIB),  # first, while no block is kept
    "measurement": state_after(measurement, 2 * GIB),
    "validation": state_after(validation, 2 * GIB),
    "cells": state_after(cells, 0),
}
sys.stdout.write(json.dumps(found))
sys.stdout.flush()
os._exit(0)
