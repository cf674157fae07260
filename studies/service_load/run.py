"""The service under load: stored questions, malformed requests, a cancelled job.

python studies/service_load/run.py stored
python studies/service_load/run.py malformed [REQUESTS]
python studies/service_load/run.py cancelled
python studies/service_load/run.py summary
"""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "studies")]

from harness import Rows, write_summary

FOLDER = Path(__file__).parent
CLIENTS, ASKED = 8, 200
QUESTION = {
    "model": "test_vit", "vram": "1GB", "device": "rtx-3060", "methods": ["head"],
    "image_size": 160, "trials": 2,
}  # fmt: skip
JSON = {"Content-Type": "application/json"}


@contextmanager
def service() -> Iterator[tuple[int, int]]:
    """Run the service as a user does; yield its port and its process number."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as root:
        process = subprocess.Popen(
            [
                sys.executable, "-c", "from planner.cli import main; main()", "serve",
                "--port", str(port), "--root", root,
            ],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        try:
            while True:
                try:
                    ask(port, "GET", "/v1/devices")
                    break
                except OSError:
                    time.sleep(0.2)
            yield port, process.pid
        finally:
            process.terminate()
            process.wait()


def ask(
    port: int, method: str, path: str, body: bytes | None = None, headers: Any = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def answered(port: int, question: dict[str, Any]) -> str:
    """Ask until there is an answer; return the id of the question."""
    body = json.dumps(question).encode()
    status, text = ask(port, "POST", "/v1/questions", body, JSON)
    while status == 202:
        asked = str(json.loads(text)["id"])
        time.sleep(0.5)
        status, text = ask(port, "GET", f"/v1/questions/{asked}")
    assert status == 200, text[:300]
    return str(status)


def stored() -> None:
    """200 questions with stored answers, from 8 clients at once."""
    rows = Rows(FOLDER, "stored")
    rows.clear()
    questions = [QUESTION | {"seed": seed} for seed in range(4)]
    with service() as (port, _):
        for question in questions:
            answered(port, question)
        statuses, seconds = list[int](), list[float]()
        numbers = iter(range(ASKED))
        lock = threading.Lock()

        def client() -> None:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                body = json.dumps(questions[number % len(questions)]).encode()
                began = time.perf_counter()
                status, _ = ask(port, "POST", "/v1/questions?wait=30", body, JSON)
                with lock:
                    seconds.append(time.perf_counter() - began)
                    statuses.append(status)

        threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    rows.append(
        {"statuses": dict(Counter(map(str, statuses))), "seconds": sorted(seconds), "clients": CLIENTS,
         "load_average": os.getloadavg()[0], "cores": len(os.sched_getaffinity(0))}
    )  # fmt: skip
    rows.pack()


JUNK: list[Any] = [
    None, True, -1, 0, 2**70, 1e308, "", "x" * 5000, "../../etc/passwd", "\x00", "\ud800", [], {},
    [[]], {"a": 1}, "2GB", "rtx-9999", float("nan"), "é" * 100,
]  # fmt: skip
PATHS = [
    "/v1/questions", "/v1/questions/{}", "/v1/questions/{}/events", "/v1/questions/{}/plans/{}",
    "/v1/devices", "/", "/docs", "/openapi.json", "/v1/{}", "/{}",
]  # fmt: skip
PARTS = [
    "0" * 24, "f" * 24, "..", "%2e%2e", "%00", "-1", "9" * 30, "a" * 3000, "%ff", "x?wait=nan",
    "x?wait=1e9", "?wait=", "{}", "'", "%0d%0aX: y",
]  # fmt: skip


def malformed_request(source: random.Random) -> tuple[str, str, bytes | None, dict[str, str]]:
    """Return a request with one or more things wrong."""
    headers = dict(JSON)
    if source.random() < 0.15:
        headers = source.choice(
            [{}, {"Content-Type": "text/plain"}, JSON | {"Host": "evil.example"},
             JSON | {"Origin": "http://evil.example"}, JSON | {"Content-Length": "abc"},
             JSON | {"Authorization": "Bearer \xff"}, JSON | {"X": "y" * 5000}]
        )  # fmt: skip
    if source.random() < 0.35:
        path = source.choice(PATHS)
        while "{}" in path:
            path = path.replace("{}", source.choice(PARTS), 1)
        method = source.choice(["GET", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS", "POST", "X"])
        return method, path, b"{}" if method == "POST" else None, headers
    question: dict[str, Any] = dict(QUESTION)
    kind = source.randrange(4)
    if kind == 0:
        question[source.choice(list(question))] = source.choice(JUNK)
    elif kind == 1:
        question[source.choice(["out", "storage", "root", "Model", ""])] = source.choice(JUNK)
    elif kind == 2:
        del question[source.choice(["model", "vram"])]
    question["trials"] = question.get("trials") if kind == 0 else "two"
    text = json.dumps(question).encode()
    if kind == 3:
        position = source.randrange(len(text))
        text = source.choice(
            [text[:position], text[:position] + bytes([source.randrange(256)]) + text[position + 1 :],
             text * 300, b"", b"[" * 4000, b"\xff" + text, b"null", b"NaN"]
        )  # fmt: skip
    return "POST", "/v1/questions", text, headers


def malformed(requests: int) -> None:
    rows = Rows(FOLDER, "malformed")
    rows.clear()
    statuses: Counter[str] = Counter()
    wrong: list[str] = []
    source = random.Random(28)
    with service() as (port, _):
        for number in range(requests):
            method, path, body, headers = malformed_request(source)
            try:
                status, text = ask(port, method, path, body, headers)
            except (http.client.HTTPException, ValueError, UnicodeError):
                statuses["not sent"] += 1  # refused by the client's own library
                continue
            except OSError as error:  # the connection was closed
                status, text = 0, str(error).encode()
            statuses[str(status)] += 1
            if status >= 500 or status == 0:
                wrong.append(f"{number} {method} {path[:60]} {status} {text[:80]!r}")
            if status == 202:  # it was a question after all
                ask(port, "DELETE", f"/v1/questions/{json.loads(text)['id']}")
        is_alive = ask(port, "GET", "/v1/devices")[0] == 200
    rows.append(
        {"requests": requests, "statuses": dict(statuses), "wrong": wrong[:20],
         "server_errors": len(wrong), "answers_afterwards": is_alive}
    )  # fmt: skip
    rows.pack()


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def cancelled() -> None:
    """A running question is cancelled: its process ends."""
    rows = Rows(FOLDER, "cancelled")
    rows.clear()
    with service() as (port, pid):
        for seed in range(5):
            question = {"model": "vit_s", "vram": "2GB", "seed": seed}
            body = json.dumps(question).encode()
            _, text = ask(port, "POST", "/v1/questions", body, JSON)
            asked = json.loads(text)["id"]
            while not children(pid):
                time.sleep(0.05)
            time.sleep(seed)  # at another stage each time
            before = children(pid)
            ask(port, "DELETE", f"/v1/questions/{asked}")
            began = time.perf_counter()
            while any(Path(f"/proc/{child}").exists() for child in before):
                time.sleep(0.02)
                assert time.perf_counter() - began < 30
            seconds = time.perf_counter() - began
            _, text = ask(port, "GET", f"/v1/questions/{asked}")
            rows.append(
                {"seconds": seconds, "processes": len(before), "status": json.loads(text)["status"],
                 "left": len(children(pid))}
            )  # fmt: skip
    rows.pack()


def summary() -> None:
    parts = {name: Rows(FOLDER, name).read() for name in ("stored", "malformed", "cancelled")}
    values: dict[str, Any] = {"stored": None, "malformed": None, "cancelled": None}
    for load in parts["stored"]:
        seconds = load["seconds"]
        values["stored"] = {
            "questions": len(seconds),
            "clients": load["clients"],
            "errors": len(seconds) - load["statuses"].get("200", 0),
            "median_seconds": round(statistics.median(seconds), 4),
            "p95_seconds": round(statistics.quantiles(seconds, n=20)[-1], 4),
            "load_average": round(load["load_average"], 1),
        }
    for bad in parts["malformed"]:
        keys = ("requests", "statuses", "server_errors", "answers_afterwards")
        values["malformed"] = {key: bad[key] for key in keys}
    if parts["cancelled"]:
        values["cancelled"] = {
            "jobs": len(parts["cancelled"]),
            "processes_left": sum(row["left"] for row in parts["cancelled"]),
            "longest_seconds": round(max(row["seconds"] for row in parts["cancelled"]), 2),
        }
    write_summary(FOLDER, [row for rows in parts.values() for row in rows], **values)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["stored"]:
            stored()
        case ["malformed", *count]:
            malformed(int(count[0]) if count else 10_000)
        case ["cancelled"]:
            cancelled()
        case ["summary"]:
            summary()
        case _:
            sys.exit(__doc__)
