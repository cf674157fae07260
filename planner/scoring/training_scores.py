"""Scores of this project that weigh accuracy against the cost of training. None is published.

    budget_fit    20 log10( a^2 / b^w )            b: device memory of the training over the budget
    train_time    20 log10( a^2 / s^w )            s: seconds for 1,000 training images
    train_energy  20 log10( a^2 / e^w )            e: joules for 1,000 training images
    train_all     20 log10( a^2 / (b s e)^w )

a is the top-1 accuracy in percent. The exponents 2 and w = 1/8 are those that arXiv 2607.02158 has
for costs of inference; both can be set. The published scores keep their names and exponents
(``planner.scoring.netscore``), so a number with other exponents never stands under their names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType

from planner.scoring.netscore import (
    ACCURACY_EXPONENT,
    DEPLOYMENT_WEIGHT,
    check_accuracy,
    decibels,
)
from profiler.errors import UsageError

IMAGES = 1000
"""Images that seconds and joules are counted for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCosts:
    """Costs of a training; None for those that are not known.

    Attributes:
        budget_share: device memory of the training over the budget.
        seconds: seconds for ``IMAGES`` training images.
        joules: joules for ``IMAGES`` training images.
    """

    budget_share: float | None = None
    seconds: float | None = None
    joules: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingScores:
    """The scores of the module that the known costs allow; None for the others."""

    budget_fit: float | None = None
    train_time: float | None = None
    train_energy: float | None = None
    train_all: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """Return plain data for ``score --json``."""
        return asdict(self)


TRAINING_FORMULAS: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "budget_fit": ("20 log10(a^2 / b^(1/8))", ("budget_share",)),
        "train_time": ("20 log10(a^2 / s^(1/8))", ("seconds",)),
        "train_energy": ("20 log10(a^2 / e^(1/8))", ("joules",)),
        "train_all": ("20 log10(a^2 / (b s e)^(1/8))", ("budget_share", "seconds", "joules")),
    }
)
"""Formula of each score with its default exponents, and the costs that it needs."""


def training_scores(
    costs: TrainingCosts,
    *,
    accuracy_percent: float,
    accuracy_exponent: float = ACCURACY_EXPONENT,
    cost_exponent: float = DEPLOYMENT_WEIGHT,
) -> TrainingScores:
    """Return the scores that the known costs allow.

    Args:
        costs: costs of the training.
        accuracy_percent: top-1 accuracy in percent, above 1.
        accuracy_exponent: exponent of the accuracy.
        cost_exponent: exponent of each cost.

    Raises:
        UsageError: the accuracy is outside (1, 100], a cost is not positive, or an exponent is
            negative.
    """
    check_accuracy(accuracy_percent)
    found = {
        name: weighed_score(
            accuracy_percent,
            [getattr(costs, need) for need in needs],
            accuracy_exponent=accuracy_exponent,
            cost_exponent=cost_exponent,
        )
        for name, (_, needs) in TRAINING_FORMULAS.items()
        if all(getattr(costs, need) is not None for need in needs)
    }
    return TrainingScores(**found)


def weighed_score(
    accuracy_percent: float,
    costs: list[float],
    *,
    accuracy_exponent: float,
    cost_exponent: float,
) -> float:
    """Return ``netscore.decibels`` of checked costs and exponents."""
    for name, value in (("accuracy", accuracy_exponent), ("cost", cost_exponent)):
        if not (math.isfinite(value) and value >= 0):
            raise UsageError(f"the exponent of the {name} must be 0 or more, got {value!r}")
    for cost in costs:
        if not (math.isfinite(cost) and cost > 0):
            raise UsageError(f"a cost must be a positive number, got {cost!r}")
    return decibels(
        accuracy_percent, costs, accuracy_exponent=accuracy_exponent, cost_exponent=cost_exponent
    )
