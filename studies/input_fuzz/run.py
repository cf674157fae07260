"""Fuzz the files that budgetplan reads from strangers: python studies/input_fuzz/run.py PART ...

PART         name of a part, or NAME:N for N mutants of it
--count N    mutants of each other part, after those that have rows already
--check      print one JSON object for each part, keep no rows, and fail if there is a fault
--pack       compress the rows and write summary.json; nothing is run without a PART
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

# mutants are small: threads that wait for each other cost up to ten times the work
os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1]), str(HERE.parent)]

from harness import Rows, write_summary
from outcome import Outcomes

TARGETS = {
    "plans": ("plan_files", "PlanTarget"),
    "weights": ("weight_files", "WeightTarget"),
    "images": ("image_files", "ImageTarget"),
    "cache": ("cache_files", "CacheTarget"),
    "studies": ("study_files", "StudyTarget"),
    "trained": ("trained_folders", "TrainedTarget"),
    "features": ("trained_folders", "FeatureTarget"),
    "devices": ("record_files", "DeviceTarget"),
    "probes": ("record_files", "ProbeTarget"),
    "answers": ("record_files", "AnswerTarget"),
    "frozen": ("frozen_files", "FrozenTarget"),
}
"""Module and class of each part, imported when the part is run."""

MUTANTS_PER_ROW = {
    "plans": 10_000, "weights": 1000, "images": 1000, "cache": 1000, "studies": 100,
    "trained": 100, "features": 1000, "devices": 1000, "probes": 1000, "answers": 1000,
    "frozen": 1000,
}  # fmt: skip


def fuzz(part: str, *, first_seed: int, count: int) -> Outcomes:
    """Run mutants of a part with the seeds from ``first_seed`` on, and count the outcomes."""
    module, name = TARGETS[part]
    logging.getLogger().setLevel(logging.CRITICAL)
    outcomes = Outcomes()
    with tempfile.TemporaryDirectory() as folder:
        target = getattr(import_module(module), name)(Path(folder))
        for seed in range(first_seed, first_seed + count):
            outcomes.try_one(seed, lambda seed=seed: target.check(Random(f"{part}/{seed}")))
    return outcomes


def run_part(rows: Rows, part: str, count: int) -> None:
    """Run mutants and append one row for each ``MUTANTS_PER_ROW``."""
    done = [row for row in rows.read() if row["part"] == part]
    first = max((row["first_seed"] + row["mutants"] for row in done), default=0)
    end = first + count
    while first < end:
        size = min(MUTANTS_PER_ROW[part], end - first)
        outcomes = fuzz(part, first_seed=first, count=size)
        rows.append({"part": part, "first_seed": first, "mutants": size, **outcomes.to_json()})
        print(part, first, size, dict(outcomes.counts), outcomes.examples, flush=True)
        first += size


def check_parts(parts: Mapping[str, int]) -> bool:
    """Run mutants from the first seed on, print one JSON object a part; return if all is well."""
    faults = 0
    for part, count in parts.items():
        outcomes = fuzz(part, first_seed=0, count=count)
        print(json.dumps({"part": part, "mutants": count, **outcomes.to_json()}), flush=True)
        faults += outcomes.faults
    return faults == 0


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the counts of each part."""
    parts: dict[str, Any] = {}
    for part in dict.fromkeys(row["part"] for row in rows):
        own = [row for row in rows if row["part"] == part]
        counts: Counter[str] = Counter()
        for row in own:
            counts.update(row["counts"])
        parts[part] = {
            "mutants": sum(row["mutants"] for row in own),
            "faults": sum(row["faults"] for row in own),
            "counts": dict(sorted(counts.items())),
            "longest_seconds": max(row["longest_seconds"] for row in own),
        }
    return {"parts": parts}


def main() -> None:
    """Run the parts that are named, then pack if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--pack", action="store_true")
    arguments = parser.parse_args()
    parts = {}
    for name, _, count in (part.partition(":") for part in arguments.parts):
        if name not in TARGETS:
            parser.error(f"no part {name!r}; use {', '.join(TARGETS)}")
        parts[name] = int(count or arguments.count)
    if arguments.check:
        sys.exit(not check_parts(parts))
    for part, count in parts.items():
        # one open file a part, so that parts can be run at the same time
        run_part(Rows(HERE, part), part, count)
    if arguments.pack:
        everything = []
        for part in MUTANTS_PER_ROW:
            rows = Rows(HERE, part)
            rows.pack()
            everything += rows.read()
        write_summary(HERE, everything, **summarize(everything))


if __name__ == "__main__":
    main()
