from __future__ import annotations

import numpy as np
import pytest
from toy_chains import all_choices, option, random_chain, told_step_by_step, uniform_chain

from planner.placement.chain import JOINED, Chain, ChainUnit, option_indices, to_placement
from planner.placement.chain_cost import (
    peak_bytes,
    peak_bytes_many,
    recompute_seconds,
    unit_seconds_many,
)
from planner.placement.placement_table import placement_table
from profiler.errors import InputError
from profiler.placement import Decision, Placement


@pytest.mark.parametrize("joinable", [False, True])
def test_evaluator_equals_the_step_told_in_order(joinable):
    rng = np.random.default_rng(1)
    for _ in range(60):
        chain = random_chain(rng, int(rng.integers(1, 6)), 3, joinable=joinable)
        rows = all_choices(chain)
        rows = rows[rng.permutation(len(rows))[:60]]
        peaks = peak_bytes_many(chain, rows)
        seconds = unit_seconds_many(chain, rows).sum(axis=1)
        for row, peak, cost in zip(rows.tolist(), peaks, seconds, strict=True):
            assert (peak, cost) == told_step_by_step(chain, row)
            assert (peak_bytes(chain, row), recompute_seconds(chain, row)) == (peak, cost)


def test_uniform_chain_in_closed_form():
    chain = uniform_chain(12, a=100, x=10, m0=500, work=5)
    assert peak_bytes(chain, [0] * 12) == 500 + 12 * 100 + 5
    assert peak_bytes(chain, [1] * 12) == 500 + 11 * 10 + 100 + 5
    for k in range(1, 12):  # k kept, the others recomputed: closed form of the peak
        suffix = peak_bytes(chain, [0] * k + [1] * (12 - k))
        prefix = peak_bytes(chain, [1] * (12 - k) + [0] * k)
        assert suffix == 500 + k * 100 + (11 - k) * 10 + 105
        assert prefix == 500 + (12 - k) * 10 + (k - 1) * 100 + 105
        assert suffix - prefix == 100 - 10


def test_gradients_of_later_units_are_counted_in_backward_only():
    chain = uniform_chain(3, a=100, x=10, m0=0, work=0, gradient=1000)
    assert peak_bytes(chain, [0, 0, 0]) == max(300, 200 + 1000, 100 + 2000)


def test_one_segment_in_closed_form():
    chain = uniform_chain(4, a=100, x=10, m0=0, work=5)
    choice = [1, JOINED, JOINED, JOINED]
    # recompute: three units kept and the fourth running, with the incoming gradient
    assert peak_bytes(chain, choice) == 10 + 3 * 100 + 100
    assert recompute_seconds(chain, choice) == 4.0
    assert [row.stored_bytes for row in placement_table(chain, choice)] == [0, 0, 0, 10]


def test_floor_is_a_floor():
    chain = Chain(units=uniform_chain(2).units, static_bytes=1, floor_bytes=10**6)
    assert peak_bytes(chain, [0, 0]) == 10**6
    assert all(row.binding is None for row in placement_table(chain, [0, 0]))


def test_placement_round_trip():
    rng = np.random.default_rng(2)
    for joinable in (False, True):
        chain = random_chain(rng, 5, 5, joinable=joinable)
        rows = all_choices(chain)
        for row in rows[rng.permutation(len(rows))[:200]].tolist():
            assert option_indices(chain, to_placement(chain, row)) == tuple(row)


def test_parts_are_named_by_unit_and_part():
    unit = ChainUnit(
        name="blocks.0",
        options=(
            option(Decision.KEEP, 9, 9, 9, 0.0),
            option(
                Decision.KEEP,
                5,
                9,
                9,
                1.0,
                mlp=Decision.RECOMPUTE,
                attn=Decision.DROP_CHEAP,
                norm=Decision.KEEP,
            ),
        ),
    )
    placement = to_placement(Chain(units=(unit,)), [1])
    assert dict(placement.decisions) == {
        "blocks.0/attn": Decision.DROP_CHEAP,
        "blocks.0/mlp": Decision.RECOMPUTE,
    }
    assert placement_table(Chain(units=(unit,)), [1])[0].decision == "attn: cheap, mlp: recompute"


def test_explain_says_what_is_freed_and_what_binds():
    chain = uniform_chain(3, a=100 << 20, x=10 << 20, m0=0, work=0, seconds=9.0)
    rows = placement_table(chain, [0, 1, 0])
    assert [row.decision for row in rows] == [Decision.KEEP, Decision.RECOMPUTE, Decision.KEEP]
    assert rows[1].freed_bytes == 90 << 20
    assert rows[1].seconds_per_freed_mib == pytest.approx(0.1)
    assert rows[0].seconds_per_freed_mib is None
    assert [row.binding for row in rows] == [None, None, "forward"]
    assert rows[2].forward_bytes == peak_bytes(chain, [0, 1, 0])


def test_a_segment_in_a_placement():
    chain = uniform_chain(3)
    placement = to_placement(chain, [1, JOINED, 0])
    assert dict(placement.decisions) == {"b0": Decision.RECOMPUTE, "b1": Decision.SEGMENT}
    assert placement_table(chain, [1, JOINED, 0])[1].decision == Decision.SEGMENT


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ([0, 0], "3 units"),
        ([0, 2, 0], "has 2 options"),
        ([JOINED, 0, 0], "cannot join"),
        ([0, JOINED, 0], "must be recompute or segment"),
    ],
)
def test_wrong_choices_are_refused(choice, message):
    with pytest.raises(InputError, match=message):
        peak_bytes(uniform_chain(3), choice)


def test_a_unit_of_unknown_boundary_joins_nothing():
    units = uniform_chain(2).units
    fixed = ChainUnit(name="b1", options=units[1].options)
    with pytest.raises(InputError, match="cannot join"):
        peak_bytes(Chain(units=(units[0], fixed)), [1, JOINED])


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        ({"blocks.7": Decision.RECOMPUTE}, "does not have"),
        ({"b0": Decision.DROP_CHEAP}, "does not offer"),
        ({"b0/mlp": Decision.DROP_CHEAP}, "does not offer"),
    ],
)
def test_placements_of_another_backbone_are_refused(decisions, message):
    with pytest.raises(InputError, match=message):
        option_indices(uniform_chain(2), Placement(decisions=decisions))


@pytest.mark.parametrize(
    "build",
    [
        lambda: Chain(units=()),
        lambda: ChainUnit(name="u", options=()),
        lambda: ChainUnit(name="u", options=(option(Decision.KEEP, 1, 1, 1, 0.0),) * 2),
        lambda: option(Decision.SEGMENT, 1, 1, 1, 0.0),
        lambda: option(Decision.KEEP, 1, 1, 1, -1.0),
        lambda: option(Decision.KEEP, 1, 1, 1, float("nan")),
        lambda: option(Decision.RECOMPUTE, 1, 1, 1, 1.0, mlp=Decision.DROP_CHEAP),
        lambda: Chain(units=uniform_chain(1).units * 2),
    ],
)
def test_bad_problems_are_refused(build):
    with pytest.raises(InputError):
        build()
