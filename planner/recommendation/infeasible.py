"""What to say when nothing fits, and what the paper's defaults would need.

    nothing_fits   the error with the smallest budget that would fit and the change that helps most
    change_that_fits   the same for one candidate
    extremes       the candidates that need least: one image at a time, everything recomputed
    baselines      full fine-tuning (and LoRA) as arXiv 2607.02158's code runs them

The smallest budget is that of a replay, rounded up to what is printed, so that asking for it works.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from planner.cost.place_within_budget import device_bytes_of, needed_bytes, place_checked, round_up
from planner.search.space import Ranked, Space
from profiler.errors import InfeasibleError, UsageError
from profiler.records import Report
from profiler.units import format_bytes
from profiler.workload import Candidate, Workload

if TYPE_CHECKING:
    from planner.cost.model import CostModel

REPLAYS = 3
"""Of the extremes, how many are replayed: composed numbers are within a few percent."""


def extremes(space: Space, cost: CostModel) -> Iterator[Candidate]:
    """Yield the candidates that need least: one image at a time, as little kept as possible."""
    for method in space.methods:
        for precision in space.precisions:
            for optimizer in space.optimizers:
                load = space.base.replace(
                    method=method.name,
                    rank=min(method.ranks) if isinstance(method, Ranked) else None,
                    micro_batch=min(space.micro_batches),
                    accumulation=space.effective_batch // min(space.micro_batches),
                    precision=precision,
                    optimizer=optimizer,
                )
                # what cannot be run at all needs no memory worth naming
                with suppress(UsageError):
                    cost.prepare(load)
                    yield from _smallest_of(load, space.checkpoints, cost)


def _smallest_of(load: Workload, policies: Sequence[str], cost: CostModel) -> Iterator[Candidate]:
    for policy in policies:
        try:
            yield cost.place(load, policy, 1)
        except InfeasibleError as error:
            needed = device_bytes_of(error, load, cost)
            if needed is not None:
                yield cost.place(load, policy, needed)


def nothing_fits(
    space: Space, cost: CostModel, *, budget_bytes: int, device: str, found: Sequence[Candidate]
) -> InfeasibleError:
    """Return the error that names the smallest budget that would fit.

    Args:
        space: what was searched.
        cost: the cost model of the search.
        budget_bytes: what was asked for.
        device: what is planned for.
        found: the candidates of the search.
    """
    candidates = [*found, *extremes(space, cost)]
    ranked = sorted(candidates, key=lambda c: cost.quick(c).device_bytes)
    smallest, best = min(
        (_smallest_budget(candidate, cost, device) for candidate in ranked[:REPLAYS]),
        key=lambda pair: pair[0],
    )
    return InfeasibleError(
        budget_bytes=budget_bytes,
        smallest_bytes=smallest,
        advice=_advice(best, budget_bytes, space),
    )


def _smallest_budget(candidate: Candidate, cost: CostModel, device: str) -> tuple[int, Report]:
    from profiler.prediction.report import predict

    report = predict(candidate, device=cost.spec)
    need = max(needed_bytes(report), cost.quick(candidate).device_bytes)
    return round_up(need), report


def _advice(best: Report, budget_bytes: int, space: Space) -> str:
    """Name the change that helps most, from what the smallest candidate is made of."""
    load = best.candidate.workload
    how = f"{load.method} with micro-batch {load.micro_batch} needs that"
    memory = best.memory
    outside = needed_bytes(best) - (memory.reserved_bytes or memory.peak_bytes)
    if outside >= budget_bytes:
        return f"{how}, and the CUDA context alone is {format_bytes(outside)} of it"
    names = {method.name for method in space.methods}
    if "head" not in names:
        return f"{how}; allowing --methods head helps most, since nothing of it is kept"
    parts = memory.at_peak
    if parts is None:
        return f"{how}; a smaller backbone helps most"
    states = parts.parameter + parts.gradient + parts.optimizer + parts.buffer
    if parts.total - states > states:
        return f"{how}, mostly activations; a smaller --image-size helps most"
    return f"{how}, mostly weights ({format_bytes(states)}); a smaller backbone helps most"


def change_that_fits(
    candidate: Candidate, cost: CostModel, *, device: str, budget_bytes: int
) -> str:
    """Return the first of a few changes of one candidate that makes it fit, least cost first."""
    load = candidate.workload
    size = load.micro_batch
    while size:
        smaller = load.replace(
            micro_batch=size, accumulation=math.ceil(load.effective_batch / size)
        )
        batch = f"--batch-size {size} --accumulate {smaller.accumulation}"
        cost.prepare(smaller)
        with suppress(InfeasibleError):
            report = place_checked(
                smaller,
                "optimal",
                cost,
                device=device,
                budget_bytes=budget_bytes,
                options=cost.menu(smaller),
            )
            if needed_bytes(report) <= budget_bytes:
                kept = report.candidate.placement.is_none
                changes = [batch] * (size != load.micro_batch)
                changes += ["--checkpoint optimal"] * (not kept)
                return f"{' '.join(changes) or '--checkpoint none'} makes it fit"
        size //= 2
    return "no smaller micro-batch fits either; a method that trains less helps most"
