"""What is known to work: the packaged outcome of ``studies/method_matrix``.

A pair of method and backbone was *refused* (with a reason), or really trained for a few steps and
then *works* or *fails* (with what was wrong). The file ``method_matrix.json`` beside this module is
written by the study and by nothing else; so is the table in the project's README.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiler.errors import InputError

PACKAGED = Path(__file__).with_name("method_matrix.json")

SCHEMA = "budgetplan.method_matrix/1"

WORKS, REFUSED, FAILS = "works", "refused", "fails"

CELLS: Mapping[str, str] = {WORKS: "yes", REFUSED: "-", FAILS: "fail"}
"""How an outcome is shown in a table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one pair.

    Attributes:
        status: ``works``, ``refused`` or ``fails``.
        reason: why not; None where it works.
    """

    status: str
    reason: str | None

    def __post_init__(self) -> None:
        assert self.status in CELLS, self.status
        assert (self.reason is None) == (self.status == WORKS), "say why it does not work"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Pairs that do not work for one reason: each of the methods on each of the backbones."""

    methods: tuple[str, ...]
    backbones: tuple[str, ...]
    status: str
    text: str

    def __str__(self) -> str:
        where = f"{', '.join(self.methods)} on {', '.join(self.backbones)}"
        return f"{where}{' fails' if self.status == FAILS else ''}: {self.text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodMatrix:
    """Every method on every backbone of the documents.

    Attributes:
        backbones: short name and the canonical name it stands for.
        methods: names.
        outcomes: by method, then by backbone.
        environment: what it was run on.
    """

    backbones: Mapping[str, str]
    methods: tuple[str, ...]
    outcomes: Mapping[str, Mapping[str, Outcome]]
    environment: Mapping[str, Any]

    def column(self, backbone: str) -> list[str]:
        """Return what a table shows for a backbone, a cell a method."""
        return [CELLS[self.outcomes[method][backbone].status] for method in self.methods]

    def reasons(self) -> list[Reason]:
        """Return why pairs do not work, pairs of one reason together."""
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
        """Return the packaged file's content."""
        return {
            "schema": SCHEMA,
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
        InputError: the installation lacks it, or it is of another version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = data["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is missing or damaged; install budgetplan again") from error
    if found != SCHEMA:
        raise InputError(f"{path} has schema {found!r}, expected {SCHEMA!r}")
    return MethodMatrix(
        backbones=data["backbones"],
        methods=tuple(data["methods"]),
        outcomes={
            method: {name: Outcome(**outcome) for name, outcome in row.items()}
            for method, row in data["outcomes"].items()
        },
        environment=data["environment"],
    )


def markdown(matrix: MethodMatrix) -> str:
    """Return the table and the reasons for a page."""
    names = list(matrix.backbones)
    columns = [matrix.column(name) for name in names]
    rows = [
        [f"`{method}`", *(column[index] for column in columns)]
        for index, method in enumerate(matrix.methods)
    ]
    table = "\n".join(
        [
            _line(["method", *(f"`{name}`" for name in names)]),
            _line(["---", *(":-:" for _ in names)]),
            *map(_line, rows),
        ]
    )
    reasons = "\n".join(f"- {_quoted(reason)}" for reason in matrix.reasons())
    return f"{table}\n\nNot possible:\n\n{reasons}\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _quoted(reason: Reason) -> str:
    methods = ", ".join(f"`{name}`" for name in reason.methods)
    names = ", ".join(f"`{name}`" for name in reason.backbones)
    return f"{methods} on {names}{' fails' if reason.status == FAILS else ''}: {reason.text}"
