"""Texts of table cells: method, batch, placement, accuracy, scores, differences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from planner.plan import Accuracy
from planner.scoring.netscore import Scores
from profiler.placement import Decision, Placement
from profiler.workload import Candidate

MOST_PARTS_NAMED = 3
"""Parts of a unit that its cell names; the rest is a count."""


def method_of(candidate: Candidate) -> str:
    """Return ``lora r8``."""
    load = candidate.workload
    return load.method if load.rank is None else f"{load.method} r{load.rank}"


def batch_of(candidate: Candidate) -> str:
    """Return ``8x4``: micro-batch times accumulation."""
    load = candidate.workload
    return f"{load.micro_batch}x{load.accumulation}"


def placement_of(candidate: Candidate, units: int | None = None) -> str:
    """Return the policy and what it does: ``optimal: 2 cheap, 1 in parts, 3 recompute of 12``."""
    placement, policy = candidate.placement, candidate.policy.display_name
    if placement.is_none:
        return "none" if policy == "none" else f"{policy}: nothing"
    split = {name.partition("/")[0] for name in placement.decisions if "/" in name}
    whole = {u: d for u, d in placement.decisions.items() if "/" not in u and u not in split}
    counts = Counter(whole.values()) + Counter({"in parts": len(split)})
    said = ", ".join(f"{count} {decision}" for decision, count in sorted(counts.items()))
    return f"{policy}: {said}" + (f" of {units}" if units else "")


def accuracy_of(accuracy: Accuracy) -> str:
    """Return the value with its kind."""
    if accuracy.value is None:
        return "-"
    kind = {"measured": "short run"}.get(accuracy.kind, accuracy.kind)
    return f"{100 * accuracy.value:.1f} % ({kind})"


def netscore_of(scores: Scores | None, name: str) -> str:
    """Return a score with two decimals."""
    value = None if scores is None else getattr(scores, name)
    return "-" if value is None else f"{value:.2f}"


def difference(predicted: float | None, measured: float | None) -> str:
    """Return by how much the prediction was off, in percent of what was measured."""
    if predicted is None or not measured:
        return "-"
    return f"{100 * (predicted / measured - 1):+.2f} %"


def candidate_facts(candidate: Candidate) -> Iterator[tuple[str, str]]:
    """Yield what a candidate runs, name and value."""
    load = candidate.workload
    yield "method", method_of(candidate)
    yield "batch", f"{load.micro_batch} x {load.accumulation} = {load.effective_batch} images"
    yield "precision", load.precision
    yield "optimizer", load.optimizer
    yield "input", f"{load.image_size} px, {load.num_classes} classes"
    yield "checkpointing", placement_of(candidate)


def decision_of(unit: str, placement: Placement) -> str:
    """Return what is done with a unit, its parts included: ``light, recompute qkv proj fc1``."""
    parts: dict[str, list[str]] = {}
    for name, decision in placement.decisions.items():
        if name.startswith(f"{unit}/"):
            parts.setdefault(decision, []).append(name.removeprefix(f"{unit}/"))
    beside = placement.decision(unit)
    said = [str(beside)] if beside is not Decision.KEEP or not parts else []
    said += [f"{decision} {_shortened(names)}" for decision, names in sorted(parts.items())]
    return ", ".join(said)


def _shortened(parts: Sequence[str]) -> str:
    """Return what parts are called within theirs, and no more of them than a table has room for."""
    last = [_last_word(part) for part in parts]
    names = last if len({*last}) == len(last) else list(parts)
    more = len(names) - MOST_PARTS_NAMED
    return " ".join(names if more <= 0 else [*names[:MOST_PARTS_NAMED], f"+{more}"])


def _last_word(part: str) -> str:
    """Return the last name of a dotted one, with the one before where it is but a number."""
    names = part.split(".")
    return ".".join(names[-2:] if names[-1].isdigit() else names[-1:])
