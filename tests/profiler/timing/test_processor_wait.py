"""The time in which threads wait for a processor, as Linux counts it."""

from __future__ import annotations

from pathlib import Path

import pytest

from profiler.timing import processor_wait
from profiler.timing.processor_wait import wait_share, waited_seconds

LEADER = Path("/proc/self/schedstat")
"""Counts of the first thread of this process."""


def test_the_waits_of_all_threads_are_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor_wait, "_TASKS", tmp_path)
    assert waited_seconds() is None  # no thread says anything
    for thread, text in (("1", "90 2500000000 7"), ("2", "80 500000000 3"), ("3", "broken")):
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "schedstat").write_text(text)
    (tmp_path / "4").mkdir()  # a thread that has just ended
    assert waited_seconds() == 3.0
    monkeypatch.setattr(processor_wait, "_TASKS", tmp_path / "missing")
    assert waited_seconds() is None


def test_the_share_of_a_run() -> None:
    assert wait_share(1.0, 1.5, seconds=2.0) == 0.25
    assert wait_share(1.5, 1.0, seconds=2.0) == 0.0  # a thread ended meanwhile
    assert wait_share(None, 1.0, seconds=2.0) == wait_share(1.0, None, seconds=2.0) == 0.0
    assert wait_share(1.0, 1.5, seconds=0.0) == 0.0


@pytest.mark.skipif(not LEADER.exists(), reason="this kernel counts no waits")
def test_the_waits_of_this_process_are_in_seconds_and_of_all_its_threads() -> None:
    of_leader = int(LEADER.read_text().split()[1]) / 1e9
    up_seconds = float(Path("/proc/uptime").read_text().split()[0])
    found = waited_seconds()
    assert found is not None
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert of_leader <= found <= threads * up_seconds
