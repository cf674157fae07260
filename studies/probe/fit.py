"""Fits the constants of ``planner.training.short_runs`` to all trainings of the study.

python studies/probe/fit.py        writes constants.json and prints it

``earlier.jsonl.gz`` has trainings of EfficientNet-Lite0 of an earlier campaign, at 32 px with 15 to
60 steps: held-out images after the short ones, test images after the long ones. The two campaigns are
fitted alone and together. The product takes the gains of both together, and the larger of the two
own errors, because two kinds of nets say little about a third.
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

from harness import Rows
from short_run_fit import clipped_log_odds, fit_short_runs

from planner.training.probe_records import ProbeRun

Case = list[tuple[dict[int, float], int, float]]
METHODS_OF_A_CASE = 8
EARLIER_LONG = 60


def cases_now() -> list[Case]:
    """Return the complete cases of the trainings: two short lengths and the longest."""
    curves: dict[Any, dict[int, float]] = defaultdict(dict)
    for row in Rows(HERE, "trainings").read():
        key = (row["model"], row["data"], row["seed"]), row["method"]
        odds = clipped_log_odds(row["held_out_accuracy"], row["held_out_images"])
        curves[key][row["steps"]] = odds
    cases: dict[Any, Case] = defaultdict(list)
    for (case, _), curve in curves.items():
        *short, long = sorted(curve)
        if len(short) == 2:
            cases[case].append(({s: curve[s] for s in short}, long, curve[long]))
    return [case for case in cases.values() if len(case) == METHODS_OF_A_CASE]


def cases_before() -> list[Case]:
    """Return the cases of the earlier campaign that have a longest training."""
    curves: dict[Any, dict[tuple[str, int], float]] = defaultdict(dict)
    for row in Rows(HERE, "earlier").read():
        if row["part"] == "case":
            continue
        run = ProbeRun.from_json(row["run"])
        if (run.rate_factor, run.seed) == (1.0, 0):
            odds = clipped_log_odds(run.accuracy, run.setting.held_out_images)
            curves[run.setting.data, run.learner][row["part"], run.steps] = odds
    cases: dict[str, Case] = defaultdict(list)
    for (name, _), curve in curves.items():
        short = sorted(s for part, s in curve if part == "probe" and s < EARLIER_LONG)[-2:]
        long = curve.get(("truth", EARLIER_LONG))
        if long is not None and len(short) == 2:
            data = name.partition(" ")[0]
            cases[data].append(({s: curve["probe", s] for s in short}, EARLIER_LONG, long))
    return list(cases.values())


def main() -> None:
    """Write the constants."""
    now, before = cases_now(), cases_before()
    fits = {
        "test_vit, pretrained on letters": fit_short_runs(now),
        "EfficientNet-Lite0, earlier campaign": fit_short_runs(before),
    }
    both = fit_short_runs([*now, *before])
    taken = {
        "first_gain": both.first_gain,
        "gain": both.gain,
        "kept": both.kept,
        "own_deviation": max(fit.own_deviation for fit in fits.values()),
        "common_deviation": both.common_deviation,
        "curves": both.curves,
    }
    found = {
        **{name: asdict(fit) for name, fit in fits.items()},
        "both": asdict(both),
        "taken": taken,
    }
    text = json.dumps(found, indent=1) + "\n"
    (HERE / "constants.json").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
