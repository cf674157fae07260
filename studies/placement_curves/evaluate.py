"""Part A: every policy, ours and the peers', under the common evaluator (no timing noise)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from evaluator import EVALUATOR_RATES, live_peak_bytes, step_milliseconds, tracked_peak_bytes
from rule import OPERATING_POINTS, best_adaptive

from planner.cost.model import HEAD, CostModel
from planner.placement.chain import Chain, option_indices
from planner.placement.chain_cost import peak_bytes, recompute_seconds
from planner.placement.chain_policies import adaptive, chen, every_k, first_k
from planner.placement.optimal import solve
from profiler.devices.table import CPU
from profiler.models.parameter_count import count_parameters
from profiler.placement import KEEP_ALL, Decision, Placement
from profiler.store import Store
from profiler.workload import Candidate, Workload

BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
SHORT_BUDGETS = (0.8, 0.6, 0.4, 0.3)
THRESHOLDS = (0.2, 0.35, 0.5, 0.65)
MODELS = {
    "vit_small_patch16_224": 64,
    "resnet18": 64,
    "mobilenetv2_100": 64,
    "tiny_vit_21m_224": 64,
    "swin_tiny_patch4_window7_224": 64,
    "convnext_tiny": 64,
    "vit_base_patch16_224": 64,
    "vim_small_patch16_224": 16,
    "mambavision_t": 16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One placement to be judged.

    Attributes:
        policy: the curve it belongs to.
        setting: where on the curve.
        candidate: what is run.
        budget_bytes: what it had to respect, None if it knows no budget.
        claimed_bytes: what our composed model says of it, None for peers.
        bound_seconds: proved lower bound of its recompute time over the same menu.
        alter: what a peer does to the model.
    """

    policy: str
    setting: str
    candidate: Candidate
    budget_bytes: int | None = None
    claimed_bytes: int | None = None
    bound_seconds: float | None = None
    alter: Callable[..., None] | None = None


class Problem:
    """A workload's chain as the evaluator sees it: no optimizer state, no floor."""

    def __init__(self, workload: Workload) -> None:
        self.model = CostModel(CPU, Store.in_memory(), roofline=EVALUATOR_RATES)
        self.workload = workload
        self.kept_bytes = live_peak_bytes(Candidate(workload=workload))
        self.detailed = workload.model.startswith("vit_small") and workload.method == "full"
        self.budgets = BUDGETS if self.detailed else SHORT_BUDGETS

    def chain(self, workload: Workload) -> Chain:
        """Return the placement problem."""
        chain = self.model.chain(workload)
        state = 8 * count_parameters(workload).trainable  # AdamW's two moments, in fp32
        return replace(chain, static_bytes=chain.static_bytes - state, floor_bytes=0)

    def step_seconds(self, workload: Workload) -> float:
        """Return our own estimate of a step without recomputation."""
        seconds = self.model.costs(workload).step_seconds
        assert seconds is not None
        return seconds * workload.accumulation


def _without_head(placement: Placement) -> Placement:
    kept = {u: d for u, d in placement.decisions.items() if u != HEAD}
    return Placement(decisions=kept)


def _point(
    chain: Chain,
    workload: Workload,
    policy: str,
    setting: str,
    placement: Placement,
    **more: object,
) -> Point:
    return Point(
        policy=policy,
        setting=setting,
        candidate=Candidate(workload=workload, placement=_without_head(placement)),
        claimed_bytes=peak_bytes(chain, option_indices(chain, placement)),
        **more,  # type: ignore[arg-type]
    )


def optimal_within(problem: Problem, budget_bytes: int, setting: str) -> Point | None:
    """Return our best placement within a budget, None if there is none."""
    chain = problem.chain(problem.workload)
    found = solve(chain, budget_bytes)
    if found.placement is None:
        return None
    return _point(
        chain,
        problem.workload,
        "optimal",
        setting,
        found.placement,
        budget_bytes=budget_bytes,
        bound_seconds=found.bound_seconds,
    )


