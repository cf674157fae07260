"""Raw rows on disk: one JSON object a line, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KEY = ("model", "method", "rank", "policy", "setting")


def read(part: str) -> list[dict[str, Any]]:
    path = HERE / f"{part}.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def done(part: str) -> set[tuple[object, ...]]:
    return {key_of(row) for row in read(part)}


def key_of(row: dict[str, Any]) -> tuple[object, ...]:
    return tuple(row.get(name) for name in KEY)


def append(part: str, row: dict[str, Any]) -> None:
    with (HERE / f"{part}.jsonl").open("a") as out:
        out.write(json.dumps(row) + "\n")


def curves(rows: list[dict[str, Any]]) -> Iterator[tuple[tuple[object, ...], list[dict[str, Any]]]]:
    """Yield the rows of each (model, method, rank)."""
    groups: dict[tuple[object, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["method"], row["rank"]), []).append(row)
    yield from groups.items()
