"""Reads a user's own device: a JSON file with the fields of a row of the device table.

``budgetplan devices NAME --json`` prints rows to start from. A file has the row's fields, and may
have the key ``schema``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from profiler.devices.table import DEVICES, DeviceSpec, multiprocessors, short_name
from profiler.errors import InputError
from profiler.json_records import json_object, one_line, read_record

DEVICE_SCHEMA = "budgetplan.device/1"

LARGEST_FILE_BYTES = 100_000


def read_device(path: Path) -> DeviceSpec:
    """Return the device that a file describes.

    Raises:
        InputError: the file cannot be read, is no JSON object, lacks a number that predictions
            need, or has the name of another device.
        DeviceError: the compute capability is not one that PyTorch has.
    """
    data = dict(json_object(_content(path), part=str(path)))
    schema = data.pop("schema", DEVICE_SCHEMA)
    if schema != DEVICE_SCHEMA:
        raise InputError(one_line(f"{path}.schema", f"expected {DEVICE_SCHEMA!r}, got {schema!r}"))
    spec = read_record(DeviceSpec, data, part=str(path))
    _check_usable(spec, path)
    return spec


def _content(path: Path) -> Any:
    if not path.is_file():
        problem = "is not a regular file" if path.exists() else "is missing"
        raise InputError(f"device file {path} {problem}")
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"device file {path} cannot be read: {error.strerror}") from error
    if len(content) > LARGEST_FILE_BYTES:
        raise InputError(f"device file {path} is too large")
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InputError(f"device file {path} is no JSON: {error}") from error


def _check_usable(spec: DeviceSpec, path: Path) -> None:
    needed = (
        "compute_capability",
        "memory_bytes",
        "memory_bandwidth_bytes_per_second",
        "fp32_flops",
        "sm_count",
    )
    missing = [name for name in needed if getattr(spec, name) is None]
    if missing:
        raise InputError(f"{path}: predictions need {', '.join(missing)}")
    expected = short_name(spec.full_name)
    if spec.name != expected:
        raise InputError(
            one_line(
                f"{path}.name",
                f"expected {expected!r}, the short form of full_name, got {spec.name!r}",
            )
        )
    if spec.name in DEVICES:
        raise InputError(f"{path}: {spec.name} is in the device table; give another full_name")
    if spec.context_bytes is not None and spec.context_bytes >= (spec.memory_bytes or 0):
        raise InputError(f"{path}: context_bytes must be less than memory_bytes")
    multiprocessors(spec)
