"""A training that is killed while it writes is resumed to the same end, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STUDY = Path(__file__).parents[2] / "studies" / "kill_resume"
EVERY = 13
"""Of 65 operations on files, each thirteenth is tested here; the study tests all of them."""


@pytest.mark.slow
def test_a_training_survives_a_kill_at_any_operation_on_its_files(tmp_path: Path) -> None:
    """In a process of its own: forks of a process that has run a backward cannot train."""
    done = subprocess.run(
        [sys.executable, str(STUDY / "crash_points.py"), str(tmp_path), "--every", str(EVERY)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) >= 5
    for row in rows:
        assert row["killed"] and row["resumed"] and row["same"], row
        assert row["leftovers"] == [], row
    # a kill in the first epoch leaves no checkpoint, a later one does
    assert {row["kept"] for row in rows} >= {None, "checkpoint-4"}
