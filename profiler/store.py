"""Profiles stored on disk between runs, under a hash of everything they depend on.

A file is a NumPy ``.npz`` of plain arrays (never pickled objects). Its name is the SHA-256 of the
key, the versions of PyTorch, timm, peft, bitsandbytes and budgetplan, TIMM_FUSED_ATTN if it is set,
and the schema. It contains a SHA-256 of its arrays. The folder is ``$BUDGETPLAN_CACHE``, else
``~/.cache/budgetplan/profiles``.

The store never fails a command. A file that cannot be read, or whose arrays do not have the stored
SHA-256, is deleted and its profile is made again. If a file cannot be written, nothing stays.

Profiles that several processes add to are changed under a lock (``Store.change``), which is
``flock`` on the folder. Limitation: where the file system has no such lock, of two changes at the
same time one is lost, and its additions are made again.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Self, TypeAlias, TypeVar

import numpy as np

STORE_SCHEMA = 24
"""Version of the profiles' meaning. Increase it with every change of the meaning."""

LARGEST_PROFILE_BYTES = 1 << 30
"""Bytes of a profile's arrays. The largest, of a model of 500 units, has a few megabytes."""

LOCK_SECONDS = 2.0
"""Time after which a change is made without the lock. Its holder writes for some milliseconds,
unless it was stopped."""

FileVersion: TypeAlias = tuple[int, int, int]
"""Inode, time of the last change in nanoseconds, and size of a file."""

_DIGEST = "sha256"
"""Array of a file that holds the SHA-256 of all others; no field of a profile has this name."""

_Profile = TypeVar("_Profile")


def cache_folder(part: str) -> Path:
    """Return the user's folder of cached features, compiled libraries or other parts.

    Args:
        part: name of the folder.

    Raises:
        OSError: the user has no home folder, and BUDGETPLAN_CACHE is not set.
    """
    given = os.environ.get("BUDGETPLAN_CACHE")
    try:
        return (Path(given) if given else Path.home() / ".cache" / "budgetplan") / part
    except RuntimeError as error:
        raise OSError(f"{error}; set BUDGETPLAN_CACHE to a folder") from error


