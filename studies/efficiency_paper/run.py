"""Do the claims of arXiv 2607.02158 hold where a CPU can tell?

python studies/efficiency_paper/run.py      predicts 20 steps of ViT-S, writes rows and summary.json

The paper fine-tunes ViT-S at 224 px on an RTX 2060 SUPER with a budget of 2 GiB. Its abstract gives
ranges and no table of its cells could be read, so a claim is held against the range of the cells
here. Memory is replayed: exact up to rounding (``studies/hollow_gpu``). Seconds and joules are
predicted, with an interval; no GPU was at hand. Accuracies cannot be judged without the weights.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from harness import Rows, write_summary

from planner.api import predict
from profiler.errors import BudgetplanError

MODEL, DEVICE, BUDGET, CLASSES = "vit_s", "rtx-2060-super", "2GiB", 100
BATCHES = (32, 64)
THRESHOLDS = (0.3, 0.5, 0.8)
"""Shares of the budget at which the rule begins: 0.5 in the authors' runs, 0.8 their default."""

FROZEN = ("qlora", "bitfit", "lora")


def row_of(method: str, batch: int, threshold: float | None) -> dict[str, Any]:
    """Return the prediction of one step; ``error`` if there is none."""
    name = {"method": method, "batch": batch, "threshold": threshold}
    rule = {} if threshold is None else {"checkpoint": "adaptive", "threshold": threshold}
    try:
        found = predict(
            MODEL, method, device=DEVICE, vram=BUDGET, batch_size=batch, num_classes=CLASSES, **rule
        )
    except BudgetplanError as error:
        return {**name, "error": str(error)}
    interval = found.energy_joules_interval
    return {
        **name,
        "peak_bytes": found.memory.peak_bytes,
        "step_seconds": found.step_seconds,
        "energy_joules": found.energy_joules,
        "energy_interval": None if interval is None else [interval.low, interval.high],
        "recomputed_units": len(found.candidate.placement.decisions),
    }


def ratios(rows: list[dict[str, Any]], key: str) -> dict[str, dict[str, float]]:
    """Return each step's value over that of its baseline, less one.

    The baseline of a method is ``full`` with the same batch; that of a threshold is the same
    method without the rule. Steps in which the rule recomputes nothing are left out.
    """
    known = {(r["method"], r["batch"], r["threshold"]): r for r in rows if "error" not in r}
    methods, rules = {}, {}
    for (method, batch, threshold), row in known.items():
        if threshold is None and method != "full":
            base = known["full", batch, None]
            methods[f"{method} {batch}"] = round(row[key] / base[key] - 1, 4)
        elif threshold is not None and row["recomputed_units"]:
            base = known[method, batch, None]
            rules[f"{method} {batch} at {threshold}"] = round(row[key] / base[key] - 1, 4)
    return {"methods": methods, "rule": rules}


def main() -> None:
    """Predict all steps and write the summary."""
    cells = [(m, b, None) for b in BATCHES for m in ("full", *FROZEN)]
    cells += [(m, b, t) for b in BATCHES for m in ("full", "lora") for t in THRESHOLDS]
    kept = Rows(HERE)
    kept.clear()
    for cell in cells:
        row = row_of(*cell)
        kept.append(row)
        print(row, flush=True)
    kept.pack()
    rows = kept.read()
    write_summary(
        HERE, rows, memory=ratios(rows, "peak_bytes"), energy=ratios(rows, "energy_joules"),
        seconds=ratios(rows, "step_seconds"),
    )  # fmt: skip


if __name__ == "__main__":
    main()
