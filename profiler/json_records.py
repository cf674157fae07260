"""Reads frozen dataclasses from JSON data that anybody may have written.

    read_record     validates types, ranges, enum words and finite numbers with msgspec
    check_schema    refuses another schema and compares minor versions
    unknown_field   refuses a field, or collects its path for a file of a newer minor version
    json_object     refuses data that is not a JSON object
    unsafe_text     finds characters that could steer a terminal or cannot be written

msgspec converts and validates. It accepts unknown fields of a dataclass and infinite numbers,
and its messages do not show the value. Therefore this module walks the data and the type together
before the conversion, and refuses such fields and numbers. The walk also enforces the limits of
free content: size of numbers, length of texts, depth. If the conversion fails, this module formats
one line with the path and the value.

A file with a newer minor schema version may have additional fields. Its reader passes a list as
``dropped``: unknown fields are then left out, and their paths are appended to the list. In every
other case an unknown field is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping
from functools import cache
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, inspect

from profiler.errors import (
    BudgetplanError,
    BudgetplanWarning,
    InputError,
    printable_line,
    warn_caller,
)

JsonObject: TypeAlias = Mapping[str, Any]
"""A JSON object of free content: raw trials, the environment, provenance."""

LARGEST_NUMBER = 10**18
"""Ceiling of every count and duration: FLOPs of a step of a million images of ViT-g."""

LARGEST_BYTES = 2**50
"""1 PiB, above the memory of any device."""

LARGEST_FLOAT = 1e40
"""Magnitude of any number with a fraction. A float32 ends at 3.4e38."""

LONGEST_TEXT = 20_000
"""Characters of a text. The longest that this program writes, a note, has a few hundred."""

DEEPEST = 40
"""Depth of nested objects and lists. A plan has a depth of 6."""

NonNegativeInt = Annotated[int, Meta(ge=0, le=LARGEST_NUMBER)]
PositiveInt = Annotated[int, Meta(ge=1, le=LARGEST_NUMBER)]
NonNegativeFloat = Annotated[float, Meta(ge=0, le=float(LARGEST_NUMBER))]
PositiveFloat = Annotated[float, Meta(gt=0, le=float(LARGEST_NUMBER))]
Fraction = Annotated[float, Meta(ge=0, le=1)]

ByteCount = Annotated[int, Meta(ge=0, le=LARGEST_BYTES)]
ByteGrowth = Annotated[int, Meta(ge=-LARGEST_BYTES, le=LARGEST_BYTES)]

MOST_UNITS = 4096
"""Units of a model, or decisions for units and their parts."""

Name = Annotated[str, Meta(min_length=1, max_length=200)]
"""Name of a model, a method, a unit or a device."""

LONGEST_VALUE = 80

_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, without tab and newline
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # writing direction (Unicode UAX #9)
    "\u2028\u2029\ufff9-\ufffb\U000e0000-\U000e007f"  # separators, annotations, tags
    "\ud800-\udfff]"  # halves of surrogate pairs, which UTF-8 cannot write
)

ANYTHING = inspect.AnyType()

NEWEST_MINOR = 10_000
"""Ceiling of ``schema_minor``, which counts additions."""


class NewerFileWarning(BudgetplanWarning):
    """Fields of a file with a newer minor schema version were ignored."""


_Record = TypeVar("_Record")

_MESSAGE = re.compile(r"^(.*?)(?: - at `(key` in `)?\$(.*)`)?$", re.DOTALL)
"""A message of msgspec: a sentence, then the JSON path of the value or of a dict's key."""

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
            one_line(f"{part}.schema", f"expected {schema!r}, got {shortened(data.get('schema'))}")
        )
    found = data.get("schema_minor", 0)
    is_integer = isinstance(found, int) and not isinstance(found, bool)
    if not is_integer or not 0 <= found <= NEWEST_MINOR:
        rule = f"integer >= 0{f' <= {NEWEST_MINOR}' if is_integer and found > 0 else ''}"
        got = shortened(found)
        raise InputError(one_line(f"{part}.schema_minor", f"expected {rule}, got {got}"))
    return [] if found > minor else None


def warn_of_dropped(dropped: list[str] | None, *, part: str) -> None:
    """Give one warning for the fields of a newer file that were left out."""
    if dropped:
        more = f" and {len(dropped) - 3} more" if len(dropped) > 3 else ""
        message = f"fields of a newer version are ignored: {', '.join(dropped[:3])}{more}"
        warn_caller(one_line(part, message), NewerFileWarning)


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


# ---- unknown fields and values out of every range ------------------------------------------------


def unsafe_text(text: str) -> bool:
    """Return whether a text has characters that steer a terminal or that UTF-8 cannot write.

    These are control characters (newline and tab apart), changes of the writing direction, line
    separators, and halves of surrogate pairs, which JSON can escape.
    """
    return _UNSAFE.search(text) is not None


