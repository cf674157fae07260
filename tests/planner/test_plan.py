from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner.disk.free_space import check_folder
from planner.disk.json_files import MAX_FILE_BYTES
from planner.plan import (
    PLAN_SCHEMA_MINOR,
    Accuracy,
    Plan,
    plan_file_name,
    planned_data,
    read_plan,
    versions,
    write_plan,
)
from planner.scoring.netscore import compute_scores
from profiler.errors import LONGEST_MESSAGE, InputError
from profiler.json_records import NewerFileWarning
from profiler.placement import Decision, Placement, PolicyChoice
from profiler.records import (
    DeviceLabel,
    Flops,
    Memory,
    OwnerBytes,
    Parameters,
    Report,
    Rung,
    UnitReport,
)
from profiler.workload import Candidate, Workload


def make_plan(**changes: Any) -> Plan:
    candidate = Candidate(
        workload=Workload(model="vit_small_patch16_224", method="lora", rank=8, targets=("qkv",)),
        placement=Placement({"blocks.0": Decision.RECOMPUTE, "blocks.1/mlp": Decision.DROP_CHEAP}),
        policy=PolicyChoice("optimal"),
    )
    prediction = Report(
        candidate=candidate,
        device=DeviceLabel(name="cpu", full_name="this CPU", kind="cpu"),
        rung=Rung.COMPOSED,
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
        measurement=replace(
            prediction, rung=Rung.MEASURED, step_seconds=0.4, details={"raw": [1, 2]}
        ),
        scores=compute_scores(accuracy_percent=80.0, parameters=22e6, macs=4.6e9),
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
        (_set("schema", to="somebody.else/3"), "expected 'budgetplan.plan/1', got 'somebody.el"),
        (_drop("schema"), "plan.schema: expected"),
        (_set("schema_minor", to="1"), "plan.schema_minor: expected integer >= 0, got '1'"),
        (_set("surprise", to=1), "plan.surprise: unknown field"),
        (_drop("prediction"), "plan.prediction: missing field"),
        (_drop("budget_bytes"), "plan.budget_bytes: missing field"),
        (
            _set("budget_bytes", to="2GB"),
            "plan.budget_bytes: expected integer >= 1048576, got '2GB'",
        ),
        (_set("budget_bytes", to=True), "plan.budget_bytes: expected integer >= 1048576, got True"),
        (_set("budget_bytes", to=-1), "plan.budget_bytes: expected integer >= 1048576, got -1"),
        (_set("candidate", to=7), "plan.candidate must be a JSON object, got int"),
        (
            _set("candidate", "workload", "model", to=None),
            "workload.model: expected text, got None",
        ),
        (
            _set("candidate", "workload", "micro_batch", to="32"),
            "workload.micro_batch: expected int",
        ),
        (
            _set("candidate", "workload", "micro_batch", to=0),
            "expected integer >= 1 <= 65536, got 0",
        ),
        (
            _set("candidate", "workload", "precision", to="int3"),
            "candidate.workload.precision: expected one of bf16, fp16, fp32, got 'int3'",
        ),
        (_set("candidate", "workload", "surprise", to=1), "candidate.workload.surprise: unknown"),
        (_set("candidate", "surprise", to=1), "plan.candidate.surprise: unknown field"),
        (_set("candidate", "placement", "decisions", to={"blocks.0": "forget"}), "forget"),
        (_set("candidate", "placement", "decisions", to=["keep"]), "placement"),
        (
            _set("candidate", "workload", "micro_batch", to=64),
            "plan.prediction: it is of another candidate than plan.candidate (micro_batch ",
        ),
        (_set("prediction", to=None), "plan.prediction must be a JSON object"),
        (
            _set("prediction", "rung", to="measured"),
            "plan.prediction.schema: expected 'budgetplan.",
        ),
        (
            _set("prediction", "rung", to="banana"),
            "prediction.rung: expected one of composed, replayed, emulated, measured, got 'banana'",
        ),
        (
            _set("prediction", "memory", "peak_bytes", to="much"),
            "memory.peak_bytes: expected integer",
        ),
        (
            _set("prediction", "memory", "peak_bytes", to=-5),
            "plan.prediction.memory.peak_bytes: expected integer >= 0, got -5",
        ),
        (_set("prediction", "memory", "at_peak", "owner", to=1), "at_peak.owner: unknown field"),
        (_set("prediction", "step_seconds", to=-0.1), "step_seconds: expected number >= 0 or null"),
        (_set("prediction", "device", "kind", to="tpu"), "device.kind: expected one of cpu, cuda"),
        (_set("prediction", "units", to=[{"name": "x"}]), "prediction.units[0].decision: missing"),
        (_set("prediction", "candidate", to={}), "plan.prediction.candidate: unknown field"),
        (_set("measurement", to="fine"), "plan.measurement must be a JSON object, got str"),
        (_set("measurement", "rung", to="composed"), "plan.measurement.schema: expected"),
        (_set("scores", to=[]), "plan.scores: expected JSON object or null, got []"),
        (
            _set("scores", "ns_e", to="high"),
            "plan.scores.ns_e: expected number or null, got 'high'",
        ),
        (_set("accuracy", to=0.8), "plan.accuracy: expected JSON object, got 0.8"),
        (_set("accuracy", "value", to=80), "accuracy.value: expected number >= 0 <= 1 or null"),
        (
            _set("accuracy", "kind", to="guessed"),
            "expected one of learned, measured, none, prior, probe, published",
        ),
        (_set("accuracy", "value", to=None), "kind 'none' if and only if its value is null"),
        (_set("provenance", to="me"), "plan.provenance: expected JSON object, got 'me'"),
        (_set("budget_bytes", to="x" * 10_000), "expected integer >= 1048576, got 'xxx"),
    ],
)
def test_a_foreign_plan_is_refused_in_one_line(tmp_path: Path, change: Any, complaint: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(change(make_plan().to_json())))
    with pytest.raises(InputError) as caught:
        read_plan(path)
    message = str(caught.value)
    assert complaint in message
    assert message.startswith(f"{path}: ")
    assert len(message.removeprefix(f"{path}: ")) <= LONGEST_MESSAGE
    assert "\n" not in message


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "where", [("prediction", "step_seconds"), ("provenance", "trial"), ("scores", "ns_e")]
)
def test_a_number_that_is_not_finite_is_refused_with_its_path(
    where: tuple[str, ...], number: float
) -> None:
    data = _set(*where, to=number)(make_plan().to_json())
    with pytest.raises(InputError, match=rf"^plan\.{'.'.join(where)}: expected a finite number"):
        Plan.from_json(data)


