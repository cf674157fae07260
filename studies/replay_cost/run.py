"""What does a warm replay cost, in seconds and in memory of the host?

    python studies/replay_cost/run.py [--repeats 5] [--abridged]

Wall seconds of ``profiler.replay.step_replay.replay`` (forward, backward, AdamW; target CUDA), the model's
construction included, after one replay that loads what is loaded once:

    batch   ViT-S at micro-batch 1 to 256: must not matter
    depth   ViT-S, ViT-B, ViT-L (24 blocks) and ViT-S with 24 and 48 blocks: linear in operations
    host    peak resident memory of a process that replays ViT-g/14 (1.1 thousand million weights,
            4.5 GB in float32), in a process of its own

``--abridged`` asks another question: what is gained, and lost, by replaying
three of a row of like units (``profiler.replay.repeated_units``), as the search's profiles are made? Forward and
backward only, whole and abridged in turn; *equal* says that every storage has the same size, birth
and death.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from harness import Rows, write_summary

from profiler.devices.table import lookup
from profiler.models.backbones import WeightSource
from profiler.models.build import BuiltModel, build_model
from profiler.models.checkpointable_units import find_units
from profiler.models.methods import get_method
from profiler.models.parameter_count import count_parameters
from profiler.replay.step_replay import ReplayOptions, replay_built_model, replay_step
from profiler.workload import Candidate, Workload

HERE = Path(__file__).parent
BATCHES = (1, 4, 16, 64, 256)
MODELS = ("vit_s", "vit_b", "vit_large_patch16_224")
DEPTHS = (12, 24, 48)
HUGE = "vit_giant_patch14_dinov2"
ABRIDGED = (
    ("vit_s", "full"),
    ("vit_s", "lora"),
    ("vit_large_patch16_224", "full"),
    ("vim_s", "full"),
    ("vim_s", "lora"),
    ("convnext_tiny", "full"),
    ("tiny_vit", "full"),
    ("mambavision_t", "full"),
)
DEVICE = lookup("rtx-2060-super")
ROWS = Rows(HERE)


def deeper(workload: Workload, depth: int) -> BuiltModel:
    """Return ViT-S with another number of blocks, on meta."""
    import timm
    import torch

    with torch.device("meta"):
        backbone = timm.create_model("vit_small_patch16_224", depth=depth, num_classes=1000)
    backbone.train()
    method = get_method("full")
    return BuiltModel(
        model=method.apply(backbone, workload),
        name=f"ViT-S of {depth} blocks",
        method=method,
        units=find_units(backbone),
        weights=WeightSource(kind="random", detail="shapes only"),
    )


def timed(candidate: Candidate, repeats: int, *, depth: int | None = None) -> dict[str, Any]:
    """Return seconds of warm replays and the number of operations."""
    seconds, operations = [], 0
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        if depth is None:
            log = replay_step(candidate, device=DEVICE)
        else:
            built = deeper(candidate.workload, depth)
            log = replay_built_model(built, candidate, device=DEVICE)
        if repeat:
            seconds.append(round(time.perf_counter() - start, 4))
        operations = len(log.operations)
    return {
        "model": candidate.workload.model,
        "depth": depth,
        "micro_batch": candidate.workload.micro_batch,
        "operations": operations,
        "storages": len(log.nbytes),
        "seconds": seconds,
        "median_seconds": statistics.median(seconds),
        "peak_bytes": log.peak_bytes,
    }


def abridged(repeats: int) -> list[dict[str, Any]]:
    """Return seconds of whole and of abridged replays, and whether their logs are equal."""
    rows = []
    for model, method in ABRIDGED:
        rank = 8 if method == "lora" else None
        candidate = Candidate(
            workload=Workload(model=model, method=method, rank=rank, micro_batch=32)
        )
        seconds: dict[bool, list[float]] = {False: [], True: []}
        logs = {}
        for _ in range(repeats + 1):
            for short, taken in seconds.items():
                start = time.perf_counter()
                options = ReplayOptions(optimizer=False, repeated_units=short)
                logs[short] = replay_step(candidate, device=DEVICE, options=options)
                taken.append(round(time.perf_counter() - start, 4))
        medians = {short: statistics.median(taken[1:]) for short, taken in seconds.items()}
        names = ("nbytes", "birth", "death", "owner", "unit")
        equal = all(
            np.array_equal(getattr(logs[False], name), getattr(logs[True], name)) for name in names
        )
        rows.append(
            {
                "model": model,
                "method": method,
                "units": len(logs[False].units),
                "whole_seconds": seconds[False][1:],
                "repeated_seconds": seconds[True][1:],
                "ratio": round(medians[False] / medians[True], 2),
                "equal": equal,
            }
        )
        print(rows[-1], flush=True)
    return rows


def host() -> dict[str, Any]:
    """Replay the huge model and return this process's peak resident memory."""
    import torch

    workload = Workload(model=HUGE, micro_batch=8)
    build_model(Workload(model="vit_t"), device="meta")
    imports = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.perf_counter()
    log = replay_step(Candidate(workload=workload), device=DEVICE)
    return {
        "model": HUGE,
        "parameters": count_parameters(workload).total,
        "replayed_peak_bytes": log.peak_bytes,
        "seconds": round(time.perf_counter() - start, 3),
        "resident_bytes_before": imports,
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "torch": str(torch.__version__),
    }


def main() -> None:
    """Measure all three and write the rows and the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--abridged", action="store_true", help="only whole against abridged")
    parser.add_argument("--host", action="store_true", help="only the huge model, in this process")
    options = parser.parse_args()
    if options.host:
        print(json.dumps(host()))
        return
    load_before = os.getloadavg()
    if options.abridged:
        _write("repeated_units", abridged(options.repeats), load_before)
        return
    small = Workload(model="vit_s", micro_batch=32)
    by_batch = [
        timed(Candidate(workload=small.replace(micro_batch=b)), options.repeats) for b in BATCHES
    ]
    by_model = [timed(Candidate(workload=small.replace(model=m)), options.repeats) for m in MODELS]
    by_depth = [timed(Candidate(workload=small), options.repeats, depth=d) for d in DEPTHS]
    child = subprocess.run(
        [sys.executable, __file__, "--host"], capture_output=True, text=True, check=True
    )
    _write("batch", by_batch, load_before)
    _write("models", by_model, load_before)
    _write("depth", by_depth, load_before)
    _write("host", [json.loads(child.stdout.splitlines()[-1])], load_before)


def _write(part: str, rows: list[dict[str, Any]], load_before: tuple[float, ...]) -> None:
    """Replace the rows of a part, then write the summary."""
    kept = [row for row in ROWS.read() if row["part"] != part]
    ROWS.write(kept)
    load = {"load_before": load_before, "load_after": os.getloadavg()}
    ROWS.append(*({"part": part, **row, **load} for row in rows))
    ROWS.pack()
    summarise()


def summarise() -> None:
    """Write ``summary.json``."""
    found = ROWS.read()

    def of(part: str) -> list[dict[str, Any]]:
        return [row for row in found if row["part"] == part]

    write_summary(
        HERE,
        found,
        seconds_by_batch={row["micro_batch"]: row["median_seconds"] for row in of("batch")},
        seconds_by_depth={row["depth"]: row["median_seconds"] for row in of("depth")},
        host_peak_resident_bytes=of("host")[0]["peak_resident_bytes"],
        repeated_units_ratio={
            f"{row['model']} {row['method']}": row["ratio"] for row in of("repeated_units")
        },
        repeated_units_equal=all(row["equal"] for row in of("repeated_units")),
    )


if __name__ == "__main__":
    main()
