"""Commands on a full disk: one line, exit code 4, earlier files as they were."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from plans import make_plan

from planner.cli import cli
from planner.cli.page.write import PAGE_MARK
from planner.plan import write_plan
from planner.recipe import Recipe
from profiler.workload import Workload

WORKLOAD = Workload(model="test_vit", method="head", micro_batch=2, image_size=32, num_classes=10)
RECIPE = Recipe(learning_rate=1e-3, epochs=1, weights="random", source="test")
RUN = ("--no-pretrained", "--device", "cpu", "--steps", "2")
MODEL = ("--model", "test_vit", "--method", "head", "--image-size", "32", "--batch-size", "2")

COMMANDS = {
    "export": ("export", "plan.json", "--to", "script", "--out", "kept"),
    "report": ("report", "plan.json", "--html", "kept/page.html"),
    "validate": ("validate", "plan.json", *RUN, "--data", "digits", "--out", "kept/plan.json"),
    "rehearse": (
        "rehearse", "plan.json", "--device", "rtx-2060-super", "--out", "kept/plan.json",
    ),
    "train": ("train", "plan.json", *RUN, "--data", "digits", "--out", "kept"),
    "recommend": (
        "recommend", "--vram", "200MB", "--model", "test_vit", "--image-size", "32", "--device",
        "cpu", "--no-pretrained", "--no-validate", "--out", "kept",
    ),
    "study": (
        "recommend", "--vram", "200MB", "--model", "test_vit", "--image-size", "32", "--device",
        "cpu", "--no-pretrained", "--no-validate", "--methods", "head", "--precisions", "fp32",
        "--storage", "sqlite:///kept/study.db",
    ),
    "serve": ("serve", "--root", "kept"),
    "profile": ("profile", *MODEL, "--device", "cpu", "--plot", "kept/step.html"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = replace(make_plan(WORKLOAD), recipe=RECIPE)
    write_plan(plan, Path("plan.json"))
    Path("kept").mkdir()
    write_plan(plan, Path("kept/plan.json"))
    Path("kept/page.html").write_bytes(PAGE_MARK + b"an earlier page")


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file of this process grow beyond a few bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_line_and_leaves_earlier_files(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("profiler.running.emulated.libraries.why_not_emulated", lambda: None)
    if name in ("train", "export"):
        Path("kept/plan.json").unlink()  # a plan of this name would be refused before
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    with full_disk():
        result = CliRunner().invoke(cli, COMMANDS[name], prog_name="budgetplan")
    assert result.exit_code == 4, result.output
    *notes, line = result.stderr.splitlines()
    assert ["not enforced on a CPU" in note for note in notes] == [True] * (name == "train")
    assert line.startswith("budgetplan: ")
    assert "too large" in line or "full" in line, line
    after = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert after == before
