"""The dashboard over real HTTP: what it shows, and what it refuses."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import optuna
import pytest
from click.testing import CliRunner
from optuna.trial import create_trial

from planner.cli import cli
from planner.cli.serve_command import read_token
from planner.search.dashboard import dashboard_app, dashboard_storage, other_studies
from planner.search.problem import assignment_key
from planner.search.study_notes import PIECE_CHARACTERS, annotate_study, artifact_folder
from planner.service.access import allowed_hosts
from planner.service.dashboard_server import GuardedDashboard, serve_app
from profiler.errors import InputError

TOKEN = "a-token-of-24-characters"

PLAN = '{"schema": "budgetplan.plan/1"}'


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A study of two trials with notes and a plan file."""
    folder = tmp_path_factory.mktemp("dashboard")
    url = f"sqlite:///{folder / 'toy.db'}"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        study_name="toy", storage=url, directions=["maximize", "minimize", "minimize"]
    )
    choices = optuna.distributions.CategoricalDistribution(("lora", "full"))
    for method, excess in (("lora", -5.0), ("full", 7.0)):
        study.add_trial(
            create_trial(
                params={"method": method},
                distributions={"method": choices},
                values=[1.0, 2.0, 3.0],
                system_attrs={"constraints": [excess]},
            )
        )
    plan = folder / "lora.json"
    plan.write_text(PLAN, encoding="utf-8")
    for note in ("# long\n" + "x" * 3 * PIECE_CHARACTERS, "# Toy\n\nuse lora"):
        annotate_study(
            url,
            "toy",
            note=note,
            trial_notes={assignment_key({"method": "lora"}): "**recommended**"},
            files=[plan],
        )
    return url


class Client:
    """Requests to a server on a free port of this machine."""

    def __init__(self, port: int) -> None:
        self.port = port

    def send(self, method: str, path: str, body: str | None = None, **headers: str) -> HTTPResponse:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body=body, headers=given)
        return connection.getresponse()

    def json(self, path: str, **headers: str) -> Any:
        answer = self.send("GET", path, **headers)
        assert answer.status == 200, answer.read()
        return json.loads(answer.read())


def started(url: str, **options: Any) -> Client:
    app = GuardedDashboard(dashboard_app(url), hosts=allowed_hosts("127.0.0.1"), **options)
    ready = threading.Event()
    ports: list[int] = []

    def on_ready(port: int) -> None:
        ports.append(port)
        ready.set()

    def run() -> None:
        serve_app(app, host="127.0.0.1", port=0, on_ready=on_ready)

    threading.Thread(target=run, daemon=True).start()
    assert ready.wait(30)
    return Client(ports[0])


@pytest.fixture(scope="module")
def client(url: str) -> Client:
    return started(url)


@pytest.fixture(scope="module")
def guarded(url: str) -> Client:
    return started(url, token=TOKEN)


@pytest.fixture(scope="module")
def writable(url: str) -> Iterator[Client]:
    yield started(url, allow_writes=True)


