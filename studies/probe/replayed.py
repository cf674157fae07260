"""The product's probe on the rows of a case: which training it asks for, one after another.

``next_affordable_run`` of the product is a function of the finished runs and the time that is left,
so a probe can be replayed on trainings that were made before. Its time is the processor time of
these rows. Where it asks for a training of which there is no row, the replay ends and names it;
``train.py --probe`` makes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cases import METHODS, TRAIN, Case, as_probe_run

from planner.recipe import Recipe
from planner.recommendation.ranking import WELL_KNOWN
from planner.scoring.method_evidence import method_evidence
from planner.scoring.published_tables import compared_family, method_effects
from planner.training.probe import PlannedRun, StepLadder, next_affordable_run
from planner.training.probe_records import Learner, ProbeRun
from planner.training.short_runs import DEFAULTS, ShortRunModel
from profiler.workload import Candidate, Workload

RowKey = tuple[str, int, int, float]
"""Method, steps, number of the seed, and factor of the learning rate."""

CaseRows = Mapping[RowKey, Mapping[str, Any]]


def row_key(row: Mapping[str, Any]) -> RowKey:
    """Return what distinguishes a row from the others of its case."""
    return row["method"], row["steps"], row["number"], round(row["rate_factor"], 3)


def cost_of(row: Mapping[str, Any]) -> float:
    """Return the processor seconds of a row; the wall clock's of rows that have none."""
    return float(row.get("cpu_seconds", row["seconds"]))


def whole_cost(rows: CaseRows, case: Case) -> float:
    """Return the processor seconds of the whole trainings of all methods of a case."""
    return sum(cost_of(rows[method, case.steps, 0, 1.0]) for method in case.methods)


def by_published_order(model: str) -> list[str]:
    """Return the methods of a net by published comparisons, as ``recommend`` orders them."""
    effects = method_effects(compared_family(model), "few")
    return sorted(
        METHODS[model],
        key=lambda m: (
            method_evidence(model=model, method=m, train_images=TRAIN).tier,
            -effects.get(m, -math.inf),
            WELL_KNOWN.index(m) if m in WELL_KNOWN else len(WELL_KNOWN),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedProbe:
    """A replayed probe.

    Attributes:
        runs: its runs, as the product sees them.
        cpu_seconds: processor time of these runs.
        missing: the run that it asks for and that has no row; None if it ended.
    """

    runs: list[ProbeRun]
    cpu_seconds: float
    missing: PlannedRun | None


def replay_probe(
    rows: CaseRows, case: Case, *, share: float, short_runs: ShortRunModel = DEFAULTS
) -> ReplayedProbe:
    """Replay a probe whose time is a share of that of all whole trainings.

    A whole training has a row at the recipe's rate and with the first seed; a probe that asks for
    another whole training ends there.

    Args:
        rows: rows of the case.
        case: the case.
        share: time of the probe over that of the whole trainings of all methods.
        short_runs: constants of the extrapolation.
    """
    candidate = Candidate(workload=Workload(model=case.model, num_classes=10))
    recipe = Recipe(learning_rate=1e-3, epochs=1, source="not used by the schedule")
    learners = [
        Learner(name=m, candidate=candidate, recipe=recipe) for m in by_published_order(case.model)
    ]
    long = case.steps
    quick = frozenset(m for m in case.methods if rows[m, long, 0, 1.0]["from_features"])
    slow = len(learners) - len(quick)
    ladder = replace(
        StepLadder.of(learners=slow, affordable_steps=share * slow * long, most=long),
        short_runs=short_runs,
    )
    budget = share * whole_cost(rows, case)
    runs: list[ProbeRun] = []
    spent = 0.0

    def key_of(planned: PlannedRun) -> RowKey:
        return planned.learner.name, planned.steps, planned.seed, round(planned.rate_factor, 3)

    def seconds_of(planned: PlannedRun, _: object) -> float:
        """Return the time of a run; without a row, 0 if it is short, so that it is asked for."""
        if key_of(planned) in rows:
            return cost_of(rows[key_of(planned)])
        return math.inf if planned.steps >= long else 0.0

    while (
        planned := next_affordable_run(
            learners, runs, ladder=ladder, quick=quick, left=budget - spent, budget=budget,
            seconds_of=seconds_of,
        )
    ) is not None:  # fmt: skip
        key, cost = key_of(planned), seconds_of(planned, runs)
        if spent + cost > budget:
            break
        if key not in rows:
            return ReplayedProbe(runs=runs, cpu_seconds=spent, missing=planned)
        runs.append(as_probe_run(dict(rows[key])))
        spent += cost
    return ReplayedProbe(runs=runs, cpu_seconds=spent, missing=None)
