"""Reads frozen dataclasses from JSON data that anybody may have written.

    read_record     validates types, ranges, enum words and finite numbers with msgspec
    check_schema    refuses another schema and compares minor versions
    unknown_field   refuses a field, or collects its path for a file of a newer minor version
    json_object     refuses data that is not a JSON object

msgspec converts and validates. It neither refuses unknown fields of a dataclass nor infinite
numbers, and its messages do not show the value. This module adds both: before the conversion it
walks the data beside the type, after a failure it formats one line with the path and the value.

A file with a newer minor schema version may have additional fields. Its reader passes a list as
``dropped``: unknown fields are then left out, and their paths are appended to the list. In every
other case an unknown field is an error.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Hashable, Mapping
from functools import cache
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, inspect

from profiler.errors import BudgetplanError, BudgetplanWarning, InputError

JsonObject: TypeAlias = Mapping[str, Any]
"""A JSON object of free content: raw trials, the environment, provenance."""

NonNegativeInt = Annotated[int, Meta(ge=0)]
PositiveInt = Annotated[int, Meta(ge=1)]
NonNegativeFloat = Annotated[float, Meta(ge=0)]
PositiveFloat = Annotated[float, Meta(gt=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]

LONGEST_MESSAGE = 300
"""Characters of an error message. A value from a damaged file can be megabytes long."""

LONGEST_VALUE = 80

ANYTHING = inspect.AnyType()


class NewerFileWarning(BudgetplanWarning):
    """Fields of a file with a newer minor schema version were ignored."""


_Record = TypeVar("_Record")

_MESSAGE = re.compile(r"^(.*?)(?: - at `\$(.*)`)?$", re.DOTALL)
"""A message of msgspec: a sentence, then the JSON path of the value in backticks."""

_TYPE_WORDS: Mapping[type[inspect.Type], str] = {
    inspect.IntType: "integer",
    inspect.FloatType: "number",
    inspect.StrType: "text",
    inspect.BoolType: "true or false",
    inspect.NoneType: "null",
    inspect.VarTupleType: "list",
    inspect.ListType: "list",
}

_STEP = re.compile(r"\.(\w+)|\[(\d+|\.\.\.)\]")


def json_object(data: object, *, part: str) -> dict[str, Any]:
    """Return a JSON object as a dict of its own.

    Args:
        data: value from a JSON document.
        part: name of the value in error messages, such as ``plan: prediction``.

    Raises:
        InputError: the value is not a JSON object.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{part} must be a JSON object, got {type(data).__name__}")
    return dict(data)


def read_record(
    kind: type[_Record], data: object, *, part: str, dropped: list[str] | None = None
) -> _Record:
    """Return the record that a JSON object holds.

    Args:
        kind: dataclass whose annotations are the rules. Its ``__post_init__`` checks the rest.
        data: JSON object. A value that already is a record of the right type stays as it is.
        part: path of the object in error messages, such as ``plan.prediction``.
        dropped: list that gets the paths of unknown fields, which are then left out. Without
            a list an unknown field is an error.

    Raises:
        InputError: a field is missing, unknown, of the wrong type, out of range or not finite.
            The message is one line of at most 300 characters.
    """
    shape = _shape(kind)  # type: ignore[arg-type]  # mypy: a class of unknown hash
    known = _known_part(shape, json_object(data, part=part), part, dropped)
    try:
        return msgspec.convert(known, kind)
    except msgspec.ValidationError as error:
        raise InputError(_explain(error, shape, known, part)) from error
    except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair
        raise InputError(one_line(part, "text that is not valid Unicode")) from error
    except BudgetplanError as error:  # from a record's own check
        raise InputError(one_line(part, str(error))) from error


def check_schema(
    data: Mapping[str, Any], schema: str, *, minor: int, part: str
) -> list[str] | None:
    """Refuse another schema; return a list for unknown fields if the minor version is newer.

    Args:
        data: JSON object with the key ``schema`` and, since minor version 1, ``schema_minor``.
        schema: schema that this program reads, such as ``budgetplan.plan/1``.
        minor: newest minor version that this program reads.
        part: path of the object in error messages.

    Raises:
        InputError: the schema is another one, or the minor version is not an integer >= 0.
    """
    if data.get("schema") != schema:
        raise InputError(
            one_line(f"{part}.schema", f"expected {schema!r}, got {data.get('schema')!r}")
        )
    found = data.get("schema_minor", 0)
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        raise InputError(one_line(f"{part}.schema_minor", f"expected integer >= 0, got {found!r}"))
    return [] if found > minor else None