def test_the_study_shows_its_note_its_constraint_and_its_plan_files(client: Client) -> None:
    (study,) = client.json("/api/studies")["study_summaries"]
    number = study["study_id"]
    detail = client.json(f"/api/studies/{number}")
    assert detail["note"]["body"] == "# Toy\n\nuse lora"
    lora, full = detail["trials"]
    assert (lora["note"]["body"], full["note"]["body"]) == ("**recommended**", "")
    assert (lora["constraints"], full["constraints"]) == ([-5.0], [7.0])
    (plan,) = detail["artifacts"]
    assert plan["filename"] == "lora.json"
    answer = client.send("GET", f"/artifacts/{number}/{plan['artifact_id']}")
    assert answer.read().decode() == PLAN
    assert answer.getheader("Access-Control-Allow-Origin") is None


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:8080"}, 200),
        ({"Host": "[::1]:8080"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost.evil.example:8080"}, 403),
        ({"Host": "localhost@evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://localhost:8080"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_only_this_machine_may_ask(client: Client, headers: dict[str, str], status: int) -> None:
    assert client.send("GET", "/api/studies", **headers).status == status


WRITES = [
    ("POST", "/api/studies", {"study_name": "new", "directions": ["minimize"]}),
    ("POST", "/api/studies/1/rename", {"study_name": "other"}),
    ("DELETE", "/api/studies/1", None),
    ("PUT", "/api/studies/1/note", {"body": "gone", "version": 99}),
    ("PUT", "/api/studies/1/1/note", {"body": "gone", "version": 99}),
    ("POST", "/api/studies/1/preference", {}),
    ("PUT", "/api/studies/1/preference_feedback_component", {}),
    ("POST", "/api/trials/1/tell", {"state": "fail"}),
    ("POST", "/api/trials/1/user-attrs", {"user_attrs": {"a": 1}}),
    ("POST", "/api/studies/1/1/skip", {}),
    ("POST", "/api/artifacts/1", {"file": "data:;base64,AA=="}),
    ("POST", "/api/artifacts/1/1", {"file": "data:;base64,AA=="}),
    ("DELETE", "/api/artifacts/1/00000000-0000", None),
    ("POST", "/incompatible-rdb-schema", {}),
    ("POST", "/api/llm/trial_filter_query", {}),
    ("PATCH", "/api/studies", {}),
    ("BREW", "/api/studies", None),
]


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
def test_nothing_can_be_written_unless_allowed(
    client: Client, method: str, path: str, body: dict[str, Any] | None
) -> None:
    before = client.json("/api/studies/1")
    text = None if body is None else json.dumps(body)
    answer = client.send(method, path, text, Content_Type="application/json")
    assert answer.status == 405
    assert b"read-only" in answer.read()
    assert client.json("/api/studies/1") == before


def test_a_write_route_that_is_not_listed_here_is_refused_too(url: str) -> None:
    """Every route of the installed dashboard that is no GET is refused by its method alone."""
    routes = {(route.method, route.rule) for route in dashboard_app(url).routes}  # type: ignore[attr-defined]
    writing = {method for method, _ in routes} - {"GET"}
    assert writing == {"POST", "PUT", "DELETE"}
    assert len([1 for method, _ in routes if method != "GET"]) >= 17


def test_writing_must_be_allowed_and_come_from_here(writable: Client) -> None:
    body = json.dumps({"body": "mine", "version": 100})
    path = "/api/studies/1/note"
    json_type = {"Content_Type": "application/json"}
    assert writable.send("PUT", path, body, Origin="http://evil", **json_type).status == 403
    assert writable.send("PUT", path, body, Content_Type="text/plain").status == 415
    version = writable.json("/api/studies/1")["note"]["version"]
    for text in ("mine", "# Toy\n\nuse lora"):
        version += 1
        body = json.dumps({"body": text, "version": version})
        assert writable.send("PUT", path, body, **json_type).status == 204
        assert writable.json("/api/studies/1")["note"]["body"] == text


def test_a_token_is_asked_for_and_moves_into_a_cookie(guarded: Client) -> None:
    assert guarded.send("GET", "/api/studies").status == 401
    assert guarded.send("GET", "/?token=wrong").status == 401
    assert guarded.send("GET", "/api/studies", Authorization=f"Bearer {TOKEN}").status == 200
    for path in ("/dashboard", "//evil.example/", "/%0d%0aSet-Cookie:%20a=b", "/%5Cevil.example"):
        answer = guarded.send("GET", f"{path}?token={TOKEN}")
        assert (answer.status, answer.getheader("Location")) == (303, "/")
        assert [name for name, _ in answer.getheaders()].count("Set-Cookie") == 1
    cookie = answer.getheader("Set-Cookie") or ""
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    pair = cookie.partition(";")[0]
    assert guarded.send("GET", "/api/studies", Cookie=pair).status == 200
    for wrong in ("budgetplan_token=x", "budgetplan_token", "=;=", "a" * 5000):
        assert guarded.send("GET", "/api/studies", Cookie=wrong).status == 401


def test_any_study_can_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "studies"
    folder.mkdir()
    for name in ("old", "new"):
        optuna.create_study(study_name=name, storage=f"sqlite:///{folder / name}.db")
    (folder / "new.db").touch()
    assert dashboard_storage("old") == "sqlite:///studies/old.db"
    assert dashboard_storage(None).endswith("new.db")
    assert dashboard_storage(str(folder / "old.db")).endswith("old.db")
    assert dashboard_storage(url) == url
    assert list(other_studies("sqlite:///studies/new.db")) == ["old"]
    with pytest.raises(InputError, match=r"no study 'odd'.*use one of new, old"):
        dashboard_storage("odd")
    assert artifact_folder("postgresql://host/db") is None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--host", "0.0.0.0"], 2, "give a token by --token-file"),
        (["odd"], 4, "no study"),
        (["odd", "--storage", "sqlite:///x.db"], 2, "not both"),
        (["--token-file", "missing"], 4, "cannot read"),
        (["--storage", "sqlite:///missing.db"], 4, "does not exist"),
        (["--storage", "journal:///tmp/no-such-folder/runs.log"], 4, "does not exist; create it"),
        (["--storage", "journal:///tmp/no-such-journal.log"], 4, "does not exist; `budgetplan"),
        (["--storage", "journal:runs.log"], 4, "named by its whole path"),
        (["--storage", "grpc://host"], 4, "host and port"),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["dashboard", *arguments])
    assert result.exit_code == code, result.output
    assert message in result.output
    assert not Path("/tmp/no-such-journal.log").exists()


@pytest.mark.parametrize("end", [";", " ", "é", '"', "\r\nSet-Cookie: a=b", "&"])
def test_a_token_that_a_cookie_would_change_is_refused(end: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}{end}x", encoding="utf-8")
    with pytest.raises(InputError, match="use letters, digits"):
        read_token(file)
    file.write_text(f"{TOKEN}\n", encoding="utf-8")
    assert read_token(file) == TOKEN


def test_the_storage_may_stand_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BUDGETPLAN_STORAGE", "sqlite:///from-environment.db")
    result = CliRunner().invoke(cli, ["dashboard"])
    assert (result.exit_code, "from-environment.db does not exist" in result.output) == (4, True)
    result = CliRunner().invoke(cli, ["dashboard", "odd"])
    assert "no study 'odd'" in result.output


def test_a_plan_file_of_new_content_is_added(tmp_path: Path) -> None:
    from optuna.artifacts import get_all_artifact_meta

    url, plan = f"sqlite:///{tmp_path / 'toy.db'}", tmp_path / "lora.json"
    study = optuna.create_study(study_name="toy", storage=url)
    folder = artifact_folder(url)
    assert folder is not None

    def contents() -> list[str]:
        found = get_all_artifact_meta(study)
        return sorted((folder / meta.artifact_id).read_text(encoding="utf-8") for meta in found)

    for content in ("first", "second", "first"):
        plan.write_text(content, encoding="utf-8")
        annotate_study(url, "toy", note="", trial_notes={}, files=[plan])
    assert contents() == ["first", "second"]
    # optuna-dashboard deletes an artifact by a null in its attribute
    (gone,) = (
        meta
        for meta in get_all_artifact_meta(study)
        if (folder / meta.artifact_id).read_text(encoding="utf-8") == "first"
    )
    attribute = f"artifacts:{gone.artifact_id}"
    study._storage.set_study_system_attr(study._study_id, attribute, "null")
    annotate_study(url, "toy", note="", trial_notes={}, files=[plan])
    attributes = study._storage.get_study_system_attrs(study._study_id)
    assert len([key for key in attributes if key.startswith("artifacts:")]) == 3
