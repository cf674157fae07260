"""Errors of derived accuracies against a second computation with numpy."""

from __future__ import annotations

import json
import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from planner.scoring.accuracy_prior import estimate_accuracy
from planner.scoring.published_tables import PRIORS, log_odds
from planner.scoring.table_errors import difference_error, interval_of

TABLES = json.loads(PRIORS.read_text())["tables"]


def least_squares(tables: list[dict[str, Any]]) -> dict[str, float]:
    """Return the effect of each method: log-odds = table + method, by numpy."""
    methods = sorted({m for table in tables for m in table["accuracy"]})
    rows, values = [], []
    for number, table in enumerate(tables):
        for method, accuracy in table["accuracy"].items():
            line = np.zeros(len(tables) + len(methods))
            line[number] = line[len(tables) + methods.index(method)] = 1
            rows.append(line)
            values.append(math.log(accuracy / (1 - accuracy)))
    solution = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0]
    return dict(zip(methods, solution[len(tables) :], strict=True))


def test_a_table_that_is_left_out_is_predicted_from_those_of_its_kind() -> None:
    errors = []
    for table in TABLES:
        rest = [
            t
            for t in TABLES
            if t is not table and (t["family"], t["images"]) == (table["family"], table["images"])
        ]
        if not rest:
            continue
        effects = least_squares(rest)
        shared = sorted(set(effects) & set(table["accuracy"]))
        for a, b in combinations(shared, 2):
            actual = log_odds(table["accuracy"][a]) - log_odds(table["accuracy"][b])
            errors.append(actual - effects[a] + effects[b])
    found = difference_error()
    assert found.cases == len(errors)
    assert found.deviation == pytest.approx(np.sqrt(np.mean(np.square(errors))), abs=1e-6)


def test_an_interval_is_that_of_a_normal_error_in_log_odds() -> None:
    low, high = interval_of(0.0, 1.0, coverage=0.8)
    assert low == pytest.approx(1 / (1 + math.exp(1.2815516)))
    assert low + high == pytest.approx(1)


def test_a_derived_accuracy_has_an_interval_if_only_the_method_differs() -> None:
    derived = estimate_accuracy(model="vit_small_patch16_224", method="ssf", data="cifar100")
    assert derived.kind == "prior"
    assert derived.low is not None
    assert derived.high is not None
    assert derived.value is not None
    assert derived.low < derived.value < derived.high
    assert derived.coverage == 0.8
    other = estimate_accuracy(model="vit_base_patch16_224", method="full", data="cifar100")
    assert other.kind == "prior"
    assert other.low is other.coverage is None  # no published pair shows this error
