"""The criterion for candidates that are expected to be equally accurate."""

from __future__ import annotations

from typing import Literal, get_args

from profiler.errors import UsageError

Objective = Literal["balanced", "accuracy", "time", "energy"]
"""``balanced`` takes the highest expected accuracy first, then the least time and energy. ``time``
and ``energy`` look at one of the two only. ``accuracy`` trusts weak evidence as well."""

CHOICE_OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
"""The objectives, in the order in which they are listed."""


def check_objective(name: str) -> Objective:
    """Return the objective of a name.

    Raises:
        UsageError: no such objective.
    """
    for known in CHOICE_OBJECTIVES:
        if name == known:
            return known
    raise UsageError(f"objective must be one of {', '.join(CHOICE_OBJECTIVES)}, got {name!r}")
