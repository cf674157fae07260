"""The mechanical part of the language rules; what a sentence means is for readers to judge."""

from __future__ import annotations

import re

import pytest
from language import FAMILIES, MOST_PER_1000_WORDS, count, sources

HELP = re.compile(r"help=\(?\s*f?\"([^\"]+)\"")


def test_idioms_are_rarer_than_in_optunas_docstrings() -> None:
    words, hits, places = count(sources())
    for family in FAMILIES:
        rate = 1000 * hits[family] / words
        found = [place for place in places if f": {family}: " in place]
        assert rate <= MOST_PER_1000_WORDS[family], "\n".join(found)


@pytest.mark.parametrize("kind", ["metaphor", "fragment"])
def test_there_is_no_private_metaphor_and_no_fragment(kind: str) -> None:
    _, _, places = count(sources())
    assert [place for place in places if f": {kind}: " in place] == []


def test_a_help_text_is_a_full_phrase() -> None:
    texts = [
        text
        for path in sources(("planner/cli",))
        for text in HELP.findall(path.read_text(encoding="utf-8"))
    ]
    assert texts
    assert [t for t in texts if re.match(r"(Of|For|From|In|On|Which|Likewise)\b", t)] == []
