"""The answer when nothing fits: the smallest budget that would, and the most helpful change.

    none_replayed      the error of ``recommend``: no candidate passed its replay
    nothing_fits       the same if no candidate of the space fits
    change_that_fits   the advice of ``predict``: one candidate does not fit

Advice is given only if it was predicted to fit. The smallest budget is replayed and rounded up to
the printed digits, so that a run with the printed budget succeeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from planner.cost.budget import needed_bytes
from planner.cost.fit_probability import context_clause
from planner.cost.place_within_budget import place_within_budget
from planner.placement.policies import OFFLOAD, OPTIMAL, parse_policy
from planner.recommendation.request import Request
from planner.recommendation.search_backbones import smallest_backbone
from planner.recommendation.smaller_images import patch_of, smaller_size
from planner.search.problem import SearchResult
from planner.search.space import Space
from profiler.errors import InfeasibleError, UnmetLimitError, UsageError
from profiler.placement import PolicyChoice
from profiler.records import Report
from profiler.units import DeviceBytes, format_bytes_as
from profiler.workload import HOST_OPTIMIZER, Candidate, Workload

if TYPE_CHECKING:
    from planner.cost.model import CostModel

REPLAYED_CANDIDATES = 3
"""Number of the smallest composed candidates that are replayed. A composed peak is within a few
percent of the replayed one, so the smallest replayed candidate is among the first."""


IMAGE_SHARES = (0.75, 0.5, 0.25)
"""Shares of the image size that are predicted when nothing fits."""


def none_replayed(
    request: Request, found: SearchResult, cost: CostModel, dropped: Sequence[str]
) -> InfeasibleError | UnmetLimitError:
    """Return the error of a question whose candidates were all dropped.

    Args:
        request: the request.
        found: the search.
        cost: cost model of the device.
        dropped: why each replayed candidate was dropped.
    """
    error = nothing_fits(*smallest_backbone(request, found), cost)
    if not dropped or error.smallest_bytes is None or error.smallest_bytes > request.budget_bytes:
        return error
    return UnmetLimitError(
        "the memory is enough, but no candidate passed its replay. " + ". ".join(dropped)
    )


def nothing_fits(request: Request, found: SearchResult, cost: CostModel) -> InfeasibleError:
    """Return the error with the smallest budget that would fit.

    Raises:
        UsageError: no candidate runs at all.
    """
    candidates = [result.candidate for result in found.results]
    candidates += _smallest_candidates(request.space, cost)
    if not candidates:
        reason = next(iter(found.failures), "every method refuses it")
        raise UsageError(f"no candidate runs on {request.space.base.model}: {reason}")
    budget_bytes = request.budget_bytes
    composed = sorted(candidates, key=lambda c: cost.estimate(c, budget_bytes).device_bytes)
    smallest_bytes, report = min(
        (_smallest_budget(c, cost, request) for c in composed[:REPLAYED_CANDIDATES]),
        key=lambda pair: pair[0],
    )
    if smallest_bytes <= budget_bytes:  # a sampler has not met the candidate that fits
        workload = report.candidate.workload
        return InfeasibleError(
            budget_bytes=budget_bytes,
            smallest_bytes=smallest_bytes,
            advice=f"{workload.method} with micro-batch {workload.micro_batch} needs that, and was "
            "not tried; give more --trials",
            subject=f"none of {found.trials} trials fits",
        )
    return InfeasibleError(
        budget_bytes=budget_bytes,
        smallest_bytes=smallest_bytes,
        context=context_clause(cost.device, smallest_bytes, budget_bytes),
        advice=_advice(report, request.limit_bytes, request.space, cost),
    )


def _smallest_candidates(space: Space, cost: CostModel) -> Iterator[Candidate]:
    """Yield the candidates that need least: the smallest micro-batch and rank of each method."""
    for method in space.methods:
        for precision in space.precisions:
            for optimizer in space.optimizers:
                workload = space.base.replace(
                    method=method.name,
                    rank=min(method.ranks, default=None),
                    micro_batch=min(space.micro_batches),
                    accumulation=space.effective_batch // min(space.micro_batches),
                    precision=precision,
                    optimizer=optimizer,
                )
                # A method that refuses the backbone cannot run within any budget.
                with suppress(UsageError):
                    cost.prepare(workload)
                    yield from _smallest_placements(workload, space.checkpoints, cost)


def _smallest_placements(
    workload: Workload, policies: Sequence[str], cost: CostModel
) -> Iterator[Candidate]:
    """Yield the placement that each policy makes for the smallest budget it can place."""
    for policy in map(parse_policy, policies):
        try:
            yield cost.place(workload, policy, DeviceBytes(1))
        except InfeasibleError as error:
            if error.smallest_bytes is not None:
                yield cost.place(workload, policy, DeviceBytes(error.smallest_bytes))


def _smallest_budget(candidate: Candidate, cost: CostModel, request: Request) -> tuple[int, Report]:
    """Return the smallest budget of a candidate at the request's risk, and its replay."""
    from profiler.prediction.report import predict

    report = predict(candidate, device=cost.device)
    # The search drops a candidate by its composed bytes, so the budget must hold those as well.
    need = max(needed_bytes(report), cost.estimate(candidate).device_bytes)
    return request.budget_for(need), report


