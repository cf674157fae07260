"""Twenty recipes for each method, as one would try them by hand.

They do not depend on the default recipe: five learning rates that cover a decade or more, two
schedules, and two of one more choice. That choice is the rate of the classifier (the same, or ten
times that of the rest) or, for ``head``, which has no rest, label smoothing (none or 0.1). The
classifier starts at zero, which the default recipe does too: without it all twenty lose points.
"""

from __future__ import annotations

from itertools import product
from typing import Any

from planner.recipe import Recipe

RATES = {
    "full": (1e-4, 2.5e-4, 5e-4, 1e-3, 2e-3),
    "lora": (1e-3, 2e-3, 4e-3, 6e-3, 1e-2),
    "bn_head": (1e-3, 3e-3, 6e-3, 1e-2, 2e-2),
    "bitfit": (1e-3, 3e-3, 6e-3, 1e-2, 2e-2),
    "head": (3e-3, 1e-2, 2e-2, 5e-2, 1e-1),
}

WARM_UP_STEPS = 10


def hand_made_recipes(method: str, *, epochs: int) -> list[Recipe]:
    """Return the twenty recipes of a method, in a fixed order.

    Args:
        method: one of ``RATES``.
        epochs: epochs of each.
    """
    schedules: tuple[dict[str, Any], ...] = (
        {"schedule": "constant"},
        {"schedule": "cosine", "warm_up_steps": WARM_UP_STEPS},
    )
    choices: tuple[dict[str, Any], ...] = ({}, {"head_rate_ratio": 10.0})
    if method == "head":
        choices = ({}, {"label_smoothing": 0.1})
    return [
        Recipe(
            learning_rate=rate,
            **schedule,
            **choice,
            weight_decay=0.01,
            zero_head=True,
            epochs=epochs,
            source="made by hand",
        )
        for rate, schedule, choice in product(RATES[method], schedules, choices)
    ]
