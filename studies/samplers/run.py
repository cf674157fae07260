"""Compares samplers with the exhaustive front, by hypervolume (see README.md).

    python studies/samplers/run.py points CACHE [--models a,b]     every point of each space
    python studies/samplers/run.py compare CACHE [--samplers a,b]  seeded runs on these tables
    python studies/samplers/run.py report                          summary.json

CACHE is a folder for the tables of points, which are not kept in the repository.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from harness import Rows, write_summary

from planner.cost.model import CostModel
from planner.cost.warm_up import profile_families
from planner.recommendation.build_request import build_request
from planner.recommendation.search_backbones import search_problem
from planner.search.evaluation import PointEvaluator
from planner.search.exhaustive import evaluate_all
from planner.search.pareto import hypervolume, non_dominated, reference_point
from planner.search.problem import OBJECTIVES, SearchProblem, TrialResult, assignment_key
from planner.search.sampling import PointSampler, default_sampler
from planner.search.space import Space
from planner.search.trial_records import TrialFailure
from profiler.devices.table import device_spec
from profiler.store import Store
from profiler.workload import Candidate

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

MODELS = ("vit_s", "tiny_vit", "vim_s", "mambavision_t")
DEVICE = "rtx-2060-super"
BUDGET_BYTES = 2_000_000_000
METHODS = ("full", "head", "bitfit", "lora", "dora", "adalora", "galore", "ssf", "adaptformer",
           "side")  # fmt: skip
"""Methods of the space; those that a backbone refuses are left out."""

TRIALS = (50, 100, 200)
"""Numbers of trials at which the hypervolume is read."""

SEEDS = 20

SLOW = {"gp": (10, 50)}
"""Seeds and trials of samplers whose time grows with the square of the trials."""

Row = dict[str, Any]


def problem_of(model: str) -> SearchProblem:
    """Return the search problem of a backbone."""
    request = build_request(
        model, budget_bytes=BUDGET_BYTES, device=DEVICE, methods=_accepted(model), validations=0
    )
    return search_problem(request)


def _accepted(model: str) -> list[str]:
    from planner.search.space import working_methods
    from profiler.models import backbones
    from profiler.workload import Workload

    name = backbones.resolve(model)
    base = Workload(model=name, image_size=backbones.native_image_size(name), num_classes=10)
    return working_methods(base, METHODS)[0]


# ---- tables of points ----------------------------------------------------------------------------


def write_points(model: str, cache: Path) -> None:
    """Evaluate every point of a backbone's space, and write them."""
    problem = problem_of(model)
    cost = CostModel(device_spec(DEVICE), Store.default())
    profile_families(cost.profiles, problem.space.workloads(), lambda text, done: None)
    evaluator = PointEvaluator(problem, cost)
    began = time.perf_counter()
    found = evaluate_all(evaluator, most_seconds=math.inf)
    assert found is not None, "no limit of time"
    rows = [
        {
            "assignment": result.assignment,
            "candidate": result.candidate.to_json(),
            "score": result.score,
            "cost": result.cost,
            "device_bytes": result.device_bytes,
        }
        for result in found.results
    ]
    with gzip.open(cache / f"{model}.json.gz", "wt", encoding="utf-8") as file:
        json.dump(rows, file)
    print(f"{model}: {len(rows)} points in {time.perf_counter() - began:.0f} s", flush=True)


def read_points(model: str, cache: Path) -> dict[str, TrialResult]:
    """Return the results of a table by ``assignment_key``."""
    with gzip.open(cache / f"{model}.json.gz", "rt", encoding="utf-8") as file:
        rows = json.load(file)
    return {
        assignment_key(row["assignment"]): TrialResult(
            candidate=Candidate.from_json(row["candidate"]),
            assignment=row["assignment"],
            score=row["score"],
            cost=row["cost"],
            peak_bytes=0,
            device_bytes=row["device_bytes"],
            step_seconds=None,
            energy_joules=None,
            reason="",
        )
        for row in rows
    }


# ---- runs ----------------------------------------------------------------------------------------


def samplers() -> dict[str, Callable[[int], BaseSampler]]:
    """Return the samplers by name, each with a seed."""
    from optuna import samplers as made

    return {
        "tpe": lambda seed: made.TPESampler(seed=seed),
        "tpe joint": default_sampler,
        "nsga2": lambda seed: made.NSGAIISampler(seed=seed),
        "nsga3": lambda seed: made.NSGAIIISampler(seed=seed),
        "qmc": lambda seed: made.QMCSampler(seed=seed, scramble=True),
        "random": lambda seed: made.RandomSampler(seed=seed),
        "gp": lambda seed: made.GPSampler(seed=seed),
    }


def run(
    space: Space, points: dict[str, TrialResult], sampler: BaseSampler, seed: int, trials: int
) -> list[TrialResult]:
    """Return the results of a search in order, each point from the table."""
    proposals = PointSampler(space, (), seed=seed, sampler=sampler)
    found = []
    for _ in range(trials):
        trial, _ = proposals.propose()
        result = points.get(assignment_key(trial.params))
        if result is None:
            proposals.fail(trial, TrialFailure(reason="refused"))
            continue
        proposals.complete(trial, result, result.device_bytes - BUDGET_BYTES)
        found.append(result)
    return found


