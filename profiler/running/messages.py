"""Messages between a sandbox and its parent process: one JSON object a line.

    parent -> child   Call(address, request type, request)                once, then end of file
    child -> parent   ProgressReport(activity, fraction)                  any number
                      ReturnValue(result) or Failure(error class, message)     once, the last line

Requests and results are records: ``msgspec`` structs or dataclasses. Both sides decode strictly: an
unknown field, a missing field, a wrong type or a number that is not finite is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Literal, TypeVar

import msgspec

from profiler.errors import MeasurementError
from profiler.json_records import Fraction

RecordT = TypeVar("RecordT")

ErrorClass = Literal[
    "UsageError", "InputError", "DeviceError", "MeasurementError", "OutOfMemoryError"
]
"""Errors of ``profiler.errors`` that the parent raises again as the same class."""


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every record that is sent: immutable, and strict about its fields."""


class Call(Message, frozen=True, kw_only=True, tag="call"):
    """Work for a child process.

    Attributes:
        address: ``module:function`` of the function to call.
        request_type: ``module:class`` of its request.
        request: the request, encoded.
    """

    address: str
    request_type: str
    request: msgspec.Raw


class ProgressReport(Message, frozen=True, kw_only=True, tag="progress"):
    """Progress of a running function.

    Attributes:
        activity: current activity, as a phrase for a progress bar.
        fraction: share of the work done, from 0 to 1.
    """

    activity: str
    fraction: Fraction


class ReturnValue(Message, frozen=True, kw_only=True, tag="result"):
    """The return value of a function.

    Attributes:
        result: the record that it returned, encoded.
    """

    result: msgspec.Raw


class Failure(Message, frozen=True, kw_only=True, tag="failure"):
    """An exception that a function raised.

    Attributes:
        error: class that the parent raises.
        message: first line of the exception's text.
    """

    error: ErrorClass
    message: str


Answer = ProgressReport | ReturnValue | Failure
"""Any line that a child sends."""


def encode(message: object) -> bytes:
    """Return a record as one line of JSON, without the line's end."""
    return msgspec.json.encode(message, enc_hook=_as_dict)


def _as_dict(value: object) -> object:
    if isinstance(value, Mapping):  # a mappingproxy, for which msgspec has no encoding
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot be sent to another process")


def decode(data: bytes | msgspec.Raw, kind: type[RecordT]) -> RecordT:
    """Read a message, a request or a result.

    Raises:
        MeasurementError: the data is no record of that type.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise MeasurementError(
            f"a message between two processes cannot be read ({error}); "
            "make sure that only one version of budgetplan is installed"
        ) from error


def decode_answer(line: bytes) -> Answer:
    """Read one line of a child's output.

    Raises:
        MeasurementError: the line is no such message.
    """
    return decode(line, Answer)  # type: ignore[arg-type]  # mypy has no type of a union's type


def address_of(definition: Callable[..., object]) -> str:
    """Return ``module:name`` of a function or class at the top level of a module."""
    return f"{definition.__module__}:{definition.__qualname__}"


def import_address(address: str) -> Any:
    """Import what :func:`address_of` named."""
    module, _, name = address.partition(":")
    return getattr(import_module(module), name)
