"""Orders, and workers in forked processes whose runs only sleep and write to a log."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from planner.search.backends import new_storage
from planner.search.run_queue import RunQueue, opened_queue
from planner.workers.orders import RunOrder
from planner.workers.run_device import RunDevice
from planner.workers.worker import work
from profiler.devices.table import device_label
from profiler.running.process_end import end_with_parent, termination_raises
from profiler.workload import Candidate, Workload
from tests.planner.workers.postgres_server import PostgresServer

FORK, SPAWN = multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")
CPU_HERE = RunDevice(name="cpu", kind="cpu", memory_bytes=2**34, processor="toy")


def toy_order(number: int = 0, **changes: Any) -> RunOrder:
    content = {
        "candidate": Candidate(workload=Workload(model="resnet18", num_classes=10, image_size=32)),
        "planned": device_label("cpu"),
        "processor": "toy",
        "allows_cpu": True,
        "budget_bytes": 2**30,
        "needed_bytes": 2**29,
        "data": "digits",
        "seed": number,
    }
    return RunOrder(**content | changes)


def toy_worker(url: str, study: str, log: Path, seconds: float, until_empty: bool = True) -> None:
    """Work on a queue; a run sleeps, and appends a line before and after."""

    def run(order: RunOrder, *, cancelled: threading.Event, **_: Any) -> Any:
        _append(log, f"began {order.seed} {os.getpid()}")
        cancelled.wait(seconds)
        _append(log, f"ended {order.seed} {os.getpid()}")
        return SimpleNamespace(to_json=lambda: {"schema": "toy", "number": order.seed})

    with (
        termination_raises(),
        opened_queue(url, study, heartbeat_seconds=1, patience_seconds=60) as queue,
    ):
        work(queue, CPU_HERE, until_empty=until_empty, run=run, idle_seconds=0.1)


def serve_proxy(url: str, port: int, parent_pid: int) -> None:
    """Serve a storage until the parent ends, by whatever signal."""
    end_with_parent(parent_pid)
    from optuna.storages import run_grpc_proxy_server

    run_grpc_proxy_server(new_storage(url), host="127.0.0.1", port=port)


def started_worker(*arguments: Any, **options: Any) -> BaseProcess:
    # gRPC's channels do not survive a fork
    context = SPAWN if arguments[0].startswith("grpc:") else FORK
    process = context.Process(target=toy_worker, args=arguments, kwargs=options)
    process.start()
    return process


def _append(log: Path, line: str) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def logged(log: Path, word: str) -> Counter[int]:
    """Return how often each run began or ended."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return Counter(int(line.split()[1]) for line in lines if line.startswith(word))


def wait_until(condition: Any, *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def counted_outcomes(queue: RunQueue) -> Counter[int]:
    """Return how many trials hold a result of each run, read from Optuna itself."""
    return Counter(
        trial.user_attrs["outcome"]["number"]
        for trial in queue._study.get_trials(deepcopy=False)
        if "number" in trial.user_attrs.get("outcome", {})
    )


def run_with_faults(server: PostgresServer, study: str, log: Path, *, runs: int) -> dict[str, Any]:
    """Let four workers share runs; kill one by SIGKILL and restart the database meanwhile."""
    with opened_queue(server.url, study, heartbeat_seconds=1) as queue:
        keys = [queue.enqueue(toy_order(number).to_json()) for number in range(runs)]
        workers = [started_worker(server.url, study, log, 0.3) for _ in range(4)]
        wait_until(lambda: logged(log, "ended").total() >= 3)
        workers[0].kill()
        server.stop()
        time.sleep(0.2)
        server.start()
        for worker in workers:
            worker.join(300)
        return {
            "exit_codes": [worker.exitcode for worker in workers],
            "done": sum(queue.state(key).status == "done" for key in keys),
            "outcomes": counted_outcomes(queue),
            "executions": logged(log, "ended").total(),
        }
