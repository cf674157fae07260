"""The time in which threads wait for a processor, as Linux counts it."""

from __future__ import annotations

from pathlib import Path

import pytest

from profiler.timing import processor_wait
from profiler.timing.processor_wait import wait_share, waited_seconds


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


def test_this_process_has_a_count_or_none() -> None:
    found = waited_seconds()
    assert found is None or found >= 0
