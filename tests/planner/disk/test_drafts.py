"""Files and folders are whole or not there, and what killed processes left is found and removed."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planner.disk.drafts import draft_folder, remove_draft_files, remove_drafts, write_file
from planner.disk.file_lock import FileLock
from planner.disk.free_space import check_folder
from planner.disk.names import safe_file_name
from profiler.errors import InputError

ROOT = Path(__file__).parents[3]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_and_no_draft_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_file(path, b"old")
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o644
    assert names(tmp_path / "new") == ["file"]


def test_an_existing_file_is_kept_on_request(tmp_path: Path) -> None:
    write_file(tmp_path / "file", b"old", keep_existing=True)
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "file", b"new", keep_existing=True)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]
    with pytest.raises(InputError, match="cannot write"):
        write_file(tmp_path / "file" / "below", b"new", keep_existing=True)


def test_a_folder_is_replaced_as_a_whole_and_kept_after_an_error(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with draft_folder(tmp_path / "model") as draft:
            (draft / content).write_text(content)
    assert names(tmp_path / "model") == ["second"]
    with pytest.raises(KeyboardInterrupt), draft_folder(tmp_path / "model") as draft:
        (draft / "third").write_text("")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["second"]


def test_an_interrupted_replacement_is_undone(tmp_path: Path) -> None:
    """The process is killed between the two renames of a replacement."""
    for name in (".budgetplan-draft-old-model", ".budgetplan-draft-model"):
        (tmp_path / name).mkdir()
    (tmp_path / ".budgetplan-draft-old-model" / "weights").write_text("whole")
    remove_drafts(tmp_path)
    assert names(tmp_path) == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "whole"


def test_a_link_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("mine")
    (tmp_path / "model").symlink_to("elsewhere")
    with draft_folder(tmp_path / "model") as draft:
        (draft / "weights").write_text("")
    assert names(tmp_path / "model") == ["weights"]
    assert names(tmp_path / "elsewhere") == ["mine"]


def test_a_draft_that_was_removed_before_its_lock_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may take a draft for a killed one's, between its creation and its lock."""
    removed: list[str] = []
    lock = fcntl.flock

    def late_lock(handle: int, operation: int) -> None:
        if not removed:
            removed.extend(names(tmp_path))
            remove_draft_files(tmp_path)
        lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", late_lock)
    write_file(tmp_path / "plan.json", b"content")
    assert len(removed) == 1
    assert names(tmp_path) == ["plan.json"]
    assert (tmp_path / "plan.json").read_bytes() == b"content"


def test_only_drafts_of_ended_processes_are_removed(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from planner.disk import drafts\n"
        "with drafts._draft_file(Path(sys.argv[1]) / 'plan.json'):\n"
        "    print('there', flush=True)\n"
        "    time.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        (tmp_path / ".mine.swp").write_text("")
        remove_draft_files(tmp_path)
        assert len(names(tmp_path)) == 2
        child.kill()
        child.wait()
        remove_draft_files(tmp_path)
    assert names(tmp_path) == [".mine.swp"]


def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from planner.disk.file_lock import FileLock\n"
        "assert FileLock(Path(sys.argv[1])).acquire(wait=False)\n"
        "time.sleep(60)\n"
    )
    # The lock object is dropped, but its file stays open: nothing releases the lock but the end.
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT)
    lock = FileLock(path)
    deadline = time.monotonic() + 30
    while (not path.exists() or not path.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        assert not lock.acquire(wait=False)
        assert lock.holder() == f"process {child.pid}"
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert lock.acquire(wait=True)
    assert lock.holder() == f"process {os.getpid()}"
    other = FileLock(path)
    assert not other.acquire(wait=False)
    lock.release(remove=True)
    assert not path.exists()
    assert other.acquire(wait=False)
    other.release()


def test_a_lock_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "lock").symlink_to("mine")
    with pytest.raises(OSError):
        FileLock(tmp_path / "lock").acquire(wait=False)
    assert (tmp_path / "mine").read_text() == "mine"


@given(st.text())
def test_a_name_stays_in_its_folder(text: str) -> None:
    name = safe_file_name(text, otherwise="plan")
    assert 0 < len(name.encode()) <= 180
    assert not set(name) & set("/\\\0\n\x1b")
    assert name not in {".", ".."}
    assert name[0] not in ".-~"
    assert safe_file_name(name, otherwise="plan") == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("..", "plan"),
        ("", "plan"),
        ("/etc/passwd", "_etc_passwd"),
        ("vit_s-lora r8", "vit_s-lora r8"),
        ("a\x1b[2Jb", "a_[2Jb"),
        ("\udcff", "_"),
        ("x" * 500, "x" * 180),
        ("ä" * 500, "ä" * 90),
    ],
)
def test_names(text: str, name: str) -> None:
    assert safe_file_name(text, otherwise="plan") == name


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting is not permitted")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_line_and_leaves_nothing(full_disk: Path) -> None:
    with draft_folder(full_disk / "model") as draft:
        torch.save({"a": torch.zeros(8)}, draft / "state.pt")
    with (
        pytest.raises(InputError, match="full disk; free some space"),
        draft_folder(full_disk / "model", remedy="free some space") as draft,
    ):
        torch.save({"a": torch.zeros(1 << 19)}, draft / "state.pt")
    with pytest.raises(InputError, match="No space left on device"):
        write_file(full_disk / "file", bytes(1 << 21))
    with pytest.raises(InputError, match="No space left on device"):
        check_folder(full_disk, needed_bytes=1 << 21)
    check_folder(full_disk, needed_bytes=1 << 16)
    assert names(full_disk) == ["model"]
    assert torch.load(full_disk / "model" / "state.pt")["a"].shape == (8,)


def test_more_than_the_free_space_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="free space, but only"):
        check_folder(tmp_path / "new", needed_bytes=1 << 63)
    assert names(tmp_path) == []