def _known_part(
    shape: inspect.Type, data: Any, path: str, dropped: list[str] | None, depth: int = 0
) -> Any:
    """Return the data without unknown fields; refuse values out of range.

    Unknown fields are refused too if ``dropped`` is None.
    """
    if isinstance(data, Mapping):
        _check_depth(depth, path)
        known = {}
        for key, value in data.items():
            _check_key(key, path)
            inside = _inside(shape, key)
            if inside is None:
                unknown_field(f"{path}.{key}", dropped)
            else:
                known[key] = _known_part(inside, value, f"{path}.{key}", dropped, depth + 1)
        return known
    if isinstance(data, list | tuple):
        _check_depth(depth, path)
        return [
            _known_part(_inside(shape, i) or ANYTHING, value, f"{path}[{i}]", dropped, depth + 1)
            for i, value in enumerate(data)
        ]
    rule = _broken_limit(shape, data)
    if rule is not None:
        raise InputError(one_line(path, f"expected {rule}, got {shortened(data)}"))
    return data


def _broken_limit(shape: inspect.Type, value: object) -> str | None:
    """Return the general limit that a value exceeds, in words; None if it exceeds none."""
    match value:
        case float() if not abs(value) <= LARGEST_FLOAT:  # NaN included
            is_finite = math.isfinite(value)
            return "a number below 1e40" if is_finite else "a finite number"
        case int() if abs(value) >= 2**64 and not _is_bounded(shape):
            return "an integer of 64 bits"
        case str() if unsafe_text(value):
            return "text without control characters"
        case str() if shape != ANYTHING and ("\n" in value or "\t" in value):
            return "text of one line"
        case str() if len(value) > LONGEST_TEXT:
            return f"text of at most {LONGEST_TEXT} characters"
    return None


def _is_bounded(shape: inspect.Type) -> bool:
    """Return whether the conversion itself refuses large integers, with the field's own range."""
    numbers = [m for m in _members(shape) if isinstance(m, inspect.IntType | inspect.FloatType)]
    return bool(numbers) and all(number.le is not None for number in numbers)


def _check_depth(depth: int, path: str) -> None:
    if depth > DEEPEST:
        raise InputError(one_line(path, f"expected at most {DEEPEST} levels of objects and lists"))


def _check_key(key: object, path: str) -> None:
    if isinstance(key, str) and (unsafe_text(key) or len(key) > LONGEST_TEXT):
        raise InputError(one_line(path, f"expected a printable key, got {shortened(key)}"))


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
    sentence, path = found.group(1), found.group(3) or ""
    if found.group(2):
        return one_line(f"{part}{path}", f"a key is out of its range: {sentence}")
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
            for spec in record.fields:
                if spec.required and spec.name not in data:
                    return one_line(f"{part}{path}.{spec.encode_name}", "missing field")
            return one_line(f"{part}{path}", sentence)
    return one_line(f"{part}{path}", f"expected {_words(shape, data)}, got {shortened(data)}")


def _words(shape: inspect.Type, value: object) -> str:
    """Return a type in words, ``integer >= 0 or null``, for a value that it refuses.

    A ceiling that holds for every number is named only if the value exceeds it.
    """
    match shape:
        case inspect.UnionType(types=types):
            words = " or ".join(_words(member, value) for member in types)
        case inspect.IntType() | inspect.FloatType():
            bounds = ((">", shape.gt), (">=", shape.ge), ("<", shape.lt), ("<=", shape.le))
            limits = [
                f"{sign} {bound:.10g}"
                for sign, bound in bounds
                if bound is not None and not (abs(bound) in _CEILINGS and _is_below(value))
            ]
            words = " ".join([_TYPE_WORDS[type(shape)], *limits])
        case inspect.StrType(max_length=int(longest)) if isinstance(value, str):
            words = f"text of {shape.min_length or 0} to {longest} characters"
        case inspect.EnumType(cls=cls):
            words = f"one of {', '.join(str(member.value) for member in cls)}"
        case inspect.LiteralType(values=values):
            words = f"one of {', '.join(map(str, values))}"
        case _:
            words = _TYPE_WORDS.get(type(shape), "JSON object")
    return words


_CEILINGS = (LARGEST_BYTES, LARGEST_NUMBER)


def _is_below(value: object) -> bool:
    return not isinstance(value, int | float) or abs(value) <= LARGEST_BYTES


def one_line(path: str, message: str) -> str:
    """Return a one-line error message; a path that is too long keeps its end."""
    if len(path) > 2 * LONGEST_VALUE:
        path = f"{path[:LONGEST_VALUE]}...{path[-LONGEST_VALUE:]}"
    return printable_line(f"{path}: {message}")


def shortened(value: object, limit: int = LONGEST_VALUE) -> str:
    """Return a value as a message quotes it: its ``repr``, which escapes, cut to a limit."""
    if isinstance(value, str | list | tuple):
        value = value[: limit + 1]
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a deep nesting
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= limit else f"{text[:limit]}..."
