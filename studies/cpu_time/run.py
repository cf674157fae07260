"""How far are predicted seconds on a CPU from measured ones? README.md has the answer.

    python studies/cpu_time/run.py [--minutes 30]   # rows.jsonl
    python studies/cpu_time/run.py --summary        # rows.jsonl.gz, summary.json

One process with one thread. For each backbone in turn, the rates are timed, then cells of it and of
the other backbones are run, and the clock is the processor time of the process, since other
programs share the machine. Each cell runs twice, with other cells between; cells whose two readings
differ by more than 10 % are dropped. The overhead of recomputation is read from steps with and
without it in turn, since two times that are read minutes apart differ by several percent.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["BUDGETPLAN_CACHE"] = tempfile.mkdtemp(prefix="cpu_time-")
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import numpy as np
import torch
from harness import Rows, write_cpu_spread, write_summary

from profiler.devices.table import CPU
from profiler.environment import processor_name
from profiler.placement import Decision, Placement
from profiler.prediction.report import step_load
from profiler.replay.step_replay import KernelMemory, ReplayOptions, replay_step
from profiler.running.denormals import flush_denormals
from profiler.running.measurement import build_step
from profiler.running.memory_caps import keep_freed_memory
from profiler.timing.corrections import LoadedRun, fit_correction
from profiler.timing.rates import rates
from profiler.workload import Candidate, Workload

ROWS = Rows(HERE)
BACKBONES = {
    "resnet18": 96, "mobilenetv3_large_100": 128, "efficientnet_b0": 128, "vit_tiny_patch16_224": 224,
    "convnext_atto": 128, "swin_tiny_patch4_window7_224": 224,
}  # fmt: skip
METHODS = ("full", "lora", "bitfit")
BATCHES = (1, 4, 8)
PLACEMENTS = (Decision.KEEP, Decision.RECOMPUTE, Decision.DROP_CHEAP)
LARGEST_DIFFERENCE = 0.1

Waiting = tuple[Candidate, list[float], float, list[list[float]]]
"""A cell whose second reading is to come: predicted load, Python's part, first reading."""

PYTHON_FACTORS = np.arange(0.5, 2.01, 0.01)
"""Factors on Python's part of recomputation, of which the best one is chosen without a backbone."""


def cells() -> list[Candidate]:
    """Return all cells, backbones in turn; each third has recomputation."""
    rng = random.Random(0)
    by_backbone = []
    for model, size in BACKBONES.items():
        found = []
        for method, batch in itertools.product(METHODS, BATCHES):
            if model.startswith("swin") and batch == 8:
                continue
            workload = Workload(
                model=model, method=method, micro_batch=batch, image_size=size, num_classes=10
            )
            found.append((workload, Decision.KEEP))
            if batch == 4 and method != "bitfit":
                found += [(workload, decision) for decision in PLACEMENTS[1:]]
        rng.shuffle(found)
        by_backbone.append(found)
    turns = itertools.zip_longest(*by_backbone)
    return [_candidate(*cell) for turn in turns for cell in turn if cell is not None]


def _candidate(workload: Workload, decision: Decision) -> Candidate:
    from profiler.models.build import build_model

    if decision is Decision.KEEP:
        return Candidate(workload=workload)
    units = build_model(workload, device="meta").units
    return Candidate(workload=workload, placement=Placement(dict.fromkeys(units, decision)))


def name_of(candidate: Candidate) -> str:
    """Return a readable name of a cell."""
    load, decisions = candidate.workload, set(candidate.placement.decisions.values())
    placed = next(iter(decisions)).value if decisions else "keep"
    return f"{load.model} {load.method} {load.micro_batch} {placed}"


def measured(candidate: Candidate, steps: int = 3) -> list[list[float]]:
    """Return the processor seconds of a few steps, and of steps without recomputation in turn."""
    candidates = [candidate]
    if candidate.placement.decisions:
        candidates.append(Candidate(workload=candidate.workload))
    runs = [build_step(each, device="cpu") for each in candidates]
    for step, batches in [*runs, *runs]:
        step.run(batches)
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(steps):
        for (step, batches), found in zip(runs, seconds, strict=True):
            start = time.process_time()
            step.run(batches)
            found.append(time.process_time() - start)
    return seconds


