"""Rules that an expert would check a recommended plan against, written apart from the choice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from planner.scoring.published_tables import priors
from planner.search.problem import TrialResult

SAVES = 0.03
"""Relative saving of time that counts."""

SAME = 0.05
"""Difference of two accuracy scores that count as equal."""

MARGIN_OF_BUDGET = 0.96


def broken_rules(
    plan: TrialResult, results: Sequence[TrialResult], *, budget_bytes: int, images: str
) -> Iterator[str]:
    """Yield a sentence for each rule that a plan breaks.

    Args:
        plan: the recommended plan.
        results: every plan of the space.
        budget_bytes: the budget.
        images: ``few`` or ``many``.
    """
    load = plan.candidate.workload
    fitting = [r for r in results if r.device_bytes <= budget_bytes]
    if plan.device_bytes > budget_bytes:
        yield "it exceeds the budget"
    for other in fitting:
        theirs = other.candidate.workload
        if theirs.method != "full" or abs(other.score - plan.score) > SAME:
            continue
        if seconds(plan) > seconds(other) and plan.device_bytes > other.device_bytes:
            yield "it is slower and bigger than full training of the same expected accuracy"
            break
    roomy = [r for r in fitting if r.device_bytes <= MARGIN_OF_BUDGET * budget_bytes]
    if any(_is_faster_twin(plan, other) for other in roomy):
        yield f"{load.precision} is the slower precision of the device"
    if any(_saves_by_batch(plan, other, budget_bytes) for other in fitting):
        yield f"a larger micro-batch than {load.micro_batch} saves {SAVES:.0%}"
    if not is_backed(plan, images) and any(is_backed(other, images) for other in fitting):
        yield f"no comparison of {load.method} on {load.model} is known"
    if load.optimizer != "adamw" and any(_is_adamw_twin(plan, other) for other in fitting):
        yield "it trains by SGD where AdamW fits"


def seconds(plan: TrialResult) -> float:
    """Return the seconds of an image."""
    assert plan.step_seconds is not None
    return plan.step_seconds / plan.candidate.workload.effective_batch


def worse(larger: TrialResult, smaller: TrialResult) -> str | None:
    """Return why the plan of a larger budget is worse than that of a smaller one."""
    if larger.score < smaller.score - SAME:
        return "the larger budget has the lower expected accuracy"
    if abs(larger.score - smaller.score) <= SAME and seconds(larger) > 1.03 * seconds(smaller):
        # another method or the published rank can be worth its time
        kinds = {(w.method, w.rank) for w in (r.candidate.workload for r in (larger, smaller))}
        if len(kinds) == 1:
            return "the larger budget is slower"
    return None


def is_backed(plan: TrialResult, images: str) -> bool:
    """Return whether a plan's method was compared on its family, or is the common practice."""
    load = plan.candidate.workload
    return load.method in ("full", "head") or has_evidence(load.model, load.method, images)


def has_evidence(model: str, method: str, images: str) -> bool:
    """Return whether a published table of the family and amount of images has the method."""
    families: Mapping[str, Sequence[str]] = priors()["families"]
    family = next((f for f, names in families.items() if model.startswith(tuple(names))), None)
    stand_in = priors()["stand_ins"].get(method, {"method": method})["method"]
    return any(
        table["family"] == family and table["images"] == images and stand_in in table["accuracy"]
        for table in priors()["tables"]
    )


def _is_faster_twin(plan: TrialResult, other: TrialResult) -> bool:
    twin = plan.candidate.workload.replace(precision=other.candidate.workload.precision)
    return (
        other.candidate.workload == twin
        and other.candidate.placement == plan.candidate.placement
        and seconds(other) < (1 - SAVES) * seconds(plan)
    )


def _saves_by_batch(plan: TrialResult, other: TrialResult, budget_bytes: int) -> bool:
    load, theirs = plan.candidate.workload, other.candidate.workload
    same = theirs.replace(micro_batch=load.micro_batch, accumulation=load.accumulation) == load
    return (
        same
        and theirs.micro_batch > load.micro_batch
        and other.device_bytes <= MARGIN_OF_BUDGET * budget_bytes
        and seconds(other) < (1 - SAVES) * seconds(plan)
    )


def _is_adamw_twin(plan: TrialResult, other: TrialResult) -> bool:
    return other.candidate.workload == plan.candidate.workload.replace(optimizer="adamw")
