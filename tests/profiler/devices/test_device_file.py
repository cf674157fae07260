"""A user's own device: fields, errors, and predictions for it."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from planner.cli import cli
from profiler.devices import table
from profiler.devices.device_file import read_device
from profiler.devices.table import lookup
from profiler.errors import BudgetplanError, InputError


def fields(**changes: Any) -> dict[str, Any]:
    mine = {"name": "my-card", "full_name": "My card", "memory_bytes": 3 << 30}
    return asdict(lookup("rtx-3060")) | mine | changes


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "mine.json"
    path.write_text(json.dumps(fields(**changes)))
    return path


def test_a_row_of_the_table_can_be_changed_and_read(tmp_path: Path) -> None:
    spec = read_device(written(tmp_path))
    assert (spec.name, spec.memory_bytes) == ("my-card", 3 << 30)
    assert spec.fp32_flops == lookup("rtx-3060").fp32_flops


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"sm_count": None}, "need sm_count"),
        ({"fp32_flops": -1}, "fp32_flops"),
        ({"colour": "green"}, "unknown field"),
        ({"name": "other"}, "expected 'my-card'"),
        ({"name": "rtx-4090", "full_name": "GeForce RTX 4090"}, "is in the device table"),
        ({"compute_capability": [99, 0]}, "multiprocessors"),
        ({"schema": "other/1"}, "budgetplan.device/1"),
        ({"host_link": "PCIe 4.0 x12"}, "must be like 'PCIe 4.0 x16'"),
        ({"context_bytes": 3 << 30}, "context_bytes must be less than memory_bytes"),
        ({"host_link": "NVLink"}, "must be like 'PCIe 4.0 x16'"),
    ],
)
def test_a_wrong_field_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], part: str
) -> None:
    with pytest.raises(BudgetplanError, match=part) as caught:
        read_device(written(tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "nonsense", "[" * 5000])
def test_a_file_that_is_no_device(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(InputError):
        read_device(path)
    with pytest.raises(InputError, match=r"nothing\.json is missing"):
        read_device(tmp_path / "nothing.json")


def test_a_prediction_is_for_the_device_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "_adopted", {})
    asked = ["predict", "--model", "test_vit", "--image-size", "32", "--method", "head"]
    asked += ["--batch-size", "2", "--json", "--device-spec", str(written(tmp_path))]
    data = json.loads(CliRunner().invoke(cli, asked, catch_exceptions=False).stdout)
    assert data["device"]["name"] == "my-card"
    assert data["device"]["memory_bytes"] == 3 << 30
    both = CliRunner().invoke(cli, [*asked, "--device", "t4"])
    assert both.exit_code == 2
    assert "name two devices" in both.stderr


def test_a_measured_context_takes_the_place_of_the_assumed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both answers need the same, so the smallest budgets differ by the room for the context."""
    monkeypatch.setattr(table, "_adopted", {})
    monkeypatch.chdir(tmp_path)
    asked = [
        "recommend", "--model", "test_vit", "--methods", "head", "--vram", "250MB",
        "--image-size", "160", "--no-validate",
    ]  # fmt: skip
    messages = []
    for context_bytes in (None, 390_000_000):
        path = written(tmp_path, context_bytes=context_bytes)
        result = CliRunner().invoke(cli, [*asked, "--device-spec", str(path)])
        assert result.exit_code == 3, result.stderr
        messages.append(result.stderr)
    assumed, measured = messages
    assert ", 400 MB of it for the CUDA context, which is assumed (context_bytes of" in assumed
    assert ", 390 MB of it for the CUDA context; " in measured
    smallest = [int(re.findall(r"would is (\d+) MB", message)[0]) for message in messages]
    assert smallest[0] - smallest[1] == 10
