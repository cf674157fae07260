"""How much the effects of the kinds of methods count beside short trainings.

Their deviation between nets, about 0.5, is no good weight: on a net or a set on which all methods
are near each other, the effects are smaller in proportion and have the same order. So the weight is
the one with which replayed probes chose best, on the cases that the constants are fitted to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from cases import Case
from replayed import CaseRows, replay_probe

from planner.training.probe_statistics import estimate_learners
from planner.training.short_runs import ShortRunModel

DEVIATIONS = (0.5, 0.3, 0.2, 0.1)
"""Deviations that are tried; of equal ones the larger is taken."""

SHARES = (0.25, 0.5)
"""Times of the replayed probes over those of all whole trainings."""


def with_best_weight(model: ShortRunModel, cases: Mapping[Case, CaseRows]) -> ShortRunModel:
    """Return the constants with the deviation of the effects of least mean regret.

    Args:
        model: constants that were fitted to the cases.
        cases: rows of each case.
    """
    tried = [replace(model, effect_deviation=each) for each in DEVIATIONS]
    return min(tried, key=lambda each: round(_mean_regret(each, cases), 4))


def _mean_regret(model: ShortRunModel, cases: Mapping[Case, CaseRows]) -> float:
    """Return the mean test accuracy that the choices of replayed probes lose."""
    regrets = []
    for case, rows in cases.items():
        truth = {m: rows[m, case.steps, 0, 1.0]["test_accuracy"] for m in case.methods}
        for share in SHARES:
            runs = replay_probe(rows, case, share=share, short_runs=model).runs
            if runs:
                found = estimate_learners(runs, planned_steps=case.steps, short_runs=model)
                regrets.append(max(truth.values()) - truth[found[0].learner])
    return float(np.mean(regrets))
