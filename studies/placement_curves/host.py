"""Part B: real steps on this machine's CPU, one thread, every policy in turns.

One model, whose placement is put on and taken off again, so that every policy trains the same
weights. Peak: the CPU allocator's own account. Time: CPU seconds of the process; every arm takes
one step a round, in an order of its own each round, so that a busy machine is busy for all of them
and no arm always finds the heap as the same other one left it. The heap is never given back to
the system (``STEADY``): page faults would otherwise be most of the differences.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FunctionType

import rows
import torch
from torch._functorch import config as compile_config

from planner.adaptive import AdaptiveRule, memory_in_use
from planner.advice import place_checked
from planner.cost import CostModel
from planner.placement import peak_bytes, recompute_seconds, to_choice
from planner.placement.policies import POLICIES
from profiler.checkpointing import apply_adaptive, apply_placement
from profiler.cpu_allocator import peak_during
from profiler.errors import InfeasibleError
from profiler.measure import Fetch, build_step
from profiler.methods.base import backbone_of
from profiler.placement import CHEAP, LIGHT, NONE, Placement
from profiler.predict import predict
from profiler.step import TrainingStep
from profiler.store import Store
from profiler.workload import Candidate, Workload

STEADY = {"MALLOC_MMAP_THRESHOLD_": str(2**34), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
OPERATING_POINTS = (0.57, 0.21)
"""Of the peak of keeping everything: the paper's 43 % and "as much as 79 %" less."""
BUDGETS = (0.8, 0.6, 0.4, 0.3)
COMPILE_BUDGETS = (1.0, 0.7, 0.4, 0.1)
SLACK = 1.001
"""Of the rule's peak: a few bytes can decide over a whole convolution."""
ROUNDS = 5
MICRO_BATCHES = {
    "full": {
        "vit_small_patch16_224": 16,
        "mobilenetv2_100": 16,
        "resnet18": 16,
        "tiny_vit_21m_224": 4,
        "vim_small_patch16_224": 2,
        "mambavision_t": 4,
    },
    "lora": {
        "vit_small_patch16_224": 8,
        "mobilenetv2_100": 16,
        "resnet18": 16,
        "tiny_vit_21m_224": 4,
        "vim_small_patch16_224": 2,
        "mambavision_t": 4,
    },
}
WORKLOADS = {
    f"{model}, {method}, batch {size}": Workload(
        model=model,
        method=method,
        rank=8 if method == "lora" else None,
        micro_batch=size,
        num_classes=100,
    )
    for method, sizes in MICRO_BATCHES.items()
    for model, size in sizes.items()
}
BATCH_NORM = {"resnet18", "mobilenetv2_100", "tiny_vit_21m_224", "mambavision_t"}
"""Micro-batches would change what these are trained to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way of running the step.

    Attributes:
        policy: the curve it belongs to.
        setting: where on the curve.
        placement: what is followed; None for peers, which bring their own.
        rule: decides at run time instead.
        peer: puts a peer on, and takes it off again.
        accumulation: number of micro-batches that the batch is split into.
        budget_bytes: what it had to respect, None if it knows no budget.
    """

    policy: str
    setting: str = ""
    placement: Placement | None = None
    rule: AdaptiveRule | None = None
    peer: Callable[[torch.nn.Module], AbstractContextManager[None]] | None = None
    accumulation: int = 1
    budget_bytes: int | None = None


