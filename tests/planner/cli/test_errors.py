"""Errors of the command line: an object with ``--json``, refusals before torch is imported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from planner.cli import cli
from planner.json_schemas import FOLDER
from profiler.errors import InfeasibleError, UnknownNameError
from profiler.units import GIB, parse_bytes

ROOT = Path(__file__).parents[3]
PREDICT = ("predict", "--model", "test_vit", "--image-size", "32", "--batch-size", "2")


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BUDGETPLAN_DEBUG", raising=False)


def failure(*arguments: str) -> dict[str, Any]:
    """Return the one object on stdout of a command that fails, after checking it."""
    result = CliRunner().invoke(cli, [*arguments, "--json"], prog_name="budgetplan")
    data: dict[str, Any] = json.loads(result.stdout)
    error: dict[str, Any] = data.get("error", data)
    assert error["exit_code"] == result.exit_code > 0
    jsonschema.validate(error, json.loads((FOLDER / "error.schema.json").read_text()))
    assert "Traceback" not in result.stderr
    return data


WRONG = {
    ("recommend", "--vram", "8", "--model", "vit_s"): ("usage", "did you mean 8GB?"),
    ("recommend", "--vram", "2GB"): ("usage", "missing option '--model'"),
    ("recomend",): ("usage", "did you mean recommend?"),
    ("recommend", "--vram", "2GB", "--model", "vit_q"): ("unknown_name", "unknown model 'vit_q'"),
    ("recommend", "--vram", "2GB", "--model", "vit_s", "--device", "nix"): (
        "unknown_name", "unknown device 'nix'",
    ),
    ("recommend", "--vram", "2GB", "--model", "vit_s", "--methods", "lorra"): (
        "unknown_name", "did you mean lora",
    ),
    ("recommend", "--vram", "2GB", "--model", "vit_s", "--precisions", "fp8"): (
        "unknown_name", "unknown precision 'fp8'",
    ),
    ("recommend", "--vram", "2GB", "--model", "vit_s", "--optimizers", "adam"): (
        "unknown_name", "did you mean adamw",
    ),
    ("recommend", "--vram", "2GB", "--model", "vit_s", "--storage", "nosuch://x"): (
        "input", "the study storage nosuch://x cannot be used",
    ),
    ("recommend", "--vram", "2GB", "--model", "vit_s", "--no-validate", "--top", "2"): (
        "usage", "--no-validate makes none",
    ),
    ("recommend", "--vram", "2GB", "--model", "vit_s", "--no-validate", "--steps", "9"): (
        "usage", "--no-validate makes none",
    ),
    ("recommend", "--vram", "2GB", "--model", "vit_s", "--data", "nix"): (
        "input", "'nix' does not exist",
    ),
    ("recommend", "--vram", "2GB", "--model", "vit_s", "--weights", "nix"): (
        "input", "weights file nix does not exist",
    ),
    (*PREDICT, "--method", "lorra"): ("unknown_name", "did you mean lora"),
    ("train", "nix.json"): ("input", "nix.json is missing"),
    ("validate", "nix.json"): ("input", "nix.json is missing"),
    ("rehearse", "nix.json"): ("input", "nix.json is missing"),
    ("profile", *PREDICT[1:], "--method", "full", "--plot", "a.svg"): ("usage", ".png or .html"),
}  # fmt: skip


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_an_error_is_an_object_on_stdout(arguments: tuple[str, ...]) -> None:
    kind, part = WRONG[arguments]
    error = failure(*arguments)
    assert error["schema"] == "budgetplan.error/1"
    assert (error["kind"], part in error["message"]) == (kind, True), error


def test_wrong_arguments_are_refused_before_torch_is_imported() -> None:
    quick = [*WRONG, ("models", "vit"), ("methods",), ("devices",)]
    script = (
        "import sys\nfrom click.testing import CliRunner\nfrom planner.cli import cli\n"
        f"for arguments in {quick!r}:\n"
        "    CliRunner().invoke(cli, arguments)\n"
        "    assert not {'torch', 'timm', 'optuna'} & {*sys.modules}, arguments\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_prediction_that_does_not_fit_keeps_its_object() -> None:
    data = failure(*PREDICT, "--method", "head", "--vram", "1MiB")
    assert data["schema"] == "budgetplan.prediction/1"
    assert data["error"]["kind"] == "infeasible"
    assert data["error"]["smallest_budget_bytes"] >= data["memory"]["device_bytes"]


def test_the_facts_of_an_error_are_in_its_object() -> None:
    error = InfeasibleError(budget_bytes=GIB, smallest_bytes=2 * GIB, advice="do this").to_json()
    assert error["smallest_budget_bytes"] == 2 * GIB
    assert error["advice"] == "do this"
    unknown = UnknownNameError(kind="model", name="vit", known=["vit_s"]).to_json()
    assert unknown["advice"] == "did you mean vit_s?"
    assert unknown["smallest_budget_bytes"] is None


def test_without_json_nothing_is_on_stdout() -> None:
    result = CliRunner().invoke(cli, ["recommend", "--vram", "8", "--model", "vit_s"])
    assert result.exit_code == 2
    assert result.stdout == ""


@pytest.mark.parametrize("plot", ["a.png", "a.html"])
def test_a_plot_without_matplotlib_is_refused_before_the_replay(
    plot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from profiler.prediction import save_timeline

    monkeypatch.setattr(save_timeline, "find_spec", lambda name: None)
    monkeypatch.setattr("planner.api.profile_units", lambda *_, **__: pytest.fail("replayed"))
    arguments = ("profile", *PREDICT[1:], "--method", "full", "--plot", plot)
    if plot == "a.png":
        assert "needs matplotlib" in failure(*arguments)["message"]
    else:
        with pytest.raises(pytest.fail.Exception):
            CliRunner().invoke(cli, [*arguments], catch_exceptions=False)


@pytest.mark.parametrize(
    ("number", "unit"), [("8", "GB"), ("2.5", "GB"), ("2048", "MB"), ("1048575", "MB")]
)
def test_a_small_number_without_a_unit_is_no_size(number: str, unit: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean {number}{unit}"):
        parse_bytes(number)


def test_a_large_number_without_a_unit_is_bytes() -> None:
    assert parse_bytes("1048576") == 1 << 20
    assert parse_bytes("8GB") == 8 * 10**9


@pytest.mark.timeout(20)
@pytest.mark.parametrize("file", ["/dev/zero", "pipe"])
def test_a_token_is_read_from_a_regular_file(file: str) -> None:
    os.mkfifo("pipe")
    arguments = ("serve", "--host", "0.0.0.0", "--token-file", file)
    result = CliRunner().invoke(cli, arguments, prog_name="budgetplan")
    assert result.exit_code == 4
    assert "not a regular file" in result.stderr


LONG = "x" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", LONG),
        ("score", LONG),
        ("evaluate", LONG),
        ("classify", LONG, "image.png"),
        ("export", LONG, "--to", "script"),
        ("recommend", "--vram", "2GB", "--model", "test_vit", "--data", LONG),
        ("features", "--model", "test_vit", "--weights", LONG),
        ("serve", "--root", LONG),
        ("serve", "--token-file", LONG),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_name_that_is_too_long_for_the_file_system_is_one_line(
    arguments: tuple[str, ...],
) -> None:
    result = CliRunner().invoke(cli, arguments, prog_name="budgetplan")
    assert result.exit_code == 4
    (line,) = result.stderr.splitlines()
    assert "File name too long" in line
    assert len(line) <= 320


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("predct", "unknown command 'predct'; did you mean predict or report? see budgetplan"),
        ("xyzzy", "unknown command 'xyzzy'; see budgetplan"),
        ("--foo", "no such option '--foo'; see budgetplan"),
        ("predict", "missing option '--model'; see budgetplan predict"),
        ("train plan.json --vram", "option '--vram' requires an argument; see budgetplan train"),
        ("measure --foo", "no such option '--foo'; see budgetplan measure"),
    ],
)
def test_an_error_in_the_arguments_is_one_line(arguments: str, line: str) -> None:
    result = CliRunner().invoke(cli, arguments.split(), prog_name="budgetplan")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"budgetplan: {line} --help\n"


def test_options_of_similar_names_are_proposed_in_the_same_line() -> None:
    result = CliRunner().invoke(cli, ["predict", "--modell"], prog_name="budgetplan")
    line = r"budgetplan: no such option '--modell'; did you mean ('[^']+', )*'--model'(, '[^']+')*"
    assert re.fullmatch(line + r"\? see budgetplan predict --help\n", result.stderr)


def test_a_file_name_with_a_newline_stays_on_one_line() -> None:
    plan = Path(__file__).parents[3] / "studies" / "input_fuzz" / "plan.json"
    name = Path("a\nplan\x1b[2J.json")
    name.write_bytes(plan.read_bytes())
    result = CliRunner().invoke(cli, ["score", str(name)], prog_name="budgetplan")
    assert result.exit_code == 2
    assert result.stderr.startswith("budgetplan: a plan\\x1b[2J.json has no accuracy")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_standard_output_on_a_full_disk(options: tuple[str, ...]) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-c", "from planner.cli import main; main()", "devices", *options],
            stdout=full, stderr=subprocess.PIPE, cwd=ROOT, text=True, check=False,
        )  # fmt: skip
    assert done.stderr.splitlines() == [
        "budgetplan: cannot write the output: No space left on device; free some space"
    ]
    assert done.returncode == 4
