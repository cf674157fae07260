"""The constants of the product are those that the study took."""

from __future__ import annotations

import json
from pathlib import Path

from planner.training.short_runs import DEFAULTS

CONSTANTS = Path(__file__).parents[2] / "studies" / "probe" / "constants.json"


def test_the_constants_of_the_extrapolation_are_those_of_the_study() -> None:
    assert DEFAULTS.to_json() == json.loads(CONSTANTS.read_text("utf-8"))["taken"]
