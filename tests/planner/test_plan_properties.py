"""Mutated plan files: each is read and written again as it was, or refused in one line."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from test_plan import make_plan

from planner.plan import Plan
from profiler.errors import LONGEST_MESSAGE, InputError

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
    assert Plan.from_json(copy.deepcopy(written)).to_json() == written
