"""Curves of peak memory against added step time for every placement policy, ours and the peers'.

    python studies/placement_curves/run.py evaluate [MODEL ...] [--method full|lora]
    python studies/placement_curves/run.py bound [MODEL ...]
    PYTHONPATH=$PYTHONPATH:PEERS python studies/placement_curves/run.py sac [MODEL ...]
    python studies/placement_curves/run.py compiled [MODEL ...] [--method full|lora]
    python studies/placement_curves/run.py matched [MODEL ...]
    python studies/placement_curves/run.py arms [WORKLOAD ...]
    python studies/placement_curves/run.py host [WORKLOAD ...]
    python studies/placement_curves/run.py host_bound [WORKLOAD ...]
    python studies/placement_curves/run.py report

All but the last append raw rows to ``*.jsonl`` and skip what is there already; ``report`` draws the
curves and writes ``summary.json`` and ``tables.md``.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

import rows


def evaluate(models: list[str], method: str) -> None:
    from evaluate import MODELS, Problem, accumulated_points, judged, our_points

    from profiler.workload import Workload

    rank = 8 if method == "lora" else None
    for model in models or MODELS:
        workload = Workload(model=model, method=method, rank=rank, micro_batch=MODELS[model])
        known = rows.done("evaluator")
        try:
            problem = Problem(workload)
            for points in (our_points, accumulated_points):
                for point in points(problem):
                    key = (model, method, rank, point.policy, point.setting)
                    if key not in known:
                        start = time.perf_counter()
                        _judge(judged, point)
                        print(*key, f"{time.perf_counter() - start:.1f} s", flush=True)
        except Exception as error:
            print(model, method, "FAILED", repr(error), flush=True)


def _judge(judged, point) -> None:
    try:
        row = judged(point)
    except Exception as error:
        if point.alter is None:
            raise
        work = point.candidate.workload
        row = {
            "model": work.model,
            "method": work.method,
            "rank": work.rank,
            "policy": point.policy,
            "setting": point.setting,
            "error": repr(error)[:300],
        }
    rows.append("evaluator", row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "part",
        choices=[
            *("evaluate", "bound", "sac", "compiled", "matched"),
            *("arms", "host", "host_bound", "report"),
        ],
    )
    parser.add_argument("models", nargs="*")
    parser.add_argument("--method", default="full", choices=["full", "lora"])
    given = parser.parse_args()
    if given.part == "evaluate":
        evaluate(given.models, given.method)
    elif given.part == "bound":
        from bound import run

        run(given.models)
    elif given.part == "sac":
        from sac import run

        run(given.models)
    elif given.part == "compiled":
        from compiled import run

        run(given.models, given.method)  # type: ignore[call-arg]
    elif given.part == "matched":
        from matched import run

        run(given.models)
    elif given.part == "arms":
        from arms import run

        run(given.models)
    elif given.part == "host":
        from host import run

        run(given.models)
    elif given.part == "host_bound":
        from host_bound import run

        run(given.models)
    else:
        from report import write

        write()


if __name__ == "__main__":
    main()
