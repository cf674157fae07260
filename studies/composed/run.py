"""Do composed peaks equal replayed ones, and how many predictions a second are there?

    python studies/composed/run.py [--backbones vit_s,resnet18] [--minutes 30] [--summary] [--speed]

For every backbone and method that go together, a few candidates with micro-batch up to 256, rank up
to 64, accumulation, both precisions and five kinds of placement are composed by
``planner.cost.model.CostModel`` and replayed by ``profiler.replay.step_replay``. Families are profiled at micro-batch
1009 and ranks 4 and 8, so every cell is away from where the profile was taken. Targets: an RTX 2060
SUPER, and a CPU; on the CPU what kernels take inside one operation is probed by the replayed rung
and not composed, so both sides leave it out (studies/memory_truth says how much that is).

Families of the backbones are taken in turns, so that a run that ends early has seen all of them.
Rows go to ``rows.jsonl``; families that are there already are skipped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")


sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from harness import Rows, write_summary

from planner.cost.model import CostModel
from profiler.device_rules.caching_allocator import (
    AllocatorSettings,
    CachingAllocator,
    configuration,
)
from profiler.devices.table import DeviceSpec, device_spec, workspaces_of
from profiler.errors import UsageError
from profiler.models.methods.registry import get_method, method_names
from profiler.placement import Decision, Placement, PolicyChoice, placement_to_json
from profiler.prediction.allocator_steps import run_steps
from profiler.replay.event_log import EventLog
from profiler.store import Store
from profiler.units import DeviceBytes
from profiler.workload import Candidate, Workload

HERE = Path(__file__).parent
ROWS, SPEED = Rows(HERE), Rows(HERE, "speed")
SEED = 20260727
FAR_BUDGET = DeviceBytes(1)
"""A budget that no candidate is near to, so that the allocator is not read: it is composed bytes
that this study compares."""
DEVICES = {"cuda": "rtx-2060-super", "cpu": "cpu"}
BACKBONES = (
    *("vit_s", "resnet18", "mobilenetv2", "mobilenetv3", "tiny_vit", "convnext_t", "swin_t"),
    *("dinov2_s", "vim_s", "mambavision_t"),
)
METHODS = (*method_names(), "partial_3")
BATCHES = (1, 3, 5, 8, 16, 32, 64, 128, 256)
RANKS = (1, 2, 6, 16, 32, 64)
PLACEMENTS = ("none", "static", "cheap", "alternate", "mixed")
CELLS_PER_FAMILY = 4


def families(backbone: str) -> Iterator[tuple[str, str, str]]:
    """Yield (method, precision, target), every method once and the common ones on both targets."""
    rng = random.Random(f"{SEED} {backbone}")
    for method in METHODS:
        precision, target = rng.choice(("fp32", "bf16")), rng.choice(tuple(DEVICES))
        yield method, precision, target
        if method in {"full", "lora", "bitfit"}:
            yield method, "fp32", "cuda" if target == "cpu" else "cpu"


def cells_of(
    backbone: str, method: str, precision: str, target: str, units: tuple[str, ...]
) -> Iterator[tuple[Workload, str, Placement]]:
    """Yield (workload, kind of placement, placement) of one family."""
    rng = random.Random(f"{SEED} {backbone} {method} {precision} {target}")
    kinds = rng.sample(PLACEMENTS, CELLS_PER_FAMILY)
    for kind in kinds:
        has_rank = get_method(method).default_rank is not None and method != "partial_k"
        workload = Workload(
            model=backbone,
            method=method,
            rank=rng.choice(RANKS) if has_rank else None,
            micro_batch=rng.choice(BATCHES),
            accumulation=rng.choice((1, 1, 4)),
            precision=precision,
            optimizer="adamw" if method == "galore" else rng.choice(("adamw", "sgd")),
            num_classes=100,
        )
        yield workload, kind, placement_of(kind, units, rng)


def placement_of(kind: str, units: tuple[str, ...], rng: random.Random) -> Placement:
    """Return a placement of that kind."""
    decisions = {
        "none": {},
        "static": dict.fromkeys(units, Decision.RECOMPUTE),
        "cheap": dict.fromkeys(units, Decision.DROP_CHEAP),
        "alternate": dict.fromkeys(units[::2], Decision.RECOMPUTE),
        "mixed": {
            unit: rng.choice((Decision.KEEP, Decision.DROP_CHEAP, Decision.RECOMPUTE))
            for unit in units
        },
    }
    return Placement(decisions=decisions[kind])


def in_turns(backbones: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """Yield (backbone, method, precision, target), one family of each backbone after another."""
    queues = []
    for backbone in backbones:
        queue = list(families(backbone))
        random.Random(f"{SEED} {backbone} order").shuffle(queue)
        queues.append([(backbone, *family) for family in queue])
    for turn in itertools.zip_longest(*queues):
        yield from (family for family in turn if family is not None)


def run_families(backbones: list[str], *, until: float) -> None:
    """Run what is left of the backbones' cells; no family is begun after a time."""
    done = done_cells()
    for backbone, method, precision, target in in_turns(backbones):
        if time.monotonic() > until:
            return
        family = f"{backbone} {method} {precision} {target}"
        if f"{family} end" in done:
            continue
        try:
            rows = list(run_family(backbone, method, precision, target))
        except UsageError as error:
            rows = [{"cell": family, "refused": str(error)}]
        except Exception as error:
            import traceback

            traceback.print_exc()
            print(f"FAILED {family}: {error}", flush=True)
            continue
        rows.append({"cell": f"{family} end"})
        ROWS.append(*rows)


