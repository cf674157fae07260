import json
import pickle
from typing import Any

import pytest

from profiler.errors import InputError
from profiler.placement import (
    KEEP_ALL,
    NO_POLICY,
    Decision,
    Placement,
    PolicyChoice,
    placement_from_json,
    placement_to_json,
)
from profiler.workload import Candidate, Workload


def test_a_placement_is_its_decisions():
    words: Any = {"b": "recompute", "a": Decision.KEEP}
    one = Placement(words)
    other = Placement({"b": Decision.RECOMPUTE})
    assert one == other
    assert hash(one) == hash(other)
    assert one.decisions == {"b": Decision.RECOMPUTE}
    assert type(one.decisions["b"]) is Decision
    assert (one.decision("a"), one.decision("b")) == (Decision.KEEP, Decision.RECOMPUTE)
    kept: Any = {"a": "keep"}
    assert Placement(kept) == KEEP_ALL
    assert KEEP_ALL.is_none
    assert pickle.loads(pickle.dumps(one)) == one


@pytest.mark.parametrize("word", ["banana", "RECOMPUTE", "", None, 1, float("nan"), ["keep"]])
def test_an_unknown_decision_is_refused(word):
    with pytest.raises(
        InputError, match=r"unknown decision .* for unit 'a'; use one of keep, cheap"
    ):
        Placement({"a": word})


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        (NO_POLICY, "none"),
        (PolicyChoice("every-k", {"k": 3}), "every-3"),
        (PolicyChoice("first-k", {"k": 1}), "first-1"),
        (PolicyChoice("every-k"), "every-k"),  # before plan files had parameters
        (PolicyChoice("adaptive", {"threshold": 0.5}), "adaptive"),
        (PolicyChoice("lean-layers"), "lean-layers"),
    ],
)
def test_a_choice_of_a_policy_is_read_from_what_it_writes(choice, text):
    assert choice.display_name == text
    assert PolicyChoice.from_display_name(text, choice.parameters) == choice
    assert pickle.loads(pickle.dumps(choice)) == choice
    placement = Placement({"blocks.0/mlp": Decision.DROP_CHEAP, "blocks.1": Decision.SEGMENT})
    data = json.loads(json.dumps(placement_to_json(placement, choice)))
    assert data["policy"] == text
    assert placement_from_json(data) == (placement, choice)


def test_the_count_in_a_name_is_enough():
    assert PolicyChoice.from_display_name("last-4") == PolicyChoice("last-k", {"k": 4})


def test_plans_of_schema_1_have_no_parameters():
    data = {"policy": "adaptive", "decisions": {"a": "recompute"}}
    assert placement_from_json(data) == (
        Placement({"a": Decision.RECOMPUTE}),
        PolicyChoice("adaptive"),
    )
    assert placement_from_json({}) == (KEEP_ALL, NO_POLICY)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "placement must be a JSON object, got list"),
        ({"policy": 3}, "placement.policy: expected text, got 3"),
        ({"decisions": ["a"]}, "placement.decisions: expected JSON object"),
        ({"decisions": {"a": "some"}}, "unknown decision 'some' for unit 'a'; use one of keep"),
        ({"decisions": {"a": float("nan")}}, r"placement.decisions.a: .*finite number, got nan"),
        ({"parameters": 3}, "placement.parameters: expected JSON object, got 3"),
        ({"parameters": {"k": float("nan")}}, r"placement.parameters.k: .*finite number, got nan"),
        ({"parameters": {"k": "3"}}, "placement.parameters.*got `str`"),
        ({"parameters": {"k": True}}, "placement.parameters.*got `bool`"),
        ({"rule": "none"}, "placement.rule: unknown field"),
    ],
)
def test_what_is_no_placement_is_refused_in_one_line(data, message):
    with pytest.raises(InputError, match=message) as caught:
        placement_from_json(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "3", True, None])
def test_a_parameter_is_a_finite_number(value):
    with pytest.raises(InputError, match="parameter 'k' of policy 'every-k' must be a finite"):
        PolicyChoice("every-k", {"k": value})


def test_a_candidate_keeps_who_decided():
    candidate = Candidate(
        workload=Workload(model="vit_small_patch16_224"),
        placement=Placement({"blocks.0": Decision.RECOMPUTE}),
        policy=PolicyChoice("every-k", {"k": 3}),
    )
    assert Candidate.from_json(json.loads(json.dumps(candidate.to_json()))) == candidate
    assert candidate.to_json()["placement"] == {
        "policy": "every-3",
        "parameters": {"k": 3},
        "decisions": {"blocks.0": "recompute"},
    }
