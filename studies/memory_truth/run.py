"""Does a replayed peak equal what the CPU allocator does in a real training step?

    python studies/memory_truth/run.py [--backbones vit_s,resnet18] [--cheap] [--again] [--summary]

Every cell is a candidate: backbone x method x placement x precision x optimizer x micro-batch, some
with accumulation, gradient clipping, dropout or stochastic depth. The grid is drawn with a seed so
that every (backbone, method), (backbone, placement), (backbone, precision) and (backbone, optimizer)
pair occurs. A cell's *real* peak is ``profiler.device_rules.cpu_allocator.peak_during`` of one steady step: the
model is built and warmed up under the same recording (with few images: optimizer state does not
depend on the batch), so every byte is the allocator's own. *Replayed* is
``profiler.replay.step_replay.replay_step(device=CPU)``.

One process per backbone. Rows go to ``rows.jsonl``; cells that are there already are skipped, so that a run
can be stopped and continued. A cell that a method refuses or that fails is kept with its reason;
what failed is tried again. After a change of the replay, ``--again`` replays what has been measured
and keeps the measurements.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from harness import Rows, write_summary

from profiler.devices.table import CPU
from profiler.models.methods.registry import method_names
from profiler.placement import Decision, Placement
from profiler.workload import Candidate, Workload

HERE = Path(__file__).parent
ROWS = Rows(HERE)
SEED = 20260727
THREADS = 2

BACKBONES = {
    "resnet18": 16,
    "mobilenetv2": 16,
    "mobilenetv3": 16,
    "vit_s": 16,
    "dinov2_s": 8,
    "swin_t": 8,
    "tiny_vit": 8,
    "convnext_t": 8,
    "vim_s": 2,
    "mambavision_t": 4,
}
"""Backbone and the largest micro-batch of the grid (time and memory of the machine)."""
METHODS = (*method_names(), "peft:oft", "peft:vera")
PLACEMENTS = ("none", "static", "cheap", "alternate")
PRECISIONS = ("fp32", "bf16")
OPTIMIZERS = ("adamw", "sgd")
EXTRAS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"accumulation": 2},
    {"grad_clip": 1.0},
    {"drop_path": 0.1},
    {"accumulation": 3, "grad_clip": 1.0},
)


# -- the grid ------------------------------------------------------------------------------------


def grid() -> list[tuple[Workload, str]]:
    """Return every (workload, placement name) of the study, in the order they are run."""
    return [cell for backbone in BACKBONES for cell in _cells_of(backbone)]


def _cells_of(backbone: str) -> Iterator[tuple[Workload, str]]:
    rng = random.Random(f"{SEED} {backbone}")
    placements, precisions = _deal(PLACEMENTS, rng), _deal(PRECISIONS, rng)
    optimizers, extras = _deal(OPTIMIZERS, rng), _deal(EXTRAS, rng)
    small = _deal(tuple(b for b in (1, 1, 2, 3, 4) if b <= BACKBONES[backbone]), rng)
    for method in METHODS:
        yield _cell(backbone, method, next(small), placements, precisions, optimizers, extras)
    # every placement with every precision, at batches beyond the probed ones
    large = _deal(tuple(b for b in (2, 4, 6, 8, 16) if b <= BACKBONES[backbone]), rng)
    methods = _deal(("full", "lora", "bitfit", "full", "head"), rng)
    for placement in PLACEMENTS:
        for precision in PRECISIONS:
            yield _cell(
                backbone,
                next(methods),
                next(large),
                iter([placement]),
                iter([precision]),
                optimizers,
                extras,
            )


def _cell(
    backbone: str,
    method: str,
    batch: int,
    placements: Iterator[str],
    precisions: Iterator[str],
    optimizers: Iterator[str],
    extras: Iterator[dict[str, Any]],
) -> tuple[Workload, str]:
    # GaLore is an AdamW of its own and refuses others
    optimizer = "adamw" if method == "galore" else next(optimizers)
    changes = dict(next(extras))
    if method in {"lora", "dora", "qlora"} and "drop_path" in changes:
        changes["dropout"] = 0.1
    workload = Workload(
        model=backbone,
        method=method,
        micro_batch=batch,
        precision=next(precisions),
        optimizer=optimizer,
        num_classes=100,
        **changes,
    )
    return workload, next(placements)


def _deal(values: tuple[Any, ...], rng: random.Random) -> Iterator[Any]:
    """Yield the values again and again, each round in another order."""
    while True:
        yield from rng.sample(values, len(values))


def placement_of(name: str, units: tuple[str, ...]) -> Placement:
    """Return the placement of that name for a backbone's units."""
    decision = Decision.DROP_CHEAP if name == "cheap" else Decision.RECOMPUTE
    chosen = {"none": (), "alternate": units[::2]}.get(name, units)
    return Placement(decisions=dict.fromkeys(chosen, decision))


def name_of(workload: Workload, placement: str) -> str:
    """Return what a cell is called."""
    parts = [workload.model, workload.method, placement, workload.precision, workload.optimizer]
    parts.append(f"b{workload.micro_batch}")
    for field, mark in (("accumulation", "x"), ("grad_clip", "clip"), ("dropout", "dropout")):
        if getattr(workload, field) not in (None, 1, 0.0):
            parts.append(f"{mark}{getattr(workload, field)}")
    if workload.drop_path:
        parts.append(f"droppath{workload.drop_path}")
    return " ".join(parts)


# -- one cell ------------------------------------------------------------------------------------


