"""What the study shows is what its raw rows say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parents[2] / "studies" / "placement_curves"
# importing inductor warns of its own code under PyTorch 2.10
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
STUDY_FOLDERS = ("placement_curves",)
ROUNDS = 11


def test_the_committed_tables_are_those_of_the_committed_rows() -> None:
    import curves
    import tables

    written = "\n".join(tables.lines(curves.evaluated(), curves.measured()))
    assert (HERE / "tables.md").read_text() == written


def test_a_difference_is_level_once_three_rounds_of_eleven_disagree() -> None:
    import tables

    other = {"added_shares": [0.2] * ROUNDS}
    lower = {"added_shares": [0.3] * 2 + [0.1] * 9}
    level = {"added_shares": [0.3] * 3 + [0.1] * 8}
    assert tables._verdict(lower, other) == "lower"
    assert tables._verdict(level, other) == "level"
    assert tables._verdict(other, lower) == "higher"


def test_a_point_is_below_ours_only_if_ours_in_its_peak_is_slower() -> None:
    import tables

    def row(policy: str, peak: int, added: float) -> dict[str, Any]:
        share = {"peak_share": peak / 1_000_000, "added_share": added}
        return {"policy": policy, "setting": "", "peak_bytes": peak} | share

    ours = [row("optimal", 400_000, 0.10), row("optimal", 500_000, 0.05)]
    beaten, reached = row("chen", 450_000, 0.10), row("static", 500_000, 0.05)
    below, beyond = row("every-k", 499_000, 0.09), row("first-k", 300_000, 0.5)
    everything = row("first-k", 1_000_000, 0.0)
    judged = [*ours, beaten, reached, below, below, beyond, everything]
    assert [*tables._quicker(judged)] == [(below, 0.10), (beyond, float("inf"))]
