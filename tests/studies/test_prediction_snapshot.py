"""Forty of the snapshot's answers are what they were, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest

STUDY_FOLDERS = ("prediction_snapshot",)
GROUPS = 4
"""The cases are split so that none of the tests comes near its time limit on a busy machine."""
CASES = 40
"""``.ci/nightly`` checks every answer."""


@pytest.fixture(scope="module")
def snapshot() -> Any:
    import run

    return run


@pytest.mark.slow
@pytest.mark.parametrize("group", range(GROUPS))
def test_answers_are_those_that_were_kept(
    snapshot: Any, group: int, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = snapshot.load(snapshot.KEPT)
    if kept["environment"] != snapshot.environment():
        pytest.skip(f"the answers were kept under {kept['environment']}")
    answers = kept["answers"]
    rows = answers[:: len(answers) // CASES][group::GROUPS]
    new = snapshot.answers([row["arguments"] for row in rows])
    moved = snapshot.report(rows, new)
    assert not moved, capsys.readouterr().out
