"""Time after which a run in another process counts as hung and is killed.

The limit follows from the expected time of the run. It is generous, because a busy machine can be
several times slower than predicted, and a run that is killed in error loses all its work.
"""

from __future__ import annotations

LIMIT_RATIO = 10.0
"""Limit of a run as a ratio of its expected time (>= 1)."""

START_SECONDS = 300.0
"""Least limit of a run on random data. Importing PyTorch and building a model of 300 million
parameters takes up to a minute on a busy core."""

LOAD_SECONDS = 900.0
"""Least limit of a run that loads images and weights, which may have to be downloaded."""

UNKNOWN_LIMIT_SECONDS = 3600.0
"""Limit of a run whose expected time is not known."""


def limit_seconds(expected_seconds: float | None, *, least_seconds: float) -> float:
    """Return the seconds after which a run is killed.

    Args:
        expected_seconds: predicted duration of the run; None if not known.
        least_seconds: smallest limit, ``START_SECONDS`` or ``LOAD_SECONDS``.
    """
    if expected_seconds is None:
        return UNKNOWN_LIMIT_SECONDS
    return max(least_seconds, LIMIT_RATIO * expected_seconds)