def run_family(backbone: str, method: str, precision: str, target: str) -> Iterator[dict[str, Any]]:
    """Profile a family, then compose and replay its cells."""
    from profiler.replay.step_replay import KernelMemory, ReplayOptions, replay_step

    model = CostModel(device_spec(DEVICES[target]), Store.in_memory())
    base = Workload(model=backbone, method=method, precision=precision, num_classes=100)
    units = model.profiles.units(get_method(method).resolve(base))
    for workload, kind, placement in cells_of(backbone, method, precision, target, units):
        candidate = Candidate(workload=workload, placement=placement)
        model.prepare(workload)
        memory = KernelMemory.THIS_BATCH if target == "cuda" else KernelMemory.NONE
        start = time.perf_counter()
        composed = model.estimate(candidate, FAR_BUDGET).peak_bytes
        middle = time.perf_counter()
        log = replay_step(
            candidate, device=model.device, options=ReplayOptions(kernel_memory=memory)
        )
        end = time.perf_counter()
        replayed = _allocated_peak(log, model.device) if target == "cuda" else log.peak_bytes
        relative = (composed - replayed) / replayed
        name = (
            f"{backbone} {method} r{workload.rank} {kind} {precision} {workload.optimizer} "
            f"b{workload.micro_batch} x{workload.accumulation} {target}"
        )
        print(f"{relative:+.4%}  {name}", flush=True)
        yield {
            "cell": name,
            "workload": workload.to_json(),
            "placement": placement_to_json(placement, PolicyChoice(kind)),
            "target": target,
            "composed_bytes": composed,
            "replayed_bytes": replayed,
            "relative": relative,
            "first_quick_seconds": round(middle - start, 6),
            "replay_seconds": round(end - middle, 3),
        }


def _allocated_peak(log: EventLog, spec: DeviceSpec) -> int:
    """Return the highest that the modelled CUDA allocator has given out in a steady step."""
    allocator = CachingAllocator(AllocatorSettings.parse(configuration()))
    run_steps(allocator, log, steps=2, workspaces=workspaces_of(spec))
    return allocator.peak_allocated_bytes


def done_cells() -> dict[str, dict[str, Any]]:
    """Return the last row of every cell."""
    return ROWS.latest("cell")


# -- speed ---------------------------------------------------------------------------------------


def speed() -> dict[str, float]:
    """Return predictions per second of one process on candidates as a search draws them."""
    model = CostModel(device_spec(DEVICES["cuda"]), Store.in_memory())
    base = Workload(model="vit_s", method="lora", rank=8, num_classes=100)
    model.prepare(base)
    units = model.profiles.units(base)
    rng = random.Random(SEED)
    found = {}
    for kind, several in (("none", False), ("mixed", True)):
        placements = [placement_of(kind, units, rng) for _ in range(500 if several else 1)]
        candidates = [
            Candidate(
                workload=base.replace(
                    micro_batch=rng.choice(BATCHES), rank=rng.choice(RANKS), accumulation=a
                ),
                placement=rng.choice(placements),
            )
            for a in (1, 4)
            for _ in range(5000)
        ]
        for candidate in candidates:  # interns workloads and placements
            model.estimate(candidate, FAR_BUDGET)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            for candidate in candidates:
                model.estimate(candidate, FAR_BUDGET)
            times.append(time.perf_counter() - start)
        found[f"{kind}_per_second_median"] = len(candidates) / statistics.median(times)
        found[f"{kind}_per_second_best"] = len(candidates) / min(times)
    fresh = [placement_of("mixed", units, rng) for _ in range(5000)]
    start = time.perf_counter()
    for placement in fresh:
        model.estimate(Candidate(workload=base, placement=placement), FAR_BUDGET)
    found["never_seen_placement_per_second"] = len(fresh) / (time.perf_counter() - start)
    return found


def summary() -> dict[str, Any]:
    """Read the cells and return the distribution."""
    rows = done_cells().values()
    ran = [row for row in rows if "relative" in row]
    errors = sorted(abs(row["relative"]) for row in ran)
    return {
        "cells": len(ran),
        "refused": sum("refused" in row for row in rows),
        "median_relative": statistics.median(errors),
        "within_0.1_percent": sum(e <= 0.001 for e in errors) / len(errors),
        "within_1_percent": sum(e <= 0.01 for e in errors) / len(errors),
        "largest_relative": errors[-1],
        "worst": [
            {"cell": row["cell"], "relative": row["relative"]}
            for row in sorted(ran, key=lambda row: -abs(row["relative"]))[:5]
        ],
    }


def main() -> None:
    """Run what is left, then summarise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", default=",".join(BACKBONES))
    parser.add_argument("--summary", action="store_true", help="only write summary.json")
    parser.add_argument("--speed", action="store_true", help="only measure the speed")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no family after")
    options = parser.parse_args()
    if not (options.summary or options.speed):
        until = time.monotonic() + 60 * options.minutes
        run_families(options.backbones.split(","), until=until)
    if options.speed:
        SPEED.append(speed())
    ROWS.pack()
    SPEED.pack()
    results = summary() | {"speed": SPEED.read()[-1]}
    write_summary(HERE, ROWS.read(), **results)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