class Policies:
    """Every policy's arms for one workload."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.cost = CostModel("cpu", Store(Path(tempfile.gettempdir()) / "placement_curves"))
        self.chain = self.cost.chain(workload)
        self.full = self.predicted(NONE)
        self.optimal = cache(self._optimal)

    def predicted(self, placement: Placement, accumulation: int = 1) -> int:
        """Return the replayed peak."""
        candidate = Candidate(workload=self.split(accumulation), placement=placement)
        return predict(candidate, device="cpu").memory.peak_bytes

    def split(self, accumulation: int) -> Workload:
        """Return the workload in so many micro-batches."""
        size = self.workload.micro_batch // accumulation
        return self.workload.replace(micro_batch=size, accumulation=accumulation)

    def composed(self, placement: Placement) -> int:
        """Return the composed peak."""
        return peak_bytes(self.chain, to_choice(self.chain, placement))

    def step_seconds(self, placement: Placement, accumulation: int = 1) -> float:
        """Return the composed step time."""
        work = self.split(accumulation)
        chain, numbers = self.cost.chain(work), self.cost.numbers(work)
        assert numbers.step_seconds is not None
        once = numbers.step_seconds + recompute_seconds(chain, to_choice(chain, placement))
        return accumulation * once + numbers.update_seconds

    def _optimal(self, budget: int, accumulation: int = 1) -> Placement | None:
        """Return what the commands would place; None where nothing fits."""
        work = self.split(accumulation)
        try:
            report = place_checked(
                work,
                "optimal",
                self.cost,
                device="cpu",
                budget_bytes=budget,
                options=self.cost.menu(work),
            )
        except InfeasibleError:
            return None
        fits = report.memory.peak_bytes <= budget
        return report.candidate.placement if fits else None

    def micro_batched(self, budget: int, setting: str) -> Iterator[Arm]:
        """Yield the quickest of all splits, each with the placement that then is best."""
        if self.workload.model in BATCH_NORM:
            return
        best: tuple[float, Placement, int] | None = None
        for k in (k for k in (1, 2, 4) if k <= self.workload.micro_batch):
            found = self.optimal(budget, k)
            if found is not None:
                seconds = self.step_seconds(found, k)
                if best is None or seconds < best[0]:
                    best = (seconds, found, k)
        if best is not None and best[2] > 1:
            _, placement, k = best
            yield Arm(
                policy="optimal + micro-batches",
                setting=f"{setting}: {self.workload.micro_batch // k}x{k}",
                placement=placement,
                accumulation=k,
                budget_bytes=budget,
            )

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
        fitting = [p for p in placed if self.composed(p) <= budget]
        if fitting:
            best = min(fitting, key=self.step_seconds)
        else:
            best = min(placed, key=lambda p: (self.composed(p), self.step_seconds(p)))
        return placed[best], best

    def arms(self) -> Iterator[Arm]:
        """Yield all of them, `none` first."""
        yield Arm(policy="none", placement=NONE)
        points: dict[Placement, tuple[AdaptiveRule, float]] = {}
        for share in OPERATING_POINTS:
            rule, foreseen = self.adaptive(int(share * self.full))
            points.setdefault(foreseen, (rule, share))
        for foreseen, (rule, share) in points.items():
            yield from self._beside_adaptive(rule, foreseen, share)
        units = self.cost.units(self.workload)
        for each in [m for m in self.cost.menu(self.workload) if m in (CHEAP, LIGHT)]:
            uniform = Placement(policy=each, decisions=dict.fromkeys(units, each))
            yield Arm(policy=each, placement=uniform)
        for share in BUDGETS:
            budget = int(share * self.full)
            found = self.optimal(budget)
            if found is not None:
                yield Arm(
                    policy="optimal", setting=f"{share:.0%}", placement=found, budget_bytes=budget
                )
            yield from self.micro_batched(budget, f"{share:.0%}")
        for policy, options in {
            "static": {},
            "chen": {},
            "every-k": {"k": 2},
            "first-k": {"k": round(len(units) / 2)},
        }.items():
            yield Arm(
                policy=policy,
                setting=", ".join(f"{k}={v}" for k, v in options.items()),
                placement=POLICIES[policy](self.chain, self.full, options),
            )
        yield Arm(policy="timm set_grad_checkpointing", peer=timm_checkpointing)
        if self.workload.method == "full":
            for share in COMPILE_BUDGETS:
                peer = CompiledPeer(share)
                yield Arm(policy="torch.compile budget", setting=f"{share:.0%}", peer=peer)

    def _beside_adaptive(
        self, rule: AdaptiveRule, foreseen: Placement, share: float
    ) -> Iterator[Arm]:
        budget = max(int(self.predicted(foreseen) * SLACK), int(share * self.full))
        setting = f"its best for {share:.0%}"
        yield Arm(policy="adaptive", setting=setting, placement=foreseen)
        yield Arm(policy="adaptive at run time", setting=setting, rule=rule)
        setting = f"in adaptive's peak for {share:.0%}"
        ours = self.optimal(budget)
        assert ours is not None
        yield Arm(policy="optimal", setting=setting, placement=ours, budget_bytes=budget)
        rotor = POLICIES["rotor"](self.chain, max(self.composed(foreseen), int(share * self.full)))
        yield Arm(policy="rotor", setting=setting, placement=rotor)
        yield from self.micro_batched(budget, setting)


@contextmanager
def timm_checkpointing(model: torch.nn.Module) -> Iterator[None]:
    """Switch timm's own checkpointing on."""
    backbone_of(model).set_grad_checkpointing(True)
    yield
    backbone_of(model).set_grad_checkpointing(False)


