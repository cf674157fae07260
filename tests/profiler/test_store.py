"""Profiles on disk: what comes back, what is made anew, what is never read."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from profiler import store as store_module
from profiler.arrays import Floats
from profiler.prediction.profile_records import Envelope
from profiler.store import Store

IGNORE_FORK = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


@dataclass(frozen=True, kw_only=True)
class Profile:
    sizes: Floats
    envelope: Envelope


def profile(value: float = 1.0) -> Profile:
    return Profile(
        sizes=np.array([value, 2.0]),
        envelope=Envelope(
            lines=np.arange(8.0).reshape(2, 4),
            reduction=np.array([-1, 0]),
            starts=np.array([0, 1]),
        ),
    )


class Maker:
    """Makes a profile and counts how often it had to."""

    def __init__(self, made: Any = None) -> None:
        self.made = profile() if made is None else made
        self.calls = 0

    def __call__(self) -> Any:
        self.calls += 1
        return self.made


def only_file(folder: Path) -> Path:
    (path,) = folder.glob("*.npz")
    return path


def test_the_second_fetch_makes_nothing(tmp_path: Path) -> None:
    make = Maker()
    first = Store(tmp_path).fetch(Profile, ("a", 1), make)
    again = Store(tmp_path).fetch(Profile, ("a", 1), make)
    assert make.calls == 1
    assert first is make.made
    np.testing.assert_array_equal(again.sizes, first.sizes)
    np.testing.assert_array_equal(again.envelope.lines, first.envelope.lines)
    np.testing.assert_array_equal(again.envelope.starts, first.envelope.starts)
    assert again.envelope.starts.dtype == first.envelope.starts.dtype


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(store_module, "STORE_SCHEMA", store_module.STORE_SCHEMA + 1),
        lambda patch: patch.setattr(store_module, "_versions", lambda: {"torch": "another"}),
        lambda patch: patch.setenv("TIMM_FUSED_ATTN", "0"),
    ],
    ids=["schema", "versions", "fused attention"],
)
def test_another_schema_or_version_is_another_profile(
    change: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Maker()
    Store(tmp_path).fetch(Profile, ("a",), make)
    change(monkeypatch)
    Store(tmp_path).fetch(Profile, ("a",), make)
    assert make.calls == 2
    assert len(list(tmp_path.glob("*.npz"))) == 2


def test_what_is_kept_replaces_what_was_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.find(Profile, ("a",)) is None
    for value in (3.0, 4.0):
        store.keep(("a",), profile(value))
        found = store.find(Profile, ("a",))
        assert found is not None
        assert found.sizes.tolist() == [value, 2.0]
    only_file(tmp_path).write_bytes(b"damaged")
    assert store.find(Profile, ("a",)) is None
    nowhere = Store.in_memory()
    nowhere.keep(("a",), profile())
    assert nowhere.find(Profile, ("a",)) is None


def test_another_key_is_another_profile(tmp_path: Path) -> None:
    make = Maker()
    for key in (("a", {"rank": 4}), ("a", {"rank": 8}), ("a", {"rank": None})):
        Store(tmp_path).fetch(Profile, key, make)
    assert make.calls == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not a zip file"),
        lambda path: path.write_bytes(path.read_bytes()[:200]),
        lambda path: np.savez(path, sizes=np.zeros(2)),  # a part is missing
        lambda path: path.write_bytes(path.read_bytes().replace(b"\x93NUMPY", b"\x93NUMPX")),
        lambda path: path.write_bytes(path.read_bytes().replace(b"'fortran", b"'\x00ortran")),
        lambda path: path.write_bytes(path.read_bytes().replace(b"(2, 4)", b"(9**9)")),
        lambda path: path.write_bytes(path.read_bytes().replace(b"<f8", b"<f4")),
        lambda path: path.write_bytes(path.read_bytes().replace(b"PK\x01\x02", b"PK\x01\x09")),
        lambda path: rewrite(path, sizes=np.array([9.0, 9.0])),
        lambda path: rewrite(path, sizes=np.array(["a", "b"])),
        lambda path: rewrite(path, extra=np.zeros(1)),
    ],
    ids=[
        "empty",
        "not an archive",
        "cut short",
        "incomplete",
        "another magic",
        "a header of bytes",
        "another shape",
        "another type",
        "another directory",
        "other values",
        "texts",
        "one more",
    ],
)
def test_a_damaged_file_is_made_anew(damage: Callable[[Path], None], tmp_path: Path) -> None:
    Store(tmp_path).fetch(Profile, ("a",), Maker())
    damage(only_file(tmp_path))
    make = Maker(profile(5.0))
    assert Store(tmp_path).fetch(Profile, ("a",), make).sizes[0] == 5.0
    assert make.calls == 1
    assert Store(tmp_path).fetch(Profile, ("a",), make).sizes[0] == 5.0
    assert make.calls == 1


def rewrite(path: Path, **changes: Any) -> None:
    """Write a whole archive in which some arrays are others."""
    with np.load(path) as arrays:
        content = dict(arrays)
    np.savez(path, **{**content, **changes})


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_any_flipped_bit_of_an_archive_is_a_miss_or_changes_nothing(
    method: int, tmp_path: Path
) -> None:
    """Compressed by hand, so that the decompressors see damaged streams as well."""
    Store(tmp_path).fetch(Profile, ("a",), Maker())
    path = only_file(tmp_path)
    with zipfile.ZipFile(path) as plain:
        content = {name: plain.read(name) for name in plain.namelist()}
    with zipfile.ZipFile(path, "w", compression=method) as packed:
        for name, data in content.items():
            packed.writestr(name, data)
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(bytes(damaged))
        found = Store(tmp_path).fetch(Profile, ("a",), Maker())
        np.testing.assert_array_equal(found.sizes, profile().sizes)
        np.testing.assert_array_equal(found.envelope.lines, profile().envelope.lines)
        found = Store(tmp_path).fetch(Profile, ("a",), Maker(None))
        np.testing.assert_array_equal(found.sizes, profile().sizes)


def test_a_file_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path: Path) -> None:
    Store(tmp_path).fetch(Profile, ("a",), Maker())
    path = only_file(tmp_path)
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\x01\x02")
    data[directory + 24 : directory + 28] = (2**31).to_bytes(4, "little")  # the size it claims
    path.write_bytes(bytes(data))
    make = Maker(profile(5.0))
    assert Store(tmp_path).fetch(Profile, ("a",), make).sizes[0] == 5.0


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        make = Maker()
        assert Store(tmp_path).fetch(Profile, ("a",), make) is make.made
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_place_of_a_file_is_no_reason_to_fail(tmp_path: Path) -> None:
    Store(tmp_path).fetch(Profile, ("a",), Maker())
    path = only_file(tmp_path)
    path.unlink()
    (path / "inside").mkdir(parents=True)
    make = Maker()
    assert Store(tmp_path).fetch(Profile, ("a",), make) is make.made
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("folder", ["/proc/nowhere", "/dev/null/below", "/tmp/" + "x" * 300])
def test_a_folder_that_cannot_be_made_is_no_reason_to_fail(folder: str) -> None:
    make = Maker()
    store = Store(Path(folder))
    assert store.fetch(Profile, ("a",), make) is make.made
    assert not store.holds(("a",))


class Trap:
    """Unpickling it leaves a trace."""

    touched: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Trap.touched,))


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    folder, Trap.touched = tmp_path / "store", tmp_path / "touched"
    Store(folder).fetch(Profile, ("a",), Maker())
    path = only_file(folder)
    with np.load(path) as arrays:
        stolen = dict(arrays)
    np.savez(path, **{**stolen, "sizes": np.array([Trap(), Trap()], dtype=object)})
    make = Maker(profile(7.0))
    assert Store(folder).fetch(Profile, ("a",), make).sizes[0] == 7.0
    assert make.calls == 1
    assert not Trap.touched.exists()


def test_without_a_folder_nothing_is_kept() -> None:
    make = Maker()
    for _ in range(2):
        Store.in_memory().fetch(Profile, ("a",), make)
    assert make.calls == 2


def test_a_folder_that_cannot_be_written_is_no_reason_to_fail(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("in the way")
    make = Maker()
    assert Store(occupied / "below").fetch(Profile, ("a",), make) is make.made


@IGNORE_FORK
def test_a_process_that_is_killed_while_it_writes_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(np, "savez", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        Store(tmp_path).fetch(Profile, ("a",), Maker())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_unnamed_files_gets_a_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        assert not store_module._write_unnamed(tmp_path / "a.npz", {})
    monkeypatch.setattr(store_module, "_write_unnamed", lambda *_: False)
    Store(tmp_path).fetch(Profile, ("a",), Maker())
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]
    make = Maker()
    found = Store(tmp_path).fetch(Profile, ("a",), make)
    np.testing.assert_array_equal(found.sizes, profile().sizes)
    assert make.calls == 0


@IGNORE_FORK
def cannot_link(*_: object, **__: object) -> None:
    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


@pytest.mark.parametrize("part", ["unnamed files", "folder of processes"])
def test_a_system_that_lacks_a_part_of_linux_keeps_profiles(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if part == "unnamed files":
        monkeypatch.delattr(os, "O_TMPFILE")
    else:
        monkeypatch.setattr(os, "link", cannot_link)
    Store(tmp_path).fetch(Profile, ("a",), Maker())
    make = Maker()
    Store(tmp_path).fetch(Profile, ("a",), make)
    assert make.calls == 0
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]


def test_processes_that_write_one_file_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                for number in range(20):
                    Store(tmp_path).fetch(Profile, (number,), Maker())
                code = 0
            os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * 4
    assert len(list(tmp_path.iterdir())) == 20
    make = Maker()
    for number in range(20):
        found = Store(tmp_path).fetch(Profile, (number,), make)
        np.testing.assert_array_equal(found.sizes, profile().sizes)
    assert make.calls == 0


def test_no_part_of_a_file_is_left_behind(tmp_path: Path) -> None:
    Store(tmp_path).fetch(Profile, ("a",), Maker())
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]


def test_the_default_folder_is_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUDGETPLAN_CACHE", str(tmp_path))
    assert Store.default().folder == tmp_path
    monkeypatch.delenv("BUDGETPLAN_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store.default().folder == tmp_path / ".cache" / "budgetplan" / "profiles"
