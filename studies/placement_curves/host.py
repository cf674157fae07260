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
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import rows
import torch
from arms import WORKLOADS, Arm
from peers import peer_named

from profiler.checkpointing import apply_placement
from profiler.cpu_allocator import peak_during
from profiler.measure import Fetch, build_step
from profiler.placement import Placement
from profiler.step import TrainingStep
from profiler.workload import Candidate, Workload

STEADY = {"MALLOC_MMAP_THRESHOLD_": str(2**34), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
ROUNDS = 11


class Session:
    """One model that trains step after step, each under the arm that is asked for."""

    def __init__(self, workload: Workload) -> None:
        torch.manual_seed(0)
        self.made: list[tuple[TrainingStep, list[Fetch]]] = []
        self.peer = cache(peer_named)
        built = peak_during(lambda: self._build(workload), self.step)
        self.held = built - peak_during(lambda: None, self.step)

    def _build(self, workload: Workload) -> None:
        self.made.append(build_step(Candidate(workload=workload), device="cpu"))
        self.step()

    def step(self) -> None:
        """Run one optimizer step."""
        step, batches = self.made[0]
        step.run(batches)

    @contextmanager
    def following(self, arm: Arm) -> Iterator[None]:
        """Put a placement or a peer on, and take it off again."""
        model = self.made[0][0].model
        if "peer" in arm:
            with self.peer(arm["peer"])(model):
                yield
        else:
            placement = Placement(policy="custom", decisions=arm["decisions"])
            with apply_placement(model, placement):
                yield

    def peak(self, arm: Arm) -> int:
        """Return the CPU allocator's peak over one step."""
        with self.following(arm):
            if "peer" in arm:
                self.step()  # it may compile
            return self.held + peak_during(lambda: None, self.step)

    def seconds(self, arm: Arm) -> float:
        """Return the CPU seconds of one step."""
        with self.following(arm):
            start = time.process_time()
            self.step()
            return time.process_time() - start


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
            for row in _measured(workload, arms):
                rows.append("host", row)


def _measured(workload: Workload, arms: list[Arm]) -> list[Arm]:
    def split(accumulation: int) -> Workload:
        size = workload.micro_batch // accumulation
        return workload.replace(micro_batch=size, accumulation=accumulation)

    session_of = cache(lambda k: Session(split(k)))
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
