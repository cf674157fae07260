"""A grid on small models: cells against single predictions, refusals, layouts that parse back."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from planner import grid, predict
from planner.cli import cli
from planner.cli.grid_tables import csv_text, latex_text, markdown_text
from planner.cost.budget import needed_bytes
from planner.cost.comparison_grid import Grid, GridCell
from planner.cost.fit_probability import DEFAULT_RISK, FitRule
from profiler.devices.table import lookup
from profiler.errors import UnknownNameError, UsageError
from profiler.models.backbones import resolve
from profiler.workload import PrecisionName, Workload

MODELS, METHODS = ("test_vit", "test_resnet"), ("full", "prefix")
SHARED = {"batch_size": 4, "image_size": 64, "num_classes": 10}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUDGETPLAN_CACHE", str(tmp_path_factory.mktemp("grid")))
        return grid(MODELS, METHODS, vram="1GiB", devices=["rtx-2060-super"], **SHARED)


def test_there_is_a_cell_for_every_combination(small: Grid) -> None:
    found = [(c.workload.model, c.workload.method, c.checkpoint) for c in small.cells]
    assert len(found) == len(set(found)) == 2 * 2 * 3
    assert {name for name, _, _ in found} == {resolve(model) for model in MODELS}


def test_a_cell_is_the_prediction_of_its_workload(small: Grid) -> None:
    cell = next(c for c in small.cells if c.checkpoint == "static" and c.report is not None)
    load = cell.workload
    alone = predict(
        load.model,
        load.method,
        device="rtx-2060-super",
        vram="1GiB",
        rung="composed",
        checkpoint="static",
        **SHARED,
    )
    assert cell.report is not None
    assert cell.report.memory == alone.memory
    assert cell.report.step_seconds == alone.step_seconds


def test_changes_are_relative_to_no_checkpointing(small: Grid) -> None:
    for cell in small.cells:
        plain = next(
            c for c in small.cells if c.workload == cell.workload and c.checkpoint == "none"
        )
        if cell is plain or cell.report is None:
            assert cell.memory_change is None
            continue
        assert plain.report is not None
        expected = needed_bytes(cell.report) / needed_bytes(plain.report) - 1
        assert cell.memory_change == pytest.approx(expected)


def test_changes_do_not_depend_on_the_order_of_the_policies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUDGETPLAN_CACHE", str(tmp_path))
    given = {"vram": "1GiB", "devices": ["rtx-2060-super"], **SHARED}
    found = grid(["test_vit"], ["head"], checkpoints=["static", "none"], **given)
    static, none = found.cells
    assert (static.checkpoint, none.checkpoint) == ("static", "none")
    assert static.memory_change is not None
    assert none.memory_change is None


def test_a_published_range_of_a_backbone_stands_beside_its_own_cells_alone(small: Grid) -> None:
    report = next(cell.report for cell in small.cells if cell.report is not None)

    def cell(model: str, method: str, joules: float) -> GridCell:
        workload = Workload(model=model, method=method, num_classes=10)
        return GridCell(
            workload=workload,
            checkpoint="none",
            device=report.device,
            report=replace(report, energy_joules=joules),
        )

    cells = (
        cell("vit_small_patch16_224", "full", 10.0),
        cell("vit_small_patch16_224", "bitfit", 8.0),
        cell("test_vit", "full", 10.0),
        cell("test_vit", "bitfit", 1.0),
    )
    text = markdown_text(replace(small, cells=cells))
    assert "energy of bitfit on vit_s relative to full: published -30% to -20%" in text
    assert "predicted here -20% to -20%" in text
    assert "relative to full" not in markdown_text(replace(small, cells=cells[2:]))


def test_a_refused_cell_has_its_reason_in_a_footnote(small: Grid) -> None:
    refused = [c for c in small.cells if c.refusal is not None]
    assert {c.workload.method for c in refused} == {"prefix"}
    assert {c.workload.model for c in refused} == {"test_resnet"}
    assert all(c.report is None and c.fits is None for c in refused)
    text = markdown_text(small)
    assert "(1) refused: " in text
    assert refused[0].refusal is not None
    assert refused[0].refusal in text


def test_csv_has_every_number_in_full(small: Grid) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(small))))
    assert len(rows) == len(small.cells)
    for row, cell in zip(rows, small.cells, strict=True):
        assert row["model"] == cell.workload.model
        if cell.report is None:
            assert (row["device_bytes"], row["refusal"]) == ("", cell.refusal)
        else:
            assert int(row["device_bytes"]) == needed_bytes(cell.report)
            assert float(row["step_seconds"]) == cell.report.step_seconds


def test_markdown_and_latex_have_equally_many_cells_in_each_row(small: Grid) -> None:
    lines = [line for line in markdown_text(small).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + len(small.cells)
    body = [line for line in latex_text(small).splitlines() if line.endswith(r"\\")]
    assert len({line.count(" & ") for line in body}) == 1
    assert len(body) == 1 + len(small.cells)
    assert "_" not in latex_text(small).replace(r"\_", "")


def test_the_paper_has_sixty_cells_and_a_published_accuracy_beside_its_own() -> None:
    from planner.api.grid_function import PAPER_CHECKPOINTS, PAPER_GRID_METHODS, PAPER_MODELS
    from planner.cost.comparison_grid import published_for

    assert len(PAPER_MODELS) * len(PAPER_GRID_METHODS) * len(PAPER_CHECKPOINTS) == 60
    vit = Workload(model="vit_small_patch16_224", method="full", num_classes=100)
    found = published_for(vit, "cifar100")
    assert found is not None
    assert found.value == 0.897
    assert published_for(vit, "digits") is None
    # 1 to 2 % below full training is a range and no figure of the cell
    assert published_for(vit.replace(method="bitfit"), "cifar100") is None


def test_the_command_prints_what_the_function_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUDGETPLAN_CACHE", str(tmp_path))
    command = [
        "grid", "--models", "test_vit", "--methods", "head", "--checkpoints", "none",
        "--batch-size", "2", "--image-size", "64", "--progress", "none",
    ]  # fmt: skip
    result = CliRunner().invoke(cli, [*command, "--json"])
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["schema"] == "budgetplan.grid/1"
    assert data["budget_bytes"] == 2 * 2**30
    assert [cell["checkpoint"] for cell in data["cells"]] == ["none"]
    table = CliRunner().invoke(cli, command, terminal_width=80)
    assert "backbone" in table.stdout
    assert all(len(line) <= 80 for line in table.stdout.splitlines())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"models": ["nonsense"]}, UnknownNameError),
        ({"methods": ["nonsense"]}, UnknownNameError),
        ({"checkpoints": ["nonsense"]}, UnknownNameError),
        ({"devices": ["nonsense"]}, UnknownNameError),
        ({"vram": "-1GB"}, UsageError),
        ({"checkpoint": "none"}, UsageError),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        grid(**options)


# ---- models without fine-tuning ------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_frozen(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUDGETPLAN_CACHE", str(tmp_path_factory.mktemp("frozen")))
        return grid(
            ["test_vit", "openclip_b32"],
            ["head"],
            checkpoints=["none"],
            vram="1GiB",
            devices=["rtx-3060"],
            training_free=["dinov2_l", "openclip_b32"],
            **SHARED,
        )


def test_models_without_fine_tuning_are_rows_of_their_own(with_frozen: Grid) -> None:
    """A name that no backbone has is one of theirs; each is there once."""
    assert [cell.workload.model for cell in with_frozen.cells] == ["test_vit"]
    rows = {row.model: row for row in with_frozen.training_free}
    assert {name: row.kind for name, row in rows.items()} == {
        "openclip_b32": "zero_shot",
        "dinov2_l": "features",
    }
    for row in rows.values():
        limit = FitRule.for_precision("fp16", lookup("rtx-3060")).largest_prediction(
            2**30, risk=DEFAULT_RISK
        )
        assert row.fits == (row.device_bytes <= limit)
        seconds, joules = row.content["cost"]["image_seconds"], row.content["cost"]["image_joules"]
        assert row.step_seconds == pytest.approx(row.batch * seconds)
        assert row.energy_joules == pytest.approx(row.batch * joules)
    assert rows["dinov2_l"].published == 0.9171  # on CIFAR-100, arXiv 2607.02158
    json_rows = with_frozen.to_json()["training_free"]
    assert [each["kind"] for each in json_rows] == [row.kind for row in with_frozen.training_free]
    assert {each["device"] for each in json_rows} == {"rtx-3060"}


def test_every_layout_has_the_rows_without_fine_tuning(with_frozen: Grid) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(with_frozen))))
    assert [row["kind"] for row in rows] == ["tuned"] + [
        row.kind for row in with_frozen.training_free
    ]
    for row, given in zip(rows[1:], with_frozen.training_free, strict=True):
        assert int(row["device_bytes"]) == given.device_bytes
        assert float(row["step_seconds"]) == given.step_seconds
        assert row["method"] == row["checkpoint"] == ""
    for text in (markdown_text(with_frozen), latex_text(with_frozen).replace("\\_", "_")):
        assert "openclip_b32" in text and "zero_shot" in text
        assert "images in fp16" in text or "one image in fp16" in text
    only = replace(with_frozen, cells=())
    assert "fits refers to 1 GiB" in markdown_text(only).replace("1.00", "1")


def test_an_unknown_name_is_refused_as_before() -> None:
    with pytest.raises(UnknownNameError, match="unknown model 'openclip_b3'"):
        grid(["openclip_b3"], ["head"])
    with pytest.raises(UnknownNameError):
        grid(["test_vit"], ["head"], training_free=["test_vit"])


@pytest.mark.parametrize(
    ("model", "precision", "is_timed"),
    [("resnet18", "fp16", True), ("resnet18", "fp32", False), ("regnety_002", "fp16", False)],
)
def test_a_composed_time_is_known_where_the_replayed_one_is(
    model: str, precision: PrecisionName, is_timed: bool
) -> None:
    """The factors of ``channels_last`` hold in 16 bits, and not for grouped convolutions."""
    composed, replayed = (
        predict(
            model, "full", device="rtx-3060", rung=rung, precision=precision,
            levers=("channels_last",), **SHARED,
        )
        for rung in ("composed", "replayed")
    )  # fmt: skip
    for report in (composed, replayed):
        assert (report.step_seconds is not None) == is_timed
        assert (report.energy_joules is not None) == is_timed
        assert all((unit.forward_seconds is not None) == is_timed for unit in report.units)
        assert any("no time is predicted" in note for note in report.notes)
