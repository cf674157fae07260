"""Does every method run on every GPU generation, and does the whole run fit what a step needs?

    python studies/rehearsal_matrix/run.py [--round 0] [--report]
    python studies/rehearsal_matrix/run.py --sample 40    rehearse some cells, fail if one fails

Each pair of method and backbone of the method matrix is rehearsed on an emulated GPU: building,
first steps, a steady step, evaluation, saving, resuming, through PyTorch's CUDA code
(``planner.training.rehearsal``). Round r gives pair i the GPU number i + r of ``DEVICES``, so that
four rounds rehearse everything everywhere and the first covers every method and every backbone.
Precision and placement go round as well. Rows that are there already are not made again. A pair
that a method refuses is kept with its reason.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from harness import Rows, write_summary

from planner.training.rehearsal import Rehearsal, rehearse_all
from planner.training.rehearsal_run import STEADY_STAGE
from profiler.devices.table import cuda_context, lookup
from profiler.errors import UsageError
from profiler.models.methods.registry import get_method, method_names
from profiler.placement import Decision, Placement, PolicyChoice
from profiler.prediction.report import predict
from profiler.records import Report
from profiler.units import GIB
from profiler.workload import Candidate, Workload

HERE = Path(__file__).parent
ROWS = Rows(HERE)
DEVICES = ("rtx-2060-super", "rtx-3060", "rtx-4060", "h100")
BACKBONES = {
    "vit_s": 64,
    "tiny_vit": 64,
    "resnet18": 64,
    "mobilenetv2": 64,
    "mobilenetv3": 64,
    "dinov2_s": 56,
    "siglip_b": 64,
    "mambavision_t": 64,
    "vim_s": 32,
}
"""Backbone and image size in pixels."""
PRECISIONS = ("fp32", "fp16", "bf16")
PLACEMENTS = ("none", "static")
BATCH, CLASSES = 8, 10
BUDGET_BYTES = 8 * GIB
Row = dict[str, Any]


def cells(round_: int) -> Iterator[tuple[str, Workload, str]]:
    """Yield (device, workload, placement) of a round, backbone by backbone."""
    index = round_
    for backbone, size in BACKBONES.items():
        for method in method_names():
            device = DEVICES[index % len(DEVICES)]
            # bf16 before Ampere is not proposed
            halves = PRECISIONS[:2] if device == "rtx-2060-super" else PRECISIONS
            workload = Workload(
                model=backbone,
                method=method,
                micro_batch=BATCH,
                precision=halves[index % len(halves)],
                num_classes=CLASSES,
                image_size=size,
            )
            yield device, workload, PLACEMENTS[(index // 3) % len(PLACEMENTS)]
            index += 1


def name_of(device: str, workload: Workload, placement: str) -> str:
    """Return the name of a cell."""
    return f"{device} {workload.model} {workload.method} {workload.precision} {placement}"


def resolved(workload: Workload, placement: str) -> Candidate:
    """Return the candidate of a cell.

    Raises:
        UsageError: the method refuses the backbone.
    """
    from profiler.models import backbones
    from profiler.models.build import build_model

    named = workload.replace(model=backbones.resolve(workload.model))
    full = get_method(workload.method).resolve(named)
    units = build_model(full, device="meta").units
    if placement == "none":
        return Candidate(workload=full)
    decisions = dict.fromkeys(units, Decision.RECOMPUTE)
    return Candidate(
        workload=full, placement=Placement(decisions=decisions), policy=PolicyChoice(placement)
    )


def run_round(round_: int) -> None:
    """Rehearse what is left of a round; the cells of a backbone and a GPU share a process."""
    done = {row["cell"] for row in ROWS.read()}
    left = [cell for cell in cells(round_) if name_of(*cell) not in done]
    left.sort(key=lambda cell: (cell[1].model, cell[0]))
    for (_, device), some in groupby(left, key=lambda cell: (cell[1].model, cell[0])):
        candidates, named = [], []
        for cell in some:
            try:
                candidates.append(resolved(*cell[1:]))
                named.append(name_of(*cell))
            except UsageError as error:
                ROWS.append({"cell": name_of(*cell), "refused": str(error)})
        if candidates:
            run_together(device, candidates, named)


def run_together(device: str, candidates: Sequence[Candidate], names: Sequence[str]) -> None:
    """Rehearse cells in one process and keep their rows."""
    spec, began = lookup(device), time.perf_counter()
    asked = [Rehearsal(candidate=c, recipe=None, budget_bytes=BUDGET_BYTES) for c in candidates]
    try:
        found = rehearse_all(asked, spec)
    except Exception as error:
        for name in names:
            ROWS.append({"cell": name, "failed": f"{type(error).__name__}: {str(error)[:300]}"})
        return
    seconds = (time.perf_counter() - began) / len(names)
    for name, candidate, report in zip(names, candidates, found, strict=True):
        row: Row = {"cell": name, "device": device, "seconds": round(seconds, 1)}
        if isinstance(report, Report):
            row["stages"] = report.details["stages"]
            predicted = predict(candidate, device=spec).memory
            row["predicted"] = {
                "peak_bytes": predicted.peak_bytes,
                "reserved_bytes": (predicted.device_bytes or 0) - cuda_context(spec).nbytes,
            }
        else:
            row["failed"] = str(report)[:300]
        ROWS.append(row)
        print(row.get("failed", "ran"), name, flush=True)


def run_sample(count: int) -> int:
    """Rehearse cells that are drawn anew each day and keep nothing; return the number of failures.

    Every method and every GPU occurs about equally often.
    """
    rng = random.Random(datetime.now(UTC).date().isoformat())
    drawn = rng.sample(list(cells(rng.randrange(len(DEVICES)))), count)
    drawn.sort(key=lambda cell: cell[0])
    failed = 0
    for device, some in groupby(drawn, key=lambda cell: cell[0]):
        asked, names = [], []
        for cell in some:
            with suppress(UsageError):
                candidate = resolved(*cell[1:])
                names.append(name_of(*cell))
                asked.append(Rehearsal(candidate=candidate, recipe=None, budget_bytes=BUDGET_BYTES))
        for name, found in zip(names, rehearse_all(asked, lookup(device)), strict=True):
            is_wrong = not isinstance(found, Report)
            failed += is_wrong
            print(f"{name}: {found if is_wrong else 'ran'}", flush=True)
    return failed


def report() -> None:
    """Write the summary."""
    rows = list(ROWS.latest("cell").values())
    ran = [row for row in rows if "stages" in row]
    beyond: dict[str, list[tuple[str, float]]] = {}
    errors = []
    for row in ran:
        by_stage = {s["stage"]: s["reserved_bytes"] for s in row["stages"]}
        steady = by_stage[STEADY_STAGE]
        errors.append(row["predicted"]["reserved_bytes"] / steady - 1)
        for stage, reserved in by_stage.items():
            if reserved > steady:
                beyond.setdefault(stage, []).append((row["cell"], round(reserved / steady - 1, 4)))
    write_summary(
        HERE,
        rows,
        rehearsed=len(ran),
        by_device=dict(Counter(row["device"] for row in ran)),
        refused=sum("refused" in row for row in rows),
        failed={row["cell"]: row["failed"] for row in rows if "failed" in row},
        reserved_error={
            "exact": sum(error == 0 for error in errors),
            "median": statistics.median(map(abs, errors)) if errors else None,
            "lowest": min(errors, default=None),
            "highest": max(errors, default=None),
        },
        stages_above_a_steady_step={
            stage: {"cells": len(found), "largest": max(found, key=lambda pair: pair[1])}
            for stage, found in beyond.items()
        },
    )
    print((HERE / "summary.json").read_text(encoding="utf-8"))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--round", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="only write summary.json")
    parser.add_argument("--sample", type=int, default=0)
    given = parser.parse_args()
    if given.sample:
        sys.exit(min(1, run_sample(given.sample)))
    if not given.report:
        run_round(given.round)
    ROWS.pack()
    report()


if __name__ == "__main__":
    main()
