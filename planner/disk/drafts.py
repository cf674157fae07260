"""Atomic writes of files and folders: a killed process leaves the old content or the new one.

Each is written as a draft beside its place, flushed to the disk and renamed. A draft's name
contains ``budgetplan-draft``. The process that writes a draft file holds a lock on it, which the
kernel releases when the process ends: a draft file without a lock is left from a killed process.

    .NAME.RANDOM.budgetplan-draft   draft of a file
    .budgetplan-draft-NAME          draft of a folder
    .budgetplan-draft-old-NAME      the old folder, while the draft replaces it
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from planner.disk.file_lock import is_open_file
from profiler.errors import InputError

_DRAFT_SUFFIX = ".budgetplan-draft"
_DRAFT_PREFIX = ".budgetplan-draft-"
_OLD_PREFIX = ".budgetplan-draft-old-"


def write_file(path: Path, content: bytes, *, keep_existing: bool = False) -> None:
    """Write a file atomically: a reader finds the old content or the new one.

    Args:
        path: the file.
        content: its content.
        keep_existing: whether an existing file is kept, and an error is raised.

    Raises:
        FileExistsError: there is a file already, and ``keep_existing`` is true.
        InputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        with _draft_file(path) as (handle, draft):
            _write_all(handle, content)
            os.fsync(handle)
            os.fchmod(handle, 0o644)  # mkstemp's 0600 would keep the group out
            if keep_existing:
                _rename_to_new(draft, path)
            else:
                os.replace(draft, path)
        _sync_folder(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise cannot_write(path, error) from error


def write_under_free_name(path: Path, content: bytes, *, is_same: Callable[[Path], bool]) -> Path:
    """Write a file without losing one of other content; return its path.

    If there is a file already, the content gets the next free name: ``NAME-2.json``,
    ``NAME-3.json``. If one of these files has the content already, nothing is written.

    Args:
        path: path of the file if that is free.
        content: its content.
        is_same: returns whether an existing file has this content.

    Raises:
        InputError: the file cannot be written.
    """
    numbered = re.compile(rf"{re.escape(path.stem)}(-[0-9]+)?{re.escape(path.suffix)}")
    there = [each for each in path.parent.glob("*") if numbered.fullmatch(each.name)]
    for place in sorted(there, key=lambda each: (len(each.name), each.name)):
        if is_same(place):
            return place
    for number in itertools.count(1):
        place = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            write_file(place, content, keep_existing=True)
        except FileExistsError:
            if not is_same(place):
                continue
        return place
    raise AssertionError("there are infinitely many numbers")


@contextmanager
def draft_folder(folder: Path, *, remedy: str = "") -> Iterator[Path]:
    """Yield a new folder that takes the place of ``folder`` when the block ends without an error.

    After an error the draft is removed, and the old folder is as it was.

    Args:
        folder: the folder to write or to replace.
        remedy: advice if it cannot be written, a clause for the message.

    Raises:
        InputError: the disk is full, or the folder cannot be written into.
    """
    draft = folder.with_name(_DRAFT_PREFIX + folder.name)
    try:
        _remove_any(draft)
        draft.mkdir(parents=True)
        yield draft
        for path in [*draft.rglob("*"), draft, folder.parent]:
            _sync(path)
        _swap(draft, folder)
    except BaseException as error:
        with contextlib.suppress(OSError):
            _remove_any(draft)
        if is_write_error(error):
            raise cannot_write(folder, error, remedy=remedy) from error
        raise


def discard_folder(folder: Path) -> None:
    """Remove a folder; a killed process leaves the whole folder or a draft, never a part."""
    draft = folder.with_name(_DRAFT_PREFIX + folder.name)
    _remove_any(draft)
    folder.rename(draft)
    _remove_any(draft)


def remove_drafts(folder: Path) -> None:
    """Remove the drafts that killed processes left in a folder.

    A folder whose replacement was interrupted is restored. Draft folders have no lock of their own,
    so the caller makes sure that no other process writes folders here.
    """
    for path in sorted(folder.glob(f"{_OLD_PREFIX}*")):
        target = path.with_name(path.name.removeprefix(_OLD_PREFIX))
        if target.exists():
            _remove_any(path)
        else:
            path.rename(target)
    for path in folder.glob(f"{_DRAFT_PREFIX}*"):
        _remove_any(path)
    remove_draft_files(folder)


def remove_draft_files(folder: Path) -> None:
    """Remove the draft files of processes that have ended; those of running processes stay."""
    for path in folder.glob(f".*{_DRAFT_SUFFIX}"):
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(handle)


def is_write_error(error: BaseException) -> bool:
    """Return whether an exception reports that a file could not be written."""
    if isinstance(error, OSError):
        return True
    # torch.save hides the system's error in a RuntimeError, and safetensors has a class of its own.
    text = str(error)
    return type(error).__name__ == "SafetensorError" or (
        isinstance(error, RuntimeError) and ("inline_container" in text or "StreamWriter" in text)
    )


def cannot_write(path: Path, error: BaseException, *, remedy: str = "") -> InputError:
    """Return the one-line error for a file or folder that cannot be written."""
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
    elif isinstance(error, RuntimeError):
        reason = "PyTorch's writer failed, as it does on a full disk"
    else:
        reason = str(error)
    shown = " ".join(reason.split())[:100] or type(error).__name__
    name = str(path) if len(str(path)) <= 120 else "..." + str(path)[-117:]
    return InputError(f"cannot write {name}: {shown}" + (f"; {remedy}" if remedy else ""))


@contextmanager
def _draft_file(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (open file, path) of a locked draft, which is removed unless it was renamed."""
    while True:
        handle, draft = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=_DRAFT_SUFFIX
        )
        fcntl.flock(handle, fcntl.LOCK_EX)
        if is_open_file(handle, Path(draft)):
            break
        os.close(handle)  # another process took the draft for one without an owner
    try:
        yield handle, draft
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        os.close(handle)


def _write_all(handle: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(handle, left) :]


def _rename_to_new(draft: str, path: Path) -> None:
    """Rename a draft unless the target exists; a hard link does both at once."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:  # no hard links on this file system
        if path.exists():
            raise FileExistsError(str(path)) from None
        os.replace(draft, path)


def _swap(draft: Path, folder: Path) -> None:
    """Put a draft in the place of a folder. ``remove_drafts`` completes an interrupted swap."""
    old = folder.with_name(_OLD_PREFIX + folder.name)
    _remove_any(old)
    if folder.exists() or folder.is_symlink():
        folder.rename(old)
    draft.rename(folder)
    _sync_folder(folder.parent)
    _remove_any(old)


def _remove_any(path: Path) -> None:
    """Remove a file, a link or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some network file systems cannot
        _sync(folder)
