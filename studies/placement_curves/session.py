"""One model that takes real steps on the CPU, under one arm after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from peers import peer_named

from profiler.checkpointing.apply import apply_placement
from profiler.device_rules.cpu_allocator import peak_during
from profiler.placement import Placement
from profiler.running.measurement import Fetch, build_step
from profiler.training_step import TrainingStep
from profiler.workload import Candidate, Workload

Arm = Mapping[str, Any]


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
            placement = Placement(decisions=arm["decisions"])
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
