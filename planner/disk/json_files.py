"""JSON files: written atomically; read with a size limit, without control characters and NaN.

The same limits hold for data that is read as a record (``profiler.json_records``). They are checked
here too, because not all JSON that is read becomes a record.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from planner.disk.drafts import write_file
from profiler.errors import InputError
from profiler.json_records import shortened, unsafe_text
from profiler.units import MIB, format_bytes

_FromJson = TypeVar("_FromJson")

MAX_FILE_BYTES = 16 * MIB
"""Largest file that is read. A plan of a 500-unit model with raw trials is below 1 MiB."""

MOST_VALUES = 300_000
"""Values in a file. They are read within a second; the plan of a 500-unit model has 10,000."""


def write_json(data: Mapping[str, Any], path: Path) -> None:
    """Write JSON data atomically.

    Raises:
        InputError: the file cannot be written.
    """
    write_file(path, json_bytes(data))


def json_bytes(data: Mapping[str, Any]) -> bytes:
    """Return the content of a JSON file."""
    return (json.dumps(dict(data), indent=1, allow_nan=False) + "\n").encode()


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
    return parse_json(raw, where=f"{kind} file {path}")


def read_json_as(path: Path, read: Callable[[Any], _FromJson], *, kind: str) -> _FromJson:
    """Read a JSON file of limited size as a record.

    Args:
        path: the file.
        read: reads the record from the file's value; its errors get the path in front.
        kind: kind of the file, for error messages.

    Raises:
        InputError: as `read_json`, or ``read`` refused the value.
    """
    data = read_json(path, kind=kind)
    try:
        return read(data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def parse_json(raw: bytes, *, where: str) -> Any:
    """Return the value of a JSON document of unknown origin.

    Raises:
        InputError: not JSON, too many values, a number that is not finite, or text with control
            characters.
    """
    try:
        data = json.loads(
            raw.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite_number
        )
        _check_values(data, where)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{where} is not JSON ({reason})") from error
    return data


def _check_values(data: object, where: str) -> None:
    """Refuse too many values, and text that steers a terminal or cannot be written again."""
    rest, count = [data], 1
    while rest:
        value = rest.pop()
        if isinstance(value, str):
            if unsafe_text(value):
                raise InputError(f"{where} has control characters in {shortened(value, 40)}")
        elif isinstance(value, dict | list):
            count += len(value)
            if count > MOST_VALUES:
                raise InputError(f"{where} has more than {MOST_VALUES} values, the limit")
            if isinstance(value, dict):
                rest += value.keys()
                rest += value.values()
            else:
                rest += value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{shortened(text, 40)} is too large a number")
    return number
