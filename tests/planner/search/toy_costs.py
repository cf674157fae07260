"""A cost model in closed form: what a search is held against by enumeration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from planner.cost.step_estimate import StepEstimate
from profiler.errors import InfeasibleError, UsageError
from profiler.placement import Decision, Placement, PolicyChoice
from profiler.units import DeviceBytes
from profiler.workload import Candidate, Workload

MB = 10**6
WEIGHTS = {"full": 100, "head": 5, "bitfit": 10}


@dataclass(slots=True, kw_only=True)
class ToyCosts:
    """Memory = states + activations a micro-batch; joules rise as micro-batches shrink."""

    watts: float | None = 100.0
    refuses: str = ""
    refusal: str = ""
    rates_version: str = "toy"
    prepared: list[Workload] = field(default_factory=list)
    priced: list[Candidate] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def prepare(self, workload: Workload, on_progress: Callable[[str, float], None]) -> None:
        if workload.method == self.refuses:
            raise UsageError(self.refusal or f"{workload.method} is refused")
        self.prepared.append(workload)

    def estimate(
        self, candidate: Candidate, budget_bytes: DeviceBytes | None = None
    ) -> StepEstimate:
        self.priced.append(candidate)
        load = candidate.workload
        learned = WEIGHTS.get(load.method, 0) + 2 * (load.rank or 0)
        kept = 10 if candidate.placement.is_none else 2
        size = (2 if load.precision == "fp32" else 1) * load.micro_batch * kept
        states = {"adamw": 3, "sgd": 2}[load.optimizer] * learned
        again = 1.0 if candidate.placement.is_none else 1.3
        seconds = again * (1 + 0.1 * load.accumulation) * (1 + learned / 100)
        need = (200 + states + size) * MB
        return StepEstimate(
            peak_bytes=need - 50 * MB,
            reserved_bytes=need,
            device_bytes=DeviceBytes(need),
            step_seconds=seconds,
            energy_joules=None if self.watts is None else seconds * self.watts,
        )

    @contextmanager
    def stored_together(self) -> Iterator[None]:
        """Note how many candidates were priced at the end of the context."""
        yield
        self.batches.append(len(self.priced))

    def learns_in_units(self, workload: Workload) -> bool:
        """Say whether backward runs through the units."""
        return workload.method != "head"

    def place(
        self, workload: Workload, policy: PolicyChoice, budget_bytes: DeviceBytes
    ) -> Candidate:
        plain = Candidate(workload=workload, policy=policy)
        static = replace(plain, placement=Placement(decisions={"block": Decision.RECOMPUTE}))
        if policy.name == "none":
            return plain
        if policy.name == "optimal":
            if self.estimate(plain).device_bytes <= budget_bytes:
                return plain
            least = self.estimate(static).device_bytes
            if least > budget_bytes:
                raise InfeasibleError(budget_bytes=budget_bytes, smallest_bytes=least)
        return static
