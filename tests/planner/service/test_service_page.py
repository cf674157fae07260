"""The page of the service in headless Chromium: a question is asked by its form and answered."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvicorn

from planner.service import jobs as jobs_module
from planner.service.app import create_app
from planner.service.jobs import Jobs
from planner.service.questions import PAGE_FILE, AnswerText, QuestionInFolder, ServiceQuestion
from profiler.errors import InfeasibleError

ANSWER = {
    "schema": "budgetplan.recommendation/1",
    "reason": "head fits and is the fastest",
    "recommended": 0,
    "front": [
        {
            "candidate": {
                "workload": {
                    "method": "head", "rank": None, "micro_batch": 32, "accumulation": 1,
                    "precision": "fp16",
                }
            },
            "prediction": {"memory": {"device_bytes": 830_000_000}, "step_seconds": 0.031},
        }
    ],
}  # fmt: skip


def toy_answer(function: Any, request: QuestionInFolder, result: Any, **options: Any) -> AnswerText:
    """Answer after two messages of progress, and write a page beside."""
    assert request.page_writer == "a:writer"
    if request.question.vram == "1MB":
        error = InfeasibleError(budget_bytes=10**6, smallest_bytes=10**9, advice="use head")
        return AnswerText(answer=json.dumps(error.to_json()), is_error=True)
    for done in (0.25, 0.75):
        options["on_progress"](f"search: {request.question.model}", done)
        time.sleep(0.1)
    (Path(request.folder) / PAGE_FILE).write_text("<h1>The whole answer</h1>")
    return AnswerText(answer=json.dumps(ANSWER))


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(jobs_module, "run_in_process", toy_answer)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = create_app(Jobs(tmp_path, page_writer="a:writer"), hosts=frozenset({"127.0.0.1"}))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join()


class Browser:
    """Headless Chromium, told what to do through pipes (DevTools protocol, ``\\0`` between)."""

    def __init__(self, program: str, profile: Path) -> None:
        commands, self._commands = os.pipe()
        self._events, events = os.pipe()

        def take_pipes() -> None:  # the browser reads descriptor 3 and writes descriptor 4
            # copies first: a pipe may be descriptor 3 or 4 itself
            ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 5) for end in (commands, events)]
            for descriptor, end in enumerate(ends, start=3):
                os.dup2(end, descriptor)

        self._process = subprocess.Popen(
            [
                program, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
                f"--user-data-dir={profile}", "about:blank",
            ],
            preexec_fn=take_pipes,  # noqa: PLW1509
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(commands)
        os.close(events)
        self._number, self._rest = 0, b""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]

    def send(self, method: str, *, session: str | None = None, **params: Any) -> Any:
        """Send a command and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                part = os.read(self._events, 1 << 16)
                assert part, "the browser ended"
                self._rest += part
            text, _, self._rest = self._rest.partition(b"\0")
            found = json.loads(text)
            if found.get("id") == self._number:
                assert "error" not in found, found
                return found["result"]

    def open(self, address: str) -> None:
        self.send("Page.navigate", session=self._session, url=address)
        self.wait_for("document.readyState === 'complete'")

    def value(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        found = self.send(
            "Runtime.evaluate", session=self._session, expression=script, returnByValue=True
        )
        return found["result"].get("value")

    def wait_for(self, script: str, *, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not self.value(script):
            assert time.monotonic() < end, f"{script}: {self.value('document.body.innerText')}"
            time.sleep(0.05)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        os.close(self._events)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("chromium is not installed")
    found = Browser(program, tmp_path / "profile")
    yield found
    found.close()


def test_a_question_is_asked_by_the_form_and_its_answer_is_drawn(
    address: str, browser: Browser, tmp_path: Path
) -> None:
    browser.open(address)
    browser.wait_for("document.querySelectorAll('option').length > 100")  # the GPUs
    browser.value("document.querySelector('[name=model]').value = 'test_vit'")
    browser.value("document.querySelector('[name=device]').value = 'rtx-3060'")
    browser.value("document.querySelector('button').click()")
    browser.wait_for("document.querySelector('tr.recommended') !== null")
    cells = browser.value(
        "[...document.querySelectorAll('tr.recommended td')].map(c => c.textContent)"
    )
    assert cells == ["head", "32 \u00d7 1", "fp16", "0.83 GB", "31 ms", "file"]
    assert browser.value("document.querySelector('progress').hidden") is True
    assert browser.value("document.getElementById('status').textContent") == ""
    browser.wait_for(
        "document.querySelector('iframe').contentDocument?.querySelector('h1')?.textContent"
        " === 'The whole answer'"
    )
    (folder,) = [path.parent for path in tmp_path.glob("*/question.json")]
    asked = msgspec.json.decode((folder / "question.json").read_bytes(), type=ServiceQuestion)
    assert (asked.model, asked.vram, asked.device) == ("test_vit", "2GB", "rtx-3060")


def test_an_error_is_shown_in_its_own_words(address: str, browser: Browser) -> None:
    browser.open(address)
    browser.value("document.querySelector('[name=vram]').value = '1MB'")
    browser.value("document.querySelector('button').click()")
    browser.wait_for("document.getElementById('status').textContent.includes('use head')")
    assert browser.value("document.querySelector('table') === null") is True