def warn_of_dropped(dropped: list[str] | None, *, part: str) -> None:
    """Give one warning for the fields of a newer file that were left out."""
    if dropped:
        more = f" and {len(dropped) - 3} more" if len(dropped) > 3 else ""
        message = f"fields of a newer version are ignored: {', '.join(dropped[:3])}{more}"
        warnings.warn(one_line(part, message), NewerFileWarning, stacklevel=3)


def unknown_field(path: str, dropped: list[str] | None) -> None:
    """Refuse a field, or collect its path where a newer file may have it.

    Raises:
        InputError: there is no list to collect in.
    """
    if dropped is None:
        raise InputError(one_line(path, "unknown field"))
    dropped.append(path)


@cache
def _shape(kind: Hashable) -> inspect.Type:
    return inspect.type_info(kind)


# ---- unknown fields and numbers that are not finite ----------------------------------------------


def _known_part(shape: inspect.Type, data: Any, path: str, dropped: list[str] | None) -> Any:
    """Return the data without unknown fields; refuse them, and NaN and infinity, otherwise."""
    if isinstance(data, float) and not math.isfinite(data):
        raise InputError(one_line(path, f"expected a finite number, got {data!r}"))
    if isinstance(data, Mapping):
        known = {}
        for key, value in data.items():
            inside = _inside(shape, key)
            if inside is None:
                unknown_field(f"{path}.{key}", dropped)
            else:
                known[key] = _known_part(inside, value, f"{path}.{key}", dropped)
        return known
    if isinstance(data, list | tuple):
        return [
            _known_part(_inside(shape, i) or ANYTHING, value, f"{path}[{i}]", dropped)
            for i, value in enumerate(data)
        ]
    return data


def _inside(shape: inspect.Type, key: object) -> inspect.Type | None:
    """Return the type of a field, of a dict's values or of a list's items; None if unknown."""
    for member in _members(shape):
        match member:
            case inspect.DataclassType(fields=fields) if not isinstance(key, int):
                return next((f.type for f in fields if f.encode_name == key), None)
            case inspect.DictType(value_type=value_type) if not isinstance(key, int):
                return value_type
            case inspect.VarTupleType(item_type=item) | inspect.ListType(item_type=item):
                if isinstance(key, int):
                    return item
    return ANYTHING  # a wrong container, which the conversion refuses


def _members(shape: inspect.Type) -> tuple[inspect.Type, ...]:
    return shape.types if isinstance(shape, inspect.UnionType) else (shape,)


# ---- one line for a failed conversion ------------------------------------------------------------


def _explain(error: msgspec.ValidationError, shape: inspect.Type, data: Any, part: str) -> str:
    """Return the rule that a value broke, with its path and the value."""
    found = _MESSAGE.match(str(error))
    assert found is not None
    sentence, path = found.group(1), found.group(2) or ""
    for name, index in _STEP.findall(path):
        # msgspec does not name the key of a dict's value
        if index == "..." or error.__cause__ is not None:
            return one_line(f"{part}{path}", sentence)
        key: str | int = name or int(index)
        shape, data = _inside(shape, key) or ANYTHING, data[key]
    if error.__cause__ is not None:
        return one_line(part, sentence)
    for record in shape.types if isinstance(shape, inspect.UnionType) else (shape,):
        if isinstance(record, inspect.DataclassType) and isinstance(data, Mapping):
            missing = next(
                f.encode_name for f in record.fields if f.required and f.name not in data
            )
            return one_line(f"{part}{path}.{missing}", "missing field")
    got = repr(data)
    got = got if len(got) <= LONGEST_VALUE else f"{got[:LONGEST_VALUE]}..."
    return one_line(f"{part}{path}", f"expected {_words(shape)}, got {got}")


def _words(shape: inspect.Type) -> str:
    """Return a type in words: ``integer >= 0 or null``."""
    match shape:
        case inspect.UnionType(types=types):
            words = " or ".join(_words(member) for member in types)
        case inspect.IntType() | inspect.FloatType():
            bounds = ((">", shape.gt), (">=", shape.ge), ("<", shape.lt), ("<=", shape.le))
            limits = [f"{sign} {bound:g}" for sign, bound in bounds if bound is not None]
            words = " ".join([_TYPE_WORDS[type(shape)], *limits])
        case inspect.EnumType(cls=cls):
            words = f"one of {', '.join(str(member.value) for member in cls)}"
        case inspect.LiteralType(values=values):
            words = f"one of {', '.join(map(str, values))}"
        case _:
            words = _TYPE_WORDS.get(type(shape), "JSON object")
    return words


def one_line(path: str, message: str) -> str:
    """Return an error message of one line, cut to ``LONGEST_MESSAGE`` characters."""
    line = " ".join(f"{path}: {message}".split())
    return line if len(line) <= LONGEST_MESSAGE else f"{line[: LONGEST_MESSAGE - 3]}..."
