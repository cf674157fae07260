"""What part B runs: every other policy's points, each beside ours within its very peak.

Decided before anything is timed, and written to ``arms.jsonl``: a block is one point of another
policy and ours, which then take their steps one after the other.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import rows
import torch
from peers import PEERS, PLAIN_COMPILED
from rule import OPERATING_POINTS, best_adaptive
from session import Session

from planner.cost.model import CostModel
from planner.cost.place_within_budget import place_within_budget
from planner.placement.chain import option_indices
from planner.placement.chain_cost import peak_bytes, recompute_seconds
from planner.placement.chain_policies import place_chain, rotor
from planner.placement.policies import OPTIMAL
from profiler.devices.table import CPU
from profiler.errors import InfeasibleError
from profiler.placement import KEEP_ALL, Decision, Placement, PolicyChoice
from profiler.prediction.report import predict
from profiler.store import Store
from profiler.units import DeviceBytes, LiveBytes
from profiler.workload import Candidate, Workload

SLACK = 1.001
"""Of the other's peak: a few bytes can decide over a whole convolution."""
MICRO_BATCHES = {
    "vit_small_patch16_224": 16,
    "mobilenetv2_100": 16,
    "resnet18": 8,
    "tiny_vit_21m_224": 4,
    "vim_small_patch16_224": 2,
    "mambavision_t": 4,
}
LORA_MICRO_BATCHES = MICRO_BATCHES | {"vit_small_patch16_224": 8}
WORKLOADS = {
    f"{model}, {method}, batch {size}": Workload(
        model=model,
        method=method,
        rank=8 if method == "lora" else None,
        micro_batch=size,
        num_classes=100,
    )
    for method, sizes in (("full", MICRO_BATCHES), ("lora", LORA_MICRO_BATCHES))
    for model, size in sizes.items()
}
BATCH_NORM = {"resnet18", "mobilenetv2_100", "tiny_vit_21m_224", "mambavision_t"}
"""Micro-batches would change what these are trained to."""
Arm = dict[str, Any]
"""``block``, ``policy``, ``setting``; what is followed (``decisions``, ``accumulation``) or which
``peer``; ``budget_bytes``, ``predicted_bytes`` and ``predicted_share`` of added time."""


def split(workload: Workload, accumulation: int) -> Workload:
    """Return the workload in so many micro-batches."""
    size = workload.micro_batch // accumulation
    return workload.replace(micro_batch=size, accumulation=accumulation)


