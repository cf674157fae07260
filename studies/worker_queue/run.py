"""The queue of real runs on PostgreSQL: faults, overhead by workers, cost by length.

python studies/worker_queue/run.py faults [REPETITIONS]
python studies/worker_queue/run.py overhead
python studies/worker_queue/run.py cost [LENGTHS]
python studies/worker_queue/run.py summary
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "studies")]

from harness import Rows, write_summary

from planner.search.run_queue import opened_queue
from tests.planner.workers.postgres_server import PostgresServer, find_programs
from tests.planner.workers.toy_runs import run_with_faults, started_worker, toy_order

FOLDER = Path(__file__).parent
RUNS = 16
BODY_SECONDS = 0.2


def server() -> PostgresServer:
    programs = find_programs()
    assert programs is not None, "apt-get install postgresql"
    return PostgresServer(programs)


def faults(repetitions: int) -> None:
    rows = Rows(FOLDER, "faults")
    done = len(rows.read())
    found = server()
    for number in range(done, repetitions):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            seen = run_with_faults(found, f"faults {number}", Path(folder) / "log", runs=RUNS)
        seen["twice"] = sum(count > 1 for count in seen.pop("outcomes").values())
        rows.append({"repetition": number, "seconds": time.perf_counter() - began, **seen})
    found.close()
    rows.pack()


def overhead() -> None:
    """1,000 runs that sleep, shared by 1, 2 and 4 workers."""
    rows = Rows(FOLDER, "overhead")
    done = {row["workers"] for row in rows.read()}
    found, runs = server(), 1000
    for workers in (each for each in (1, 2, 4) if each not in done):
        study = f"overhead {workers}"
        with opened_queue(found.url, study) as queue, tempfile.TemporaryDirectory() as folder:
            for number in range(runs):
                queue.enqueue(toy_order(number).to_json())
            log = Path(folder) / "log"
            began = time.perf_counter()
            started = [started_worker(found.url, study, log, BODY_SECONDS) for _ in range(workers)]
            for each in started:
                each.join()
            seconds = time.perf_counter() - began
            assert queue.counts() == {"complete": runs}
        ideal = runs * BODY_SECONDS / workers
        rows.append(
            {
                "workers": workers, "runs": runs, "body_seconds": BODY_SECONDS, "seconds": seconds,
                "ideal_seconds": ideal, "overhead": seconds / ideal - 1,
                "load_average": os.getloadavg()[0], "cores": len(os.sched_getaffinity(0)),
            }
        )  # fmt: skip
    found.close()
    rows.pack()


def cost(lengths: tuple[int, ...]) -> None:
    """Seconds to enqueue a run, and to claim and finish it, by the length of the queue.

    The processor time is that of the client, which other programs on the machine do not lengthen.
    """
    rows = Rows(FOLDER, "cost")
    done = {row["runs"] for row in rows.read()}
    found = server()
    for runs in (each for each in lengths if each not in done):
        with opened_queue(found.url, f"cost {runs}") as queue:
            order = toy_order().to_json()
            began, began_cpu = time.perf_counter(), time.process_time()
            for _ in range(runs):
                queue.enqueue(order)
            enqueued, enqueued_cpu = time.perf_counter(), time.process_time()
            while (run := queue.claim(lambda order: True, worker="study")) is not None:
                queue.finish(run, {"schema": "toy"}, value=0.0)
            ended, ended_cpu = time.perf_counter(), time.process_time()
        rows.append(
            {
                "runs": runs, "enqueue_seconds": (enqueued - began) / runs,
                "run_seconds": (ended - enqueued) / runs,
                "enqueue_cpu_seconds": (enqueued_cpu - began_cpu) / runs,
                "run_cpu_seconds": (ended_cpu - enqueued_cpu) / runs,
                "load_average": os.getloadavg()[0],
            }
        )  # fmt: skip
    found.close()
    rows.pack()


def summary() -> None:
    parts = {name: Rows(FOLDER, name).read() for name in ("faults", "overhead", "cost")}
    seen = parts["faults"]
    values: dict[str, Any] = {
        "faults": {
            "repetitions": len(seen),
            "runs_each": RUNS,
            "lost": sum(RUNS - row["done"] for row in seen),
            "counted_twice": sum(row["twice"] for row in seen),
            "executions": sum(row["executions"] for row in seen),
            "workers_that_ended_wrongly": sum(row["exit_codes"] != [-9, 0, 0, 0] for row in seen),
            "median_seconds": statistics.median(row["seconds"] for row in seen) if seen else None,
        }
    }
    for name in ("overhead", "cost"):
        keys = (
            "workers", "runs", "overhead", "enqueue_seconds", "run_seconds",
            "enqueue_cpu_seconds", "run_cpu_seconds", "load_average",
        )  # fmt: skip
        values[name] = [{k: round(r[k], 4) for k in keys if k in r} for r in parts[name]]
    write_summary(FOLDER, [row for rows in parts.values() for row in rows], **values)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["faults", *count]:
            faults(int(count[0]) if count else 100)
        case ["overhead"]:
            overhead()
        case ["cost", *lengths]:
            cost(tuple(map(int, lengths)) or (100, 1000, 10_000))
        case ["summary"]:
            summary()
        case _:
            sys.exit(__doc__)
