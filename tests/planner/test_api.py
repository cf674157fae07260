"""The Python interface: names that stay, plain arguments, records as results, one-line errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from planner import load_plan, load_trained, measure, predict, recommend, train
from planner.api import check_fits, draw_timeline, fit_probability, profile_units, validate
from planner.api.arguments import parse_size
from planner.cost.fit_probability import smallest_budget_of
from planner.plan import Plan
from profiler.devices.table import lookup
from profiler.errors import (
    DeviceError,
    InfeasibleError,
    InputError,
    UnknownNameError,
    UsageError,
)
from profiler.records import Report, Rung

RUNS_IN_PROCESS = True

ROOT = Path(__file__).parents[2]

SMALL = {"image_size": 32, "num_classes": 10, "batch_size": 2}


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # real runs are processes of their own


CALL_EVERY_NAME = """
import importlib, inspect, pkgutil, sys
import planner
heavy = [m for m in ("torch", "timm", "optuna", "click", "rich", "numpy") if m in sys.modules]
assert not heavy, f"import planner imports {heavy}"

def call_all():
    from profiler.errors import BudgetplanError
    bad = {
        "recommend": {"model": "no such model", "vram": "2GB"},
        "predict": {"model": "no such model"},
        "measure": {"model": "no such model"},
        "load_plan": {"path": "no such file.json"},
        "apply_plan": {"model": None, "plan": "no such file.json"},
        "train": {"plan": "no such file.json"},
        "load_trained": {"folder": "no such folder"},
        "rehearse": {"plan": "no such file.json"},
        "grid": {"models": ["no such model"]},
        "explain": {"plan": "no such file.json"},
        "evaluate": {"trained": "no such folder"},
        "classify": {"trained": "no such folder", "files": []},
        "estimate": {"module": None, "batch": None, "device": "no such device"},
        "export_plan": {"plan": "no such file.json", "to": "hf"},
        "load_backbone": {"plan": "no such file.json"},
        "load_images": {"plan": "no such file.json"},
        "optimizer_and_schedule": {"model": None, "plan": "no such file.json", "total_steps": 1},
    }
    for name in planner.__all__:
        function = getattr(planner, name)
        assert inspect.isfunction(function), f"{name} is {function!r}"
        assert inspect.getdoc(function), f"{name} has no docstring"
        try:
            function(**bad[name])
        except BudgetplanError as error:
            assert "no such" in str(error), (name, error)
        else:
            raise AssertionError(f"{name} accepted {bad[name]}")

call_all()
for found in pkgutil.walk_packages(planner.__path__, "planner."):
    package, _, name = found.name.rpartition(".")
    assert package not in ("planner", "planner.api") or name not in planner.__all__, found.name
    importlib.import_module(found.name)
call_all()
"""


def test_every_public_name_works_before_and_after_every_submodule_is_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CALL_EVERY_NAME], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_sizes_are_numbers_or_text() -> None:
    assert parse_size(1 << 20) == 1 << 20
    assert parse_size("2GB") == 2 * 10**9
    for size in ("two", 0, -1, "0", 8, "8"):
        with pytest.raises(UsageError):
            parse_size(size)


def test_a_prediction_is_a_report_whatever_way_the_device_is_given() -> None:
    report = predict("test_vit", "head", device="t4", **SMALL)
    assert isinstance(report, Report)
    assert report.rung is Rung.REPLAYED
    assert report.candidate.workload.micro_batch == 2
    assert predict("test_vit", "head", device=lookup("t4"), **SMALL) == report
    budget = smallest_budget_of(report)
    check_fits(report, budget)
    fits = fit_probability(report, budget)
    assert fits is not None
    assert fits.probability >= 0.99
    assert report.memory.device_bytes is not None
    with pytest.raises(InfeasibleError, match="it does not fit") as caught:
        check_fits(report, report.memory.device_bytes)  # without any margin
    assert caught.value.smallest_bytes == budget
    with pytest.raises(UsageError, match="counted by a replay"):
        predict("test_vit", "head", rung="composed", published_flops=True, **SMALL)
    with pytest.raises(UnknownNameError, match="did you mean lora"):
        predict("test_vit", "lorra", **SMALL)


def test_units_are_profiled_and_drawn(tmp_path: Path) -> None:
    found = profile_units("test_vit", "full", device="t4", with_placement=True, **SMALL)
    assert found.placement_rows is not None
    units = [row.unit for row in found.placement_rows]
    assert units == [*(unit.name for unit in found.report.units), "(head and loss)"]
    draw_timeline(found, tmp_path / "step.html")
    assert "test_vit" in (tmp_path / "step.html").read_text()


def test_a_measurement_runs_on_this_machine_only() -> None:
    assert measure("test_vit", "head", device="cpu", steps=1, **SMALL).rung is Rung.MEASURED
    with pytest.raises(DeviceError, match="is not in this machine"):
        measure("test_vit", "head", device="gtx-1650", steps=1, **SMALL)


def count_denormals() -> int:
    """Return how many of four products of denormal values are not 0."""
    import torch

    return int((torch.full((4,), 1e-41) * 0.5).count_nonzero())


def test_from_a_question_to_a_trained_model() -> None:
    import torch

    stages = []
    answer = recommend(
        "test_vit",
        vram="2GB",
        device="cpu",
        image_size=32,
        methods=["head"],
        effective_batch=2,
        precisions=["fp32"],
        trials=4,
        validations=0,
        pretrained=False,
        study="small",
        on_progress=lambda stage, text, fraction: stages.append(stage),
    )
    assert {"start", "search", "replay"} <= set(stages)
    file = answer.front[answer.recommended].file
    plan = load_plan(file)
    assert plan == load_plan(str(file)) == answer.front[answer.recommended].plan
    checked = validate(plan, device="cpu", steps=2, out="checked.json", pretrained=False)
    assert isinstance(checked, Plan)
    assert load_plan("checked.json") == checked
    denormals: list[int] = []
    result = train(
        file,
        device="cpu",
        steps=1,
        pretrained=False,
        seed=3,
        on_progress=lambda _: denormals.append(count_denormals()),
    )
    assert set(denormals) == {0}
    assert count_denormals() == 4
    assert result.output == Path("trained") / file.stem
    model = load_trained(result.output)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    with pytest.raises(InputError):
        train(file, device="cpu", steps=1, resume=True, out="nothing", pretrained=False)
    with pytest.raises(UsageError, match="policy"):
        train(file, vram="1GB")
