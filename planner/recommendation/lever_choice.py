"""The user's choice of levers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from profiler.errors import UnknownNameError, UsageError
from profiler.workload import LEVERS, Lever

LeverChoice = Literal["auto"] | tuple[Lever, ...]
"""``auto``, or the levers that each row takes if its workload allows them."""


def parse_levers(choice: str | Sequence[str]) -> LeverChoice:
    """Return the choice in ``auto``, ``none``, ``channels_last,fused`` or a list of names.

    Raises:
        UnknownNameError: no such lever.
        UsageError: no name is given.
    """
    text = choice if isinstance(choice, str) else ",".join(choice) or "none"
    if text.strip() in ("auto", "none"):
        return "auto" if text.strip() == "auto" else ()
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError("levers must be auto, none or names, got an empty text")
    for name in names:
        if name not in LEVERS:
            raise UnknownNameError(kind="lever", name=name, known=[*LEVERS, "auto", "none"])
    return tuple(lever for lever in LEVERS if lever in names)
