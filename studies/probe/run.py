"""Does a short probe find the method that a whole training would find best?

python studies/probe/run.py        reads the trainings, writes summary.json and prints it

``train.py`` makes the trainings. A case is one net on one labelled set with one seed. The truth of a
case is the test accuracy of every method after the longest training. All rules see the held-out
part only. *Regret* is the test accuracy of the best method less that of the chosen one.

    probe       all methods for one epoch, the better half for two; then the product's estimate
    even        all methods for two epochs, the best held-out accuracy
    one epoch   all methods for one epoch, the best held-out accuracy
    published   the order of published comparisons; costs nothing
    learned     a ridge regression over method, curve and published effect, fitted to the other sets

The constants of the product's estimate (``planner.training.short_runs``) were fitted to these rows.
For every case they are therefore fitted anew to the cases of the other sets.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import numpy as np
from cases import LONG_STEPS, METHODS, SHORT_STEPS, as_probe_run
from harness import Rows, write_summary
from short_run_fit import clipped_log_odds, fit_short_runs

from planner.recommendation.ranking import WELL_KNOWN
from planner.scoring.method_evidence import method_evidence
from planner.scoring.published_tables import compared_family, method_effects
from planner.training.probe_statistics import estimate_learners
from planner.training.short_runs import DEFAULTS, ShortRunModel

NEAR = 0.01
RULES = ("probe", "even", "one epoch", "published", "learned")

Table = dict[tuple[str, int], dict[str, Any]]
"""Rows of a case by method and steps, at the recipe's learning rate."""


def complete_cases(rows: list[dict[str, Any]]) -> dict[tuple[str, str, int], Table]:
    """Return the cases of which every training was made."""
    cases: dict[tuple[str, str, int], Table] = defaultdict(dict)
    for row in rows:
        if row["number"] == 0 and row["rate_factor"] == 1:
            key = (row["model"], row["data"], row["seed"])
            cases[key][row["method"], row["steps"]] = row
    return {
        key: table
        for key, table in cases.items()
        if all(
            (method, steps) in table
            for method in METHODS[key[0]]
            for steps in (*SHORT_STEPS, LONG_STEPS[key[0]])
        )
    }


def curves_of(
    cases: dict[tuple[str, str, int], Table],
) -> list[list[tuple[dict[int, float], int, float]]]:
    """Return, by case, (log-odds by short steps, long steps, log-odds after them) of each method."""
    found = []
    for (model, _, _), table in cases.items():
        long = LONG_STEPS[model]

        def odds(method: str, steps: int, table: Table = table) -> float:
            row = table[method, steps]
            return clipped_log_odds(row["held_out_accuracy"], row["held_out_images"])

        found.append([
            ({s: odds(m, s) for s in SHORT_STEPS}, long, odds(m, long)) for m in METHODS[model]
        ])  # fmt: skip
    return found


