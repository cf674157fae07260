"""Part B: real steps on this machine's CPU, one thread.

One model, whose placement is put on and taken off again, so that every policy trains the same
weights. Peak: the CPU allocator's own account. Time: CPU seconds of the process (the machine is
shared, so wall clock says little), each step between two of `none`, divided by their mean.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import rows
import torch

from planner.adaptive import AdaptiveRule, memory_in_use
from planner.cost import CostModel
from planner.placement import Chain, peak_bytes, recompute_seconds, solve, to_choice
from planner.placement.policies import POLICIES
from profiler.checkpointing import apply_adaptive, apply_placement
from profiler.cpu_allocator import peak_during
from profiler.measure import Fetch, build_step
from profiler.methods.base import backbone_of
from profiler.placement import CHEAP, NONE, Placement
from profiler.predict import predict
from profiler.step import TrainingStep
from profiler.store import Store
from profiler.workload import Candidate, Workload

BUDGETS = (0.8, 0.6, 0.4, 0.3)
WORKLOADS = {
    "vit_s_lora_16": Workload(
        model="vit_small_patch16_224", method="lora", rank=8, micro_batch=16, num_classes=100
    ),
    "vit_s_16": Workload(model="vit_small_patch16_224", micro_batch=16, num_classes=100),
    "resnet18": Workload(model="resnet18", micro_batch=4, num_classes=100),
    "vit_s": Workload(model="vit_small_patch16_224", micro_batch=4, num_classes=100),
    "mobilenetv2": Workload(model="mobilenetv2_100", micro_batch=4, num_classes=100),
    "tiny_vit": Workload(model="tiny_vit_21m_224", micro_batch=2, num_classes=100),
    "vim_s": Workload(model="vim_small_patch16_224", micro_batch=2, num_classes=100),
    "mambavision_t": Workload(model="mambavision_t", micro_batch=4, num_classes=100),
}
ROUNDS = 4


class Policies:
    """Every policy's placement for one workload."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.model = CostModel("cpu", Store(Path(tempfile.gettempdir()) / "placement_curves"))
        self.chain: Chain = self.model.chain(workload)
        self.full = self.peak(NONE)
        self.count = len(self.model.units(workload))

    def peak(self, placement: Placement) -> int:
        """Return the composed peak."""
        return peak_bytes(self.chain, to_choice(self.chain, placement))

    def seconds(self, placement: Placement) -> float:
        """Return the composed recompute time."""
        return recompute_seconds(self.chain, to_choice(self.chain, placement))

    def ratio(self, placement: Placement) -> float:
        """Return the composed step time over that of `none`."""
        numbers = self.model.numbers(self.workload)
        assert numbers.step_seconds is not None
        whole = numbers.step_seconds + numbers.update_seconds
        return 1 + self.seconds(placement) / whole

    def optimal(self, budget: int) -> Placement | None:
        """Return ours, over the whole menu."""
        return solve(self.chain, budget).placement

    def adaptive(self, budget: int) -> tuple[AdaptiveRule, Placement]:
        """Return the adaptive rule with the threshold that suits it best, and what it foresees.

        That is the least recompute among those that fit, else the smallest peak.
        """
        caps = [self.full * share // 100 for share in range(1, 101)]
        placed = {
            POLICIES["adaptive"](self.chain, cap, {"threshold": 1.0}): AdaptiveRule(
                budget_bytes=cap, threshold=1.0
            )
            for cap in caps
        }
        fitting = [p for p in placed if self.peak(p) <= budget]
        if fitting:
            best = min(fitting, key=self.seconds)
        else:
            best = min(placed, key=lambda p: (self.peak(p), self.seconds(p)))
        return placed[best], best

    def all(self) -> Iterator[tuple[str, str, Placement | AdaptiveRule, int | None]]:
        """Yield (policy, setting, placement or rule, budget)."""
        yield "none", "", NONE, None
        for share in (0.57, 0.21):
            rule, placed = self.adaptive(int(share * self.full))
            budget = max(self.peak(placed), int(share * self.full))
            yield "adaptive", f"its best for {share:.0%}", placed, None
            yield "adaptive at run time", f"its best for {share:.0%}", rule, None
            ours = self.optimal(budget)
            assert ours is not None
            yield "optimal", f"in adaptive's peak for {share:.0%}", ours, budget
        units = self.model.units(self.workload)
        yield "cheap", "", Placement(policy=CHEAP, decisions=dict.fromkeys(units, CHEAP)), None
        for share in BUDGETS:
            found = self.optimal(int(share * self.full))
            if found is not None:
                yield "optimal", f"{share:.0%}", found, int(share * self.full)
        yield "static", "", POLICIES["static"](self.chain, self.full), None
        half = round(self.count / 2)
        yield "first-k", f"k={half}", POLICIES["first-k"](self.chain, 0, {"k": half}), None
        yield "timm set_grad_checkpointing", "", TIMM, None


TIMM = Placement(policy="timm set_grad_checkpointing", decisions={"everything": "recompute"})


def run(names: list[str]) -> None:
    """Measure what is not measured yet."""
    torch.set_num_threads(1)
    for name in names or WORKLOADS:
        _measure(name, WORKLOADS[name])


class Session:
    """One model that trains step after step, under one placement after the other."""

    def __init__(self, workload: Workload) -> None:
        torch.manual_seed(0)
        self.made: list[tuple[TrainingStep, list[Fetch]]] = []
        self.decided: Placement | None = None
        self.in_use = memory_in_use("cpu")
        self.none_peak = peak_during(lambda: self._build(workload), self.step)
        self.static = self.none_peak - self._above_start(NONE)

    def _build(self, workload: Workload) -> None:
        self.made.append(build_step(Candidate(workload=workload), device="cpu"))
        self.step()

    def step(self) -> None:
        """Run one optimizer step."""
        step, batches = self.made[0]
        step.run(batches)

    @contextmanager
    def following(self, placement: Placement | AdaptiveRule) -> Iterator[None]:
        """Put a placement on, and take it off again."""
        model = self.made[0][0].model
        if placement is TIMM:
            backbone_of(model).set_grad_checkpointing(True)
            yield
            backbone_of(model).set_grad_checkpointing(False)
        elif isinstance(placement, AdaptiveRule):
            with apply_adaptive(
                model,
                budget_bytes=placement.budget_bytes,
                threshold=placement.threshold,
                live_bytes=self.in_use,
            ) as applied:
                yield
                self.decided = applied.placement
        else:
            with apply_placement(model, placement):
                yield

    def _above_start(self, placement: Placement | AdaptiveRule) -> int:
        with self.following(placement):
            return peak_during(lambda: None, self.step)

    def peak(self, placement: Placement | AdaptiveRule) -> int:
        """Return the CPU allocator's peak over one step."""
        return self.static + self._above_start(placement)

    def seconds(self, placement: Placement | AdaptiveRule) -> float:
        """Return the CPU seconds of one step."""
        with self.following(placement):
            start = time.process_time()
            self.step()
            return time.process_time() - start


def _measure(name: str, workload: Workload) -> None:
    known = {(r["workload_name"], r["policy"], r["setting"]) for r in rows.read("host")}
    policies = Policies(workload)
    left = [e for e in policies.all() if (name, e[0], e[1]) not in known]
    if not left:
        return
    session = Session(workload)
    for policy, setting, placement, budget in left:
        peak = session.peak(placement)
        spent = [(session.seconds(NONE), session.seconds(placement)) for _ in range(ROUNDS)]
        spent.append((session.seconds(NONE), spent[-1][1]))
        ratios = [2 * b / (a + c) for (a, b), (c, _) in itertools.pairwise(spent)]
        row = {
            "workload_name": name,
            "model": workload.model,
            "method": workload.method,
            "rank": workload.rank,
            "micro_batch": workload.micro_batch,
            "policy": policy,
            "setting": setting,
            "budget_bytes": budget,
            "peak_bytes": peak,
            "none_peak_bytes": session.none_peak,
            "ratio": statistics.median(ratios),
            "ratios": ratios,
            "none_cpu_seconds": [a for a, _ in spent],
        }
        followed = session.decided if isinstance(placement, AdaptiveRule) else placement
        if followed is not TIMM:
            assert followed is not None
            candidate = Candidate(workload=workload, placement=followed)
            row |= {
                "composed_bytes": policies.peak(followed),
                "predicted_bytes": predict(candidate, device="cpu").memory.peak_bytes,
                "predicted_ratio": policies.ratio(followed),
                "decisions": dict(followed.decisions),
            }
        rows.append("host", row)
        print(
            name,
            policy,
            setting,
            f"{peak / session.none_peak:.1%}",
            f"x{row['ratio']:.3f}",
            f"of predicted {peak / row.get('predicted_bytes', peak):.4f}",
            flush=True,
        )
