"""What became of one mutant, and the count of outcomes over many.

Faults are: an exception that is not ours, a message of more than one line or of more than
``LONGEST_MESSAGE`` characters, a mutant that takes more than ``LONGEST_SECONDS``, code that a file
brought along, and what a target calls wrong (``FaultError``).
"""

from __future__ import annotations

import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from profiler.errors import LONGEST_MESSAGE, BudgetplanError

LONGEST_SECONDS = 5.0
"""Limit of one mutant in processor time: a busy machine is no hang."""

LONGEST_WAIT_SECONDS = 120.0
"""Limit in wall time, for a mutant that waits and computes nothing."""

KEPT_EXAMPLES = 5


class FaultError(Exception):
    """A target's own rule was broken: code was run, a reading was not equal, a file was left."""


class _Canary:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def canary(file: Path) -> object:
    """Return an object that makes a file where somebody unpickles it."""
    return _Canary(file)


class Hang(BaseException):
    """A mutant took more than ``LONGEST_SECONDS``. No handler of ``Exception`` catches it."""


@dataclass(slots=True)
class Outcomes:
    """Counts over many mutants.

    Attributes:
        counts: number of mutants by outcome.
        examples: seeds and texts of the first faults.
        longest_seconds: processor time of the slowest mutant.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)
    longest_seconds: float = 0.0

    @property
    def faults(self) -> int:
        """Number of mutants with a fault."""
        return sum(n for kind, n in self.counts.items() if kind in FAULTS)

    def try_one(self, seed: int, action: Callable[[], object]) -> None:
        """Run the action of one mutant and count what became of it."""
        began = time.process_time()
        kind, text = _outcome(action)
        self.longest_seconds = max(self.longest_seconds, time.process_time() - began)
        self.counts[kind] += 1
        if kind in FAULTS and len(self.examples) < KEPT_EXAMPLES:
            self.examples.append({"seed": seed, "kind": kind, "text": text[:1000]})

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a row."""
        return {
            "counts": dict(sorted(self.counts.items())),
            "faults": self.faults,
            "examples": self.examples,
            "longest_seconds": round(self.longest_seconds, 3),
        }


FAULTS = ("not ours", "hang", "long line", "fault")
"""Outcomes that must not occur; the others are ``accepted`` and ``refused``."""


def _outcome(action: Callable[[], object]) -> tuple[str, str]:
    try:
        with _time_limit(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            action()
    except Hang:
        return "hang", f"more than {LONGEST_SECONDS} s"
    except BudgetplanError as error:
        text = str(error)
        is_long = len(text) > LONGEST_MESSAGE or "\n" in text or not text.isprintable()
        return ("long line" if is_long else "refused"), text
    except FaultError as error:
        return "fault", str(error)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-3:]
        places = " < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(where))
        return "not ours", f"{type(error).__name__}: {str(error)[:300]} at {places}"
    return "accepted", ""


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(signum: int, frame: FrameType | None) -> None:
        raise Hang

    timers = (
        (signal.SIGPROF, signal.ITIMER_PROF, LONGEST_SECONDS),
        (signal.SIGALRM, signal.ITIMER_REAL, LONGEST_WAIT_SECONDS),
    )
    before = [signal.signal(number, stop) for number, _, _ in timers]
    for _, timer, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)
