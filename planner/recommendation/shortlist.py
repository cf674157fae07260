"""The backbones that ``recommend --model auto`` compares, by their predicted costs."""

from __future__ import annotations

from collections.abc import Collection

from planner.scoring.backbone_facts import BackboneFacts, backbone_facts
from planner.search.pareto import non_dominated
from profiler.errors import UsageError
from profiler.units import enough_bytes_as, format_asked

SHORTLIST_LENGTH = 4
"""Most backbones of the list: each is a search of its own."""


def shortlist(budget_bytes: int, *, known: Collection[BackboneFacts] | None = None) -> list[str]:
    """Return the backbones to compare within a budget, the most accurate first.

    Each can be trained within the budget, fully or by an efficient method, and no other backbone
    that fits dominates it in accuracy and time.

    Args:
        budget_bytes: budget in device bytes.
        known: facts of the backbones to choose from; None for all well-known ones.

    Raises:
        UsageError: none of the backbones fits.
    """
    known = backbone_facts().values() if known is None else known
    fitting = [each for each in known if each.smallest_bytes <= budget_bytes]
    if not fitting:
        least = min(each.smallest_bytes for each in known)
        budget = format_asked(budget_bytes)
        raise UsageError(
            f"--model auto: no backbone of its list fits {budget}; the smallest needs "
            f"{enough_bytes_as(least, budget_bytes)}"
        )
    points = [(each.top1, each.seconds_per_image) for each in fitting]
    front = [fitting[i] for i in non_dominated(points, directions=("maximize", "minimize"))]
    front.sort(key=lambda each: -each.top1)
    return [each.model for each in front[:SHORTLIST_LENGTH]]
