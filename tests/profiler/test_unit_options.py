"""The words for what a unit may do, and what placements say of them."""

from __future__ import annotations

import pytest

from profiler.placement import Decision
from profiler.unit_options import (
    LEAN_LAYERS,
    MENU,
    Anatomy,
    decisions_of,
    menu_of,
    option_of,
    uniform,
)

BLOCK = Anatomy(branches=("attn", "mlp"), layers=("attn.qkv", "mlp.fc1"), token_mixer="attn")
BOTH = Anatomy(
    branches=("attn", "mlp"), layers=("attn.qkv",), token_mixer="attn", has_depthwise=True
)
MOBILE = Anatomy(layers=("expand",), has_depthwise=True)
PARTS = ("only:1", "only:2", "parts:1", "parts:2", "parts:all")


def test_the_menu_is_what_any_unit_has():
    assert menu_of({"a": Anatomy()}) == (*MENU, Decision.DROP_PER_USE)
    layers = ("layers:1", "layers:2", "light-layers:1", "light-layers:2")
    assert menu_of({"a": BLOCK, "b": Anatomy()}) == (
        *MENU,
        Decision.DROP_CHEAP_AND_MIXING,
        Decision.DROP_PER_USE,
        LEAN_LAYERS,
        *PARTS,
        *layers,
    )
    assert menu_of({"a": MOBILE}) == (
        *MENU,
        Decision.DROP_CHEAP_AND_MIXING,
        Decision.DROP_PER_USE,
        LEAN_LAYERS,
        "layers:1",
    )
    assert menu_of({"a": BOTH}) == (
        *(*MENU, "depthwise", Decision.DROP_CHEAP_AND_MIXING, Decision.DROP_PER_USE, LEAN_LAYERS),
        *(*PARTS, "layers:1", "light-layers:1"),
    )
    # one branch alone is no option
    assert menu_of({"a": Anatomy(branches=("mlp",))}) == (*MENU, Decision.DROP_PER_USE)


def test_options_say_what_is_dropped():
    said = {
        Decision.KEEP: {},
        Decision.DROP_CHEAP: {"a": Decision.DROP_CHEAP},
        Decision.DROP_CHEAP_AND_MIXING: {"a": Decision.DROP_CHEAP_AND_MIXING},
        "only:2": {"a/mlp": Decision.DROP_CHEAP},
        "parts:1": {"a/attn": Decision.RECOMPUTE, "a/mlp": Decision.DROP_CHEAP},
        "parts:2": {"a/attn": Decision.DROP_CHEAP, "a/mlp": Decision.RECOMPUTE},
        "parts:all": {"a/attn": Decision.RECOMPUTE, "a/mlp": Decision.RECOMPUTE},
        "layers:1": {"a": Decision.DROP_CHEAP, "a/attn.qkv": Decision.RECOMPUTE},
        "layers:2": {
            "a": Decision.DROP_CHEAP,
            "a/attn.qkv": Decision.RECOMPUTE,
            "a/mlp.fc1": Decision.RECOMPUTE,
        },
        "light-layers:1": {"a": Decision.DROP_CHEAP_AND_MIXING, "a/attn.qkv": Decision.RECOMPUTE},
        LEAN_LAYERS: {
            "a": Decision.DROP_PER_USE,
            "a/attn.qkv": Decision.RECOMPUTE,
            "a/mlp.fc1": Decision.RECOMPUTE,
        },
        "parts:3": {},
        "layers:3": {},
        "depthwise": {},
    }
    assert {option: decisions_of("a", option, BLOCK) for option in said} == said


def test_beside_depthwise_convolutions_attention_is_dropped_or_not():
    said = {
        "depthwise": {"a": Decision.DROP_CHEAP_AND_MIXING, "a/attn": Decision.DROP_CHEAP},
        Decision.DROP_CHEAP_AND_MIXING: {"a": Decision.DROP_CHEAP_AND_MIXING},
        "layers:1": {
            "a": Decision.DROP_CHEAP_AND_MIXING,
            "a/attn": Decision.DROP_CHEAP,
            "a/attn.qkv": Decision.RECOMPUTE,
        },
        "light-layers:1": {"a": Decision.DROP_CHEAP_AND_MIXING, "a/attn.qkv": Decision.RECOMPUTE},
        "parts:1": {"a": Decision.DROP_CHEAP_AND_MIXING, "a/attn": Decision.RECOMPUTE},
        "parts:2": {
            "a": Decision.DROP_CHEAP_AND_MIXING,
            "a/attn": Decision.DROP_CHEAP,
            "a/mlp": Decision.RECOMPUTE,
        },
    }
    assert {option: decisions_of("a", option, BOTH) for option in said} == said
    assert decisions_of("a", "light-layers:1", MOBILE) == {}


def test_attention_deep_inside_a_recomputed_branch_has_no_decision_of_its_own():
    deep = Anatomy(branches=("mix", "mlp"), token_mixer="mix.attn", has_depthwise=True)
    assert decisions_of("a", "parts:1", deep) == {
        "a": Decision.DROP_CHEAP_AND_MIXING,
        "a/mix": Decision.RECOMPUTE,
    }


@pytest.mark.parametrize("anatomy", [BLOCK, BOTH, MOBILE, Anatomy()])
def test_an_option_is_known_by_its_decisions(anatomy):
    menu = menu_of({"a": anatomy})
    said = [decisions_of("a", option, anatomy) for option in menu]
    assert [option_of("a", decisions, anatomy) for decisions in said] == list(menu)
    assert len({tuple(decisions.items()) for decisions in said}) == len(said)
    assert option_of("a", {"a/attn.qkv": Decision.DROP_CHEAP}, anatomy) is None


def test_a_unit_without_the_option_is_kept():
    placement = uniform("light-layers:1", {"a": BLOCK, "b": MOBILE})
    assert dict(placement.decisions) == {
        "a": Decision.DROP_CHEAP_AND_MIXING,
        "a/attn.qkv": Decision.RECOMPUTE,
    }
