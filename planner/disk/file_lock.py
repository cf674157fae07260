"""Exclusive locks between processes, released by the kernel when the process that holds one ends.

A lock is ``flock`` on a file, so there are no stale locks. For messages, the file contains the
process id and host of its last holder. The holder may delete the file. A process that waited for
the deleted file detects this once it has the lock, and opens the path again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from pathlib import Path

LOCK_SCHEMA = "budgetplan.lock/1"


class FileLock:
    """An exclusive lock on a file; ``release`` frees it even if a fork inherited the open file.

    Args:
        path: the file, created when it is locked first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def acquire(self, *, wait: bool) -> bool:
        """Take the lock.

        Args:
            wait: whether to wait for another process that holds it.

        Returns:
            Whether the lock was taken.

        Raises:
            OSError: the file cannot be opened or created, or is a symbolic link.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        while True:
            handle = os.open(self.path, flags, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                os.close(handle)
                return False
            except BaseException:
                os.close(handle)
                raise
            if is_open_file(handle, self.path):
                self._handle = handle
                self._write_holder()
                return True
            os.close(handle)

    def holder(self) -> str:
        """Return the process that took the lock last, as a phrase."""
        found = read_holder(self.path)
        if "pid" not in found:
            return "another process"
        elsewhere = "" if found.get("host") == socket.gethostname() else f" on {found.get('host')}"
        return f"process {found['pid']}{elsewhere}"

    def release(self, *, remove: bool = False) -> None:
        """Release the lock; do nothing if it is not held.

        Args:
            remove: whether to remove the file before.
        """
        if self._handle is None:
            return
        if remove:
            self.path.unlink(missing_ok=True)
        # Closing is not enough: a forked process may have inherited the open file.
        fcntl.flock(self._handle, fcntl.LOCK_UN)
        os.close(self._handle)
        self._handle = None

    def _write_holder(self) -> None:
        assert self._handle is not None
        data = {"schema": LOCK_SCHEMA, "pid": os.getpid(), "host": socket.gethostname()}
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            text = json.dumps(data).encode()
            os.pwrite(self._handle, text, 0)
            os.ftruncate(self._handle, len(text))


def read_holder(path: Path) -> dict[str, object]:
    """Return the content of a lock file; empty if it is no lock file of this program."""
    try:
        if path.is_symlink() or not path.is_file():
            return {}
        with path.open("rb") as file:
            data = json.loads(file.read(1000))
    except (OSError, ValueError):
        return {}
    if not isinstance(data, dict) or data.get("schema") != LOCK_SCHEMA:
        return {}
    host, pid = data.get("host"), data.get("pid")
    # The text goes into messages, and the file may come from a stranger.
    if isinstance(pid, int) and isinstance(host, str) and host.isprintable() and len(host) <= 100:
        return data
    return {"schema": LOCK_SCHEMA}


def is_open_file(handle: int, path: Path) -> bool:
    """Return whether a path still leads to an open file."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(handle), there)
