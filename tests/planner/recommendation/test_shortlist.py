"""The backbones of ``--model auto``, against brute force over the data file."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.recommendation.shortlist import shortlist
from planner.scoring.backbone_facts import backbone_facts
from profiler.errors import UsageError


@given(st.integers(10**8, 2 * 10**10))
def test_the_shortlist_fits_and_nothing_beats_it(budget: int) -> None:
    facts = backbone_facts()
    fitting = [f for f in facts.values() if min(f.least_bytes, f.least_full_bytes) <= budget]
    if not fitting:
        with pytest.raises(UsageError, match="the smallest needs"):
            shortlist(budget)
        return
    names = shortlist(budget)
    assert 1 <= len(names) <= 4
    assert max(fitting, key=lambda f: f.top1).model == names[0]
    for name in names:
        own = facts[name]
        assert min(own.least_bytes, own.least_full_bytes) <= budget
        assert not [
            f for f in fitting if f.top1 > own.top1 and f.seconds_per_image < own.seconds_per_image
        ]


def test_two_equal_backbones_are_both_on_the_list() -> None:
    best = backbone_facts()[shortlist(2 * 10**9)[0]]
    twin = replace(best, model="twin")
    slower = replace(best, model="slower", seconds_per_image=2 * best.seconds_per_image)
    assert shortlist(2 * 10**9, known=[best, twin, slower]) == [best.model, "twin"]
