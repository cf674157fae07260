"""Files that a prediction writes for other programs: plots, memory snapshots and traces.

The user names the file, so it may be one that this program did not write. Each file has a mark near
its beginning, and only a file with the mark of its own kind is replaced. A file is replaced at
once: a killed process leaves the old content or the new one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Literal

from profiler.errors import InputError, UsageError
from profiler.store import replace_file

ExportKind = Literal["plot", "snapshot", "trace"]

MARK_WITHIN_BYTES = 1024
"""Number of bytes at the beginning of a file that hold the mark."""


def export_mark(kind: ExportKind) -> str:
    """Return the text by which a later file of a kind may replace an earlier one."""
    return f"budgetplan {kind}"


def check_export(path: Path, kind: ExportKind) -> None:
    """Refuse a file that cannot be written to; called before the step is replayed.

    Raises:
        InputError: there is no such folder, or a file that is none of this kind and this program.
    """
    if not path.parent.is_dir():
        raise InputError(f"the {kind} {path} cannot be written: there is no folder {path.parent}")
    if not path.exists():
        return
    try:
        is_ours = path.is_file() and _has_mark(path, kind)
    except OSError as error:
        raise _cannot_write(path, kind, error) from error
    if not is_ours:
        raise InputError(f"{path} exists and is no {kind} of budgetplan; give another file")


def check_replay_exports(*, snapshot: Path | None, trace: Path | None) -> None:
    """Refuse files that a replay cannot be written to; None for no file.

    Raises:
        UsageError: both are the same file.
        InputError: see ``check_export``.
    """
    if snapshot is not None and trace is not None and snapshot.resolve() == trace.resolve():
        raise UsageError(f"the snapshot and the trace are both {snapshot}; give two files")
    if snapshot is not None:
        check_export(snapshot, "snapshot")
    if trace is not None:
        check_export(trace, "trace")


def write_export(path: Path, content: bytes, kind: ExportKind) -> None:
    """Write a file, or replace one of the same kind.

    Args:
        path: the file.
        content: its content, with ``export_mark`` near the beginning.
        kind: kind of the file.

    Raises:
        InputError: the file cannot be written, or there is another file.
    """
    assert export_mark(kind).encode() in content[:MARK_WITHIN_BYTES], f"a {kind} without a mark"
    check_export(path, kind)

    def write(file: IO[bytes]) -> None:
        file.write(content)
        os.fchmod(file.fileno(), 0o644)  # a temporary file's 0600 would keep the group out

    try:
        replace_file(path, write)
    except OSError as error:
        raise _cannot_write(path, kind, error) from error


def _has_mark(path: Path, kind: ExportKind) -> bool:
    with path.open("rb") as file:
        return export_mark(kind).encode() in file.read(MARK_WITHIN_BYTES)


def _cannot_write(path: Path, kind: ExportKind, error: OSError) -> InputError:
    return InputError(f"the {kind} {path} cannot be written: {error.strerror or error}")
