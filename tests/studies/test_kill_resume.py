"""Commands that are killed in a few moments: started again, they end as they should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STUDY = Path(__file__).parents[2] / "studies" / "kill_resume"

EVERY = 41
"""Every so many operations on files a training is killed here; the study tries each of them."""

PARTS = {"recommend, sampler": 1, "train": 2, "features": 1}
"""Kills of each part at this share of the study; real runs take too long here. ``.ci/nightly`` runs
all of it."""
SHARE = 0.034


def run(script: str, *arguments: str) -> str:
    """Run a script of the study: forks of a process that has run a backward cannot train."""
    done = subprocess.run(
        [sys.executable, str(STUDY / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_training_survives_a_kill_at_any_operation_on_its_files(tmp_path: Path) -> None:
    text = run("crash_points.py", str(tmp_path), "--every", str(EVERY))
    rows = [json.loads(line) for line in text.splitlines()]
    assert len(rows) >= 3
    for row in rows:
        assert row["killed"] and row["resumed"] and row["same"], row
        assert row["leftovers"] == [], row
    # a kill in the first epoch leaves no checkpoint, a later one does
    assert {row["kept"] for row in rows} >= {None, "checkpoint-4"}


@pytest.mark.slow
def test_killed_commands_lose_nothing_and_leave_nothing() -> None:
    lines = run("run.py", *PARTS, "--check", "--share", str(SHARE)).splitlines()
    rows = [json.loads(line[4:]) for line in lines]
    assert {part: sum(row["part"] == part for row in rows) for part in PARTS} == PARTS
    assert all(line.startswith("ok ") for line in lines)
    assert any(row["code"] for row in rows)
