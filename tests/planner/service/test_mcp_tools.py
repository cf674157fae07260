"""The MCP tools, called by the library's own client in this process."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

pytest.importorskip("mcp")

from mcp import Client

from planner.service.jobs import Jobs
from planner.service.mcp_tools import PredictionQuestion, create_mcp_server
from planner.service.questions import AnswerText, ServiceQuestion
from profiler.devices.table import DEVICES
from profiler.errors import MeasurementError
from tests.in_process import run_in_this_process

SMALL = {
    "model": "test_vit", "vram": "1GB", "device": "rtx-3060", "methods": ["head"],
    "image_size": 160,
}  # fmt: skip

PREDICTION = {"model": "vit_s", "method": "head", "batch_size": 1}


@pytest.fixture(autouse=True)
def one_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.setenv("BUDGETPLAN_CACHE", str(tmp_path_factory.getbasetemp() / "service-cache"))


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    made = Jobs(tmp_path)
    yield made
    made.close()


def call(jobs: Jobs, *calls: tuple[str, dict[str, Any]]) -> list[Any]:
    async def run() -> list[Any]:
        async with Client(create_mcp_server(jobs)) as client:
            return [await client.call_tool(name, arguments) for name, arguments in calls]

    return asyncio.run(run())


def content(result: Any) -> Any:
    assert not result.is_error, result.content
    return result.structured_content


def test_the_tools_have_names_and_descriptions(jobs: Jobs) -> None:
    async def run() -> Any:
        async with Client(create_mcp_server(jobs)) as client:
            return await client.list_tools()

    tools = {tool.name: tool for tool in asyncio.run(run()).tools}
    assert tools.keys() == {"recommend", "plan_file", "predict", "list_names"}
    assert all(tool.description for tool in tools.values())
    assert tools["recommend"].input_schema["required"] == ["model", "vram"]
    asked = tools["recommend"].input_schema["properties"]
    fields = {each.name: each.default for each in msgspec.structs.fields(ServiceQuestion)}
    assert asked.keys() == fields.keys() - {"trials", "seed"}
    defaults = {name: part["default"] for name, part in asked.items() if "default" in part}
    assert defaults == {name: fields[name] for name in asked.keys() - {"model", "vram"}}
    predicted = tools["predict"].input_schema["properties"]
    assert predicted.keys() == {*PredictionQuestion.__struct_fields__}


def test_a_question_is_answered_and_its_plan_is_given(jobs: Jobs) -> None:
    for _ in range(10):  # a slow machine gets the job first; the same question waits on
        (found,) = call(jobs, ("recommend", SMALL))
        answer = content(found)
        if answer["schema"] != "budgetplan.job/1":
            break
    assert answer["schema"] == "budgetplan.recommendation/1"
    best = answer["front"][answer["recommended"]]
    assert best["workload"]["method"] == "head"
    assert best["memory"]["device_bytes"] <= 10**9
    asked = {"question_id": answer["question_id"], "index": answer["recommended"]}
    plan, absent = call(jobs, ("plan_file", asked), ("plan_file", asked | {"index": 99}))
    assert content(plan)["candidate"]["workload"] == best["workload"]
    assert absent.is_error
    assert len(json.dumps(answer)) < 40_000, "an answer is for a reader"


def test_a_prediction_is_that_of_predict(jobs: Jobs) -> None:
    from planner import predict

    options = {"batch_size": 4, "device": "rtx-3060", "image_size": 160, "num_classes": 10}
    (found,) = call(jobs, ("predict", {"model": "test_vit", "method": "head", **options}))
    expected = predict("test_vit", "head", **options).to_json()
    assert content(found)["memory"] == expected["memory"]
    assert content(found)["step_seconds"] == expected["step_seconds"]


def test_a_prediction_waits_for_its_turn_among_the_questions(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most = 0, 0

    def run(*_: Any, **__: Any) -> AnswerText:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.05)
        running -= 1
        return AnswerText(answer="{}")

    async def ask() -> list[Any]:
        async with Client(create_mcp_server(jobs)) as client:
            questions = [client.call_tool("recommend", SMALL | {"vram": "2GB"})]
            calls = [client.call_tool("predict", PREDICTION) for _ in range(3)]
            return await asyncio.gather(*calls, *questions, return_exceptions=True)

    monkeypatch.setattr("planner.service.mcp_tools.run_in_process", run)
    monkeypatch.setattr("planner.service.jobs.run_in_process", run)
    assert [found.is_error for found in asyncio.run(ask())[:3]] == [False] * 3
    assert most == 1


def test_a_prediction_is_refused_when_too_many_wait_or_the_others_take_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planner.service.mcp_tools.TOOL_WAIT_SECONDS", 0.05)
    for limits, text in (
        ({"most_waiting": 0}, "0 questions wait already"),
        ({"at_once": 0}, "other questions are being answered"),
    ):
        jobs = Jobs(tmp_path, **limits)
        (found,) = call(jobs, ("predict", PREDICTION))
        jobs.close()
        assert found.is_error
        assert text in str(found.content)


def test_a_prediction_ends_when_its_client_gives_up(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, ended = threading.Event(), threading.Event()

    def run(*_: Any, cancelled: threading.Event, **__: Any) -> AnswerText:
        started.set()
        assert cancelled.wait(10)
        ended.set()
        raise MeasurementError("the run was cancelled")

    async def ask() -> bool:
        async with Client(create_mcp_server(jobs)) as client:
            with anyio.CancelScope() as scope, anyio.move_on_after(20):
                async with anyio.create_task_group() as group:
                    group.start_soon(client.call_tool, "predict", PREDICTION)
                    await anyio.to_thread.run_sync(started.wait, 5)
                    scope.cancel()
            return await anyio.to_thread.run_sync(ended.wait, 5)

    monkeypatch.setattr("planner.service.mcp_tools.run_in_process", run)
    assert asyncio.run(ask())


def test_names_are_listed(jobs: Jobs) -> None:
    devices, models, methods = call(
        jobs,
        ("list_names", {"kind": "devices", "pattern": "3060"}),
        ("list_names", {"kind": "models", "pattern": "convnext_atto"}),
        ("list_names", {"kind": "methods"}),
    )
    assert content(devices)["result"] == sorted(name for name in DEVICES if "3060" in name)
    assert "convnext_atto" in content(models)["result"]
    assert "lora" in content(methods)["result"]


@pytest.mark.parametrize(
    ("tool", "arguments", "text"),
    [
        ("recommend", {"model": "no_such_model", "vram": "2GB"}, "no_such_model"),
        ("recommend", {"model": "vit_s", "vram": "much"}, "much"),
        ("recommend", {"model": "vit_s", "vram": "2GB", "data": "/etc"}, "data"),
        ("recommend", {"model": "x" * 300, "vram": "2GB"}, "length"),
        ("predict", {"model": "vit_s", "method": "magic", "batch_size": 1}, "magic"),
        ("predict", PREDICTION | {"batch_size": -1}, "batch_size"),
        ("predict", PREDICTION | {"batch_size": 65_537}, "batch_size"),
        ("predict", PREDICTION | {"image_size": 1025}, "image_size"),
        ("predict", PREDICTION | {"num_classes": 1_000_001}, "num_classes"),
        ("predict", PREDICTION | {"rank": 65_537}, "rank"),
        ("predict", PREDICTION | {"device": "x" * 201}, "device"),
        ("list_names", {"kind": "models", "pattern": "*" * 201}, "length"),
        ("plan_file", {"question_id": "../../etc/passwd", "index": 0}, "no such plan"),
    ],
)
def test_a_bad_question_is_an_error_in_words(
    jobs: Jobs,
    tool: str,
    arguments: dict[str, Any],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("planner.service.mcp_tools.run_in_process", run_in_this_process)
    (found,) = call(jobs, (tool, arguments))
    assert found.is_error
    assert text in str(found.content)
