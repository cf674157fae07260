"""Plan files of unknown origin: every command refuses the same ones, in the same way."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_plan import make_plan

import planner
from planner.cli import cli
from profiler.errors import LONGEST_MESSAGE, InputError

TEXT = json.dumps(make_plan().to_json())


def with_value(*where: str, to: object) -> str:
    """Return a plan's text with another value, in every copy of the candidate."""
    data = json.loads(TEXT)
    copies = [data]
    if where[0] == "candidate":
        where = where[1:]
        copies = [data["candidate"], data["prediction"], data["measurement"]]
    for part in copies:
        inside: Any = part
        for key in where[:-1]:
            inside = inside[key]
        inside[where[-1]] = to
    return json.dumps(data)


def workload(name: str, value: object) -> str:
    return with_value("candidate", "workload", name, to=value)


BAD_PLANS = {
    "a number of 400 digits": workload("alpha", 10**400),
    "infinity by its exponent": TEXT.replace('"alpha": null', '"alpha": 1e999'),
    "an integer of 5000 digits": TEXT.replace('"alpha": null', '"alpha": ' + "9" * 5000),
    "a budget of one byte": with_value("budget_bytes", to=1),
    "a budget of an exabyte": with_value("budget_bytes", to=10**18),
    "an image of one pixel": workload("image_size", 1),
    "an image of a million pixels": workload("image_size", 10**6),
    "a batch of 10^15": workload("micro_batch", 10**15),
    "a billion classes": workload("num_classes", 10**9),
    "a negative norm": workload("grad_clip", -1),
    "an alpha of 0": workload("alpha", 0),
    "a device that does not exist": with_value("prediction", "device", "name", to="rtx-9999"),
    "a GPU that is a CPU": with_value("prediction", "device", "kind", to="cuda"),
    "half of a surrogate pair": workload("model", "vit\ud800"),
    "a change of direction": with_value("accuracy", "source", to="held\u202eout"),
    "a control character": with_value("provenance", to={"study": "\x1b[2J"}),
    "an escape of 8 bit": with_value("provenance", to={"study": "\x9b2J"}),
    "a key with a control character": with_value("provenance", to={"a\x07b": 1}),
    "a name of two lines": workload("model", "vit\nsecond"),
    "a name without end": workload("model", "v" * 300),
    "no name": workload("model", ""),
    "a text without end": with_value("provenance", to={"study": "x" * 100_000}),
    "a nesting without end": with_value("provenance", to={"a": json.loads("[" * 200 + "]" * 200)}),
    "data that is no text": with_value("provenance", to={"data": ["a"]}),
    "a peak that is no number": with_value(
        "provenance", to={"host_prediction": {"peak_bytes": "much"}}
    ),
    "a parameter without end": with_value(
        "candidate", "placement", "parameters", to={"threshold": 10**30}
    ),
    "an unknown decision of 5000 letters": with_value(
        "candidate", "placement", "decisions", to={"blocks.0": "x" * 5000}
    ),
    "a unit too many": with_value(
        "candidate", "placement", "decisions", to={f"blocks.{i}": "keep" for i in range(4097)}
    ),
    "an unknown field of 5000 letters": with_value("x" * 5000, to=1),
}


@pytest.mark.parametrize("text", BAD_PLANS.values(), ids=BAD_PLANS)
def test_every_command_refuses_the_plan_in_the_same_line(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plan.json").write_text(text, encoding="utf-8")
    lines = set()
    for command in ("show", "train", "validate"):
        result = CliRunner().invoke(cli, [command, "plan.json"], prog_name="budgetplan")
        assert (result.exit_code, result.stdout) == (4, ""), (command, result.output)
        lines.add(result.stderr.removesuffix("\n"))
    (line,) = lines
    message = line.removeprefix("budgetplan: ")
    assert message.isprintable()
    assert len(message) <= LONGEST_MESSAGE
    with pytest.raises(InputError) as caught:
        planner.load_plan("plan.json")
    assert str(caught.value) == message
    assert os.listdir(tmp_path) == ["plan.json"]  # nothing was written


GOOD_PLANS = {
    "the plan itself": TEXT,
    "letters of every script": with_value("provenance", to={"study": "Übung 日本語 می‌خواهم"}),
    "a note of two lines": with_value("provenance", to={"study": "one\n\ttwo"}),
    "thousands of notes": with_value("provenance", to={"origin": ["a note"] * 50_000}),
    "the largest values": with_value("budget_bytes", to=2**50),
    "markup of another program": with_value("provenance", to={"[/bold]": "[/bold] {x} %s"}),
    "a GPU that the table lacks": with_value(
        "prediction",
        "device",
        to={"name": "gtx-1080", "full_name": "NVIDIA GeForce GTX 1080", "kind": "cuda"},
    ),
}


@pytest.mark.parametrize("text", GOOD_PLANS.values(), ids=GOOD_PLANS)
def test_an_unusual_plan_is_shown(text: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text, encoding="utf-8")
    result = CliRunner().invoke(cli, ["show", str(path)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    given, plan = json.loads(text), planner.load_plan(path)
    assert dict(plan.provenance) == given["provenance"]
    assert plan.budget_bytes == given["budget_bytes"]
    assert plan.prediction.device.name == given["prediction"]["device"]["name"]
    assert plan.candidate.workload.model in result.output
    names = {"note" if name == "origin" else name for name in given["provenance"]}
    assert names <= set(result.output.split())
