"""The answer when nothing fits: the smallest budget that would, and the most helpful change.

    nothing_fits       the error of ``recommend``: no candidate of the space fits
    change_that_fits   the advice of ``predict``: one candidate does not fit

The smallest budget is replayed and rounded up to the printed digits, so that a run with the printed
budget succeeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from planner.cost.budget import needed_bytes, round_up_to_printed
from planner.cost.place_within_budget import place_within_budget
from planner.placement.policies import OPTIMAL, parse_policy
from planner.recommendation.request import Request
from planner.search.problem import SearchResult
from planner.search.space import Space
from profiler.errors import InfeasibleError, UsageError
from profiler.records import Report
from profiler.units import DeviceBytes, format_bytes
from profiler.workload import Candidate, Workload

if TYPE_CHECKING:
    from planner.cost.model import CostModel

REPLAYED_CANDIDATES = 3
"""Number of the smallest composed candidates that are replayed. A composed peak is within a few
percent of the replayed one, so the smallest replayed candidate is among the first."""


def nothing_fits(request: Request, found: SearchResult, cost: CostModel) -> InfeasibleError:
    """Return the error with the smallest budget that would fit."""
    candidates = [result.candidate for result in found.results]
    candidates += _smallest_candidates(request.space, cost)
    composed = sorted(candidates, key=lambda c: cost.estimate(c).device_bytes)
    smallest_bytes, report = min(
        (_smallest_budget(c, cost) for c in composed[:REPLAYED_CANDIDATES]),
        key=lambda pair: pair[0],
    )
    return InfeasibleError(
        budget_bytes=request.budget_bytes,
        smallest_bytes=smallest_bytes,
        advice=_advice(report, request.budget_bytes, request.space),
    )


def _smallest_candidates(space: Space, cost: CostModel) -> Iterator[Candidate]:
    """Yield the candidates that need least: the smallest micro-batch and rank of each method."""
    for method in space.methods:
        for precision in space.precisions:
            for optimizer in space.optimizers:
                load = space.base.replace(
                    method=method.name,
                    rank=min(method.ranks, default=None),
                    micro_batch=min(space.micro_batches),
                    accumulation=space.effective_batch // min(space.micro_batches),
                    precision=precision,
                    optimizer=optimizer,
                )
                # A method that refuses the backbone cannot run within any budget.
                with suppress(UsageError):
                    cost.prepare(load)
                    yield from _smallest_placements(load, space.checkpoints, cost)


def _smallest_placements(
    load: Workload, policies: Sequence[str], cost: CostModel
) -> Iterator[Candidate]:
    """Yield the placement that each policy makes for the smallest budget it can place."""
    for policy in map(parse_policy, policies):
        try:
            yield cost.place(load, policy, DeviceBytes(1))
        except InfeasibleError as error:
            if error.smallest_bytes is not None:
                yield cost.place(load, policy, DeviceBytes(error.smallest_bytes))


def _smallest_budget(candidate: Candidate, cost: CostModel) -> tuple[int, Report]:
    """Return the smallest budget of a candidate in bytes, and its replay."""
    from profiler.prediction.report import predict

    report = predict(candidate, device=cost.device)
    # The search drops a candidate by its composed bytes, so the budget must hold those as well.
    need = max(needed_bytes(report), cost.estimate(candidate).device_bytes)
    return round_up_to_printed(need), report


def _advice(report: Report, budget_bytes: int, space: Space) -> str:
    """Return the change that helps most, judged by the largest part of the smallest candidate."""
    load = report.candidate.workload
    how = f"{load.method} with micro-batch {load.micro_batch} needs that"
    memory = report.memory
    outside_bytes = needed_bytes(report) - (memory.reserved_bytes or memory.peak_bytes)
    if outside_bytes >= budget_bytes:
        return f"{how}, and the CUDA context alone takes {format_bytes(outside_bytes)}"
    if "head" not in {method.name for method in space.methods}:
        return f"{how}; --methods head helps most, because it stores no activations"
    parts = memory.at_peak
    if parts is None:
        return f"{how}; a smaller backbone helps most"
    state_bytes = parts.parameter + parts.gradient + parts.optimizer + parts.buffer
    if parts.total - state_bytes > state_bytes:
        return f"{how}, mostly for activations; a smaller --image-size helps most"
    return f"{how}, mostly for weights ({format_bytes(state_bytes)}); a smaller backbone helps most"


def change_that_fits(candidate: Candidate, cost: CostModel, budget_bytes: DeviceBytes) -> str:
    """Return the first change that makes a candidate fit, in one sentence.

    The micro-batch is halved until an optimal placement fits; the effective batch stays.
    """
    load = candidate.workload
    size = load.micro_batch
    while size:
        smaller = load.replace(
            micro_batch=size, accumulation=math.ceil(load.effective_batch / size)
        )
        cost.prepare(smaller)
        with suppress(InfeasibleError):
            report = place_within_budget(
                smaller,
                OPTIMAL,
                cost,
                budget_bytes=budget_bytes,
                options=cost.profiles.unit_options(smaller),
            )
            if needed_bytes(report) <= budget_bytes:
                changes = []
                if size != load.micro_batch:
                    changes.append(f"--batch-size {size} --accumulate {smaller.accumulation}")
                if not report.candidate.placement.is_none:
                    changes.append("--checkpoint optimal")
                return f"{' '.join(changes) or '--checkpoint none'} makes it fit"
        size //= 2
    return "no smaller micro-batch fits either; a method that trains less helps most"