def predicted(candidate: Candidate) -> tuple[list[float], float]:
    """Return the load of a step, with rates that this process timed, and Python's part of it.

    Python's part is that of recomputation.
    """
    options = ReplayOptions(kernel_memory=KernelMemory.NONE)
    log = replay_step(candidate, device=CPU, options=options)
    found = rates(CPU, candidate.workload, corrected=False)
    assert found is not None
    python = found.python_seconds(
        [op.begins_refill for op in log.operations], [op.intercepted for op in log.operations]
    )
    return step_load(log, found, candidate.workload).tolist(), float(python.sum())


def run(minutes: float) -> None:
    """Run cells until the time is over; a cell's second reading comes a few cells later."""
    torch.set_num_threads(1)
    keep_freed_memory()  # both as in a training
    flush_denormals()
    torch.manual_seed(0)
    end = time.monotonic() + 60 * minutes
    done = {row["cell"] for row in ROWS.read() if row["processor"] == processor_name()}
    waiting: list[Waiting] = []
    for candidate in [c for c in cells() if name_of(c) not in done]:
        if time.monotonic() > end:
            break
        waiting.append((candidate, *predicted(candidate), measured(candidate)))
        if len(waiting) == len(BACKBONES):
            _second(waiting)
            waiting = []
    _second(waiting)


def _second(waiting: list[Waiting]) -> None:
    for candidate, load, python, first in waiting:
        second = measured(candidate)
        ROWS.append(
            {
                "cell": name_of(candidate),
                "model": candidate.workload.model,
                "method": candidate.workload.method,
                "load": load,
                "python_seconds": python,
                "first_seconds": min(first[0]),
                "second_seconds": min(second[0]),
                "pairs": _pairs(first) + _pairs(second),
            }
        )
        print(name_of(candidate), f"{load[0] / min(*first[0], *second[0]):.3f}", flush=True)


def _pairs(seconds: list[list[float]]) -> list[tuple[float, float]]:
    """Return the seconds of neighbouring steps with and without recomputation."""
    return list(zip(*seconds, strict=True)) if len(seconds) == 2 else []


def summary() -> dict[str, Any]:
    """Return the errors on each processor, and the spread over all of them."""
    rows = ROWS.read()
    by_processor = {
        name: list({row["cell"]: row for row in rows if row["processor"] == name}.values())
        for name in sorted({row["processor"] for row in rows})
    }
    kept = [row for mine in by_processor.values() for row in agreeing(mine)]
    ratios = [min(row["first_seconds"], row["second_seconds"]) / row["load"][0] for row in kept]
    return {
        "clock": "processor time of the process, one thread",
        "kept": len(kept),
        "backbones": len({row["model"] for row in kept}),
        "spread": [round(float(q), 3) for q in np.quantile(ratios, (0.05, 0.95))],
        "by_processor": {name: of_processor(mine) for name, mine in by_processor.items()},
    }


