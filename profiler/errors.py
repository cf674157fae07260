"""Every error that a user can meet, each with its exit code.

    BudgetplanError
    ├── UsageError            2  an argument is out of its domain
    │   └── UnknownNameError  2  no such model, method or device; has similar names
    ├── InfeasibleError       3  nothing fits the budget; has the smallest budget that would do
    ├── UnmetLimitError       3  no candidate is within a limit of accuracy, time or energy
    ├── InputError            4  a file or data set cannot be read or does not match
    ├── DeviceError           5  the device is not available
    └── MeasurementError      6  a real run failed
        └── OutOfMemoryError  6  a real run exceeded its memory cap

Exit code 0 is success, 1 any other exception: a defect of this program. A run that is interrupted
ends with 128 and the number of the signal (``profiler.running.process_end``).

A message is one line: the rule, the value that broke it, and the remedy. Messages quote values from
files of unknown origin, so every message and warning is cut to ``LONGEST_MESSAGE`` characters, and
characters that could steer a terminal are escaped.
"""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable
from types import FrameType
from typing import Any

from profiler.units import enough_bytes_as, format_asked

OWN_PACKAGES = frozenset({"planner", "profiler"})
"""Packages of this program."""

LONGEST_MESSAGE = 300
"""Characters of an error or warning. A value from a damaged file can be megabytes long."""

_ENDING = 80
"""Last characters of a message that is cut: the remedy stands at the end."""


def printable_line(message: str) -> str:
    """Return a message as one line of at most ``LONGEST_MESSAGE`` printable characters."""
    if len(message) > 2 * LONGEST_MESSAGE:  # before the passes over each character
        message = f"{message[:LONGEST_MESSAGE]} {message[-LONGEST_MESSAGE:]}"
    line = " ".join(message.split())
    if not line.isprintable():  # control characters, surrogates, changes of the writing direction
        line = "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line
        )
    if len(line) <= LONGEST_MESSAGE:
        return line
    return f"{line[: LONGEST_MESSAGE - _ENDING - 3]}...{line[-_ENDING:]}"


ERROR_SCHEMA = "budgetplan.error/1"


def error_object(
    kind: str, message: str, *, exit_code: int, advice: str = "", smallest_bytes: int | None = None
) -> dict[str, Any]:
    """Return the object that a command prints with ``--json`` when it fails.

    Args:
        kind: kind of the error, such as ``usage`` or ``infeasible``.
        message: the one line that is printed on stderr.
        exit_code: exit code of the command.
        advice: remedy, if the error has one.
        smallest_bytes: smallest budget that would do, if nothing fits and it is known.
    """
    return {
        "schema": ERROR_SCHEMA,
        "kind": kind,
        "message": message,
        "smallest_budget_bytes": smallest_bytes,
        "advice": advice or None,
        "exit_code": exit_code,
    }


class BudgetplanError(Exception):
    """Base of all errors that end a command with one line and an exit code.

    Args:
        message: the rule, the value that broke it, and the remedy.
    """

    exit_code = 1
    kind = "error"
    advice = ""
    smallest_bytes: int | None = None

    def __init__(self, message: object = "") -> None:
        super().__init__(printable_line(str(message)))

    def to_json(self) -> dict[str, Any]:
        """Return the object ``budgetplan.error/1``."""
        return error_object(
            self.kind,
            str(self),
            exit_code=self.exit_code,
            advice=self.advice,
            smallest_bytes=self.smallest_bytes,
        )


