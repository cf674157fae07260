"""Texts of table cells and commands: method, batch, placement, accuracy, scores, errors."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from planner.plan import Accuracy, FitProbability, Plan
from planner.recommendation.answer import Recommendation
from planner.recommendation.ranking_accuracy import ranks_candidates
from planner.scoring.netscore import Scores
from profiler.models.backbones import ALIASES
from profiler.placement import Decision, Placement
from profiler.records import ValueInterval
from profiler.units import format_joules, format_seconds
from profiler.workload import Candidate

MOST_PARTS_NAMED = 3
"""Most parts of a unit that a cell names; the cell counts the rest."""


def alias_of(model: str) -> str:
    """Return the alias of a backbone, or its name."""
    return next((alias for alias, name in ALIASES.items() if name == model), model)


_LEVER_WORDS = {
    "channels_last": "channels-last",
    "tf32": "TF32",
    "cudnn_benchmark": "cudnn.benchmark",
    "compile": "torch.compile",
}


def optimizer_of(candidate: Candidate) -> str:
    """Return the optimizer, such as ``fused adamw``."""
    workload = candidate.workload
    return f"fused {workload.optimizer}" if "fused" in workload.levers else workload.optimizer


def levers_of(candidate: Candidate) -> list[str]:
    """Return the levers beside a fused optimizer, in words."""
    return [_LEVER_WORDS[name] for name in candidate.workload.levers if name in _LEVER_WORDS]


def seconds_text(seconds: float | None, interval: ValueInterval | None) -> str:
    """Return a predicted time with its interval, for example ``50.5 ms (33 to 68)``."""
    return _with_interval(seconds, interval, format_seconds)


def joules_text(joules: float | None, interval: ValueInterval | None) -> str:
    """Return a predicted energy with its interval, for example ``5.64 J (3.1 to 8.2)``."""
    return _with_interval(joules, interval, format_joules)


def _with_interval(
    value: float | None, interval: ValueInterval | None, printed: Callable[[float], str]
) -> str:
    if value is None or interval is None:
        return "-" if value is None else printed(value)
    text = printed(value)
    number, _, unit = text.partition(" ")
    if " " in unit or not value:  # minutes and seconds
        return f"{text} ({printed(interval.low)} to {printed(interval.high)})"
    per_unit = float(number) / value
    low, high = (_two_digits(end * per_unit) for end in (interval.low, interval.high))
    return f"{text} ({low} to {high})"


def _two_digits(number: float) -> str:
    """Print a number with two significant digits, and all of those before the point."""
    if number >= 1:
        return f"{number:.0f}" if number >= 10 else f"{number:.1f}"
    return f"{number:.2g}"


def probability_text(fits: FitProbability | None) -> str:
    """Return a probability of fitting, rounded down; an empty text if it is not known."""
    if fits is None:
        return ""
    percent = 100 * fits.probability
    return "P > 99 %" if percent >= 99 else f"P {math.floor(percent)} %"


def placement_of(candidate: Candidate, units: int | None = None) -> str:
    """Return the policy and its decisions: ``optimal: 2 cheap, 1 in parts, 3 recompute of 12``."""
    placement, policy = candidate.placement, candidate.policy.display_name
    if placement.is_none:
        return "none" if policy == "none" else f"{policy}: nothing"
    split = {name.partition("/")[0] for name in placement.decisions if "/" in name}
    whole = {u: d for u, d in placement.decisions.items() if "/" not in u and u not in split}
    counts = Counter(whole.values()) + Counter({"in parts": len(split)})
    said = ", ".join(f"{count} {decision}" for decision, count in sorted(counts.items()))
    return f"{policy}: {said}" + (f" of {units}" if units else "")


def accuracy_of(accuracy: Accuracy) -> str:
    """Return the accuracy in percent with its kind; ``-`` if unknown."""
    if accuracy.value is None:
        return "-"
    return f"{100 * accuracy.value:.1f} % ({accuracy.kind})"


def shown_accuracy(plan: Plan) -> str:
    """Return the accuracy of a plan if it can rank candidates; ``-`` if it cannot."""
    return accuracy_of(plan.accuracy) if ranks_candidates(plan) else "-"


def shown_score(plan: Plan, name: str) -> str:
    """Return a score that was computed from an accuracy that can rank; ``-`` otherwise."""
    return netscore_of(plan.scores, name) if ranks_candidates(plan) else "-"


def netscore_of(scores: Scores | None, name: str) -> str:
    """Return a score with two decimals; ``-`` if unknown."""
    value = None if scores is None else getattr(scores, name)
    return "-" if value is None else f"{value:.2f}"


def difference(predicted: float | None, measured: float | None) -> str:
    """Return the relative error of a prediction, in percent of the measured value."""
    if predicted is None or not measured:
        return "-"
    return f"{100 * (predicted / measured - 1):+.2f} %"


def candidate_facts(candidate: Candidate) -> Iterator[tuple[str, str]]:
    """Yield the properties of a candidate as name and value."""
    workload = candidate.workload
    yield "method", workload.method_text
    yield (
        "batch",
        f"{workload.micro_batch} x {workload.accumulation} = {workload.effective_batch} images",
    )
    yield "precision", workload.precision
    yield "optimizer", optimizer_of(candidate)
    if levers := levers_of(candidate):
        yield "levers", ", ".join(levers)
    yield "input", f"{workload.image_size} px, {workload.num_classes} classes"
    yield "checkpointing", placement_of(candidate)


def decision_of(unit: str, placement: Placement) -> str:
    """Return the decisions for a unit and its parts: ``light, recompute qkv proj fc1``."""
    parts: dict[str, list[str]] = {}
    for name, decision in placement.decisions.items():
        if name.startswith(f"{unit}/"):
            parts.setdefault(decision, []).append(name.removeprefix(f"{unit}/"))
    beside = placement.decision(unit)
    said = [str(beside)] if beside is not Decision.KEEP or not parts else []
    said += [f"{decision} {_shortened(names)}" for decision, names in sorted(parts.items())]
    return ", ".join(said)


def _shortened(parts: Sequence[str]) -> str:
    """Return the last names of parts, at most ``MOST_PARTS_NAMED``, then a count of the rest."""
    last = [_last_word(part) for part in parts]
    names = last if len({*last}) == len(last) else list(parts)
    more = len(names) - MOST_PARTS_NAMED
    return " ".join(names if more <= 0 else [*names[:MOST_PARTS_NAMED], f"+{more}"])


def _last_word(part: str) -> str:
    """Return the last name of a dotted path, with the name before it if the last is a number."""
    names = part.split(".")
    return ".".join(names[-2:] if names[-1].isdigit() else names[-1:])


def training_command(file: Path, *, weights: Path | None = None) -> str:
    """Return the shell command that trains a plan.

    A plan does not hold the path of a weights file, so that it can be given to others. Without
    ``--weights`` the training would begin with timm's weights, or with random ones.

    Args:
        file: path of the plan.
        weights: file of the backbone's weights; None for timm's.
    """
    words = ["budgetplan", "train", str(file)]
    return shlex.join(words if weights is None else [*words, "--weights", str(weights)])


def training_steps(answer: Recommendation, plan: Plan) -> int | None:
    """Return the optimizer steps of the whole training; None without a recipe."""
    if plan.recipe is None:
        return None
    batch = plan.candidate.workload.effective_batch
    return plan.recipe.steps(answer.request.images_of(plan.recipe), effective_batch=batch)


def watt_hours(joules: float) -> str:
    """Print an energy in watt-hours with two significant digits."""
    hours = joules / 3600
    if hours >= 1000:
        return f"{hours / 1000:.2g} kWh" if hours < 100_000 else f"{hours / 1000:,.0f} kWh"
    return f"{hours:.2g} Wh" if hours < 100 else f"{hours:.0f} Wh"
