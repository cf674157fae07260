"""The published numbers in ``accuracy_priors.json``, and the two properties that select them.

    compared_family    family of backbones by name: ``vit``, ``vim``, ``conv``; None for others
    regime_of          ``few`` up to 5,000 training images, else ``many``
    comparable_tables  the tables of a family and a regime
    method_effects     log-odds of each method over the linear probe in some tables
    effects_of         the same, for given tables and up to a constant

A table compares several methods on one backbone and benchmark. A cell is modelled as
log-odds(accuracy) = table + method, fitted by least squares (alternating means) with the linear
probe at 0. Methods that share no table are compared through those that they share one with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

Regime = Literal["few", "many"]
"""Amount of training images, up to ``FEW_TRAINING_IMAGES`` or above."""

Key = TypeVar("Key", bound=Hashable)

FEW_TRAINING_IMAGES = 5_000
"""Largest training set of the regime ``few``. VTAB-1k has 1,000 training images per task, CIFAR-100
and most FGVC tasks have more than 5,000."""

MARGIN = 0.15
"""Log-odds by which two accuracies of a table must differ to distinguish two methods: 3 points at
70 %, 1.4 points at 90 %. An assumption: two sources give full training of the same ViT-S on
CIFAR-100 as 84.3 and 89.7 %, so smaller differences are no evidence."""

PRIORS = Path(__file__).with_name("accuracy_priors.json")
"""The published numbers, each with its source."""


@lru_cache(maxsize=1)
def priors() -> dict[str, Any]:
    """Return the content of the file."""
    data: dict[str, Any] = json.loads(PRIORS.read_text(encoding="utf-8"))
    return data


def compared_family(model: str) -> str | None:
    """Return the family of a backbone whose published comparisons hold for it; None if none do.

    Args:
        model: canonical backbone name.
    """
    for family, prefixes in priors()["families"].items():
        if model.rpartition("/")[2].startswith(tuple(prefixes)):
            return str(family)
    return None


def regime_of(train_images: int | None) -> Regime | None:
    """Return the regime of a number of training images; None if it is not known."""
    if train_images is None:
        return None
    return "few" if train_images <= FEW_TRAINING_IMAGES else "many"


def images_of(data: str, train_images: int | None) -> int | None:
    """Return the given number of training images, or that of a named data set."""
    known: Mapping[str, int] = priors()["train_images"]
    return train_images if train_images is not None else known.get(data)


def table_name(method: str) -> str:
    """Return the method whose table entries are used: nearly always the method itself."""
    stand_in = priors()["stand_ins"].get(method)
    return method if stand_in is None else str(stand_in["method"])


def comparable_tables(family: str | None, regime: Regime | None) -> list[dict[str, Any]]:
    """Return the tables of a family, and of a regime if it is known."""
    return [
        table
        for table in priors()["tables"]
        if table["family"] == family and regime in (None, table["images"])
    ]


@lru_cache(maxsize=16)
def method_effects(family: str | None, regime: Regime | None) -> Mapping[str, float]:
    """Return the effect of every method in the comparable tables; empty if there is no table."""
    effects = effects_of(comparable_tables(family, regime))
    return {method: effect - effects["head"] for method, effect in sorted(effects.items())}


def effects_of(tables: Sequence[Mapping[str, Any]]) -> Mapping[str, float]:
    """Return the effect of every method in some tables, up to a constant for all."""
    cells = [
        (t, method, log_odds(accuracy))
        for t, table in enumerate(tables)
        for method, accuracy in table["accuracy"].items()
    ]
    effects = {method: 0.0 for _, method, _ in cells}
    for _ in range(10_000):
        levels = _means((t, y - effects[m]) for t, m, y in cells)
        fitted = _means((m, y - levels[t]) for t, m, y in cells)
        change = max((abs(fitted[m] - effects[m]) for m in effects), default=0.0)
        effects = fitted
        if change < 1e-12:
            break
    return effects


def _means(rows: Iterable[tuple[Key, float]]) -> dict[Key, float]:
    """Return the mean of each key over rows of (key, value)."""
    sums: dict[Key, tuple[float, int]] = {}
    for key, value in rows:
        total, count = sums.get(key, (0.0, 0))
        sums[key] = total + value, count + 1
    return {key: total / count for key, (total, count) in sums.items()}


def log_odds(accuracy: float) -> float:
    """Return the log-odds of a fraction in (0, 1)."""
    return math.log(accuracy / (1 - accuracy))


def from_log_odds(value: float) -> float:
    """Return the fraction in (0, 1) of log-odds."""
    return 1 / (1 + math.exp(-value))
