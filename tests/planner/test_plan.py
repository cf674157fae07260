from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner.json_files import MAX_FILE_BYTES, check_folder
from planner.plan import SCHEMA, Accuracy, Plan, plan_file_name, read_plan, versions, write_plan
from planner.scoring.netscore import scores
from profiler.errors import InputError
from profiler.placement import Placement
from profiler.records import (
    COMPOSED,
    MEASURED,
    DeviceLabel,
    Flops,
    Memory,
    OwnerBytes,
    Parameters,
    Report,
    UnitReport,
)
from profiler.workload import Candidate, Workload


def make_plan(**changes: Any) -> Plan:
    candidate = Candidate(
        workload=Workload(model="vit_small_patch16_224", method="lora", rank=8, targets=("qkv",)),
        placement=Placement(
            policy="optimal", decisions={"blocks.0": "recompute", "blocks.1/mlp": "cheap"}
        ),
    )
    prediction = Report(
        candidate=candidate,
        device=DeviceLabel(name="cpu", full_name="this CPU", kind="cpu"),
        rung=COMPOSED,
        memory=Memory(peak_bytes=123, at_peak=OwnerBytes(parameter=100, activation=23)),
        flops=Flops(forward=10, backward=20),
        step_seconds=0.1 + 0.2,  # not exactly representable in short
        energy_joules=None,
        parameters=Parameters(total=10, trainable=3),
        units=(
            UnitReport(
                name="blocks.0",
                decision="recompute",
                stored_bytes=5,
                boundary_bytes=2,
                working_bytes=None,
                forward_flops=1,
                backward_flops=2,
                recompute_flops=1,
            ),
        ),
        notes=("uncalibrated",),
    )
    plan = Plan(
        candidate=candidate,
        prediction=prediction,
        measurement=replace(prediction, rung=MEASURED, step_seconds=0.4, details={"raw": [1, 2]}),
        scores=scores(accuracy_percent=80.0, parameters=22e6, macs=4.6e9),
        accuracy=Accuracy(value=0.8, source="held out", kind="measured"),
        budget_bytes=2 * 10**9,
        provenance={"versions": versions(), "trial": 17},
    )
    return replace(plan, **changes)


def test_a_plan_comes_back_as_it_was_written(tmp_path: Path) -> None:
    for plan in (
        make_plan(),
        make_plan(measurement=None, scores=None),
        make_plan(accuracy=Accuracy(value=None, source="nothing published", kind="none")),
    ):
        path = tmp_path / "deep" / plan_file_name(plan.candidate)
        write_plan(plan, path)
        assert read_plan(path) == plan
        assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary left


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_plan(make_plan(), path)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_plan(make_plan(provenance={"bad": float("nan")}), path)
    with pytest.raises(TypeError):
        write_plan(make_plan(provenance={"bad": object()}), path)
    assert read_plan(path) == make_plan()
    with pytest.raises(InputError, match="cannot write"):
        write_plan(make_plan(), path / "inside a file.json")
    assert os.listdir(tmp_path) == ["plan.json"]


def _set(*where: str, to: object) -> Any:
    def change(data: dict[str, Any]) -> object:
        inner = data
        for key in where[:-1]:
            inner = inner[key]
        inner[where[-1]] = to
        return data

    return change