def run_cell(workload: Workload, placement_name: str) -> dict[str, Any]:
    """Replay one candidate, really run it, and return both peaks."""
    from profiler.errors import UsageError
    from profiler.models.build import build_model
    from profiler.replay.step_replay import replay_step

    name = name_of(workload, placement_name)
    row: dict[str, Any] = {
        "cell": name,
        "workload": workload.to_json(),
        "placement": placement_name,
    }
    try:
        units = build_model(workload, device="meta").units
    except UsageError as error:
        return row | {"refused": str(error)}
    candidate = Candidate(workload=workload, placement=placement_of(placement_name, units))
    start = time.perf_counter()
    log = replay_step(candidate, device=CPU)
    middle = time.perf_counter()
    real = real_peak(candidate)
    end = time.perf_counter()
    difference = log.peak_bytes - real
    return row | {
        "replayed_bytes": log.peak_bytes,
        "real_bytes": real,
        "difference_bytes": difference,
        "relative": difference / real,
        "replay_seconds": round(middle - start, 2),
        "real_seconds": round(end - middle, 2),
    }


def replay_again(row: dict[str, Any]) -> dict[str, Any]:
    """Replay a measured cell with today's code; what was measured stays."""
    from profiler.models.build import build_model
    from profiler.replay.step_replay import replay_step

    workload = Workload.from_json(row["workload"])
    placement = placement_of(row["placement"], build_model(workload, device="meta").units)
    start = time.perf_counter()
    log = replay_step(Candidate(workload=workload, placement=placement), device=CPU)
    seconds = time.perf_counter() - start
    difference = log.peak_bytes - row["real_bytes"]
    return row | {
        "replayed_bytes": log.peak_bytes,
        "difference_bytes": difference,
        "relative": difference / row["real_bytes"],
        "replay_seconds": round(seconds, 2),
    }


def real_peak(candidate: Candidate) -> int:
    """Return the CPU allocator's peak over one steady step of a real model."""
    import torch

    from profiler.device_rules.cpu_allocator import peak_during
    from profiler.running.measurement import build_step

    torch.manual_seed(0)
    made: list[Any] = []

    def prepare() -> None:
        step, batches = build_step(candidate, device="cpu")
        made.extend((step, batches))
        size = candidate.workload.image_size
        count = min(2, candidate.workload.micro_batch)  # BatchNorm on vectors needs two

        def few_images() -> Any:
            return torch.rand(count, 3, size, size), torch.zeros(count, dtype=torch.long)

        step.run([few_images])

    return peak_during(prepare, lambda: made[0].run(made[1]))


# -- running -------------------------------------------------------------------------------------


def done_cells() -> dict[str, dict[str, Any]]:
    """Return the last row of every cell."""
    return ROWS.latest("cell")


def run_backbone(backbone: str, *, cheap: bool, again: bool) -> None:
    """Run what is left of one backbone's cells, in this process.

    Args:
        backbone: its name.
        cheap: only micro-batches 1 and 2.
        again: replay the measured cells anew instead.
    """
    import torch

    torch.set_num_threads(THREADS)
    done = done_cells()
    for workload, placement in _cells_of(backbone):
        name = name_of(workload, placement)
        known = done.get(name, {})
        if again != ("real_bytes" in known) or "refused" in known:
            continue
        if cheap and workload.micro_batch > 2:
            continue
        try:
            row = replay_again(known) if again else run_cell(workload, placement)
        except Exception as error:
            import traceback

            traceback.print_exc()
            row = {"cell": name, "failed": f"{type(error).__name__}: {str(error)[:300]}"}
        print(f"{row.get('relative', float('nan')):+.5%}  {name}", flush=True)
        ROWS.append(row)


def summary() -> dict[str, Any]:
    """Read the cells and return the distribution."""
    rows = done_cells()
    wanted = {name_of(*cell): cell for cell in grid()}
    known = [rows[name] for name in wanted if name in rows]
    ran = [row for row in known if "relative" in row]
    errors = sorted(abs(row["relative"]) for row in ran)
    return {
        "cells": len(ran),
        "refused": sum("refused" in row for row in known),
        "failed": sum("failed" in row for row in known),
        "missing": sum(name not in rows for name in wanted),
        "median_relative": statistics.median(errors),
        "largest_relative": errors[-1],
        "exact_cells": sum(row["difference_bytes"] == 0 for row in ran),
        "within_0.1_percent": sum(e <= 0.001 for e in errors),
        "within_0.5_percent": sum(e <= 0.005 for e in errors),
        "worst": [
            {"cell": r["cell"], "relative": r["relative"]}
            for r in sorted(ran, key=lambda r: -abs(r["relative"]))[:5]
        ],
    }


def main() -> None:
    """Run what is left, one process per backbone, then summarise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", default=",".join(BACKBONES))
    parser.add_argument("--cheap", action="store_true", help="only micro-batches 1 and 2")
    parser.add_argument("--again", action="store_true", help="replay the measured cells anew")
    parser.add_argument("--summary", action="store_true", help="only write summary.json")
    parser.add_argument("--here", action="store_true", help="run in this process")
    options = parser.parse_args()
    names = options.backbones.split(",")
    if not options.summary:
        for backbone in names:
            if options.here:
                run_backbone(backbone, cheap=options.cheap, again=options.again)
                continue
            command = [sys.executable, __file__, "--backbones", backbone, "--here"]
            flags = {"--cheap": options.cheap, "--again": options.again}
            subprocess.run([*command, *(f for f, on in flags.items() if on)], check=False)
    if not options.here:
        ROWS.pack()
        results = summary()
        write_summary(HERE, done_cells().values(), **results)
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
