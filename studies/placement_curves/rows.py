"""The raw rows of the study's parts, and what names one of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import Rows

HERE = Path(__file__).parent
KEY = ("model", "method", "rank", "policy", "setting")


def read(part: str) -> list[dict[str, Any]]:
    return Rows(HERE, part).read()


def done(part: str) -> set[tuple[object, ...]]:
    return {key_of(row) for row in read(part)}


def key_of(row: dict[str, Any]) -> tuple[object, ...]:
    return tuple(row.get(name) for name in KEY)


def append(part: str, row: dict[str, Any]) -> None:
    Rows(HERE, part).append(row)


def curves(rows: list[dict[str, Any]]) -> Iterator[tuple[tuple[object, ...], list[dict[str, Any]]]]:
    """Yield the rows of each (model, method, rank)."""
    groups: dict[tuple[object, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["method"], row["rank"]), []).append(row)
    yield from groups.items()
