"""The shipped JSON Schemas: generated from the records, and true of what is written."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from test_plan import make_plan

from planner.json_schemas import FOLDER, json_schemas
from planner.plan import Accuracy, Plan
from planner.training_free.plan_file import FrozenCandidate, FrozenPlan, FrozenPrediction
from profiler.devices.table import device_label
from profiler.errors import InputError
from profiler.models.frozen.catalogue import frozen_models


def validator(name: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_shipped_schemas_are_those_of_the_records() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(json_schemas())
    for name, schema in json_schemas().items():
        shipped = json.loads((FOLDER / name).read_text(encoding="utf-8"))
        assert shipped == json.loads(json.dumps(schema)), (
            f"{name} is old: run python -m planner.json_schemas"
        )


def test_every_property_has_a_description() -> None:
    for name, schema in json_schemas().items():
        for part, rules in schema["$defs"].items():
            for field, rule in rules.get("properties", {}).items():
                known = part in {"OwnerBytes", "Parameters", "Scores"} or field.startswith("schema")
                joined = field in {"workload", "placement"}
                assert known or joined or rule.get("description"), f"{name}: {part}.{field}"


def plans() -> list[Plan]:
    return [
        make_plan(),
        make_plan(
            measurement=None,
            scores=None,
            accuracy=Accuracy(value=None, source="nothing published", kind="none"),
        ),
    ]


@pytest.mark.parametrize("plan", plans())
def test_plans_and_reports_are_valid(plan: Plan) -> None:
    data = json.loads(json.dumps(plan.to_json()))
    validator("plan.schema.json").validate(data)
    for report in (data["prediction"], data["measurement"]):
        if report is not None:
            validator("report.schema.json").validate(report)


def frozen_plan() -> FrozenPlan:
    model = next(model for model in frozen_models().values() if model.kind == "features")
    return FrozenPlan(
        candidate=FrozenCandidate(
            kind="features", model=model.name, batch=8, dtype="float32", num_classes=10
        ),
        prediction=FrozenPrediction(
            device=device_label("rtx-3060"), peak_bytes=10**8, device_bytes=2 * 10**8
        ),
        accuracy=Accuracy(value=None, source="nothing published", kind="none"),
        budget_bytes=2**30,
    )


def test_plans_without_tuning_are_valid_and_have_the_keys_of_the_others() -> None:
    data = json.loads(json.dumps(frozen_plan().to_json()))
    validator("plan.schema.json").validate(data)
    assert FrozenPlan.from_json(data) == frozen_plan()
    assert set(data) == set(make_plan().to_json())
    for key, value in (("recipe", {}), ("fits", {}), ("budget_bytes", 0), ("candidate", {})):
        damaged = {**data, key: value}
        assert not validator("plan.schema.json").is_valid(damaged)
        with pytest.raises(InputError):
            FrozenPlan.from_json(damaged)


DAMAGES = [
    ("prediction", "rung", "banana"),
    ("prediction", "memory", "peak_bytes", -1),
    ("prediction", "memory", "peak_bytes", "much"),
    ("prediction", "step_seconds", -0.5),
    ("prediction", "units", 0, "boundary_bytes", 1.5),
    ("prediction", "units", 0, "decision", 3),
    ("prediction", "device", "kind", "tpu"),
    ("candidate", "workload", "precision", "fp8"),
    ("candidate", "workload", "micro_batch", 0),
    ("candidate", "workload", "dropout", 1.0),
    ("candidate", "placement", "decisions", {"blocks.0": "forget"}),
    ("accuracy", "value", 80),
    ("accuracy", "kind", "guessed"),
    ("scores", "netscore", "high"),
    ("budget_bytes", 0),
    ("schema", "budgetplan.plan/2"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_schema_and_the_reader_refuse_the_same_damage(damage: tuple[Any, ...]) -> None:
    *where, key, value = damage
    data = inner = copy.deepcopy(json.loads(json.dumps(make_plan().to_json())))
    for step in where:
        inner = inner[step]
    inner[key] = value
    assert not validator("plan.schema.json").is_valid(data)
    with pytest.raises(InputError):
        Plan.from_json(data)


def test_the_schemas_are_package_data() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert '"**/*.json"' in text