def agreeing(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows whose two readings differ little."""
    return [
        row
        for row in rows
        if max(row["first_seconds"], row["second_seconds"])
        <= (1 + LARGEST_DIFFERENCE) * min(row["first_seconds"], row["second_seconds"])
    ]


def of_processor(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the errors of the cells of a processor whose readings agree."""
    from scipy.stats import kendalltau

    kept = agreeing(rows)
    seconds = np.array([min(row["first_seconds"], row["second_seconds"]) for row in kept])
    ratio = np.array([row["load"][0] for row in kept]) / seconds
    runs = [
        LoadedRun(backbone=r["model"], load=np.array(r["load"]), host_seconds=0.0, seconds=float(s))
        for r, s in zip(kept, seconds, strict=True)
    ]
    correction = fit_correction(runs)
    found: dict[str, Any] = {
        "cells": len(rows),
        "kept": len(kept),
        "backbones": len({row["model"] for row in kept}),
        "median_error": round(float(np.median(np.abs(ratio - 1))), 4),
        "p90_error": round(float(np.quantile(np.abs(ratio - 1), 0.9)), 4),
        "median_ratio": round(float(np.median(ratio)), 4),
        "tau": round(float(kendalltau(ratio * seconds, seconds)[0]), 4),
        "spread": [round(float(q), 3) for q in np.quantile(1 / ratio, (0.05, 0.95))],
        "overhead": _overheads(kept),
        "by_backbone": {
            model: round(
                float(
                    np.median([r for r, k in zip(ratio, kept, strict=True) if k["model"] == model])
                ),
                4,
            )
            for model in sorted({row["model"] for row in kept})
        },
    }
    if correction is not None:
        found["correction"] = {
            "factors": [round(f, 3) for f in correction.factors.tolist()],
            "median_error_left_out": round(float(correction.errors[1]), 4),
            "spread_left_out": [round(s, 3) for s in correction.spread.tolist()],
            "helps": correction.helps,
        }
    return found


def _overheads(kept: list[dict[str, Any]]) -> dict[str, Any]:
    """Return by how many points the predicted overhead of recomputation differs.

    The measured one is the median over pairs of neighbouring steps.
    """
    by_cell = {row["cell"]: row for row in kept}
    measured, found, python, models, halves = [], [], [], [], []
    for name, row in by_cell.items():
        plain = by_cell.get(f"{name.rpartition(' ')[0]} keep")
        if name.endswith(" keep") or plain is None:
            continue
        ratios = [with_it / without for with_it, without in row["pairs"]]
        half = len(ratios) // 2
        halves.append(100 * (np.median(ratios[:half]) - np.median(ratios[half:])))
        measured.append(100 * (np.median(ratios) - 1))
        found.append(100 * (row["load"][0] / plain["load"][0] - 1))
        python.append(100 * row.get("python_seconds", math.nan) / plain["load"][0])
        models.append(row["model"])
    points = np.array(found) - np.array(measured)
    values: dict[str, Any] = {"cells": len(points)} | _points(points)
    values["two_readings_differ_points"] = round(float(np.median(np.abs(halves))), 2)
    if np.isfinite(python).all():
        values["python"] = _python_factors(points, np.array(python), np.array(models))
    return values


def _points(points: np.ndarray) -> dict[str, float]:
    return {
        "median_points": round(float(np.median(np.abs(points))), 2),
        "largest_points": round(float(np.max(np.abs(points))), 2),
        "bias_points": round(float(np.median(points)), 2),
    }


def _python_factors(points: np.ndarray, python: np.ndarray, models: np.ndarray) -> dict[str, Any]:
    """Return the best factor on Python's part, and the errors with each backbone left out of it."""

    def best(of: np.ndarray) -> float:
        errors = [
            float(np.mean(np.abs(points + (factor - 1) * python)[of])) for factor in PYTHON_FACTORS
        ]
        return float(PYTHON_FACTORS[int(np.argmin(errors))])

    left_out = points.copy()
    for model in np.unique(models):
        out = models == model
        left_out[out] += (best(~out) - 1) * python[out]
    everything = np.ones(len(points), dtype=bool)
    return {"best_factor": round(best(everything), 2), "backbone_left_out": _points(left_out)}


def main() -> None:
    """Run the study or write its summary."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--summary", action="store_true")
    given = parser.parse_args()
    if given.summary:
        ROWS.pack()
        found = summary()
        write_summary(HERE, ROWS.read(), **found)
        processors = " and ".join(sorted({row["processor"] for row in ROWS.read()}))
        cells = f"{found['kept']} cells of {found['backbones']} backbones, {processors}"
        write_cpu_spread("training step", found["spread"], cells=cells, study="cpu_time")
    else:
        run(given.minutes)


if __name__ == "__main__":
    main()