def _advice(report: Report, budget_bytes: DeviceBytes, space: Space, cost: CostModel) -> str:
    """Return the reason for the smallest need, and the first change that was predicted to fit."""
    workload = report.candidate.workload
    how = f"{workload.method} with micro-batch {workload.micro_batch} needs that"
    memory = report.memory
    outside_bytes = memory.held_bytes - (memory.reserved_bytes or memory.peak_bytes)
    if outside_bytes >= budget_bytes:  # no change makes the context smaller
        return how
    for option, changed in _smaller_searches(report.candidate, space, cost):
        if _fits(changed, cost, budget_bytes):
            return f"{how}; {option} makes it fit"
    parts = memory.at_peak
    if parts is None:
        return how
    state_bytes = parts.parameter + parts.gradient + parts.optimizer + parts.buffer
    if parts.total - state_bytes > state_bytes:
        return f"{how}, mostly for activations"
    return f"{how}, mostly for weights ({format_bytes_as(state_bytes, budget_bytes)})"


def _smaller_searches(
    candidate: Candidate, space: Space, cost: CostModel
) -> Iterator[tuple[str, Candidate]]:
    """Yield options of ``recommend`` that may need less, each with its smallest candidate.

    Options that change no result come first.
    """
    workload = candidate.workload
    yield from _with_host_memory(workload, space, cost)
    if "head" not in {method.name for method in space.methods}:
        yield "--methods head", _with_head(workload, micro_batch=workload.micro_batch)
    patch = patch_of(workload.model)
    for share in IMAGE_SHARES:
        size = smaller_size(workload.image_size, patch=patch, share=share, least=1)
        if size is not None:
            smaller = workload.replace(image_size=size)
            yield f"--image-size {size}", replace(candidate, workload=smaller)


def _with_host_memory(
    workload: Workload, space: Space, cost: CostModel
) -> Iterator[tuple[str, Candidate]]:
    """Yield options that use the host's memory, if the device has a link to it."""
    if cost.device.link_bytes_per_second is None:
        return
    more = [] if OFFLOAD.name in space.checkpoints else [OFFLOAD.name]
    checkpoints = f"--checkpoints {','.join((*space.checkpoints, *more))}"
    for smallest in _smallest_placements(workload, more, cost):
        yield checkpoints, smallest
    has_adamw = {"adamw", HOST_OPTIMIZER} & {*space.optimizers} == {"adamw"}
    if not has_adamw or workload.method != "full":  # else the state is small
        return
    optimizer = f"--optimizers {HOST_OPTIMIZER}"
    with suppress(UsageError):
        on_host = workload.replace(optimizer=HOST_OPTIMIZER)
        cost.prepare(on_host)
        for smallest in _smallest_placements(on_host, space.checkpoints, cost):
            yield optimizer, smallest
        for smallest in _smallest_placements(on_host, more, cost):
            yield f"{checkpoints} {optimizer}", smallest


