from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from toy_chains import brute_force, option, random_chain, uniform_chain

from planner.placement.chain import Chain, ChainUnit, option_indices
from planner.placement.chain_cost import peak_bytes, recompute_seconds
from planner.placement.chain_policies import (
    adaptive,
    chen,
    every_k,
    first_k,
    last_k,
    optimal,
    place_chain,
    rotor,
)
from planner.placement.optimal import smallest_feasible, solve
from planner.placement.policies import (
    POLICIES,
    BudgetUse,
    ChainPolicy,
    UniformPolicy,
    parse_policy,
    policy_words,
)
from profiler.errors import InfeasibleError, UnknownNameError, UsageError
from profiler.placement import Decision, PolicyChoice


def letters(chain, placement):
    """krs...: what is done with each unit."""
    return "".join(placement.decision(unit.name)[0] for unit in chain.units)


def with_ends(chain):
    """The chain between a fixed stem and a fixed head."""
    stem = ChainUnit(name="stem", options=(option(Decision.KEEP, 7, 9, 9, 0.0),))
    head = ChainUnit(name="head", options=(option(Decision.KEEP, 1, 2, 3, 0.0),))
    return Chain(units=(stem, *chain.units, head), static_bytes=chain.static_bytes)


def test_simple_policies_on_seven_units():
    chain = with_ends(uniform_chain(7))
    assert letters(chain, every_k(chain, 3)) == "krkkrkkrk"
    assert letters(chain, first_k(chain, 2)) == "krrkkkkkk"
    assert letters(chain, last_k(chain, 2)) == "kkkkkkrrk"
    assert letters(chain, last_k(chain, 0)) == "kkkkkkkkk"
    assert letters(chain, last_k(chain, 99)) == "krrrrrrrk"


@pytest.mark.parametrize(
    ("n", "segments", "expected"),
    [(9, None, "rssrsskkk"), (12, 3, "rsssrssskkkk"), (7, 3, "rsrskkk"), (1, None, "k")],
)
def test_chen_cuts_as_checkpoint_sequential_does(n, segments, expected):
    chain = uniform_chain(n)
    assert letters(chain, chen(chain, segments)) == expected


def test_chen_does_not_join_across_a_fixed_unit():
    blocks = uniform_chain(8).units
    pool = ChainUnit(name="pool", options=(option(Decision.KEEP, 1, 1, 1, 0.0),))
    chain = Chain(units=(blocks[0], pool, *blocks[1:]))
    placement = chen(chain, 2)
    assert letters(chain, placement) == "rkrsskkkk"
    assert option_indices(chain, placement)


def test_chen_reaches_order_sqrt_n():
    """n + a/x sqrt n in place of n a: the memory of a uniform chain in closed form."""
    n, a = 100, 100
    chain = uniform_chain(n, a=a, x=1, m0=0, work=0)
    peak = peak_bytes(chain, option_indices(chain, chen(chain)))
    assert peak <= 10 * 1 + 10 * a + a
    assert peak < peak_bytes(chain, [0] * n) / 8


@pytest.mark.parametrize("budget", [1000, 1500, 2000, 2400, 3000, 5000])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_adaptive_in_closed_form(budget, threshold):
    """Kept blocks: k = ceil((T - M0) / a) (arXiv 2607.02158, adaptive rule)."""
    n, a, m0 = 12, 100, 500
    chain = uniform_chain(n, a=a, m0=m0)
    kept = min(max(math.ceil((threshold * budget - m0) / a), 0), n)
    assert letters(chain, adaptive(chain, budget, threshold)) == "k" * kept + "r" * (n - kept)


def test_adaptive_keeps_a_prefix_of_any_growing_chain():
    rng = np.random.default_rng(1)
    for _ in range(50):
        chain = random_chain(rng, 8, 3, joinable=True)
        peaks, _ = brute_force(Chain(units=chain.units[:4], static_bytes=chain.static_bytes))
        decisions = letters(chain, adaptive(chain, int(peaks.mean())))
        assert "rk" not in decisions


def test_adaptive_touches_only_what_it_may():
    chain = uniform_chain(4, m0=100)
    assert letters(chain, adaptive(chain, 10, eligible={"b1", "b3"})) == "krkr"


def test_a_prefix_beats_the_adaptive_suffix_by_one_block():
    """Closed form: same seconds, one block less at the peak."""
    a, x = 100, 10
    chain = uniform_chain(12, a=a, x=x)
    for budget in (1500, 2000, 2500):
        rule = option_indices(chain, adaptive(chain, budget))
        recomputed = sum(rule)
        mirrored = option_indices(chain, first_k(chain, recomputed))
        assert 0 < recomputed < 12
        assert recompute_seconds(chain, rule) == recompute_seconds(chain, mirrored)
        assert peak_bytes(chain, rule) - peak_bytes(chain, mirrored) == a - x
        ours = solve(chain, peak_bytes(chain, rule), segments=False)
        assert ours.recompute_seconds == recompute_seconds(chain, rule) - 1


