from __future__ import annotations

import asyncio
import inspect
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.api import recommend
from planner.service.access import LARGEST_BODY, check_address
from planner.service.app import create_app, question_schema
from planner.service.jobs import Jobs
from planner.service.questions import AnswerText, ServiceQuestion
from profiler.errors import MeasurementError, UsageError

SMALL = {
    "model": "test_vit", "vram": "1GB", "device": "rtx-3060", "methods": ["head"],
    "image_size": 160, "trials": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = str(Path(__file__).parents[3])
    monkeypatch.setenv("PYTHONPATH", root)
    monkeypatch.setenv("BUDGETPLAN_CACHE", str(tmp_path_factory.getbasetemp() / "service-cache"))


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    app = create_app(Jobs(tmp_path, most_waiting=2), hosts=frozenset({"localhost"}))
    with TestClient(app, base_url="http://localhost:8321", raise_server_exceptions=False) as made:
        yield made


def finished(client: TestClient, job_id: str) -> Any:
    for _ in range(600):
        answer = client.get(f"/v1/questions/{job_id}")
        if answer.status_code != 202:
            return answer
        time.sleep(0.1)
    raise AssertionError("the question was not answered")


def test_a_question_is_answered_once_and_its_plans_are_served(
    client: TestClient, tmp_path: Path
) -> None:
    first = client.post("/v1/questions", json=SMALL)
    assert first.status_code == 202
    job_id = first.json()["id"]
    with client.stream("GET", f"/v1/questions/{job_id}/events") as events:
        lines = [line for line in events.iter_lines() if line]
    states = [json.loads(line.removeprefix("data: "))["status"] for line in lines]
    assert states[-1] == "done"
    answer = finished(client, job_id).json()
    assert answer["schema"] == "budgetplan.recommendation/1"
    assert str(tmp_path) not in json.dumps(answer)
    plan = client.get(f"/v1/questions/{job_id}/plans/{answer['recommended']}").json()
    assert plan == answer["front"][answer["recommended"]]
    assert client.get(f"/v1/questions/{job_id}/plans/999").status_code == 404
    again = client.post("/v1/questions", json=SMALL)
    assert (again.status_code, again.json()) == (200, answer)
    # another service on the same folder has the answer too
    other = create_app(Jobs(tmp_path), hosts=frozenset({"localhost"}))
    with TestClient(other, base_url="http://localhost") as second:
        assert second.post("/v1/questions", json=SMALL).json() == answer


def test_what_does_not_fit_is_said_as_the_command_says_it(client: TestClient) -> None:
    answer = client.post("/v1/questions?wait=30", json=SMALL | {"vram": "100MB"})
    if answer.status_code == 202:
        answer = finished(client, answer.json()["id"])
    assert answer.status_code == 422
    shown = answer.json()
    assert (shown["schema"], shown["kind"]) == ("budgetplan.error/1", "infeasible")


def processes_of(text: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_text()
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if text in command and int(parent) == os.getpid():
            found.append(folder.name)
    return found


def test_a_cancelled_question_leaves_no_process(client: TestClient) -> None:
    jobs = [client.post("/v1/questions", json=SMALL | {"seed": 10 + n}) for n in range(2)]
    ids = [job.json()["id"] for job in jobs]
    for _ in range(100):
        if processes_of("profiler.running.sandbox"):
            break
        time.sleep(0.1)
    assert processes_of("profiler.running.sandbox")
    for job_id in ids:
        assert client.delete(f"/v1/questions/{job_id}").status_code == 202
        assert finished(client, job_id).json()["status"] == "cancelled"
    assert not processes_of("profiler.running.sandbox")


def test_too_many_questions_are_refused(client: TestClient) -> None:
    codes = [
        client.post("/v1/questions", json=SMALL | {"seed": 20 + n}).status_code for n in range(5)
    ]
    assert codes[:2] == [202, 202]
    assert codes[-1] == 429


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),  # a name that was made to point at this machine
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"content-type": "text/plain"}, 415),  # what a form of a foreign page could send
        ({"content-length": str(LARGEST_BODY + 1)}, 413),
    ],
)
def test_requests_of_other_sites_are_refused(
    client: TestClient, headers: dict[str, str], status: int
) -> None:
    sent = {"content-type": "application/json"} | headers
    answer = client.post("/v1/questions", content=json.dumps(SMALL), headers=sent)
    assert answer.status_code == status
    assert answer.json()["schema"] == "budgetplan.error/1"


