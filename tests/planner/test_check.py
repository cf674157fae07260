"""The check of a plan under the installed versions."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from click.testing import CliRunner

from planner.cli import cli
from planner.cost.fit_probability import smallest_budget_of
from planner.plan import Accuracy, Plan, write_plan
from profiler.devices.table import lookup
from profiler.prediction.report import predict
from profiler.records import DeviceLabel
from profiler.units import MIB
from profiler.workload import Candidate, Workload


def a_plan() -> Plan:
    candidate = Candidate(
        workload=Workload(model="test_vit", num_classes=10, micro_batch=2, image_size=32)
    )
    prediction = predict(candidate, device=lookup("rtx-3060"))
    return Plan(
        candidate=candidate,
        prediction=prediction,
        accuracy=Accuracy(value=None, source="not run", kind="none"),
        budget_bytes=smallest_budget_of(prediction),
        provenance={"versions": {"torch": "1.0", "timm": "not compared"}},
    )


def test_a_plan_for_a_gpu_of_a_device_file_is_checked_with_that_file(tmp_path: Path) -> None:
    row = asdict(lookup("rtx-3060")) | {"name": "own-board", "full_name": "Own Board"}
    spec, path = tmp_path / "device.json", tmp_path / "plan.json"
    spec.write_text(json.dumps(row))
    plan = a_plan()
    label = DeviceLabel(name="own-board", full_name="Own Board", kind="cuda")
    write_plan(replace(plan, prediction=replace(plan.prediction, device=label)), path)
    for command in (["check"], ["explain"], ["rehearse"], ["train", "--checkpoint", "static"]):
        done = CliRunner().invoke(cli, [*command, str(path), "--json"])
        assert done.exit_code == 2, command
        assert "no such device" in json.loads(done.stdout)["message"] or "own-board" in done.output
    done = CliRunner().invoke(cli, ["check", str(path), "--json", "--device-spec", str(spec)])
    assert (done.exit_code, json.loads(done.stdout)["holds"]) == (0, True)


def run(path: Path) -> tuple[int, dict[str, object]]:
    done = CliRunner().invoke(cli, ["check", str(path), "--json"])
    return done.exit_code, json.loads(done.stdout)


def test_a_plan_holds_as_long_as_its_replay_fits(tmp_path: Path) -> None:
    plan, path = a_plan(), tmp_path / "plan.json"
    write_plan(plan, path)
    code, found = run(path)
    assert (code, found["holds"]) == (0, True)
    assert found["needed_bytes"] == found["planned_bytes"] == plan.prediction.memory.device_bytes
    assert found["smallest_budget_bytes"] == plan.budget_bytes
    fits = found["fits"]
    assert isinstance(fits, dict)
    assert fits["probability"] >= 0.99
    changed = found["changed_versions"]
    assert isinstance(changed, dict)
    assert changed["torch"][0] == "1.0"
    tight = replace(plan, budget_bytes=plan.budget_bytes - 2 * MIB)  # above the prediction
    write_plan(tight, path)
    code, found = run(path)
    assert (code, found["holds"]) == (3, False)
    assert found["smallest_budget_bytes"] == plan.budget_bytes
    # a plan leaves a page of the allocator at any risk
    write_plan(replace(tight, provenance={"risk": 0.5}), path)
    code, found = run(path)
    assert (code, found["holds"]) == (3, False)
    path.write_text("{")
    assert run(path)[0] == 4
