"""Part B: real steps on this machine's CPU, one thread, ours and another policy in turns.

One model, whose placement is put on and taken off again, so that every policy trains the same
weights. Peak: the CPU allocator's own account. Time: CPU seconds of the process. A round runs all
blocks of ``arms.py`` in an order of its own, and inside a block the other policy and ours one right
after the other, in either order: this machine's speed drifts by a tenth within seconds. The heap
is never given back to the system (``STEADY``): page faults would be most of the differences.
"""

from __future__ import annotations

import os
import random
import sys
from functools import cache

import rows
import torch
from arms import WORKLOADS, Arm, split
from session import Session

from profiler.training_step import gc_frozen
from profiler.workload import Workload

STEADY = {"MALLOC_MMAP_THRESHOLD_": str(2**34), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
ROUNDS = 11


def run(names: list[str]) -> None:
    """Measure the workloads that are not measured yet."""
    if any(os.environ.get(name) is None for name in STEADY):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | STEADY)
    torch.set_num_threads(1)
    known = {row["workload_name"] for row in rows.read("host")}
    for name, workload in WORKLOADS.items():
        wanted = not names or any(name.startswith(each) for each in names)
        arms = [row for row in rows.read("arms") if row["workload_name"] == name]
        if wanted and arms and name not in known:
            with gc_frozen():  # as training does
                measured = _measured(workload, arms)
            for row in measured:
                rows.append("host", row)


def _measured(workload: Workload, arms: list[Arm]) -> list[Arm]:
    session_of = cache(lambda k: Session(split(workload, k)))
    blocks: dict[str, list[Arm]] = {}
    for arm in arms:
        if "error" in arm:
            continue
        session = session_of(arm.get("accumulation", 1))
        arm |= {"peak_bytes": session.peak(arm), "cpu_seconds": []}
        blocks.setdefault(arm["block"], []).append(arm)
        print(arm["workload_name"], arm["block"], arm["policy"], arm["peak_bytes"], flush=True)
    for index in range(ROUNDS):
        chance = random.Random(index)
        for block in chance.sample([*blocks], len(blocks)):
            for arm in chance.sample(blocks[block], len(blocks[block])):
                session = session_of(arm.get("accumulation", 1))
                arm["cpu_seconds"].append(session.seconds(arm))
    return arms
