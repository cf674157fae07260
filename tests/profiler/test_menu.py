"""The words for what a unit may do, and what placements say of them."""

from __future__ import annotations

from profiler.menu import MENU, Anatomy, decisions_of, menu_of, uniform
from profiler.placement import CHEAP, KEEP, LEAN, LIGHT, RECOMPUTE

BLOCK = Anatomy(branches=("attn", "mlp"), layers=("qkv", "fc1"))
DEPTHWISE = Anatomy(layers=("expand",), has_depthwise=True)


def test_the_menu_is_what_any_unit_has():
    assert menu_of({"a": Anatomy()}) == (*MENU, LEAN)
    finer = ("parts:1", "parts:2", "parts:all", "layers:1", "layers:2")
    assert menu_of({"a": BLOCK, "b": Anatomy()}) == (*MENU, LEAN, *finer)
    assert menu_of({"a": DEPTHWISE}) == (*MENU, LIGHT, LEAN, "light-layers:1")
    # one branch alone is no option
    assert menu_of({"a": Anatomy(branches=("mlp",))}) == (*MENU, LEAN)


def test_options_say_what_is_dropped():
    said = {
        KEEP: {},
        CHEAP: {"a": CHEAP},
        "parts:1": {"a/attn": RECOMPUTE, "a/mlp": CHEAP},
        "parts:2": {"a/attn": CHEAP, "a/mlp": RECOMPUTE},
        "parts:all": {"a/attn": RECOMPUTE, "a/mlp": RECOMPUTE},
        "light-parts:1": {"a": LIGHT, "a/attn": RECOMPUTE},
        "layers:1": {"a": CHEAP, "a/qkv": RECOMPUTE},
        "layers:2": {"a": CHEAP, "a/qkv": RECOMPUTE, "a/fc1": RECOMPUTE},
        "light-layers:1": {"a": LIGHT, "a/qkv": RECOMPUTE},
        "parts:3": {},
        "layers:3": {},
    }
    assert {option: decisions_of("a", option, BLOCK) for option in said} == said


def test_a_unit_without_the_option_is_kept():
    placement = uniform("light-layers:2", {"a": BLOCK, "b": DEPTHWISE})
    assert dict(placement.decisions) == {"a": LIGHT, "a/qkv": RECOMPUTE, "a/fc1": RECOMPUTE}
