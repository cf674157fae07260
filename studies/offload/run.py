"""Where does the host's memory pay? README.md has the answer.

    python studies/offload/run.py run [BACKBONE ...]   # rows.jsonl.gz; all backbones without names
    python studies/offload/run.py report               # summary.json

A cell is a backbone, a method and a GPU, at 32 images a step and the GPU's half precision. Four ways
may use every micro-batch that divides 32: recomputation alone (policy ``optimal``), with
activations on the host (``offload``), with AdamW's state there (``adamw_host``), and with both. For
each way the smallest budget that any micro-batch fits is computed; then, at budgets from the
smallest of all ways to the one in which nothing needs to be recomputed, the fastest step.
Everything is composed, and no GPU was at hand.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from harness import Rows, write_summary

from planner.cost.model import CostModel
from planner.search.space import divisors, precisions_for
from profiler.devices.table import DeviceSpec, device_spec
from profiler.errors import InfeasibleError, UsageError
from profiler.models import backbones
from profiler.store import Store
from profiler.units import DeviceBytes
from profiler.workload import Candidate, Workload

GPUS = ("rtx-2060-super", "rtx-4060", "rtx-3090")
BACKBONES = (
    ("vit_s", None), ("vit_s", 768), ("vit_large_patch16_224", None), ("swin_t", None),
    ("convnext_t", None), ("convnext_large", None), ("resnet50", None), ("resnet50", 768),
    ("tf_efficientnet_b4", None),
)  # fmt: skip
METHODS = (("full", None), ("lora", 8))
BATCH = 32
WAYS = {
    "recomputation": ("optimal", "adamw"),
    "activations": ("offload", "adamw"),
    "state": ("optimal", "adamw_host"),
    "both": ("offload", "adamw_host"),
}
BUDGETS = 6
ROWS = Rows(HERE)


def workloads_of(
    model: str, image_size: int, method: tuple[str, int | None], precision: str, optimizer: str
) -> Iterator[Workload]:
    """Yield the workload at every micro-batch, the largest first."""
    for micro_batch in reversed(divisors(BATCH)):
        yield Workload(
            model=model, method=method[0], rank=method[1], micro_batch=micro_batch,
            accumulation=BATCH // micro_batch, image_size=image_size, precision=precision,
            optimizer=optimizer, num_classes=100, frozen_batch_norm=True,
        )  # fmt: skip


def smallest(loads: list[Workload], policy: str, cost: CostModel) -> tuple[int, Candidate]:
    """Return the smallest budget of any micro-batch, and its candidate."""
    found = []
    for load in loads:
        try:
            candidate = cost.place(load, policy, DeviceBytes(1))
        except InfeasibleError as error:
            assert error.smallest_bytes is not None
            candidate = cost.place(load, policy, DeviceBytes(error.smallest_bytes))
        found.append((int(cost.estimate(candidate).device_bytes), candidate))
    return min(found, key=lambda pair: pair[0])


def fastest(
    loads: list[Workload], policy: str, cost: CostModel, budget: int
) -> tuple[float, Candidate] | None:
    """Return the least seconds of a step within a budget, and its candidate; None if none fits."""
    found = []
    for load in loads:
        try:
            candidate = cost.place(load, policy, DeviceBytes(budget))
        except InfeasibleError:
            continue
        seconds = cost.estimate(candidate).step_seconds
        assert seconds is not None
        found.append((seconds, candidate))
    return min(found, key=lambda pair: pair[0], default=None)


def kept_bytes(loads: list[Workload], cost: CostModel) -> int:
    """Return the device bytes of the largest micro-batch without recomputation."""
    return int(cost.estimate(Candidate(workload=loads[0])).device_bytes)


def cell_row(
    model: str, image_size: int, method: tuple[str, int | None], device: DeviceSpec, store: Store
) -> dict[str, Any]:
    """Return the smallest budgets and the fastest steps of a cell."""
    cost = CostModel(device, store)
    precision = precisions_for(device)[-1]
    loads = {
        optimizer: list(workloads_of(model, image_size, method, precision, optimizer))
        for optimizer in ("adamw", "adamw_host")
    }
    for listed in loads.values():
        cost.prepare(listed[0])
    least = {
        way: smallest(loads[optimizer], policy, cost) for way, (policy, optimizer) in WAYS.items()
    }
    low = min(found[0] for found in least.values())
    high = kept_bytes(loads["adamw"], cost)
    steps = []
    for budget in np.geomspace(1.01 * low, high, BUDGETS).round().astype(int).tolist():
        found = {
            way: fastest(loads[optimizer], policy, cost, budget)
            for way, (policy, optimizer) in WAYS.items()
        }
        steps.append(
            {
                "budget_bytes": budget,
                "step_seconds": {w: None if f is None else f[0] for w, f in found.items()},
                "chosen": {w: None if f is None else _words(f[1]) for w, f in found.items()},
            }
        )
    return {
        "model": model, "image_size": image_size, "method": method[0], "device": device.name,
        "precision": precision, "link_bytes_per_second": device.link_bytes_per_second,
        "smallest_bytes": {way: found[0] for way, found in least.items()},
        "smallest_step_seconds": {
            way: cost.estimate(found[1]).step_seconds for way, found in least.items()
        },
        "steps": steps,
    }  # fmt: skip


def _words(candidate: Candidate) -> dict[str, Any]:
    decisions = sorted(map(str, candidate.placement.decisions.values()))
    counts = {word: decisions.count(word) for word in dict.fromkeys(decisions)}
    return {"micro_batch": candidate.workload.micro_batch, "decisions": counts}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return ratios of smallest budgets, and of step times at equal budgets, by method and way."""
    table: dict[str, Any] = {}
    for method, _ in METHODS:
        chosen = [row for row in rows if row["method"] == method]
        for way in ("activations", "state", "both"):
            bytes_ratio, at_smallest, ratios, newly = [], [], [], 0
            for row in chosen:
                base, ours = row["smallest_bytes"]["recomputation"], row["smallest_bytes"][way]
                bytes_ratio.append(ours / base)
                seconds = row["smallest_step_seconds"]
                at_smallest.append(seconds[way] / seconds["recomputation"])
                for step in row["steps"]:
                    base_s, ours_s = (
                        step["step_seconds"]["recomputation"],
                        step["step_seconds"][way],
                    )
                    if base_s is None:
                        newly += ours_s is not None
                    elif ours_s is not None:
                        ratios.append(ours_s / base_s)
            table[f"{method}, {way}"] = {
                "cells": len(chosen),
                "smallest_budget_ratio": _spread(bytes_ratio),
                "step_ratio_at_the_smallest_budgets": _spread(at_smallest),
                "budgets_that_only_this_fits": newly,
                "budgets_that_both_fit": len(ratios),
                "step_ratio_at_equal_budgets": _spread(ratios),
                "faster_by_a_percent_or_more": int(sum(ratio < 0.99 for ratio in ratios)),
            }
    return table


def _spread(values: list[float]) -> list[float]:
    """Return smallest, median and largest."""
    if not values:
        return []
    return [round(float(f(values)), 3) for f in (np.min, np.median, np.max)]


def main() -> None:
    """Run cells, or report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("backbones", nargs="*")
    options = parser.parse_args()
    if options.what == "run":
        keys = ("model", "image_size", "method", "device")
        made = {tuple(row[k] for k in keys) for row in ROWS.read()}
        for alias, size in BACKBONES:
            if options.backbones and alias not in options.backbones:
                continue
            model = backbones.resolve(alias)
            image_size = size or backbones.native_image_size(model)
            for method in METHODS:
                for gpu in GPUS:
                    if (model, image_size, method[0], gpu) in made:
                        continue
                    try:
                        row = cell_row(model, image_size, method, device_spec(gpu), Store.default())
                    except UsageError as error:
                        print(alias, image_size, method[0], gpu, error, flush=True)
                        continue
                    ROWS.append(row)
                    print(alias, image_size, method[0], gpu, row["smallest_bytes"], flush=True)
        ROWS.pack()
    write_summary(HERE, ROWS.read(), table=summary(ROWS.read()))


if __name__ == "__main__":
    main()