def _drop(key: str) -> Any:
    return lambda data: {k: v for k, v in data.items() if k != key}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda data: [data], "must be a JSON object, got list"),
        (lambda data: None, "must be a JSON object, got NoneType"),
        (_set("schema", to="somebody.else/3"), "somebody.else/3"),
        (_drop("schema"), SCHEMA),
        (_drop("prediction"), "no 'prediction'"),
        (_drop("budget_bytes"), "no 'budget_bytes'"),
        (_set("budget_bytes", to="2GB"), "budget_bytes"),
        (_set("budget_bytes", to=True), "budget_bytes"),
        (_set("budget_bytes", to=-1), "budget_bytes"),
        (_set("candidate", to=7), "candidate"),
        (_set("candidate", "workload", "model", to=None), "model"),
        (_set("candidate", "workload", "micro_batch", to="32"), "micro_batch"),
        (_set("candidate", "workload", "micro_batch", to=0), "micro_batch"),
        (_set("candidate", "workload", "precision", to="int3"), "int3"),
        (_set("candidate", "workload", "surprise", to=1), "surprise"),
        (_set("candidate", "placement", "decisions", to={"blocks.0": "forget"}), "forget"),
        (_set("candidate", "placement", "decisions", to=["keep"]), "placement"),
        (_set("candidate", "workload", "micro_batch", to=64), "another candidate"),
        (_set("prediction", to=None), "prediction"),
        (_set("prediction", "rung", to="measured"), "rung"),
        (_set("prediction", "memory", "peak_bytes", to="much"), "peak_bytes"),
        (_set("prediction", "memory", "peak_bytes", to=-5), "negative peak_bytes"),
        (_set("prediction", "units", to=[{"name": "x"}]), "prediction"),
        (_set("measurement", to="fine"), "measurement"),
        (_set("measurement", "rung", to="composed"), "rung"),
        (_set("scores", to=[]), "scores"),
        (_set("scores", "ns_e", to="high"), "ns_e"),
        (_set("accuracy", to=0.8), "accuracy"),
        (_set("accuracy", "value", to=80), "fraction"),
        (_set("accuracy", "kind", to="guessed"), "guessed"),
        (_set("accuracy", "value", to=None), "measured"),
        (_set("provenance", to="me"), "provenance"),
    ],
)
def test_a_foreign_plan_is_refused_in_one_line(tmp_path: Path, change: Any, complaint: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(change(make_plan().to_json())))
    with pytest.raises(InputError) as caught:
        read_plan(path)
    message = str(caught.value)
    assert complaint in message
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not JSON"),
        (b"\x89PNG\r\n\x1a\n\x00", "not JSON"),
        (b'{"schema": "budgetplan.plan/1", ', "not JSON"),
        (b'{"schema": NaN}', "NaN"),
        (b"[" * 200_000, "not JSON"),
        (b"9" * 5000, "not JSON"),
        (b" " * (MAX_FILE_BYTES + 1), "larger than"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=complaint):
        read_plan(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is missing"):
        read_plan(tmp_path / "none.json")
    with pytest.raises(InputError, match="is a directory"):
        read_plan(tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="is no file"):  # and does not wait for a writer
        read_plan(pipe)


def test_file_names_are_safe_readable_and_unique() -> None:
    base = make_plan().candidate
    name = plan_file_name(base)
    assert name.startswith("vit_small_patch16_224-lora-r8-b32x1-fp32-adamw-optimal-")
    assert name == plan_file_name(make_plan().candidate)
    others = [
        Candidate(workload=base.workload),
        replace(base, placement=Placement(policy="optimal", decisions={"blocks.0": "cheap"})),
        replace(base, workload=base.workload.replace(targets=("proj",))),
        replace(base, workload=base.workload.replace(dropout=0.1)),
    ]
    assert len({name, *map(plan_file_name, others)}) == 5
    for model in ("../../etc/passwd", "-rf", ".hidden", "a" * 500, "hf-hub:some/one", "ü\n"):
        odd = plan_file_name(Candidate(workload=Workload(model=model)))
        assert Path(odd).name == odd
        assert odd.isascii()
        assert odd[0] not in ".-"
        assert len(odd) < 200


def test_plans_need_no_torch() -> None:
    code = "import sys, planner.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_text_that_would_steer_a_terminal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"schema": "budgetplan.plan/1", "provenance": {"study": "\\u001b[2J"}}')
    with pytest.raises(InputError, match="control characters"):
        read_plan(path)


def test_a_folder_that_cannot_be_written_is_found_at_once(tmp_path: Path) -> None:
    check_folder(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write into"):
        check_folder(tmp_path / "file" / "below")
