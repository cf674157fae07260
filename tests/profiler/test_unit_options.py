import pickle

import pytest

from profiler.errors import InputError
from profiler.placement import Decision, Placement
from profiler.unit_options import (
    COMMON_OPTIONS,
    SpareTokenMixer,
    UnitParts,
    option_from_key,
    option_with,
    options_of,
    uniform_placement,
)

BLOCK = UnitParts(branches=("attn", "mlp"), layers=("attn.qkv", "mlp.fc1"), token_mixer="attn")
BOTH = UnitParts(
    branches=("attn", "mlp"), layers=("mlp.fc1",), token_mixer="attn", has_depthwise=True
)
MOBILE = UnitParts(layers=("expand",), has_depthwise=True)

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
    ("key", "parts", "expected"),
    [
        ("keep", BLOCK, {}),
        ("cheap", BLOCK, words(whole="cheap")),
        ("light", BLOCK, words(whole="light")),
        ("only:2", BLOCK, words(mlp="cheap")),
        ("parts:1", BLOCK, words(attn="recompute", mlp="cheap")),
        ("parts:2", BLOCK, words(attn="cheap", mlp="recompute")),
        ("parts:all", BLOCK, words(attn="recompute", mlp="recompute")),
        ("layers:1", BLOCK, words(whole="cheap", attn__qkv="recompute")),
        ("layers:2", BLOCK, words(whole="cheap", attn__qkv="recompute", mlp__fc1="recompute")),
        ("light-layers:1", BLOCK, words(whole="light", attn__qkv="recompute")),
        ("lean-layers", BLOCK, words(whole="lean", attn__qkv="recompute", mlp__fc1="recompute")),
        # options that the unit lacks
        ("parts:3", BLOCK, {}),
        ("layers:3", BLOCK, {}),
        ("depthwise", BLOCK, {}),
        ("light-layers:1", MOBILE, {}),
        # with depthwise convolutions, the rest of the unit is light, but not the token mixer
        ("depthwise", BOTH, words(whole="light", attn="cheap")),
        ("layers:1", BOTH, words(whole="light", attn="cheap", mlp__fc1="recompute")),
        ("light-layers:1", BOTH, words(whole="light", mlp__fc1="recompute")),
        ("parts:1", BOTH, words(whole="light", attn="recompute")),
        ("parts:2", BOTH, words(whole="light", attn="cheap", mlp="recompute")),
    ],
)
def test_an_option_stands_for_decisions(key, parts, expected):
    assert option_from_key(key).decisions("a", parts) == expected


def test_a_recomputed_branch_takes_its_token_mixer_with_it():
    deep = UnitParts(branches=("mix", "mlp"), token_mixer="mix.attn", has_depthwise=True)
    expected = words(whole="light", mix="recompute")
    assert option_from_key("parts:1").decisions("a", deep) == expected


@pytest.mark.parametrize("parts", [BLOCK, BOTH, MOBILE, UnitParts()])
def test_an_option_is_found_by_its_decisions_and_by_its_key(parts):
    for option in options_of({"a": parts}):
        assert option_with("a", option.decisions("a", parts), parts) == option
        found = option_from_key(option.key)
        assert found == option
        assert hash(found) == hash(option)
        assert pickle.loads(pickle.dumps(option)) == option
    assert option_with("a", words(attn__qkv="cheap"), parts) is None


def test_options_of_different_kinds_are_not_equal():
    keys = ("only:1", "parts:1", "layers:1", "light-layers:1", "depthwise", "keep", "cheap")
    assert len({option_from_key(key) for key in keys}) == len(keys)
    assert option_from_key("depthwise") == SpareTokenMixer()


@pytest.mark.parametrize(
    "key",
    ["", "banana", "only:", "only:0", "only:x", "parts:", "layers", "lean-layers:1", "cheap:1"],
)
def test_an_unknown_key_is_refused(key):
    with pytest.raises(InputError, match="unknown option of a unit"):
        option_from_key(key)


def test_a_uniform_placement_keeps_the_units_that_lack_the_option():
    placement = uniform_placement(option_from_key("light-layers:1"), {"a": BLOCK, "b": MOBILE})
    assert placement == Placement(words(whole="light", attn__qkv="recompute"))