class Volume:
    """Hypervolume of results relative to that of the exhaustive front."""

    def __init__(self, points: Sequence[TrialResult]) -> None:
        fitting = [r.objectives for r in points if r.device_bytes <= BUDGET_BYTES]
        self.fitting, self.points = len(fitting), len(points)
        self._corner = reference_point(fitting, directions=OBJECTIVES)
        self.front = len(self._front(points))
        self._whole = self._volume(points)

    def share(self, results: Sequence[TrialResult]) -> float:
        """Return the share of the exhaustive hypervolume that results have."""
        return self._volume(results) / self._whole

    def _front(self, results: Sequence[TrialResult]) -> list[tuple[float, ...]]:
        objectives = [result.objectives for result in results]
        excess = [result.device_bytes - BUDGET_BYTES for result in results]
        chosen = non_dominated(objectives, directions=OBJECTIVES, violations=excess)
        return [objectives[i] for i in chosen]

    def _volume(self, results: Sequence[TrialResult]) -> float:
        return hypervolume(self._front(results), reference=self._corner, directions=OBJECTIVES)


def compare(cache: Path, names: Sequence[str], book: Rows, models: Sequence[str]) -> None:
    """Run every sampler on every table, where a row is missing."""
    known = {(row["model"], row["sampler"], row["seed"]) for row in book.read()}
    for model in models:
        if not (cache / f"{model}.json.gz").exists():
            continue
        points = read_points(model, cache)
        space, volume = problem_of(model).space, Volume(list(points.values()))
        for name in names:
            seeds, trials = SLOW.get(name, (SEEDS, max(TRIALS)))
            for seed in range(seeds):
                if (model, name, seed) in known:
                    continue
                began = time.process_time()
                found = run(space, points, samplers()[name](seed), seed, trials)
                book.append(
                    {
                        "model": model,
                        "sampler": name,
                        "seed": seed,
                        "points": volume.points,
                        "fitting": volume.fitting,
                        "front": volume.front,
                        "share": {
                            str(n): round(volume.share(found[:n]), 5) for n in TRIALS if n <= trials
                        },
                        "processor_seconds": round(time.process_time() - began, 2),
                    }
                )
            print(model, name, flush=True)


# ---- report --------------------------------------------------------------------------------------


def summary_of(rows: Sequence[Row]) -> dict[str, Any]:
    """Return mean share of the hypervolume and its spread, by backbone and sampler."""
    found: dict[str, Any] = {}
    for row in rows:
        part = found.setdefault(
            row["model"], {name: row[name] for name in ("points", "fitting", "front")}
        )
        part.setdefault("samplers", {}).setdefault(row["sampler"], []).append(row)
    for part in found.values():
        part["samplers"] = {
            name: {
                "seeds": len(some),
                **{
                    n: {
                        "mean": round(statistics.mean(row["share"][n] for row in some), 4),
                        "least": round(min(row["share"][n] for row in some), 4),
                    }
                    for n in some[0]["share"]
                },
                "processor_seconds": round(
                    statistics.median(row["processor_seconds"] for row in some), 1
                ),
            }
            for name, some in part["samplers"].items()
        }
    return found


def table_of(summary: dict[str, Any]) -> str:
    """Return the README's table: mean share at the most trials, the least in brackets."""
    models, last = list(summary), str(max(TRIALS))
    names = list(dict.fromkeys(n for part in summary.values() for n in part["samplers"]))
    lines = [
        "| sampler | seeds | " + " | ".join(models) + " | seconds |",
        "|---" * (len(models) + 3) + "|",
    ]
    for name in names:
        parts = [summary[model]["samplers"].get(name) for model in models]
        cells = [
            "-" if p is None or last not in p else f"{p[last]['mean']:.3f} ({p[last]['least']:.3f})"
            for p in parts
        ]
        some = [p for p in parts if p is not None]
        seconds = statistics.median(p["processor_seconds"] for p in some)
        lines.append(
            f"| {name} | {some[0]['seeds']} | " + " | ".join(cells) + f" | {seconds:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the part that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["points", "compare", "report"])
    parser.add_argument("cache", type=Path, nargs="?")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--samplers", default="tpe,tpe joint,nsga2,nsga3,qmc,random,gp")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    book = Rows(HERE, "rows")
    models = given.models.split(",")
    if given.part == "points":
        given.cache.mkdir(parents=True, exist_ok=True)
        for model in models:
            if not (given.cache / f"{model}.json.gz").exists():
                write_points(model, given.cache)
    elif given.part == "compare":
        compare(given.cache, given.samplers.split(","), book, models)
    else:
        book.pack()
        summary = summary_of(book.read())
        write_summary(HERE, book.read(), models=summary)
        print(table_of(summary))


if __name__ == "__main__":
    main()
