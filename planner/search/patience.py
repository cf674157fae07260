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

_UNREACHABLE = frozenset(
    {"StorageInternalError", "OperationalError", "InterfaceError", "DBAPIError", "RpcError"}
)
"""Classes of errors, by name: Optuna's, SQLAlchemy's and gRPC's for a server that is away."""


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


_ANSWERS = frozenset({"UpdateFinishedTrialError", "DuplicatedStudyError", "KeyError"})
"""Classes of errors that a storage answers with. A proxy's have gRPC's error as their cause."""


def is_unreachable(error: BaseException) -> bool:
    """Return whether an error means that the storage does not answer."""
    if type(error).__name__ in _ANSWERS:
        return False
    found = (error, error.__cause__)
    return any(_UNREACHABLE & {base.__name__ for base in type(e).__mro__} for e in found if e)
