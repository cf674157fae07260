"""Which plan is recommended for 60 questions, and does it break a rule that an expert would check?

python studies/questions/run.py run [--models a,b] [--methods ...]
python studies/questions/run.py report     writes summary.json and prints the table

A question is a backbone, a device and a budget, for 1,000 training images. Every point of the space
is composed in one process, without a storage, a replay or a real run.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

from expert_rules import broken_rules, seconds, worse
from harness import Rows, write_summary

from planner.cost.model import CostModel
from planner.cost.warm_up import profile_families
from planner.recommendation.build_request import build_request
from planner.recommendation.ranking import Question, best_of, equal_methods
from planner.recommendation.search_backbones import search_problem
from planner.search.evaluation import PointEvaluator
from planner.search.exhaustive import evaluate_all
from planner.search.problem import CostEstimator, SearchProblem, TrialResult
from profiler.devices.table import device_spec
from profiler.store import Store
from profiler.units import GIB

MODELS = (
    "vit_s", "vit_t", "resnet18", "resnet50", "mobilenetv3", "efficientnet_b0", "tiny_vit_5m",
    "swin_t", "vim_t", "mambavision_t",
)  # fmt: skip
DEVICES = ("rtx-2060-super", "rtx-3060")
BUDGETS_GIB = (1.0, 2.0, 6.0)
METHODS = ("full", "head", "lora", "adaptformer", "side", "bitfit")


def answer(
    model: str, device: str, budget_bytes: int, cost: CostModel, methods: Sequence[str]
) -> tuple[TrialResult | None, list[TrialResult], Question, int]:
    """Return the recommended plan (None if nothing fits), every plan, the question and its limit.

    The limit is the largest predicted need of which at most 1 % exceed the budget.
    """
    request = build_request(
        model, budget_bytes=budget_bytes, device=device, methods=methods, validations=0
    )
    profile_families(cost.profiles, request.space.workloads(), lambda text, done: None)
    question = Question.of(request)
    problem = search_problem(request)
    return *answer_problem(problem, cost, question), question, problem.limit_bytes


def answer_problem(
    problem: SearchProblem, cost: CostEstimator, question: Question
) -> tuple[TrialResult | None, list[TrialResult]]:
    """Return the recommended plan of a search problem, and every plan."""
    found = evaluate_all(PointEvaluator(problem, cost), most_seconds=math.inf)
    assert found is not None, "no limit of time"
    results = list(found.results)
    fitting = [r for r in results if r.device_bytes <= problem.limit_bytes]
    return (best_of(fitting, question) if fitting else None), results


def run(models: Sequence[str], methods: Sequence[str]) -> None:
    """Answer the questions whose rows are not there yet."""
    rows = Rows(HERE)
    known = {(row["model"], row["device"], row["budget_gib"]) for row in rows.read()}
    for model in models:
        for device in DEVICES:
            if all((model, device, gib) in known for gib in BUDGETS_GIB):
                continue
            cost = CostModel(device_spec(device), Store.default())
            before: TrialResult | None = None
            for gib in BUDGETS_GIB:
                key = {"model": model, "device": device, "budget_gib": gib}
                budget_bytes = int(gib * GIB)
                plan, results, question, limit_bytes = answer(
                    model, device, budget_bytes, cost, methods
                )
                row: dict[str, Any] = {**key, "methods": list(methods), "points": len(results)}
                if plan is None:
                    row |= {"plan": None, "broken": []}
                else:
                    broken = list(
                        broken_rules(plan, results, budget_bytes=limit_bytes, images="few")
                    )
                    regression = None if before is None else worse(plan, before)
                    fitting = [r for r in results if r.device_bytes <= limit_bytes]
                    row |= {
                        "plan": plan.candidate.to_json(),
                        "milliseconds_per_image": round(1000 * seconds(plan), 4),
                        "device_bytes": plan.device_bytes,
                        "equal_methods": equal_methods(fitting),
                        "evidence": question.evidence(plan).strength,
                        "broken": broken + ([regression] if regression else []),
                    }
                    before = plan
                rows.append(row)
                print(line(row), flush=True)


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    where = f"| {row['model']} | {row['device']} | {row['budget_gib']:g} |"
    if row["plan"] is None:
        return f"{where} nothing fits | | | | |"
    load = row["plan"]["workload"]
    method = load["method"] + (f" r{load['rank']}" if load["rank"] else "")
    batch = f"{load['micro_batch']}x{load['accumulation']}"
    again = row["plan"]["placement"].get("policy", "none")
    return (
        f"{where} {method}, {batch}, {load['precision']}, {again} | "
        f"{row['device_bytes'] / GIB:.2f} | {row['milliseconds_per_image']:.2f} | "
        f"{row['evidence']} | {'; '.join(row['broken']) or 'none'} |"
    )


def report() -> None:
    """Write the summary and print the table."""
    rows = list(Rows(HERE).read())
    broken = [row for row in rows if row["broken"]]
    write_summary(
        HERE,
        rows,
        questions=len(rows),
        nothing_fits=sum(row["plan"] is None for row in rows),
        broken=len(broken),
        table=[line(row) for row in rows],
    )
    print("\n".join(line(row) for row in rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--methods", default=",".join(METHODS))
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments.models.split(","), arguments.methods.split(","))
    report()