def test_a_token_is_asked_for(tmp_path: Path) -> None:
    app = create_app(Jobs(tmp_path), hosts=frozenset({"localhost"}), token="0123456789abcdef")
    with TestClient(app, base_url="http://localhost") as client:
        assert client.get("/v1/devices").status_code == 401
        wrong = {"authorization": b"Bearer 0123456789abcde\xe9"}
        assert client.get("/v1/devices", headers=wrong).status_code == 401
        right = {"authorization": "Bearer 0123456789abcdef"}
        assert "t4" in client.get("/v1/devices", headers=right).json()
    with pytest.raises(UsageError, match="token"):
        check_address("0.0.0.0", None)
    check_address("127.0.0.1", None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    field=st.sampled_from([*SMALL, "data", "objective", "seed", "unknown"]),
    value=JSON,
    cut=st.none() | st.integers(0, 60),
)
def test_a_malformed_question_never_breaks_the_service(
    client: TestClient, field: str, value: object, cut: int | None
) -> None:
    """A mutant that happens to be a question is cancelled at once."""
    body = json.dumps(SMALL | {field: value}).encode()[:cut]
    answer = client.post(
        "/v1/questions", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code in (202, 422, 429)
    if answer.status_code == 202:
        client.delete(f"/v1/questions/{answer.json()['id']}")


@pytest.mark.parametrize(
    "path", ["..%2f..%2fetc%2fpasswd", "x" * 24, "a" * 24, "0" * 23, "0" * 24 + "%00"]
)
def test_an_id_is_never_a_path(client: TestClient, path: str) -> None:
    for suffix in ("", "/events", "/plans/0"):
        assert client.get(f"/v1/questions/{path}{suffix}").status_code == 404


def test_the_documented_schema_is_the_records() -> None:
    schema = question_schema()
    assert set(schema["properties"]) == set(ServiceQuestion.__struct_fields__)
    assert schema["required"] == ["model", "vram"]


class ToyProcess:
    """Stands in for the process of a question; each call ends as the next step says."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.goes_on = threading.Event()
        self.calls = 0

    def __call__(self, *_: Any, cancelled: threading.Event, **__: Any) -> AnswerText:
        self.calls += 1
        self.started.set()
        while not (cancelled.is_set() or self.goes_on.is_set()):
            time.sleep(0.01)
        self.goes_on.wait(10)
        if cancelled.is_set():
            raise MeasurementError("it was cancelled")
        return AnswerText(answer='{"front": []}')


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> ToyProcess:
    made = ToyProcess()
    monkeypatch.setattr("planner.service.jobs.run_in_process", made)
    return made


def test_a_question_that_is_being_cancelled_can_be_asked_again(
    tmp_path: Path, process: ToyProcess
) -> None:
    jobs, question = Jobs(tmp_path), ServiceQuestion(model="vit_s", vram="1GB")
    first = jobs.ask(question)
    assert jobs.ask(question) is first
    assert process.started.wait(10)
    jobs.cancel(first)
    second = jobs.ask(question)
    assert second is not first
    process.goes_on.set()
    asyncio.run(jobs.wait(second, 10))
    assert (first.status, second.status, process.calls) == ("cancelled", "done", 2)
    jobs.close()


@pytest.mark.parametrize("way", ["GET /v1/questions/{}/events", "POST /v1/questions?wait=30"])
def test_clients_that_wait_keep_no_other_from_an_answer(
    tmp_path: Path, process: ToyProcess, way: str
) -> None:
    """More clients wait than the pool has threads (40)."""
    jobs = Jobs(tmp_path)
    job = jobs.ask(ServiceQuestion(model="vit_s", vram="1GB"))
    app = create_app(jobs, hosts=frozenset({"test"}))
    method, path = way.format(job.id).split()
    body = {"model": "vit_s", "vram": "1GB"} if method == "POST" else None

    async def run() -> int:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://test"
        ) as client:
            waiting = [
                asyncio.create_task(client.request(method, path, json=body)) for _ in range(60)
            ]
            await asyncio.sleep(0.5)
            try:
                answer = await asyncio.wait_for(client.get("/v1/devices"), 10)
            finally:
                process.goes_on.set()
            assert {each.status_code for each in await asyncio.gather(*waiting)} == {200}
            return answer.status_code

    assert asyncio.run(run()) == 200
    jobs.close()


def test_a_closed_service_leaves_no_question_waiting(tmp_path: Path, process: ToyProcess) -> None:
    jobs = Jobs(tmp_path)
    asked = [jobs.ask(ServiceQuestion(model="vit_s", vram="1GB", seed=n)) for n in range(2)]
    assert process.started.wait(10)
    process.goes_on.set()
    jobs.close()
    assert asked[0].is_over
    assert asked[1].status == "cancelled"


def test_a_defect_is_logged_for_the_operator_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> AnswerText:
        raise KeyError("/a/place/on/the/server")

    monkeypatch.setattr("planner.service.jobs.run_in_process", broken)
    jobs = Jobs(tmp_path)
    job = jobs.ask(ServiceQuestion(model="vit_s", vram="1GB"))
    asyncio.run(jobs.wait(job, 10))
    jobs.close()
    assert json.loads(job.text)["message"] == "KeyError"
    (record,) = caplog.records
    assert record.exc_info is not None and "place" in str(record.exc_info[1])


def test_a_question_without_options_is_that_of_the_python_api() -> None:
    defaults = inspect.signature(recommend).parameters
    question = ServiceQuestion(model="test_vit", vram="2GB")
    shared = {"data", "methods", "image_size", "trials", "objective", "seed"}
    assert {*ServiceQuestion.__struct_fields__} == shared | {"model", "vram", "device"}
    for name in shared:
        assert getattr(question, name) == defaults[name].default, name
