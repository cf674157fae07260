from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from profiler.errors import LONGEST_MESSAGE, InputError, UsageError
from profiler.json_records import (
    JsonObject,
    PositiveInt,
    check_schema,
    read_record,
)
from profiler.placement import Decision, Placement
from profiler.records import DeviceLabel, Memory, Parameters, Report, Rung
from profiler.workload import Candidate, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    size: PositiveInt
    name: str = ""

    def __post_init__(self) -> None:
        if self.name == "refused":
            raise UsageError("the name is refused")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    leaf: Leaf | None
    leaves: tuple[Leaf, ...] = ()
    by_name: dict[str, Leaf] = field(default_factory=dict)
    free: JsonObject = field(default_factory=dict)


def test_nested_records_defaults_and_free_parts_are_read() -> None:
    data = {
        "leaf": {"size": 1},
        "leaves": [{"size": 2, "name": "b"}],
        "by_name": {"c": {"size": 3}},
        "free": {"any": [1, None, {"thing": 2.5}]},
    }
    tree = Tree(
        leaf=Leaf(size=1),
        leaves=(Leaf(size=2, name="b"),),
        by_name={"c": Leaf(size=3)},
        free={"any": [1, None, {"thing": 2.5}]},
    )
    assert read_record(Tree, data, part="tree") == tree
    assert read_record(Tree, {"leaf": Leaf(size=1)}, part="tree").leaf == Leaf(size=1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "tree.leaf: missing field"),
        ({"leaf": {}}, "tree.leaf.size: missing field"),
        ({"leaf": []}, "tree.leaf: expected JSON object or null, got []"),
        ({"leaf": None, "leaves": {}}, "tree.leaves: expected list, got {}"),
        ({"leaf": None, "leaves": [{"size": 1}, {"size": 0}]}, "tree.leaves[1].size: expected int"),
        ({"leaf": None, "leaves": [{"size": 1, "x": 0}]}, "tree.leaves[0].x: unknown field"),
        ({"leaf": None, "by_name": {"a": {"size": 0}}}, "tree.by_name[...]"),
        ({"leaf": None, "by_name": {"a": {"size": 1, "b": 1}}}, "tree.by_name.a.b: unknown field"),
        ({"leaf": None, "free": {"a": [float("nan")]}}, "tree.free.a[0]: expected a finite number"),
        ({"leaf": {"size": 1, "name": "refused"}}, "tree: the name is refused"),
        ({"leaf": {"size": "9" * 1000}}, "tree.leaf.size: expected integer >= 1, got '999"),
        ({"l" * 1000: 1}, "tree.lll"),
    ],
)
def test_a_refusal_names_the_path_and_the_value(data: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_record(Tree, data, part="tree")
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) <= LONGEST_MESSAGE
    assert "\n" not in str(caught.value)


@dataclass(frozen=True, kw_only=True)
class Unbounded:
    seed: int | None = None
    loss: float = 0.0
    free: JsonObject = field(default_factory=dict)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"seed": 2**64}, "record.seed: expected an integer of 64 bits, got 18446744073709551616"),
        ({"seed": -(10**400)}, "record.seed: expected an integer of 64 bits, got -1000"),
        ({"loss": 10**400}, "record.loss: expected an integer of 64 bits, got 1000"),
        ({"loss": 1e300}, "record.loss: expected a number below 1e40, got 1e+300"),
        ({"free": {"a": [2**64]}}, "record.free.a[0]: expected an integer of 64 bits"),
        ({"free": {"a": "\u202e"}}, "record.free.a: expected text without control characters"),
        ({"free": {"a": "x" * 20_001}}, "record.free.a: expected text of at most 20000 characters"),
        ({"free": {"\x1b[2J": 1}}, r"record.free: expected a printable key, got '\x1b[2J'"),
        (
            {"seed": 10**5000},
            "record.seed: expected an integer of 64 bits, got a value of",
        ),
    ],
)
def test_a_field_without_a_range_has_that_of_all_values(data: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_record(Unbounded, data, part="record")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("depth", [30, 45, 5000])
def test_nesting_has_a_limit(depth: int) -> None:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    data = {"free": {"a": value}}
    if depth == 30:
        assert read_record(Unbounded, data, part="record").free == {"a": value}
        return
    with pytest.raises(InputError, match="expected at most 40 levels"):
        read_record(Unbounded, data, part="record")


def test_unknown_fields_are_collected_for_a_newer_file() -> None:
    dropped: list[str] = []
    data = {"leaf": {"size": 1, "new": {"deep": 1}}, "later": 2, "leaves": [{"size": 1, "n": 0}]}
    tree = read_record(Tree, data, part="tree", dropped=dropped)
    assert tree == Tree(leaf=Leaf(size=1), leaves=(Leaf(size=1),))
    assert dropped == ["tree.leaf.new", "tree.later", "tree.leaves[0].n"]
    with pytest.raises(InputError, match=r"tree\.leaf\.size"):
        read_record(Tree, {"leaf": {"size": 0}}, part="tree", dropped=dropped)


def test_minor_versions_decide_whether_unknown_fields_are_collected() -> None:
    for minor, expected in ((None, None), (0, None), (1, None), (2, [])):
        data = {"schema": "a/1"} | ({} if minor is None else {"schema_minor": minor})
        assert check_schema(data, "a/1", minor=1, part="file") == expected
    with pytest.raises(InputError, match=r"file\.schema: expected 'a/1', got 'a/2'"):
        check_schema({"schema": "a/2"}, "a/1", minor=1, part="file")


def make_report() -> Report:
    return Report(
        candidate=Candidate(
            workload=Workload(model="test_vit", targets=("qkv",), alpha=0.1),
            placement=Placement(decisions={"blocks.0": Decision.RECOMPUTE}),
        ),
        device=DeviceLabel(name="cpu", full_name="this CPU", kind="cpu"),
        rung=Rung.EMULATED,
        memory=Memory(peak_bytes=0),
        flops=None,
        step_seconds=None,
        energy_joules=1 / 3,
        parameters=Parameters(total=10**18, trainable=0),
        notes=("a note",),
        details={"trials": [1, 2.5, None]},
    )


def test_a_report_comes_back_from_json() -> None:
    report = make_report()
    assert Report.from_json(report.to_json()) == report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rung": "banana"}, "report.rung: expected one of composed, replayed, emulated, measured"),
        ({"rung": "measured"}, "report.schema: expected 'budgetplan.measurement/1'"),
        ({"step_seconds": float("nan")}, "report.step_seconds: expected a finite number, got nan"),
        ({"memory": {"peak_bytes": -1}}, "report.memory.peak_bytes: expected integer >= 0, got -1"),
        ({"memory": {"peak_bytes": 1, "at_peak": {"cat": 1}}}, "at_peak.cat: unknown field"),
        ({"placement": {"decisions": {"blocks.0": "banana"}}}, "banana"),
        ({"workload": {"model": "a", "precision": "fp8"}}, "workload.precision: expected one of"),
        ({"workload": {"model": "a", "dropout": 1}}, "dropout: expected number >= 0 < 1, got 1"),
        (
            {"workload": {"model": "a", "rank": True}},
            "rank: expected integer >= 1 <= 65536 or null",
        ),
        ({"workload": {"model": "a", "targets": "qkv"}}, "targets: expected list or null"),
        ({"workload": {}}, "report.workload.model: missing field"),
        ({"workload": None}, "report.workload must be a JSON object"),
    ],
)
def test_a_damaged_report_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Report.from_json(make_report().to_json() | change)
    assert message in str(caught.value)
