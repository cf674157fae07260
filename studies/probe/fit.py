"""Fits the constants of ``planner.training.short_runs`` to all trainings of the study.

python studies/probe/fit.py        writes constants.json and prints it

``earlier.jsonl.gz`` has trainings of EfficientNet-Lite0 of an earlier campaign, at 32 px with 15 to
60 steps: held-out images after the short ones, test images after the long ones. Each kind of net
is fitted alone, and all together. The product takes the gains of all together, and the deviations of kinds
that were left out of the fit.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

from effect_weight import with_best_weight
from harness import Rows
from run import complete_cases, curves_of, kind_of
from short_run_fit import Curves, MethodCurve, cautious_fit, clipped_log_odds, fit_short_runs

from planner.training.probe_records import ProbeRun
from planner.training.probe_statistics import kind_of_learner

EARLIER_NET, EARLIER_LONG = kind_of("tf_efficientnet_lite0"), 60


def rows() -> list[dict[str, Any]]:
    """Return the trainings of the study."""
    return Rows(HERE, "trainings").read()


def cases_by_net() -> dict[str, list[Curves]]:
    """Return the complete cases of both campaigns, by kind of net."""
    cases = complete_cases(rows())
    found: dict[str, list[Curves]] = defaultdict(list)
    for case, curves in zip(cases, curves_of(cases), strict=True):
        found[kind_of(case.model)].append(curves)
    found[EARLIER_NET] += cases_before()
    return found


def cases_before() -> list[Curves]:
    """Return the cases of the earlier campaign that have a longest training."""
    curves: dict[Any, dict[tuple[str, int], float]] = defaultdict(dict)
    for row in Rows(HERE, "earlier").read():
        if row["part"] == "case":
            continue
        run = ProbeRun.from_json(row["run"])
        if (run.rate_factor, run.seed) == (1.0, 0):
            odds = clipped_log_odds(run.accuracy, run.setting.held_out_images)
            curves[run.setting.data, run.learner][row["part"], run.steps] = odds
    cases: dict[str, list[MethodCurve]] = defaultdict(list)
    for (name, learner), curve in curves.items():
        short = sorted(s for part, s in curve if part == "probe" and s < EARLIER_LONG)[-2:]
        long = curve.get(("truth", EARLIER_LONG))
        if long is not None and len(short) == 2:
            found = MethodCurve(
                kind=kind_of_learner(learner), short={s: curve["probe", s] for s in short},
                planned_steps=EARLIER_LONG, final=long,
            )  # fmt: skip
            cases[name.partition(" ")[0]].append(found)
    return list(cases.values())


def constants() -> dict[str, Any]:
    """Return the fits by net and over all cases, and the constants that the product takes."""
    nets = cases_by_net()
    fits = {net: fit_short_runs(cases) for net, cases in nets.items()}
    return {
        **{net: asdict(fit) for net, fit in fits.items()},
        "taken": asdict(with_best_weight(cautious_fit(nets), complete_cases(rows()))),
    }


def main() -> None:
    """Write the constants."""
    text = json.dumps(constants(), indent=1) + "\n"
    (HERE / "constants.json").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