def test_optimal_is_on_or_under_every_policy():
    rng = np.random.default_rng(2)
    for _ in range(25):
        chain = random_chain(rng, 9, 3, joinable=True)
        budget = int(rng.integers(100, 600))
        for policy in POLICIES.values():
            if isinstance(policy, UniformPolicy):
                continue
            try:
                indices = option_indices(chain, place_chain(chain, policy.choice(), budget))
            except InfeasibleError as error:
                assert policy.budget is BudgetUse.LIMIT
                assert error.smallest_bytes is not None
                assert error.smallest_bytes > budget
                continue
            ours = solve(chain, peak_bytes(chain, indices))
            assert ours.recompute_seconds <= recompute_seconds(chain, indices) + 1e-9


def test_rotor_is_optimal_over_whole_units_and_segments():
    rng = np.random.default_rng(3)
    for _ in range(20):
        chain = random_chain(rng, 6, 2, joinable=True)  # a menu of keep and recompute
        peaks, seconds = brute_force(chain)
        budget = int(rng.choice(peaks))
        placement = rotor(chain, budget)
        indices = option_indices(chain, placement)
        assert peak_bytes(chain, indices) <= budget
        assert recompute_seconds(chain, indices) == seconds[peaks <= budget].min()


def test_rotor_leaves_cheap_options_alone():
    rng = np.random.default_rng(4)
    for _ in range(10):
        chain = random_chain(rng, 8, 4, joinable=True)
        budget = smallest_feasible(chain).peak_bytes * 2
        decisions = set(rotor(chain, budget).decisions.values())
        assert Decision.DROP_CHEAP not in decisions
        assert decisions <= {Decision.RECOMPUTE, Decision.SEGMENT}


def test_optimal_names_the_smallest_budget():
    chain = uniform_chain(6)
    with pytest.raises(InfeasibleError) as caught:
        optimal(chain, 10)
    assert caught.value.smallest_bytes == smallest_feasible(chain).peak_bytes
    assert optimal(chain, caught.value.smallest_bytes).decisions


def test_every_policy_of_the_registry_has_its_name_and_a_summary_of_one_line():
    for name, policy in POLICIES.items():
        assert policy.choice() == parse_policy(name)
        assert policy.choice().name == policy.name == name
        assert policy.summary
        assert "\n" not in policy.summary


def test_every_chain_policy_places_a_chain():
    chain = uniform_chain(6)
    for policy in POLICIES.values():
        if isinstance(policy, ChainPolicy):
            assert option_indices(chain, place_chain(chain, policy.choice(), 10**6))


def test_parameters_are_passed_on():
    chain = uniform_chain(6)
    assert letters(chain, place_chain(chain, parse_policy("every-3"), 1)) == "rkkrkk"
    assert letters(chain, place_chain(chain, parse_policy("last-1"), 1)) == "kkkkkr"
    half = parse_policy("adaptive", threshold=0.5)
    assert letters(chain, place_chain(chain, half, 1400)) == "kkrrrr"


@pytest.mark.parametrize("word", [*policy_words(), "every-3", "every-k", "first-0"])
def test_a_word_is_read_and_written_alike(word):
    choice = parse_policy(word.replace("-K", "-7"))
    assert parse_policy(choice.display_name) == PolicyChoice(choice.name, choice.parameters)


def test_a_threshold_is_ignored_by_policies_without_one():
    assert parse_policy("optimal", threshold=0.7) == PolicyChoice("optimal")
    assert parse_policy("adaptive", threshold=0.7).parameters == {"threshold": 0.7}


def test_unknown_words_and_wrong_parameters_are_refused():
    with pytest.raises(UnknownNameError, match="unknown checkpoint policy 'xyz'; use one of none"):
        parse_policy("xyz")
    with pytest.raises(UnknownNameError, match="did you mean optimal"):
        parse_policy("optimum")
    with pytest.raises(UnknownNameError, match="optimal-3"):
        parse_policy("optimal-3")
    with pytest.raises(UsageError, match="threshold must be a finite number"):
        parse_policy("adaptive", threshold=math.nan)
    with pytest.raises(UnknownNameError, match="treshold"):
        POLICIES["adaptive"].choice({"treshold": 0.5})
    with pytest.raises(UsageError, match=r"k of checkpoint policy every-k .* at least 1, got 0"):
        parse_policy("every-0")
    with pytest.raises(UsageError, match="a number above 0"):
        parse_policy("adaptive", threshold=0.0)
    with pytest.raises(UsageError, match="whole number"):
        POLICIES["first-k"].choice({"k": 1.5})


def test_the_documentation_has_every_policy():
    page = Path(__file__).parents[3] / "docs" / "concepts.md"
    table = page.read_text().partition("## Policies")[2].partition("## ")[0]
    named = {
        word.lower()
        for row in re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE)
        for word in re.findall(r"`(.+?)`", row)
    }
    assert named == {policy.word.lower() for policy in POLICIES.values()}
