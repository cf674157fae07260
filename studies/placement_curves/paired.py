"""Part C: the paper's rule and ours at the paper's operating point, step by step in turns.

``host.py`` compares each policy with ``none``; here three placements take turns, so that a busy
machine is busy for all of them, and the least CPU seconds of several rounds count as well.
"""

from __future__ import annotations

import rows
import torch
from host import WORKLOADS, Policies, Session

from profiler.placement import NONE

ROUNDS = {
    "mobilenetv2": 14,
    "vit_s_16": 7,
    "vit_s_lora_16": 6,
    "tiny_vit": 8,
    "resnet18": 14,
    "vim_s": 6,
    "mambavision_t": 8,
}
SHARE = 0.57


def run(names: list[str]) -> None:
    """Measure what is not measured yet."""
    torch.set_num_threads(1)
    known = {row["workload_name"] for row in rows.read("paired")}
    for name in [each for each in names or ROUNDS if each not in known]:
        policies = Policies(WORKLOADS[name])
        budget = int(SHARE * policies.full)
        _, foreseen = policies.adaptive(budget)
        budget = max(policies.peak(foreseen), budget)
        ours = policies.optimal(budget)
        assert ours is not None
        placements = {"none": NONE, "adaptive": foreseen, "optimal": ours}
        session = Session(WORKLOADS[name])
        spent: dict[str, list[float]] = {policy: [] for policy in placements}
        for _ in range(ROUNDS[name]):
            for policy, placement in placements.items():
                spent[policy].append(session.seconds(placement))
        row = {
            "workload_name": name,
            "none_peak_bytes": session.none_peak,
            "peak_bytes": {policy: session.peak(p) for policy, p in placements.items()},
            "cpu_seconds": spent,
            "predicted_ratio": {policy: policies.ratio(p) for policy, p in placements.items()},
            "decisions": {policy: dict(p.decisions) for policy, p in placements.items()},
        }
        rows.append("paired", row)
        least = {policy: min(seconds) for policy, seconds in spent.items()}
        print(
            name,
            {policy: f"{seconds / least['none'] - 1:+.1%}" for policy, seconds in least.items()},
            flush=True,
        )