def our_points(problem: Problem) -> Iterator[Point]:
    """Yield every policy of ours."""
    workload, full = problem.workload, problem.kept_bytes
    chain = problem.chain(workload)
    yield _point(chain, workload, "none", "", KEEP_ALL)
    for share in problem.budgets:
        point = optimal_within(problem, int(share * full), f"{share:.0%}")
        if point is not None:
            yield point
    units = problem.model.profiles.units(workload)
    keys = [option.key for option in problem.model.profiles.unit_options(workload)]
    for decision in (Decision.DROP_CHEAP, Decision.DROP_CHEAP_AND_MIXING):
        if decision in keys:
            uniform = Placement(decisions=dict.fromkeys(units, decision))
            yield _point(chain, workload, decision.value, "", uniform)
    count = len(units)
    yield _point(chain, workload, "static", "", Placement(dict.fromkeys(units, Decision.RECOMPUTE)))
    for tau in THRESHOLDS:
        placed = adaptive(chain, full, tau)
        yield _point(chain, workload, "adaptive", f"{tau:.0%} of none's peak", placed)
    for share in OPERATING_POINTS:
        placed = best_adaptive(chain, full, int(share * full))
        yield _point(chain, workload, "adaptive", f"its best for {share:.0%}", placed)
    for k in sorted({max(1, round(count * share)) for share in (0.25, 0.5, 0.75)}):
        yield _point(chain, workload, "first-k", f"k={k}", first_k(chain, k))
    placed = every_k(chain, 2)
    yield _point(chain, workload, "every-k", "k=2", placed)
    yield _point(chain, workload, "chen", "", chen(chain))
    yield Point(
        policy="timm set_grad_checkpointing",
        setting="",
        candidate=Candidate(workload=workload),
        alter=lambda backbone: backbone.set_grad_checkpointing(True),
    )


def accumulated_points(problem: Problem) -> Iterator[Point]:
    """Yield micro-batching, alone and with the placement that is then best for each budget."""
    full, whole = problem.kept_bytes, problem.workload
    ways = (2, 4) if problem.detailed else (2,)
    split = [whole.replace(micro_batch=whole.micro_batch // k, accumulation=k) for k in ways]
    chains = {w: problem.chain(w) for w in split}
    for workload, chain in chains.items():
        setting = f"{workload.micro_batch}x{workload.accumulation}"
        yield _point(chain, workload, "micro-batches", setting, KEEP_ALL)
    for share in problem.budgets:
        best: tuple[float, Workload, Placement] | None = None
        for workload, chain in chains.items():
            found = solve(chain, int(share * full))
            if found.placement is None or found.recompute_seconds is None:
                continue
            seconds = problem.step_seconds(workload)
            seconds += workload.accumulation * recompute_seconds(
                chain, option_indices(chain, found.placement)
            )
            if best is None or seconds < best[0]:
                best = (seconds, workload, found.placement)
        if best is not None:
            _, workload, placement = best
            setting = f"{share:.0%} with {workload.micro_batch}x{workload.accumulation}"
            yield _point(
                chains[workload],
                workload,
                "optimal + micro-batches",
                setting,
                placement,
                budget_bytes=int(share * full),
            )


def judged(point: Point) -> dict[str, object]:
    """Return a row of results."""
    workload = point.candidate.workload
    row: dict[str, object] = {
        "model": workload.model,
        "method": workload.method,
        "rank": workload.rank,
        "micro_batch": workload.micro_batch,
        "accumulation": workload.accumulation,
        "policy": point.policy,
        "setting": point.setting,
        "budget_bytes": point.budget_bytes,
        "claimed_bytes": point.claimed_bytes,
        "bound_seconds": point.bound_seconds,
        "peak_bytes": live_peak_bytes(point.candidate, point.alter),
        "milliseconds": step_milliseconds(point.candidate, point.alter),
        "decisions": dict(point.candidate.placement.decisions),
    }
    # MemTracker cannot follow frozen parameters (it hooks their gradients)
    if workload.method == "full" and point.policy in {"none", "cheap", "static"}:
        row["tracked_peak_bytes"] = tracked_peak_bytes(point.candidate, point.alter)
    return row
