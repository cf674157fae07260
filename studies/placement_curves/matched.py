"""``optimal`` in the very peak of each point of every other policy: is it ever the slower one?"""

from __future__ import annotations

from typing import Any

import rows
from compiled import DECOMPOSED
from evaluate import Problem, judged, optimal_within

from profiler.workload import Workload

SLACK = 1.0001  # what composed bytes may claim too much: a few hundred bytes can be a cliff
OURS = ("none", "optimal", "micro-batches", "optimal + micro-batches")


def rivals(group: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return the quickest row of any other policy at each peak below that of keeping everything."""
    base = next(r for r in group if r["policy"] == "none")
    found: dict[int, dict[str, Any]] = {}
    for row in group:
        other = "milliseconds" in row and row["policy"] not in (*OURS, DECOMPOSED)
        if other and row["peak_bytes"] < base["peak_bytes"]:
            best = found.get(row["peak_bytes"])
            if best is None or row["milliseconds"] < best["milliseconds"]:
                found[row["peak_bytes"]] = row
    return found


def run(models: list[str]) -> None:
    """Judge what is missing."""
    for (model, method, rank), group in rows.curves(rows.read("evaluator")):
        base = next((r for r in group if r["policy"] == "none"), None)
        if base is None or (models and model not in models):
            continue
        known = {r["budget_bytes"] for r in group if r["policy"] == "optimal"}
        missing = {
            peak: row
            for peak, row in rivals(group).items()
            if not known & {peak, int(peak * SLACK)}
        }
        if not missing:
            continue
        workload = Workload(model=model, method=method, rank=rank, micro_batch=base["micro_batch"])
        problem = Problem(workload)
        for peak, rival in missing.items():
            setting = f"in the peak of {rival['policy']} {rival['setting']}".strip()
            point = optimal_within(problem, int(peak * SLACK), setting)
            if point is None:
                print(model, method, setting, "none", flush=True)
                continue
            rows.append("evaluator", judged(point))
            print(model, method, setting, flush=True)
