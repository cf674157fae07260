"""Predicted memory under levers against PyTorch's CUDA code on an emulated GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from profiler.devices.table import lookup
from profiler.prediction.report import predict
from profiler.running.emulated.gpu import emulated_environment
from profiler.workload import Candidate, Lever, Workload

HERE = Path(__file__).parent

DEVICE = "rtx-3060"

MODELS = (
    "resnet18", "mobilenetv3_large_100", "efficientnet_b0", "convnext_tiny",
    "vit_small_patch16_224", "resnext50_32x4d", "mambavision_t",
)  # fmt: skip

LEVERS: tuple[tuple[Lever, ...], ...] = (
    (), ("fused",), ("channels_last",), ("channels_last", "fused"),
)  # fmt: skip

STEPS = 3
"""The optimizer's state is made in the first; the third repeats the second."""

Row = dict[str, Any]


def workloads() -> list[Workload]:
    """Return the cells of the study."""
    base = Workload(model="resnet18", micro_batch=8, num_classes=10)
    found = []
    for model in MODELS:
        for precision in ("fp32", "fp16", "bf16"):
            for levers in LEVERS:
                full = base.replace(model=model, precision=precision, levers=levers)
                found.append(full)
                if precision != "bf16":
                    found.append(full.replace(method="lora", rank=8))
    for model in ("resnet18", "vit_small_patch16_224"):
        sgd = base.replace(model=model, precision="fp16", optimizer="sgd", grad_clip=1.0)
        found += [sgd.replace(accumulation=2, levers=levers) for levers in LEVERS[:2]]
    return found


def compare_all() -> list[Row]:
    """Return a row for each cell: real and predicted bytes."""
    cells = workloads()
    rows: list[Row] = []
    while len(rows) < len(cells):
        new = list(_run_on_emulated_gpu(len(rows)))
        rows += new or [{"failed": "the process died"}]
    device = lookup(DEVICE)
    for row, workload in zip(rows, cells, strict=True):
        row["workload"] = workload.to_json()
        memory = predict(Candidate(workload=workload), device=device).memory
        row["predicted"] = {"peak": memory.peak_bytes, "reserved": memory.reserved_bytes}
    return rows


def _run_on_emulated_gpu(first: int) -> Iterator[Row]:
    """Yield the rows of a process that begins with a cell, until it ends."""
    environment = os.environ | {
        **emulated_environment(lookup(DEVICE), memory_bytes=80 << 30),
        "PYTHONPATH": str(HERE.parents[1]),
    }
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", str(HERE / "memory.py"), str(first)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            yield json.loads(line)


def run_cells(first: int) -> None:
    """Run the cells from one on; print a row for each."""
    import gc

    import torch

    from profiler.running.measurement import build_step
    from profiler.running.memory_caps import use_planned_configuration

    use_planned_configuration()
    for workload in workloads()[first:]:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        step, batches = build_step(Candidate(workload=workload), device="cuda")
        for _ in range(STEPS - 1):
            step.run(batches)
        reserved = torch.cuda.max_memory_reserved()
        torch.cuda.reset_peak_memory_stats()
        step.run(batches)
        row = {
            "peak": torch.cuda.max_memory_allocated(),
            "reserved": max(reserved, torch.cuda.max_memory_reserved()),
        }
        del step, batches
        print(json.dumps(row), flush=True)
    os._exit(0)  # the emulated driver has nothing to close


def summary_of(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Return the errors of predicted peaks and reserves; None without rows."""
    whole = [row for row in rows if "peak" in row]
    if not whole:
        return None

    def errors(name: str, *, with_levers: bool) -> Row:
        some = [row for row in whole if bool(row["workload"].get("levers")) == with_levers]
        relative = [row["predicted"][name] / row[name] - 1.0 for row in some]
        return {
            "rows": len(some),
            "equal": sum(row["predicted"][name] == row[name] for row in some),
            "largest_error": round(max(map(abs, relative)), 4),
        }

    return {
        "cells": len(rows),
        "failed": len(rows) - len(whole),
        **{
            f"{name}, {'with' if levers else 'without'} levers": errors(name, with_levers=levers)
            for name in ("peak", "reserved")
            for levers in (True, False)
        },
    }


if __name__ == "__main__":
    run_cells(int(sys.argv[1]))
