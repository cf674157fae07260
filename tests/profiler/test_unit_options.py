import pickle

import pytest

from profiler.placement import Decision, Placement
from profiler.unit_options import (
    ALL_LAYERS,
    COMMON_OPTIONS,
    CheapBranch,
    RecomputeBranches,
    RecomputeLayers,
    SpareTokenMixer,
    UnitParts,
    WholeUnit,
    option_with,
    options_of,
    uniform_placement,
)

BLOCK = UnitParts(branches=("attn", "mlp"), layers=("attn.qkv", "mlp.fc1"), token_mixer="attn")
BOTH = UnitParts(
    branches=("attn", "mlp"), layers=("mlp.fc1",), token_mixer="attn", has_depthwise=True
)
MOBILE = UnitParts(layers=("expand",), has_depthwise=True)

LIGHT = Decision.DROP_CHEAP_AND_MIXING

COMMON = "keep cheap recompute"
BRANCHES = "only:1 only:2 parts:1 parts:2 parts:all"


def words(**decisions):
    """Decisions of unit ``a`` by part, ``whole`` for the unit itself and ``__`` for a dot."""
    names = {k: "a" if k == "whole" else f"a/{k.replace('__', '.')}" for k in decisions}
    return {names[k]: Decision(word) for k, word in decisions.items()}


@pytest.mark.parametrize(
    ("parts", "keys"),
    [
        ([UnitParts()], f"{COMMON} lean"),
        (
            [BLOCK, UnitParts()],
            f"{COMMON} light lean lean-layers {BRANCHES} "
            "layers:1 layers:2 light-layers:1 light-layers:2",
        ),
        ([MOBILE], f"{COMMON} light lean lean-layers layers:1"),
        (
            [BOTH],
            f"{COMMON} depthwise light lean lean-layers {BRANCHES} layers:1 light-layers:1",
        ),
        # one branch alone is the whole unit
        ([UnitParts(branches=("mlp",))], f"{COMMON} lean"),
    ],
)
def test_the_options_of_units_are_those_that_any_of_them_has(parts, keys):
    options = options_of(dict(enumerate(parts)))
    assert [option.key for option in options] == keys.split()
    assert options[:3] == COMMON_OPTIONS


@pytest.mark.parametrize(
    ("option", "parts", "expected"),
    [
        (WholeUnit(Decision.KEEP), BLOCK, {}),
        (WholeUnit(Decision.DROP_CHEAP), BLOCK, words(whole="cheap")),
        (WholeUnit(LIGHT), BLOCK, words(whole="light")),
        (CheapBranch(2), BLOCK, words(mlp="cheap")),
        (RecomputeBranches(1), BLOCK, words(attn="recompute", mlp="cheap")),
        (RecomputeBranches(2), BLOCK, words(attn="cheap", mlp="recompute")),
        (RecomputeBranches(None), BLOCK, words(attn="recompute", mlp="recompute")),
        (RecomputeLayers(1), BLOCK, words(whole="cheap", attn__qkv="recompute")),
        (
            RecomputeLayers(2),
            BLOCK,
            words(whole="cheap", attn__qkv="recompute", mlp__fc1="recompute"),
        ),
        (RecomputeLayers(1, LIGHT), BLOCK, words(whole="light", attn__qkv="recompute")),
        (ALL_LAYERS, BLOCK, words(whole="lean", attn__qkv="recompute", mlp__fc1="recompute")),
        # options that the unit lacks
        (RecomputeBranches(3), BLOCK, {}),
        (RecomputeLayers(3), BLOCK, {}),
        (SpareTokenMixer(), BLOCK, {}),
        (RecomputeLayers(1, LIGHT), MOBILE, {}),
        # with depthwise convolutions, the rest of the unit is light, but not the token mixer
        (SpareTokenMixer(), BOTH, words(whole="light", attn="cheap")),
        (RecomputeLayers(1), BOTH, words(whole="light", attn="cheap", mlp__fc1="recompute")),
        (RecomputeLayers(1, LIGHT), BOTH, words(whole="light", mlp__fc1="recompute")),
        (RecomputeBranches(1), BOTH, words(whole="light", attn="recompute")),
        (RecomputeBranches(2), BOTH, words(whole="light", attn="cheap", mlp="recompute")),
    ],
)
def test_an_option_stands_for_decisions(option, parts, expected):
    assert option.decisions("a", parts) == expected


def test_a_recomputed_branch_takes_its_token_mixer_with_it():
    deep = UnitParts(branches=("mix", "mlp"), token_mixer="mix.attn", has_depthwise=True)
    expected = words(whole="light", mix="recompute")
    assert RecomputeBranches(1).decisions("a", deep) == expected


@pytest.mark.parametrize("parts", [BLOCK, BOTH, MOBILE, UnitParts()])
def test_an_option_is_found_by_its_decisions(parts):
    for option in options_of({"a": parts}):
        assert option_with("a", option.decisions("a", parts), parts) == option
        copied = pickle.loads(pickle.dumps(option))
        assert copied == option
        assert hash(copied) == hash(option)
    assert option_with("a", words(attn__qkv="cheap"), parts) is None


def test_options_of_different_kinds_are_not_equal():
    alike = (CheapBranch(1), RecomputeBranches(1), RecomputeLayers(1), RecomputeLayers(1, LIGHT))
    assert len({*alike, *COMMON_OPTIONS, SpareTokenMixer()}) == 8
    assert SpareTokenMixer() == SpareTokenMixer()


def test_a_uniform_placement_keeps_the_units_that_lack_the_option():
    placement = uniform_placement(RecomputeLayers(1, LIGHT), {"a": BLOCK, "b": MOBILE})
    assert placement == Placement(words(whole="light", attn__qkv="recompute"))
