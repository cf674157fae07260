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


def is_compared(snapshot: Any, row: dict[str, Any]) -> bool:
    """Return False for internal errors, and where the whole answer may differ."""
    return row["exit_code"] != 1 and not set(snapshot.CHANGED_CASES) & set(row["arguments"])


@pytest.mark.slow
@pytest.mark.parametrize("group", range(GROUPS))
def test_answers_are_those_that_were_kept(
    snapshot: Any, group: int, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = snapshot.load(snapshot.KEPT)
    if kept["environment"] != snapshot.environment():
        pytest.skip(f"the answers were kept under {kept['environment']}")
    compared = [row for row in kept["answers"] if is_compared(snapshot, row)]
    rows = compared[:: len(compared) // CASES][group::GROUPS]
    new = snapshot.answers([row["arguments"] for row in rows])
    moved = snapshot.report(rows, new)
    assert not moved, capsys.readouterr().out