class BudgetplanWarning(UserWarning):
    """Base of all warnings of this program; a command prints one line on stderr.

    Args:
        message: the fact and its consequence.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable_line(str(message)))


def warn_caller(message: str, category: type[BudgetplanWarning] = BudgetplanWarning) -> None:
    """Warn at the line of the user's program that called this one.

    It is the caller of the outermost function of this program on the stack. The innermost caller
    from elsewhere, which ``skip_file_prefixes`` of ``warnings.warn`` would take (from Python 3.12),
    can be a line of ``contextlib`` or torch between two functions of this program.
    """
    level = level_of_caller = 1
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        level += 1
        if frame.f_globals.get("__name__", "").partition(".")[0] in OWN_PACKAGES:
            level_of_caller = level
        frame = frame.f_back
    warnings.warn(message, category, stacklevel=level_of_caller)


class UsageError(BudgetplanError):
    """An argument is out of its domain."""

    exit_code = 2
    kind = "usage"


def check_whole_number(name: str, value: object, *, least: int) -> None:
    """Refuse a value that is no whole number, or is too low; True counts as none.

    Raises:
        UsageError: the value is refused.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise UsageError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise UsageError(f"{name} must be at least {least}, got {value!r}")


class UnknownNameError(UsageError):
    """A name is not in a registry.

    Args:
        kind: kind of the name ("model", "method", "device").
        name: the unknown name.
        known: all names of the registry.
        hint: remedy if no name is similar.
    """

    kind = "unknown_name"

    def __init__(self, *, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        names = list(dict.fromkeys(known))
        longer = sorted((each for each in names if name and each.startswith(name)), key=len)
        similar = difflib.get_close_matches(name, names, n=4, cutoff=0.5)
        self.near = list(dict.fromkeys([*longer, *similar]))[:4]
        self.advice = f"did you mean {', '.join(self.near)}?" if self.near else hint
        super().__init__(f"unknown {kind} {name!r}" + (f"; {self.advice}" if self.advice else ""))


class UnmetLimitError(BudgetplanError):
    """No candidate is within a limit of accuracy, time or energy; the message has the nearest."""

    exit_code = 3
    kind = "unmet_limit"


class InfeasibleError(BudgetplanError):
    """Nothing fits the budget.

    Args:
        budget_bytes: the budget.
        smallest_bytes: smallest budget that would do; None if it is not known.
        context: part of the smallest budget for the CUDA context, as one clause.
        advice: the change that helps most, as one clause.
        subject: beginning of the message, such as "nothing fits".
    """

    exit_code = 3
    kind = "infeasible"

    def __init__(
        self,
        *,
        budget_bytes: int,
        smallest_bytes: int | None,
        context: str = "",
        advice: str = "",
        subject: str = "nothing fits",
    ) -> None:
        self.budget_bytes = budget_bytes
        self.smallest_bytes = smallest_bytes
        self.advice = advice
        text = f"{subject} a budget of {format_asked(budget_bytes)}"
        if smallest_bytes is not None:
            smallest = enough_bytes_as(smallest_bytes, budget_bytes)
            text += f"; the smallest budget that would is {smallest}"
        text += f", {context}" if context else ""
        super().__init__(text + (f"; {advice}" if advice else ""))


class InputError(BudgetplanError):
    """A file or data set cannot be read, is damaged, or does not match the model."""

    exit_code = 4
    kind = "input"


class DeviceError(BudgetplanError):
    """The device is not available on this machine."""

    exit_code = 5
    kind = "device"


class MeasurementError(BudgetplanError):
    """A real run was started and failed."""

    exit_code = 6
    kind = "measurement"


class OutOfMemoryError(MeasurementError):
    """A real run exceeded its memory cap, or the memory of its device.

    Args:
        cap_bytes: cap of the run; None without one.
        detail: message of the allocator.
    """

    kind = "out_of_memory"

    def __init__(self, *, cap_bytes: int | None, detail: str = "") -> None:
        self.cap_bytes, self.detail = cap_bytes, detail
        end = f" ({detail})" if detail else ""
        super().__init__(
            f"the run needs more memory than its device has{end}; use a smaller batch, or "
            "recompute (--checkpoint static)"
            if cap_bytes is None
            else f"the run exceeded its memory cap of {format_asked(cap_bytes)}{end}"
        )
