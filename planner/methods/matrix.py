"""The method matrix: which methods work on which backbones, as ``studies/method_matrix`` found.

The study tried each pair of method and backbone. The method either *refused* the backbone, or it
was trained for a few steps and *works* or *fails*. The study alone writes the file
``method_matrix.json`` beside this module and the table in the documentation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from planner.disk.json_files import read_json
from profiler.errors import InputError
from profiler.json_records import (
    JsonObject,
    check_schema,
    json_object,
    read_record,
    warn_of_dropped,
)

PACKAGED = Path(__file__).with_name("method_matrix.json")

METHOD_MATRIX_SCHEMA = "budgetplan.method_matrix/1"

Status = Literal["works", "refused", "fails"]

WORKS: Status = "works"
REFUSED: Status = "refused"
FAILS: Status = "fails"

CELLS: Mapping[str, str] = {WORKS: "yes", REFUSED: "-", FAILS: "fail"}
"""Text of each status in a table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome for a method on a backbone.

    Attributes:
        status: ``works``, ``refused`` or ``fails``.
        reason: reason why it does not work; None if it works.
    """

    status: Status
    reason: str | None

    def __post_init__(self) -> None:
        if (self.reason is None) != (self.status == WORKS):
            raise InputError(
                f"a method has a reason if and only if it does not work, "
                f"got status {self.status!r} and reason {self.reason!r}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """A reason that holds for each of several methods on each of several backbones.

    Attributes:
        methods: names of the methods.
        backbones: short names of the backbones.
        status: ``refused`` or ``fails``.
        text: the reason, one clause.
    """

    methods: tuple[str, ...]
    backbones: tuple[str, ...]
    status: str
    text: str

    def __str__(self) -> str:
        where = f"{', '.join(self.methods)} on {', '.join(self.backbones)}"
        return f"{where}{' fails' if self.status == FAILS else ''}: {self.text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodMatrix:
    """The outcome of every method on every documented backbone.

    Attributes:
        backbones: canonical name of each backbone by its short name.
        methods: names of the methods.
        outcomes: outcome by method, then by short name of the backbone.
        environment: machine and package versions of the study.
    """

    backbones: Mapping[str, str]
    methods: tuple[str, ...]
    outcomes: Mapping[str, Mapping[str, Outcome]]
    environment: JsonObject

    def column(self, backbone: str) -> list[str]:
        """Return the cells of a backbone's column, one per method."""
        return [CELLS[self.outcomes[method][backbone].status] for method in self.methods]

    def reasons(self) -> list[Reason]:
        """Return every reason why pairs do not work, equal reasons combined."""
        found: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
        for method in self.methods:
            by_reason: dict[tuple[str, str], list[str]] = {}
            for backbone, outcome in self.outcomes[method].items():
                if outcome.reason is not None:
                    by_reason.setdefault((outcome.status, outcome.reason), []).append(backbone)
            for (status, text), names in by_reason.items():
                found.setdefault((status, text, tuple(names)), []).append(method)
        return [
            Reason(methods=tuple(methods), backbones=names, status=status, text=text)
            for (status, text, names), methods in found.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the content of the packaged file."""
        return {
            "schema": METHOD_MATRIX_SCHEMA,
            "environment": dict(self.environment),
            "backbones": dict(self.backbones),
            "methods": list(self.methods),
            "outcomes": {
                method: {
                    name: {"status": outcome.status, "reason": outcome.reason}
                    for name, outcome in row.items()
                }
                for method, row in self.outcomes.items()
            },
        }


def load_matrix(path: Path = PACKAGED) -> MethodMatrix:
    """Read the packaged matrix.

    Raises:
        InputError: the file is missing or damaged, or has another schema.
    """
    data = json_object(read_json(path, kind="method matrix"), part="matrix")
    dropped = check_schema(data, METHOD_MATRIX_SCHEMA, minor=0, part="matrix")
    content = {k: v for k, v in data.items() if k not in ("schema", "schema_minor")}
    matrix = read_record(MethodMatrix, content, part="matrix", dropped=dropped)
    warn_of_dropped(dropped, part="matrix")
    return matrix


def markdown(matrix: MethodMatrix) -> str:
    """Return the table and the reasons in Markdown."""
    names = list(matrix.backbones)
    columns = [matrix.column(name) for name in names]
    rows = [
        [f"`{method}`", *(column[index] for column in columns)]
        for index, method in enumerate(matrix.methods)
    ]
    table = "\n".join(
        [
            _markdown_row(["method", *(f"`{name}`" for name in names)]),
            _markdown_row(["---", *(":-:" for _ in names)]),
            *map(_markdown_row, rows),
        ]
    )
    reasons = "\n".join(f"- {_quoted(reason)}" for reason in matrix.reasons())
    return f"{table}\n\nNot possible:\n\n{reasons}\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _quoted(reason: Reason) -> str:
    methods = ", ".join(f"`{name}`" for name in reason.methods)
    names = ", ".join(f"`{name}`" for name in reason.backbones)
    return f"{methods} on {names}{' fails' if reason.status == FAILS else ''}: {reason.text}"
