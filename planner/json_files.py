"""JSON files: written atomically; read with a size limit, without control characters and NaN."""

from __future__ import annotations

import json
import os
import tempfile
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from profiler.errors import InputError
from profiler.units import MIB, format_bytes

MAX_FILE_BYTES = 16 * MIB
"""Largest file that is read. A plan of a 500-unit model with raw trials is below 1 MiB."""


def write_json(data: Mapping[str, Any], path: Path) -> None:
    """Write JSON data to a temporary file beside the target, then rename it.

    Raises:
        InputError: the file cannot be written.
    """
    text = json.dumps(dict(data), indent=1, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)  # mkstemp's 0600 would keep the group out
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def check_folder(path: Path) -> None:
    """Check that files can be written into a folder, before a long computation needs it.

    Raises:
        InputError: the folder cannot be created or written into.
    """
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryDirectory(dir=there):
            return
    except OSError as error:
        raise InputError(f"cannot write into {path}: {error.strerror or error}") from error


def read_json(path: Path, *, kind: str) -> Any:
    """Read a JSON file of limited size.

    Raises:
        InputError: the file is missing, not a regular file, too large or not JSON.
    """
    if not path.is_file():
        problem = "is missing"
        if path.exists():
            problem = "is a directory" if path.is_dir() else "is not a regular file"
        raise InputError(f"{kind} file {path} {problem}")
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {kind} file {path}: {error.strerror or error}") from error
    if len(raw) > MAX_FILE_BYTES:
        limit = format_bytes(MAX_FILE_BYTES)
        raise InputError(f"{kind} file {path} is larger than {limit}, the limit for a {kind}")
    try:
        data = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
        _refuse_control_characters(data, f"{kind} file {path}")
        return data
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{kind} file {path} is not JSON ({reason})") from error


def _refuse_control_characters(data: object, where: str) -> None:
    """Refuse text with control characters, which could manipulate the terminal."""
    if isinstance(data, str):
        if any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in data):
            raise InputError(f"{where} has control characters in {data[:40]!r}")
    elif isinstance(data, Mapping):
        for key, value in data.items():
            _refuse_control_characters(key, where)
            _refuse_control_characters(value, where)
    elif isinstance(data, list):
        for value in data:
            _refuse_control_characters(value, where)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
