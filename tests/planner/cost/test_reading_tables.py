"""Tables of readings in the store: nothing is lost between processes, and nothing written twice."""

from __future__ import annotations

import fcntl
import os
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from planner.cost.budget import (
    AllocatorOverhead,
    AllocatorReading,
    OverheadProfile,
    StoredReadings,
)
from planner.cost.reading_tables import ReadingTables
from profiler import store as store_module
from profiler.store import FileVersion, Store

KEY = ("reading", "a family")


def table_of(folder: Path) -> ReadingTables[str, AllocatorReading]:
    return ReadingTables[str, AllocatorReading](Store(folder), StoredReadings)


def reading(number: int) -> AllocatorReading:
    return AllocatorReading(
        live_bytes=number, allocated_bytes=number + 1, reserved_bytes=number + 2
    )


def names(folder: Path) -> set[str]:
    stored = Store(folder).find(StoredReadings, KEY)
    return set() if stored is None else set(stored.readings())


def test_forked_processes_lose_no_readings_of_each_other(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    table.add(KEY, "of the parent", reading(0))

    def add_chunks(worker: int) -> None:
        for chunk in range(10):
            with table.written_together():
                for number in range(5):
                    table.add(KEY, f"{worker} {chunk} {number}", reading(number))

    fork = get_context("fork")
    workers = [fork.Process(target=add_chunks, args=(worker,)) for worker in range(4)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(60)
    assert [process.exitcode for process in workers] == [0] * 4
    assert len(names(tmp_path)) == 1 + 4 * 10 * 5
    assert table.find(KEY, "3 9 4") == reading(4), "the parent reads those of its children"


def test_a_batch_is_written_once_and_at_its_end(tmp_path: Path) -> None:
    store, table = Store(tmp_path), table_of(tmp_path)
    versions = set[FileVersion | None]()
    with table.written_together():
        for number in range(3):
            with table.written_together():
                table.add(KEY, str(number), reading(number))
            versions.add(store.version(KEY))
            assert table.find(KEY, str(number)) == reading(number)
    assert versions == {None}
    assert names(tmp_path) == {"0", "1", "2"}
    table.add(KEY, "3", reading(3))
    assert names(tmp_path) == {"0", "1", "2", "3"}


def test_an_interrupted_batch_is_written(tmp_path: Path) -> None:
    table = table_of(tmp_path)
    with pytest.raises(KeyboardInterrupt), table.written_together():
        table.add(KEY, "a", reading(1))
        raise KeyboardInterrupt
    assert names(tmp_path) == {"a"}


def test_a_reading_of_another_process_is_found_after_it_is_written(tmp_path: Path) -> None:
    first, second = table_of(tmp_path), table_of(tmp_path)
    assert second.find(KEY, "a") is None
    first.add(KEY, "a", reading(1))
    assert second.find(KEY, "a") == reading(1)
    second.add(KEY, "b", reading(2))
    assert first.find(KEY, "b") == reading(2)
    assert names(tmp_path) == {"a", "b"}


def test_overheads_of_two_processes_are_both_kept(tmp_path: Path) -> None:
    tables = [
        ReadingTables[int, AllocatorOverhead](Store(tmp_path), OverheadProfile) for _ in range(2)
    ]
    overhead = AllocatorOverhead(allocated=1.25, unused_bytes=3)
    for table in tables:
        assert table.find(KEY, 1) is None
    for micro_batch, table in enumerate(tables):
        table.add(KEY, micro_batch, overhead)
    stored = Store(tmp_path).find(OverheadProfile, KEY)
    assert stored is not None
    assert stored.readings() == {0: overhead, 1: overhead}


def test_a_damaged_file_costs_only_the_readings_that_this_process_does_not_know(
    tmp_path: Path,
) -> None:
    table_of(tmp_path).add(KEY, "of another", reading(0))
    table = table_of(tmp_path)
    table.add(KEY, "a", reading(1))
    (file,) = tmp_path.glob("*.npz")
    file.write_bytes(b"damaged")
    table.add(KEY, "b", reading(2))
    assert names(tmp_path) == {"of another", "a", "b"}


def test_a_store_that_keeps_nothing_still_has_the_readings_of_this_process() -> None:
    table = ReadingTables[str, AllocatorReading](Store.in_memory(), StoredReadings)
    table.add(KEY, "a", reading(1))
    assert table.find(KEY, "a") == reading(1)
    assert table.find(KEY, "b") is None


def test_a_lock_that_is_not_freed_delays_and_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "LOCK_SECONDS", 0.2)
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        began = time.monotonic()
        table_of(tmp_path).add(KEY, "a", reading(1))
        assert time.monotonic() - began >= 0.2
    finally:
        os.close(handle)
    assert names(tmp_path) == {"a"}
