"""Mutated plan files: each is read and written again as it was, or refused in one line."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_plan import make_plan

from planner.plan import Plan, plan_file_name, read_plan, write_plan
from profiler.errors import LONGEST_MESSAGE, InputError
from profiler.placement import Decision
from profiler.workload import MOST_PIXELS

ORIGINAL = json.loads(json.dumps(make_plan().to_json()))
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 10**400, 2**63, 0.5, -0.0, float("nan"), float("inf")]),
    st.sampled_from(["", "banana", "fp64", "\ud800", "\u202e", "x" * 5000, "../../etc"]),
    st.just([]),
    st.just({}),
    st.lists(st.integers(), max_size=2),
)


def places(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every node below the root."""
    children = (
        list(data.items())
        if isinstance(data, dict)
        else list(enumerate(data))
        if isinstance(data, list)
        else []
    )
    found = [at] if at else []
    for key, value in children:
        found += places(value, (*at, key))
    return found


PLACES = places(ORIGINAL)


def mutated(where: tuple[Any, ...], kind: str, value: Any) -> Any:
    data = copy.deepcopy(ORIGINAL)
    parent = data
    for key in where[:-1]:
        parent = parent[key]
    if kind == "replace":
        parent[where[-1]] = value
    elif kind == "delete":
        del parent[where[-1]]
    elif isinstance(parent, dict):
        parent["unexpected"] = value
    return data


@example(where=("candidate", "placement", "parameters"), kind="replace", value="\ud800")
@example(
    where=("candidate", "placement", "decisions", "blocks.0"), kind="replace", value="x" * 5000
)
@given(
    where=st.sampled_from(PLACES),
    kind=st.sampled_from(["replace", "delete", "add"]),
    value=ANYTHING,
)
def test_a_mutant_is_read_whole_or_refused_in_one_line(
    where: tuple[Any, ...], kind: str, value: Any
) -> None:
    try:
        plan = Plan.from_json(mutated(where, kind, value))
    except InputError as error:
        assert len(str(error)) <= LONGEST_MESSAGE
        assert "\n" not in str(error)
        return
    written = plan.to_json()
    assert Plan.from_json(copy.deepcopy(written)) == plan


def fewer_images(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with a micro-batch that keeps the limit of pixels."""
    load = ORIGINAL["candidate"]["workload"] | values
    most = MOST_PIXELS // load["image_size"] ** 2
    return values | {"micro_batch": min(load["micro_batch"], most)}


SAFE_TEXT = st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), min_size=1, max_size=200)
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "model": SAFE_TEXT,
        "method": SAFE_TEXT,
        "rank": st.none() | st.integers(1, 65_536),
        "alpha": st.none() | st.floats(0, 1e6, exclude_min=True),
        "dropout": st.floats(0, 1, exclude_max=True),
        "targets": st.none() | st.lists(SAFE_TEXT, max_size=3),
        "micro_batch": st.integers(1, 65_536),
        "accumulation": st.integers(1, 65_536),
        "precision": st.sampled_from(["fp32", "bf16", "fp16"]),
        "optimizer": st.sampled_from(["adamw", "sgd", "adamw8bit"]),
        "image_size": st.integers(8, 8192),
        "num_classes": st.integers(1, 1_000_000),
        "grad_clip": st.none() | st.floats(0, 1e6, exclude_min=True),
        "drop_path": st.floats(0, 1, exclude_max=True),
    },
).map(fewer_images)
FREE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | SAFE_TEXT | st.floats(-1e40, 1e40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SAFE_TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(
    workload=VALUES,
    policy=SAFE_TEXT,
    parameters=st.dictionaries(SAFE_TEXT, st.integers(-(10**18), 10**18) | st.floats(-1e18, 1e18)),
    decisions=st.dictionaries(SAFE_TEXT, st.sampled_from(list(Decision))),
    budget=st.integers(2**20, 2**50),
    notes=st.dictionaries(SAFE_TEXT, FREE, max_size=3),
)
def test_every_plan_within_its_ranges_comes_back_from_its_file(
    tmp_path_factory: pytest.TempPathFactory,
    workload: dict[str, Any],
    policy: str,
    parameters: dict[str, float],
    decisions: dict[str, Decision],
    budget: int,
    notes: dict[str, Any],
) -> None:
    data = copy.deepcopy(ORIGINAL)
    for part in (data["candidate"], data["prediction"], data["measurement"]):
        part["workload"] |= workload
        part["placement"] = {
            "policy": policy, "parameters": parameters, "decisions": decisions
        }  # fmt: skip
    data |= {"budget_bytes": budget, "provenance": {"notes": notes}}
    plan = Plan.from_json(data)
    path = tmp_path_factory.mktemp("plans") / plan_file_name(plan.candidate)
    write_plan(plan, path)
    assert read_plan(path) == plan
    for name, value in workload.items():
        expected = tuple(value) if isinstance(value, list) else value
        assert getattr(plan.candidate.workload, name) == expected