def _with_head(workload: Workload, *, micro_batch: int) -> Candidate:
    """Return a linear probe with the same effective batch."""
    return Candidate(
        workload=workload.replace(
            method="head",
            rank=None,
            alpha=None,
            targets=None,
            micro_batch=micro_batch,
            accumulation=math.ceil(workload.effective_batch / micro_batch),
        )
    )


def _fits(candidate: Candidate, cost: CostModel, budget_bytes: DeviceBytes) -> bool:
    """Return whether a candidate runs and its replay fits the budget."""
    from profiler.prediction.report import predict

    try:
        return needed_bytes(predict(candidate, device=cost.device)) <= budget_bytes
    except UsageError:
        return False


def change_that_fits(candidate: Candidate, cost: CostModel, limit_bytes: DeviceBytes) -> str:
    """Return the first change that makes a candidate fit, in one sentence.

    The micro-batch is halved until an optimal placement fits; the effective batch stays. If none
    fits, the host's memory is used, and at last only the classifier is trained.

    Args:
        candidate: candidate that does not fit.
        cost: cost model of the device.
        limit_bytes: largest predicted device bytes, by the budget and the risk.
    """
    workload = candidate.workload
    found = _placed_to_fit(workload, OPTIMAL, cost, limit_bytes)
    if found is not None:
        return f"{_changes(workload, found) or '--checkpoint none'} makes it fit"
    for policy, optimizer in _uses_of_host_memory(workload, cost):
        found = _placed_to_fit(workload.replace(optimizer=optimizer), policy, cost, limit_bytes)
        if found is not None:
            return f"no smaller micro-batch fits; {_changes(workload, found)} makes it fit"
    if workload.method != "head":
        for micro_batch in dict.fromkeys((workload.micro_batch, 1)):
            with suppress(UsageError):
                probe = _with_head(workload, micro_batch=micro_batch)
                if _fits(probe, cost, limit_bytes):
                    accumulation = probe.workload.accumulation
                    return (
                        "no smaller micro-batch fits; --method head "
                        f"--batch-size {micro_batch} --accumulate {accumulation} makes it fit"
                    )
    return "no smaller micro-batch fits either"


def _uses_of_host_memory(workload: Workload, cost: CostModel) -> Iterator[tuple[PolicyChoice, str]]:
    """Yield a policy with an optimizer; one or both use the host's memory."""
    if cost.device.link_bytes_per_second is None:
        return
    yield OFFLOAD, workload.optimizer
    if workload.optimizer == "adamw" and workload.method == "full":  # else the state is small
        yield OPTIMAL, HOST_OPTIMIZER
        yield OFFLOAD, HOST_OPTIMIZER


def _placed_to_fit(
    workload: Workload, policy: PolicyChoice, cost: CostModel, limit_bytes: DeviceBytes
) -> Report | None:
    """Return the replay with the largest micro-batch that fits when it is halved; None if none."""
    size = workload.micro_batch
    while size:
        # at micro-batch 1, BatchNorm may have too few values, and the accumulation has a limit
        with suppress(InfeasibleError, UsageError):
            smaller = workload.replace(
                micro_batch=size, accumulation=math.ceil(workload.effective_batch / size)
            )
            cost.prepare(smaller)
            report = place_within_budget(
                smaller,
                policy,
                cost,
                budget_bytes=limit_bytes,
                options=cost.profiles.unit_options(smaller),
            ).report
            if needed_bytes(report) <= limit_bytes:
                return report
        size //= 2
    return None


def _changes(workload: Workload, report: Report) -> str:
    """Return the options of ``predict`` that turn a workload into that of a report."""
    changed = report.candidate.workload
    changes = []
    if changed.micro_batch != workload.micro_batch:
        changes.append(f"--batch-size {changed.micro_batch} --accumulate {changed.accumulation}")
    if not report.candidate.placement.is_none:
        changes.append(f"--checkpoint {report.candidate.policy.name}")
    if changed.optimizer != workload.optimizer:
        changes.append(f"--optimizer {changed.optimizer}")
    return " ".join(changes)