class Arms:
    """Every policy's arms for one workload."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.cost = CostModel(CPU, Store(Path(tempfile.gettempdir()) / "placement_curves"))
        self.chain = self.cost.chain(workload)
        self.units = self.cost.profiles.units(workload)
        self.predicted = cache(self._predicted)
        self.full = self.predicted(KEEP_ALL)
        self.optimal = cache(self._optimal)

    def _predicted(self, placement: Placement, accumulation: int = 1) -> int:
        candidate = Candidate(workload=split(self.workload, accumulation), placement=placement)
        return predict(candidate, device=CPU).memory.peak_bytes

    def composed(self, placement: Placement) -> int:
        """Return the composed peak."""
        return peak_bytes(self.chain, option_indices(self.chain, placement))

    def step_seconds(self, placement: Placement, accumulation: int = 1) -> float:
        """Return the composed step time."""
        work = split(self.workload, accumulation)
        chain, costs = self.cost.chain(work), self.cost.costs(work)
        assert costs.step_seconds is not None
        once = costs.step_seconds + recompute_seconds(chain, option_indices(chain, placement))
        return accumulation * once + costs.update_seconds

    def _optimal(self, budget: int, accumulation: int = 1) -> Placement | None:
        """Return what the commands would place; None where nothing fits."""
        work = split(self.workload, accumulation)
        try:
            report = place_within_budget(
                work,
                OPTIMAL,
                self.cost,
                budget_bytes=DeviceBytes(budget),
                options=self.cost.profiles.unit_options(work),
            ).report
        except InfeasibleError:
            return None
        fits = report.memory.peak_bytes <= budget
        return report.candidate.placement if fits else None

    def others(self) -> Iterator[tuple[str, str, Placement]]:
        """Yield policy, setting and placement of every point of the others."""
        for share in OPERATING_POINTS:
            budget = int(share * self.full)
            rule = best_adaptive(self.chain, self.full, budget)
            yield "adaptive", f"its best for {share:.0%}", rule
            within = max(self.composed(rule), budget)
            placed = rotor(self.chain, LiveBytes(within))
            yield "rotor", f"in adaptive's peak for {share:.0%}", placed
        half = round(len(self.units) / 2)
        yield "static", "", Placement(dict.fromkeys(self.units, Decision.RECOMPUTE))
        for policy, options in {
            "chen": {},
            "every-k": {"k": 2},
            "first-k": {"k": half},
        }.items():
            setting = ", ".join(f"{k}={v}" for k, v in options.items())
            yield policy, setting, place_chain(self.chain, PolicyChoice(policy, options), self.full)

    def _arm(
        self,
        block: str,
        policy: str,
        setting: str,
        placement: Placement,
        *,
        k: int = 1,
        **more: int,
    ) -> Arm:
        base = self.step_seconds(KEEP_ALL)
        return {
            "block": block,
            "policy": policy,
            "setting": setting,
            "accumulation": k,
            "decisions": dict(placement.decisions),
            "predicted_bytes": self.predicted(placement, k),
            "predicted_share": self.step_seconds(placement, k) / base - 1,
            **more,
        }

    def all(self) -> Iterator[Arm]:
        """Yield all of them, `none` first."""
        yield self._arm("none", "none", "", KEEP_ALL)
        known: set[tuple[tuple[str, str], ...]] = set()
        for policy, setting, placement in self.others():
            placed = tuple(sorted(placement.decisions.items()))
            if placed in known or not self._changes(placement):
                continue
            known.add(placed)
            block = f"{policy} {setting}".strip()
            yield self._arm(block, policy, setting, placement)
            yield from self._ours(block, self.predicted(placement), placement)
        session = Session(self.workload)
        for peer in PEERS if self.workload.method == "full" else PEERS[:1]:
            arm = {"block": peer, "policy": peer.partition(":")[0], "setting": peer, "peer": peer}
            try:
                peak = session.peak(arm)
            except Exception as error:
                yield arm | {"error": repr(error)[:300]}
                continue
            yield arm
            if peak < self.full and peer != PLAIN_COMPILED:
                yield from self._ours(peer, peak, None)

    def _changes(self, placement: Placement) -> bool:
        return any(decision == Decision.RECOMPUTE for decision in placement.decisions.values())

    def _ours(self, block: str, peak: int, other: Placement | None) -> Iterator[Arm]:
        budget = int(peak * SLACK)
        found = self.optimal(budget)
        setting = f"in the peak of {block}"
        if found is not None and (other is None or found.decisions != other.decisions):
            yield self._arm(block, "optimal", setting, found, budget_bytes=budget)
        if self.workload.model in BATCH_NORM or not block.startswith("adaptive"):
            return
        best: tuple[float, Placement, int] | None = None
        for k in (k for k in (1, 2, 4) if k <= self.workload.micro_batch):
            placed = self.optimal(budget, k)
            if placed is not None:
                seconds = self.step_seconds(placed, k)
                if best is None or seconds < best[0]:
                    best = (seconds, placed, k)
        if best is not None and best[2] > 1:
            _, placed, k = best
            yield self._arm(
                block, "optimal + micro-batches", setting, placed, k=k, budget_bytes=budget
            )


def run(names: list[str]) -> None:
    """Decide the arms of the workloads that have none yet."""
    torch.set_num_threads(1)
    known = {row["workload_name"] for row in rows.read("arms")}
    for name, workload in WORKLOADS.items():
        if name in known or (names and not any(name.startswith(each) for each in names)):
            continue
        found = []
        for arm in Arms(workload).all():
            print(
                f"{name}: {arm['block']}: {arm['policy']}"
                f" {arm.get('predicted_bytes')} {arm.get('predicted_share')} {arm.get('error', '')}",
                file=sys.stderr,
                flush=True,
            )
            found.append({"workload_name": name} | arm)
        for row in found:
            rows.append("arms", row)
