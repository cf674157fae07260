"""Warnings point at the line of the user's program."""

from __future__ import annotations

from typing import Any

import pytest

from profiler.errors import BudgetplanWarning, warn_caller

PROGRAM = """
from contextlib import contextmanager
from profiler.errors import warn_caller

@contextmanager
def limited():
    warn_caller("the limit was not set")
    yield

def run():
    with limited():
        pass
"""


def test_a_warning_points_at_the_call_from_outside() -> None:
    module: dict[str, Any] = {"__name__": "planner.of_this_test"}
    exec(PROGRAM, module)
    with pytest.warns(BudgetplanWarning) as warned:
        module["run"]()  # contextlib stands between the two functions
    assert (warned[0].filename, warned[0].lineno) == (__file__, _line_of('module["run"]()'))


def test_without_a_function_of_this_program_it_points_at_the_caller() -> None:
    with pytest.warns(BudgetplanWarning) as warned:
        warn_caller("called directly")
    assert (warned[0].filename, warned[0].lineno) == (__file__, _line_of('warn_caller("called'))


def _line_of(text: str) -> int:
    with open(__file__, encoding="utf-8") as lines:
        return next(number for number, line in enumerate(lines, 1) if line.strip().startswith(text))