class CompiledPeer:
    """torch.compile with Inductor under an ``activation_memory_budget``.

    Dynamo remembers what it compiled by the code object it compiled, so each budget has its own.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.compiled: Callable[..., torch.Tensor] | None = None

    @contextmanager
    def __call__(self, model: torch.nn.Module) -> Iterator[None]:
        """Put it on, and take it off again."""
        if self.compiled is None:
            eager = model.forward

            def forward(images: torch.Tensor) -> torch.Tensor:
                return eager(images)

            own = FunctionType(
                forward.__code__.replace(co_name=f"forward_within_{self.share:.2f}"),
                globals(),
                closure=forward.__closure__,
            )
            self.compiled = torch.compile(own, fullgraph=True)
        model.forward = self.compiled
        try:
            with compile_config.patch(activation_memory_budget=self.share):
                yield
        finally:
            del model.forward


class Session:
    """One model that trains step after step, each under the arm that is asked for."""

    def __init__(self, workload: Workload) -> None:
        torch.manual_seed(0)
        self.made: list[tuple[TrainingStep, list[Fetch]]] = []
        self.decided: Placement | None = None
        self.in_use = memory_in_use("cpu")
        self.none_peak = peak_during(lambda: self._build(workload), self.step)
        self.static = self.none_peak - self._above_start(Arm(policy="none", placement=NONE))

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
        if arm.peer is not None:
            with arm.peer(model):
                yield
        elif arm.rule is not None:
            with apply_adaptive(
                model,
                budget_bytes=arm.rule.budget_bytes,
                threshold=arm.rule.threshold,
                live_bytes=self.in_use,
            ) as applied:
                yield
                self.decided = applied.placement
        else:
            assert arm.placement is not None
            with apply_placement(model, arm.placement):
                yield

    def _above_start(self, arm: Arm) -> int:
        with self.following(arm):
            if arm.peer is not None:
                self.step()  # it may compile
            return peak_during(lambda: None, self.step)

    def peak(self, arm: Arm) -> int:
        """Return the CPU allocator's peak over one step."""
        return self.static + self._above_start(arm)

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
        if wanted and name not in known:
            for row in _measured(name, workload):
                rows.append("host", row)


def _measured(name: str, workload: Workload) -> list[dict[str, object]]:
    policies = Policies(workload)
    arms = list(policies.arms())
    session_of = cache(lambda k: Session(policies.split(k)))
    peaks, decided, failed = [], [], {}
    for i, arm in enumerate(arms):
        session = session_of(arm.accumulation)
        try:
            peaks.append(session.peak(arm))
        except Exception as error:
            if arm.peer is None:
                raise
            peaks.append(None)
            failed[i] = repr(error)[:300]
        decided.append(session.decided if arm.rule is not None else arm.placement)
        share = "failed" if peaks[-1] is None else f"{peaks[-1] / peaks[0]:.1%}"
        print(name, arm.policy, arm.setting, share, flush=True)
    spent: list[list[float]] = [[] for _ in arms]
    for round_index in range(ROUNDS):
        order = [i for i in range(len(arms)) if i not in failed]
        random.Random(round_index).shuffle(order)
        for i in order:
            spent[i].append(session_of(arms[i].accumulation).seconds(arms[i]))
    found = []
    for i, (arm, peak, placement) in enumerate(zip(arms, peaks, decided, strict=True)):
        row: dict[str, object] = {
            "workload_name": name,
            "model": workload.model,
            "method": workload.method,
            "rank": workload.rank,
            "micro_batch": workload.micro_batch // arm.accumulation,
            "accumulation": arm.accumulation,
            "policy": arm.policy,
            "setting": arm.setting,
            "budget_bytes": arm.budget_bytes,
        }
        if i in failed:
            found.append(row | {"error": failed[i]})
            continue
        row |= {"peak_bytes": peak, "cpu_seconds": spent[i]}
        if placement is not None:
            none_seconds = policies.step_seconds(NONE)
            row |= {
                "predicted_bytes": policies.predicted(placement, arm.accumulation),
                "predicted_ratio": policies.step_seconds(placement, arm.accumulation)
                / none_seconds,
                "decisions": dict(placement.decisions),
            }
        found.append(row)
    return found
