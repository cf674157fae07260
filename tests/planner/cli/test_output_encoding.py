"""Standard output in an encoding that lacks characters of the answer (Textualize/rich#212)."""

from __future__ import annotations

import io
import sys

import pytest

from planner.cli.first_screen import usage_bar
from planner.cli.output import console, print_in_any_encoding


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", "#####..... caf\\xe9 \\udce9"),
        ("latin-1", "#####..... caf\u00e9 \\udce9"),
        ("utf-8", f"{usage_bar(0.48, 10)} caf\u00e9 \\udce9"),
    ],
)
def test_no_character_ends_a_command(
    encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    print_in_any_encoding()
    console().print(f"{usage_bar(0.48, 10)} caf\u00e9 \udce9")
    stream.flush()
    assert raw.getvalue().decode(encoding) == f"{shown}\n"
