"""Mutants of a JSON document: nodes replaced, removed, renamed, added and exchanged, raw damage."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Callable
from random import Random
from typing import Any

TEXTS = (
    "", " ", "banana", "cpu", "cuda", "full", "lora", "none", "every-k", "every-3", "adaptive",
    "measured", "composed", "keep", "recompute", "fp16", "0", "-1", "nan", "inf", "null", "true",
    "../../etc/passwd", "/dev/null", "a\x00b", "\x1b[2J", "\x9b31m", "\u202etxt.exe", "\u2066",
    "\ud800", "\udfff", "\u2028", "\ufeff", "a\nb", "a\tb", "\r", "[bold]x[/bold]", "[/red]",
    "[link=http://x]y", "{}", "%s%n", "${HOME}", "$(id)", "`id`", "'; DROP TABLE trials; --",
    "é", "日本語", "👩‍👩‍👧", "ﷺ" * 50, "x" * 201, "x" * 5000, "a.b.c", "blocks.0", "blocks.0/mlp",
    "blocks.999", "every-" + "9" * 30, "every--1", "every-²", "-rf", ".", "..", "con",
)  # fmt: skip

NUMBERS = (
    0, 1, -1, 2, 7, 8, 31, 224, 255, 65_535, 65_536, 65_537, 8192, 8193, 2**20, 2**31, 2**32,
    2**50, 2**50 + 1, 2**53 + 1, 10**18, 10**18 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30,
    10**400, -(10**400), 10**4000, 0.0, -0.0, 0.5, 1.0, 1.5, -0.5, 1e-300, 5e-324, 1e6, 1e18,
    1e39, 1e41, 1.7e308, 0.1 + 0.2, float("inf"), float("-inf"), float("nan"),
)  # fmt: skip

RAW_NUMBERS = ("1e999", "-1e999", "1" + "0" * 400, "9" * 5000, "1e-999", "0.1e1", "-0", "1E400")


_BEFORE_NUMBER = re.compile(rb"[ \[](?=\d)")

Change = Callable[[Any, Random], None]
"""Changes one node of a document in place."""


class JsonMutator:
    """Makes mutants of one document.

    Args:
        example: the document.
        special: a change that is made in place of the usual one in three of ten cases; None for
            none.
    """

    def __init__(self, example: Any, *, special: Change | None = None) -> None:
        self._special = special
        # `copy.deepcopy` takes five times as long
        self._pickled = pickle.dumps(example)

    def mutant(self, rng: Random) -> bytes:
        """Return the bytes of a mutated document."""
        data = pickle.loads(self._pickled)
        if rng.random() < 0.2 and isinstance(data, dict):
            data["schema_minor"] = 99
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            if rng.random() < 0.3 and self._special is not None:
                self._special(data, rng)
            else:
                mutate(data, rng)
        text = json.dumps(data, ensure_ascii=rng.random() < 0.7)
        raw = text.encode("utf-8", errors="surrogatepass")
        if rng.random() < 0.15:
            raw = _with_raw_number(raw, rng)
        if rng.random() < 0.1:
            raw = _damaged(raw, rng)
        return raw


def _places(data: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Return (container, key) of every node below the root."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in list(items):
        found.append((data, key))
        if isinstance(value, dict | list):
            _places(value, found)
    return found


def mutate(data: Any, rng: Random) -> None:
    """Change one node."""
    places = _places(data, [])
    if not places:
        return
    part, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.55:
        part[key] = _value(rng, part[key])
    elif kind < 0.70:
        del part[key]
    elif kind < 0.80 and isinstance(part, dict):
        part[rng.choice(TEXTS)] = _value(rng, None)
    elif kind < 0.88 and isinstance(part, dict):
        part[rng.choice(TEXTS)] = part.pop(key)
    elif kind < 0.94:
        other, elsewhere = rng.choice(places)
        part[key] = copy.deepcopy(other[elsewhere])
    elif isinstance(part, list):
        part.extend(copy.deepcopy(part[:20]) * rng.choice((1, 3)))
    else:
        part[key] = [part[key]]


def _value(rng: Random, old: Any) -> Any:
    kind = rng.random()
    if isinstance(old, int | float) and not isinstance(old, bool) and kind < 0.2:
        return rng.choice(
            (
                old + 1,
                -old,
                old * 2,
                old / 3 if abs(old) < 1e300 else 0,
                float(str(old)[:300]),
                old * 10**6,
                str(old),
            )
        )
    if isinstance(old, str) and kind < 0.2:
        at = rng.randrange(len(old) + 1)
        return old[:at] + rng.choice(TEXTS) + old[at:]
    if kind < 0.45:
        return rng.choice(NUMBERS)
    if kind < 0.75:
        return rng.choice(TEXTS)
    if kind < 0.80:
        return _deep(rng)
    return rng.choice(
        (None, True, False, [], {}, [1, 2], ["a", None], {"a": 1}, {"peak_bytes": "x"}, [[]])
    )


def _deep(rng: Random) -> Any:
    value: Any = 1
    for _ in range(rng.choice((5, 39, 45, 300))):
        value = {"a": value} if rng.random() < 0.5 else [value]
    return value


def _with_raw_number(raw: bytes, rng: Random) -> bytes:
    """Replace a number by one that `json.dumps` does not write."""
    starts = [found.end() for found in _BEFORE_NUMBER.finditer(raw)]
    if not starts:
        return raw
    start = end = rng.choice(starts)
    while end < len(raw) and raw[end : end + 1] not in b",}] \n":
        end += 1
    return raw[:start] + rng.choice(RAW_NUMBERS).encode() + raw[end:]


def _damaged(raw: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(raw))
    kind = rng.randrange(6)
    if kind == 0:
        return raw[:at]
    if kind == 1:
        return raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :]
    if kind == 2:
        return raw[:at] + rng.randbytes(rng.choice((1, 4, 64))) + raw[at:]
    if kind == 3:
        return raw + raw
    if kind == 4:
        return b"\xef\xbb\xbf" + raw
    return b"[" * rng.choice((50, 5000)) + raw
