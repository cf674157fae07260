"""Every registered policy is accepted wherever a policy is written, and unknown ones nowhere."""

from __future__ import annotations

import click
import pytest

from planner.cli import cli
from planner.cli.options import Checkpoint, Checkpoints
from planner.placement.policies import parse_policy, policy_words
from planner.search.space import Space, searched_method
from profiler.errors import UnknownNameError
from profiler.workload import Workload

WORDS = [word.replace("-K", "-3") for word in policy_words()]


def space_of(word: str) -> Space:
    return Space(
        base=Workload(model="test_vit"),
        methods=(searched_method("head"),),
        micro_batches=(1,),
        effective_batch=1,
        precisions=("fp32",),
        checkpoints=(word,),
    )


def options_named(name: str) -> dict[str, click.Parameter]:
    return {
        command.name or "": parameter
        for command in cli.commands.values()
        for parameter in command.params
        if name in parameter.opts
    }


@pytest.mark.parametrize("word", [*WORDS, "every-k"])
def test_every_word_is_accepted_everywhere(word: str) -> None:
    assert Checkpoint().convert(word, None, None) == word
    assert Checkpoints().convert(f"none,{word}", None, None) == tuple(dict.fromkeys(["none", word]))
    assert space_of(word).checkpoints == (word,)


def test_an_unknown_word_has_the_same_error_everywhere() -> None:
    with pytest.raises(UnknownNameError) as parsed:
        parse_policy("statik")
    with pytest.raises(UnknownNameError) as searched:
        space_of("statik")
    with pytest.raises(click.BadParameter) as single:
        Checkpoint().convert("statik", None, None)
    with pytest.raises(click.BadParameter) as several:
        Checkpoints().convert("none,statik", None, None)
    expected = str(parsed.value)
    assert str(searched.value) == single.value.message == several.value.message == expected


def test_all_commands_read_the_registry() -> None:
    single = options_named("--checkpoint")
    assert set(single) == {"predict", "measure", "profile", "train"}
    assert all(isinstance(option.type, Checkpoint) for option in single.values())
    several = options_named("--checkpoints")
    assert set(several) == {"recommend", "grid"}
    assert all(isinstance(option.type, Checkpoints) for option in several.values())
