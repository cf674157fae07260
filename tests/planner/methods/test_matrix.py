"""The packaged matrix, the page and the registry agree; what is shown fits 80 columns."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from planner.cli import cli
from planner.cli.list_tables import show_matrix
from planner.methods.describe import method_facts, trained_layers
from planner.methods.kinds import known_kind
from planner.methods.matrix import MethodMatrix, Outcome, load_matrix, markdown
from profiler.errors import InputError
from profiler.models import backbones
from profiler.models.methods import get_method, method_names
from profiler.workload import Workload

ROOT = Path(__file__).parents[3]
EVERYWHERE = ("full", "head", "bitfit", "lora", "dora", "adalora", "qlora", "galore")
ON_CONVOLUTIONS = ("full", "bn_head", "lora", "dora", "galore")
REQUIRED = [
    (method, backbone)
    for methods, names in (
        (EVERYWHERE, ("vit_s", "tiny_vit", "vim_s", "mambavision_t")),
        (ON_CONVOLUTIONS, ("resnet18", "mobilenetv2", "mobilenetv3")),
    )
    for method in methods
    for backbone in names
]
DOCUMENTED = {"vit_s", "tiny_vit", "resnet18", "mobilenetv2", "mobilenetv3", "dinov2_s"}
DOCUMENTED |= {"siglip_b", "vim_s", "mambavision_t"}


def test_every_method_and_backbone_is_there() -> None:
    matrix = load_matrix()
    assert list(matrix.methods) == method_names()
    assert set(matrix.backbones) >= DOCUMENTED
    for name, model in matrix.backbones.items():
        assert backbones.resolve(name) == model
    assert list(matrix.outcomes) == list(matrix.methods)
    assert all(list(row) == list(matrix.backbones) for row in matrix.outcomes.values())


def test_every_method_has_a_kind_and_a_row_in_the_documents() -> None:
    page = (ROOT / "docs/methods.md").read_text()
    rows = [line for line in page[: page.index("##")].splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall("`(.+?)`", row.split("|")[1])}
    assert documented == set(method_names())
    # a method without a kind would get the learning rate of the low-rank ones without a word
    assert [name for name in method_names() if known_kind(name) is None] == []


def test_what_the_documents_compare_works() -> None:
    outcomes = load_matrix().outcomes
    wrong = {pair: outcomes[pair[0]][pair[1]] for pair in REQUIRED}
    assert {pair: o for pair, o in wrong.items() if o.status != "works"} == {}


def test_a_pair_is_refused_where_the_code_refuses_it() -> None:
    matrix = load_matrix()
    for backbone in matrix.backbones:
        size = backbones.native_image_size(backbone)
        model = backbones.build(backbone, num_classes=10, image_size=size, device="meta")
        for name in matrix.methods:
            load = Workload(model=backbone, method=name, image_size=size, num_classes=10)
            refused = get_method(name).refusal(model, load) is not None
            assert refused == (matrix.outcomes[name][backbone].status == "refused"), name


def test_pages_hold_the_packaged_table() -> None:
    table = markdown(load_matrix())
    page = (ROOT / "docs/methods.md").read_text()
    assert f"studies/method_matrix -->\n{table}<!-- end -->" in page
    assert table in (ROOT / "studies/method_matrix/README.md").read_text()


def test_packaged_outcomes_are_those_of_the_study() -> None:
    packed = gzip.decompress((ROOT / "studies/method_matrix/rows.jsonl.gz").read_bytes())
    latest = {}
    for row in map(json.loads, packed.splitlines()):
        latest[row["backbone"], row["method"]] = row
    matrix = load_matrix()
    rows = [latest[name, method] for method in matrix.methods for name in matrix.backbones]
    seen = {(row["method"], row["backbone"]): row["status"] for row in rows}
    assert seen == {
        (method, name): outcome.status
        for method, row in matrix.outcomes.items()
        for name, outcome in row.items()
    }
    for row in rows:
        if row["status"] == "works":
            assert row["losses"][-1] < row["losses"][0]
            assert abs(row["replayed_bytes"] / row["real_bytes"] - 1) <= 0.005
            assert not row["moved_though_frozen"]


def test_matrix_is_one_table_in_80_columns() -> None:
    matrix = load_matrix()
    console = Console(width=80, record=True, file=StringIO())
    show_matrix(matrix, console)
    lines = console.export_text().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert sum(line.split()[:1] == ["lora"] for line in lines) == 1
    full = next(line for line in lines if line.split()[:1] == ["full"])
    assert full.split() == ["full", *(matrix.column(name)[0] for name in matrix.backbones)]


def test_reasons_are_said_once_for_all_pairs_they_are_true_of() -> None:
    yes, no = Outcome(status="works", reason=None), Outcome(status="refused", reason="no tokens")
    off = Outcome(status="fails", reason="the loss rose")
    matrix = MethodMatrix(
        backbones={"a": "model_a", "b": "model_b", "c": "model_c"},
        methods=("x", "y", "z"),
        outcomes={
            "x": {"a": yes, "b": no, "c": no},
            "y": {"a": yes, "b": no, "c": no},
            "z": {"a": off, "b": yes, "c": no},
        },
        environment={},
    )
    assert [str(reason) for reason in matrix.reasons()] == [
        "x, y on b, c: no tokens",
        "z on a fails: the loss rose",
        "z on c: no tokens",
    ]
    assert markdown(matrix).splitlines()[2:5] == [
        "| `x` | yes | - | - |",
        "| `y` | yes | - | - |",
        "| `z` | fail | yes | - |",
    ]


def test_a_damaged_matrix_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "matrix.json"
    for content in ("", "[]", "{}", '{"schema": "budgetplan.method_matrix/0"}'):
        path.write_text(content)
        with pytest.raises(InputError):
            load_matrix(path)


def test_command_shows_matrix_and_method() -> None:
    run = CliRunner().invoke
    matrix = json.loads(run(cli, ["methods", "--matrix", "--json"]).stdout)
    assert matrix == load_matrix().to_json()
    shown = run(cli, ["methods", "lora", "--model", "vim_s"])
    assert shown.exit_code == 0
    assert "24 in_proj, 24 x_proj, 24 dt_proj, 24 out_proj, 1 head" in shown.stdout
    assert "learn there" not in run(cli, ["methods", "lora"]).stdout


def test_facts_of_a_method_on_a_backbone() -> None:
    facts = method_facts("lora", model="tiny_vit_5m")
    assert facts.layers == {"qkv": 10, "proj": 10, "fc1": 10, "fc2": 10, "fc": 1}
    assert any("grouped" in note for note in facts.notes)
    assert facts.refused is None
    refused = method_facts("prefix", model="tiny_vit_5m")
    assert refused.refused is not None
    assert replace(refused, refused=None).layers == {}
    model = backbones.build("vit_s", num_classes=10, image_size=64, device="meta")
    assert (
        trained_layers(get_method("ssf").apply(model, Workload(model="vit_s", method="ssf")))["qkv"]
        == 12
    )
