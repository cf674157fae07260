"""Placements from anywhere: a valid one comes back as it was written, anything else is one line."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from profiler.errors import LONGEST_MESSAGE, InputError
from profiler.placement import (
    Decision,
    Placement,
    PolicyChoice,
    placement_from_json,
    placement_to_json,
)

NAMES = st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), min_size=1, max_size=12)
PLACEMENTS = st.builds(Placement, st.dictionaries(NAMES, st.sampled_from(Decision), max_size=8))
POLICIES = st.one_of(
    st.builds(PolicyChoice, st.sampled_from(["none", "static", "optimal", "chen"])),
    st.builds(
        PolicyChoice,
        st.sampled_from(["every-k", "first-k", "last-k"]),
        st.fixed_dictionaries({"k": st.integers(1, 10**6)}),
    ),
    st.builds(
        PolicyChoice,
        st.just("adaptive"),
        st.fixed_dictionaries({"threshold": st.floats(0.01, 10, allow_nan=False)}),
    ),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@example(placement=Placement(), policy=PolicyChoice("every-k", {"k": 10**6}))
@given(placement=PLACEMENTS, policy=POLICIES)
def test_a_placement_comes_back_from_json_as_it_was_written(
    placement: Placement, policy: PolicyChoice
) -> None:
    text = json.dumps(placement_to_json(placement, policy), allow_nan=False)
    assert placement_from_json(json.loads(text)) == (placement, policy)


@given(placement=PLACEMENTS, extra=st.dictionaries(NAMES, st.just(Decision.KEEP), max_size=3))
def test_kept_units_do_not_distinguish_placements(
    placement: Placement, extra: dict[str, Decision]
) -> None:
    same = Placement(extra | dict(placement.decisions))
    assert same == placement
    assert hash(same) == hash(placement)


@given(
    data=st.one_of(
        JSON,
        st.fixed_dictionaries(
            {}, optional={"policy": JSON, "parameters": JSON, "decisions": JSON, "other": JSON}
        ),
    )
)
def test_anything_else_is_refused_with_one_line(data: Any) -> None:
    try:
        placement, policy = placement_from_json(data)
    except InputError as error:
        assert len(str(error)) <= LONGEST_MESSAGE
        assert "\n" not in str(error)
    else:  # what was read can be written and read again
        assert placement_from_json(placement_to_json(placement, policy)) == (placement, policy)
