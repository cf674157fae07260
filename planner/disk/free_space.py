"""Checks that a folder can be written into and has room, before a long computation needs it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from planner.disk.drafts import cannot_write
from profiler.errors import InputError
from profiler.units import MIB, format_bytes

LARGEST_TRIAL_BYTES = 4 * MIB
"""Largest test file. Writing one detects disk quotas, which the free space does not show."""


def check_folder(path: Path, *, needed_bytes: int = MIB) -> None:
    """Check that files can be written into a folder, which need not exist.

    Args:
        path: the folder.
        needed_bytes: bytes that will be written at least.

    Raises:
        InputError: the folder cannot be created or written into, or has too little free space.
    """
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise InputError(f"cannot write into {path}: {there} is a file; give another folder")
    try:
        # An unnamed file: nothing is left if the process is killed.
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(max(1, min(needed_bytes, LARGEST_TRIAL_BYTES))))
            file.flush()
    except OSError as error:
        raise cannot_write(path, error, remedy="free some space or give another folder") from error
    free_bytes = shutil.disk_usage(there).free
    if free_bytes < needed_bytes:
        raise InputError(
            f"{path} needs {format_bytes(needed_bytes)} of free space, but only "
            f"{format_bytes(free_bytes)} are free; free some space or give another folder"
        )