def choose_all(
    key: tuple[str, str, int], table: Table, model: ShortRunModel, others: dict[Any, Table]
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Return the choice of every rule, and the probe's estimates."""
    methods, long = METHODS[key[0]], LONG_STEPS[key[0]]
    first, second = SHORT_STEPS

    def held_out(method: str, steps: int) -> float:
        return float(table[method, steps]["held_out_accuracy"])

    half = sorted(methods, key=lambda m: -held_out(m, first))[: math.ceil(len(methods) / 2)]
    runs = [as_probe_run(table[m, first]) for m in methods]
    runs += [as_probe_run(table[m, second]) for m in half]
    estimates = estimate_learners(runs, planned_steps=long, short_runs=model)
    effects = method_effects(compared_family(key[0]), "few")
    published = min(
        methods,
        key=lambda m: (
            method_evidence(model=key[0], method=m, train_images=640).tier,
            -effects.get(m, -math.inf),
            WELL_KNOWN.index(m) if m in WELL_KNOWN else 99,
        ),
    )
    predicted = learned_log_odds(key, table, others)
    choices = {
        "probe": estimates[0].learner,
        "even": max(methods, key=lambda m: held_out(m, second)),
        "one epoch": max(methods, key=lambda m: held_out(m, first)),
        "published": published,
        "learned": max(methods, key=lambda m: predicted[m]) if predicted else "",
    }
    shown = [
        {"method": e.learner, "steps": e.steps, "accuracy": round(e.expected, 4),
         "low": round(e.low, 4), "high": round(e.high, 4), "best": round(e.best, 3)}
        for e in estimates
    ]  # fmt: skip
    return choices, shown


def features_of(key: tuple[str, str, int], table: Table, method: str) -> list[float]:
    """Return the inputs of the learned model: kinds of methods, the curve, the published effect."""
    names = sorted({m for each in METHODS.values() for m in each})
    first, second = (
        clipped_log_odds(table[method, s]["held_out_accuracy"], 400) for s in SHORT_STEPS
    )
    effects = method_effects(compared_family(key[0]), "few")
    return [
        first, second, second - first, effects.get(method, 0.0), float(method in effects),
        float(key[0] == "test_vit"), math.log2(LONG_STEPS[key[0]]),
        *(float(method == name) for name in names),
    ]  # fmt: skip


def learned_log_odds(
    key: tuple[str, str, int], table: Table, others: dict[Any, Table]
) -> dict[str, float]:
    """Return the log-odds after the long training by a ridge regression on the other sets."""
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    inputs, targets = [], []
    for other, cells in others.items():
        for method in METHODS[other[0]]:
            inputs.append(features_of(other, cells, method))
            final = cells[method, LONG_STEPS[other[0]]]["held_out_accuracy"]
            targets.append(clipped_log_odds(final, 400))
    if not inputs:
        return {}
    model = make_pipeline(StandardScaler(), Ridge(alpha=3.0)).fit(inputs, targets)
    rows = [features_of(key, table, method) for method in METHODS[key[0]]]
    return dict(zip(METHODS[key[0]], map(float, model.predict(rows)), strict=True))


def report(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the summary's numbers."""
    cases = complete_cases(rows)
    each, inside, widths, errors = [], [], [], []
    for key, table in cases.items():
        others = {k: t for k, t in cases.items() if k[1] != key[1]}
        model = fit_short_runs(curves_of(others)) if others else DEFAULTS
        choices, estimates = choose_all(key, table, model, others)
        long = LONG_STEPS[key[0]]
        truth = {m: table[m, long]["test_accuracy"] for m in METHODS[key[0]]}
        best = max(truth.values())
        for found in estimates:
            inside.append(found["low"] <= truth[found["method"]] <= found["high"])
            widths.append(found["high"] - found["low"])
            errors.append(abs(found["accuracy"] - truth[found["method"]]))
        each.append({
            "model": key[0], "data": key[1], "seed": key[2], "long_steps": long, "truth": truth,
            "held_out": {m: table[m, long]["held_out_accuracy"] for m in METHODS[key[0]]},
            "choices": choices, "estimates": estimates,
            "regret": {r: round(best - truth[m], 4) for r, m in choices.items() if m},
        })  # fmt: skip
    return {
        "cases": len(each),
        "near": NEAR,
        "rules": {rule: of_rule(rule, each) for rule in RULES},
        "coverage": with_interval(sum(inside), len(inside)) if inside else None,
        "median_width": round(float(np.median(widths)), 4) if widths else None,
        "median_error": round(float(np.median(errors)), 4) if errors else None,
        "fitted": asdict(fit_short_runs(curves_of(cases))) if cases else None,
        "each": each,
    }


def of_rule(rule: str, each: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how often a rule is within one point of the best, and its mean regret."""
    regrets = [case["regret"][rule] for case in each if rule in case["regret"]]
    if not regrets:
        return {"cases": 0}
    near = sum(regret <= NEAR + 1e-9 for regret in regrets)
    return {
        **with_interval(near, len(regrets)),
        "mean_regret": round(float(np.mean(regrets)), 4),
        "largest_regret": round(max(regrets), 4),
    }


def with_interval(count: int, total: int) -> dict[str, Any]:
    """Return a share with its exact binomial interval (Clopper and Pearson) of 95 %."""
    from scipy.stats import binomtest

    interval = binomtest(count, total).proportion_ci(confidence_level=0.95)
    return {
        "cases": total, "right": count, "share": round(count / total, 4),
        "low": round(float(interval.low), 4), "high": round(float(interval.high), 4),
    }  # fmt: skip


def main() -> None:
    """Write the summary."""
    rows = Rows(HERE, "trainings")
    rows.pack()
    found = report(rows.read())
    write_summary(HERE, rows.read(), **found)
    for name in ("cases", "rules", "coverage", "median_width", "median_error", "fitted"):
        print(name, found[name])
    for case in found["each"]:
        print(case["model"], case["data"], case["seed"], case["choices"], case["regret"])


if __name__ == "__main__":
    main()