def test_a_newer_minor_version_is_read_with_one_warning() -> None:
    data = _set("schema_minor", to=PLAN_SCHEMA_MINOR + 1)(make_plan().to_json())
    assert Plan.from_json(data) == make_plan()  # nothing unknown, nothing to warn of
    for where in (
        ("fresh",), ("candidate", "workload", "fresh"), ("prediction", "memory", "fresh"),
        ("measurement", "fresh"), ("candidate", "fresh"),
    ):  # fmt: skip
        data = _set(*where, to={"any": ["thing"]})(data)
    with pytest.warns(NewerFileWarning, match=r"ignored: plan\.candidate\.fresh, ") as warned:
        assert Plan.from_json(data) == make_plan()
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert "and 2 more" in str(warned[0].message)
    data["schema_minor"] = PLAN_SCHEMA_MINOR
    with pytest.raises(InputError, match="unknown field"):
        Plan.from_json(data)


def test_a_file_of_the_first_minor_version_is_read() -> None:
    data = make_plan().to_json()
    del data["schema_minor"]
    assert Plan.from_json(data) == make_plan()


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
        (b'{"a": [' + b"0, " * 300_000 + b"0]}", "has more than 300000 values"),
        (b'{"a": [' + b"[], " * 300_000 + b"0]}", "has more than 300000 values"),
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
    with pytest.raises(InputError, match="is not a regular file"):  # and does not wait for a writer
        read_plan(pipe)


def test_file_names_are_safe_readable_and_unique() -> None:
    base = make_plan().candidate
    name = plan_file_name(base)
    assert name.startswith("vit_small_patch16_224-lora-r8-b32x1-fp32-adamw-optimal-")
    assert name == plan_file_name(make_plan().candidate)
    others = [
        Candidate(workload=base.workload),
        replace(base, placement=Placement({"blocks.0": Decision.DROP_CHEAP})),
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


@pytest.mark.parametrize(("planned", "ran", "is_read"), [
    ("fp16", "fp32", True), ("fp16", "bf16", False), ("bf16", "fp32", False),
])  # fmt: skip
def test_only_an_fp16_plan_may_have_run_in_fp32(
    tmp_path: Path, planned: str, ran: str, is_read: bool
) -> None:
    def in_precision(report: Report, precision: str) -> Report:
        load = report.candidate.workload.replace(precision=precision)
        return replace(report, candidate=replace(report.candidate, workload=load))

    plan = make_plan()
    assert plan.measurement is not None
    prediction = in_precision(plan.prediction, planned)
    measurement = in_precision(plan.measurement, ran)
    plan = replace(
        plan, candidate=prediction.candidate, prediction=prediction, measurement=measurement
    )
    write_plan(plan, tmp_path / "plan.json")
    if is_read:
        assert read_plan(tmp_path / "plan.json") == plan
    else:
        with pytest.raises(InputError, match="it is of another candidate"):
            read_plan(tmp_path / "plan.json")


def test_a_plan_that_names_no_images_is_for_none() -> None:
    with pytest.raises(InputError, match="--data"):
        planned_data({"made_at": "2026-01-01"})
    assert planned_data({"data": "photos"}) == "photos"