class Store:
    """A folder of profiles.

    Args:
        folder: folder of the files; None for a store that keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @classmethod
    def in_memory(cls) -> Self:
        """Return a store that keeps nothing."""
        return cls(None)

    @classmethod
    def default(cls) -> Self:
        """Return the store of the user's cache folder."""
        given = os.environ.get("BUDGETPLAN_CACHE")
        try:
            return cls(Path(given) if given else Path.home() / ".cache" / "budgetplan" / "profiles")
        except RuntimeError:  # a user without a home folder
            return cls(None)

    def fetch(
        self, kind: type[_Profile], key: tuple[object, ...], make: Callable[[], _Profile]
    ) -> _Profile:
        """Return the profile stored under a key, or make and store it.

        Args:
            kind: type of the profile, a dataclass of arrays and of such dataclasses.
            key: JSON data that identifies the profiled workload and options.
            make: function that makes the profile if it is not stored.
        """
        found = self.find(kind, key)
        if found is not None:
            return found
        made, path = make(), self._path(key)
        if path is not None:
            _write(path, _flatten(made))
        return made

    def find(self, kind: type[_Profile], key: tuple[object, ...]) -> _Profile | None:
        """Return the profile stored under a key; None if there is none.

        Args:
            kind: see ``fetch``.
            key: see ``fetch``.
        """
        path = self._path(key)
        return None if path is None else _read(path, kind)

    def keep(self, key: tuple[object, ...], profile: Any) -> None:
        """Store a profile under a key, in place of the one that is there.

        Args:
            key: see ``fetch``.
            profile: a dataclass of arrays and of such dataclasses.
        """
        path = self._path(key)
        if path is not None:
            _write(path, _flatten(profile), replace=True)

    def change(
        self,
        kind: type[_Profile],
        key: tuple[object, ...],
        make: Callable[[_Profile | None], _Profile],
        *,
        known: FileVersion | None = None,
    ) -> FileVersion | None:
        """Store a profile that is made of the one that is there, while no other process does.

        Args:
            kind: see ``fetch``.
            key: see ``fetch``.
            make: function that makes the new profile. It gets the stored one; None if there is
                none, or if it is ``known``. A store that keeps nothing does not call it.
            known: version of the file that the caller has read or written; that is not read again.

        Returns:
            The version of the new file; None if there is none.
        """
        path = self._path(key)
        if path is None:
            return None
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent):
            is_known = known is not None and _file_version(path) == known
            stored = None if is_known else _read(path, kind)
            _write(path, _flatten(make(stored)), replace=True)
            return _file_version(path)

    def version(self, key: tuple[object, ...]) -> FileVersion | None:
        """Return a value that is another one after each change of a profile; None without one."""
        path = self._path(key)
        return None if path is None else _file_version(path)

    def holds(self, key: tuple[object, ...]) -> bool:
        """Return whether a profile is stored under a key."""
        path = self._path(key)
        return path is not None and _is_file(path)

    def _path(self, key: tuple[object, ...]) -> Path | None:
        if self.folder is None:
            return None
        text = json.dumps([STORE_SCHEMA, _versions() | _timm_settings(), key], sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.npz"


@cache
def _versions() -> dict[str, str]:
    found = {}
    for package in ("torch", "timm", "peft", "bitsandbytes", "budgetplan"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _timm_settings() -> dict[str, str]:
    """Return the environment variables that change the operations of timm's models."""
    return {name: os.environ[name] for name in ("TIMM_FUSED_ATTN",) if name in os.environ}


def _flatten(record: Any, prefix: str = "") -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for spec in fields(record):
        value = getattr(record, spec.name)
        if is_dataclass(value):
            arrays |= _flatten(value, f"{prefix}{spec.name}.")
        else:
            arrays[f"{prefix}{spec.name}"] = value
    return arrays


def _unflatten(kind: type[_Profile], arrays: dict[str, Any], prefix: str = "") -> _Profile:
    from typing import get_type_hints

    values = {}
    for name, hint in get_type_hints(kind).items():
        nested = is_dataclass(hint)
        values[name] = (
            _unflatten(hint, arrays, f"{prefix}{name}.") if nested else arrays[f"{prefix}{name}"]
        )
    return kind(**values)


def _file_version(path: Path) -> FileVersion | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; go on without it if it cannot be had."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        end = time.monotonic() + LOCK_SECONDS
        while time.monotonic() < end:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.002)
            except OSError:  # a file system without locks of folders
                break
        yield
    finally:
        # a child that was forked meanwhile has the same lock, which closing would not release
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder that may not be searched, a path that is too long
        return False


def _read(path: Path, kind: type[_Profile]) -> _Profile | None:
    """Return the profile in a file; delete the file and return None if it is damaged."""
    if not _is_file(path):
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if sum(entry.file_size for entry in archive.zip.infolist()) > LARGEST_PROFILE_BYTES:
                raise ValueError("the file unpacks to more than any profile")
            arrays = dict(archive)
        if arrays.pop(_DIGEST).item() != _digest(arrays):
            raise ValueError("the arrays have changed")
        return _unflatten(kind, arrays)
    except Exception:  # zip, zlib, NumPy's headers and Python's tokenizer raise many classes
        _delete(path)
        return None


def _digest(arrays: dict[str, Any]) -> str:
    """Return the SHA-256 of names, types, shapes and content."""
    state = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        state.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        state.update(array.tobytes())
    return state.hexdigest()


def _write(path: Path, arrays: dict[str, Any], *, replace: bool = False) -> None:
    """Write a file atomically; leave nothing if it cannot be written.

    Args:
        path: the file.
        arrays: its arrays.
        replace: whether the content may be other than that of a file that is there.
    """
    content: dict[str, Any] = {**arrays, _DIGEST: np.array(_digest(arrays))}
    with suppress(OSError):  # no right to write, a full disk, a folder in the file's place
        path.parent.mkdir(parents=True, exist_ok=True)
        if replace or not _write_unnamed(path, content):
            packed = _packed(content)
            replace_file(path, lambda file: file.write(packed))


def _write_unnamed(path: Path, content: dict[str, Any]) -> bool:
    """Write a file that gets its name when it is complete; a killed process leaves nothing.

    A file of this name that another process has written meanwhile stays: its content is the same.

    Returns:
        Whether the file was written. It is not where the system has no unnamed files (open(2),
        O_TMPFILE, is of Linux alone), or where it cannot name them (no ``/proc``).
    """
    unnamed: int | None = getattr(os, "O_TMPFILE", None)
    if unnamed is None:
        return False
    try:
        handle = os.open(path.parent, unnamed | os.O_RDWR | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
            return False
        raise
    with os.fdopen(handle, "w+b") as file:
        file.write(_packed(content))
        file.flush()
        try:
            # Python follows the link in /proc only if it is given a folder; it uses none here
            os.link(f"/proc/self/fd/{handle}", path, src_dir_fd=handle, follow_symlinks=True)
        except FileExistsError:
            return True
        except OSError:
            return False
    return True


def _packed(content: dict[str, Any]) -> bytes:
    """Return the bytes of a file.

    Into a file on a full disk, numpy 1.26 leaves its archive open, which warns when it is deleted.
    """
    packed = BytesIO()
    np.savez(packed, **content)
    return packed.getvalue()


def replace_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under another name, then rename it, so that no reader finds a part of it.

    Args:
        path: the file, in an existing folder.
        write: writes the content.

    Raises:
        OSError: the file cannot be written; the earlier one stays.
    """
    draft = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            draft = Path(file.name)
            write(file)
        draft.replace(path)
        draft = None
    finally:
        if draft is not None:
            _delete(draft)


def _delete(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
