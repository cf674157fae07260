"""Repeats an access to a storage while its server does not answer, as during a restart."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

AnswerT = TypeVar("AnswerT")

PATIENCE_SECONDS = 300.0
"""Time for which an access is repeated."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 5.0
"""Time between two attempts; it doubles after each."""

_ANSWERS = frozenset({"UpdateFinishedTrialError", "DuplicatedStudyError", "KeyError"})
"""Classes of errors that a storage answers with. A proxy's have gRPC's error as their cause."""

_LOST_CONNECTION = frozenset({"OperationalError", "InterfaceError"})
"""SQLAlchemy's classes of errors for a server that is away, shuts down or is too busy."""

_NO_ANSWER = frozenset({"StorageInternalError", "RpcError"})
"""Optuna's and gRPC's classes of errors for the same. Optuna's may have SQLAlchemy's as its
cause."""


def patiently(action: Callable[[], AnswerT], *, seconds: float) -> AnswerT:
    """Call a function, again and again while the storage cannot be reached.

    Args:
        action: the function; calling it again after a lost answer must do no harm.
        seconds: time after which the error is raised.
    """
    end, pause = time.monotonic() + seconds, FIRST_PAUSE_SECONDS
    while True:
        try:
            return action()
        except Exception as error:
            if not is_unreachable(error) or time.monotonic() > end:
                raise
        time.sleep(pause)
        pause = min(LONGEST_PAUSE_SECONDS, 2 * pause)


def is_unreachable(error: BaseException) -> bool:
    """Return whether an error means that the storage does not answer.

    A database that refuses a statement (a value that is too long, a missing table) has answered.
    Errors are known by the names of their classes, so that their packages need not be installed.
    """
    is_silent = False
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__ in _ANSWERS:
            return False
        names = {base.__name__ for base in type(cause).__mro__}
        if "StatementError" in names:  # SQLAlchemy's base of all errors of a statement
            return bool(names & _LOST_CONNECTION) or getattr(cause, "connection_invalidated", False)
        is_silent |= bool(names & _NO_ANSWER)
        cause = cause.__cause__
    return is_silent
