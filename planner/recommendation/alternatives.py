"""Names the rows that a person compares with the recommended one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from planner.cost.budget import needed_bytes
from planner.recommendation.answer import Alternative, FrontEntry
from planner.recommendation.baselines import Baseline
from planner.recommendation.choose import ChosenEntry
from profiler.units import format_bytes, format_seconds
from profiler.workload import Workload

SAFE_TIME_RATIO = 1.1
"""Time of the safest row over that of the recommended one, at most. A wide margin at any price is
the smallest row."""


def named_alternatives(
    entries: Sequence[FrontEntry], choice: ChosenEntry, baselines: Mapping[str, Baseline]
) -> tuple[Alternative, ...]:
    """Return the named rows, each at most once a name.

    ``fastest``, ``smallest`` and ``safest`` are among the rows that are expected to be as accurate
    as the recommended one.

    Args:
        entries: rows of the answer, at least one.
        choice: the recommended row and its ties.
        baselines: the paper's defaults.
    """
    equals = (choice.index, *choice.ties)
    limit = SAFE_TIME_RATIO * _seconds(entries[choice.index])
    steady = [i for i in equals if _seconds(entries[i]) <= limit] or [choice.index]
    fastest = _least(equals, lambda i: _seconds(entries[i]))
    smallest = _least(equals, lambda i: _needed(entries[i]))
    safest = _least(steady, lambda i: _needed(entries[i]))
    most = max(range(len(entries)), key=lambda i: (entries[i].result.score, i == choice.index))
    return (
        Alternative(
            name="fastest",
            index=fastest,
            note=f"{format_seconds(entries[fastest].plan.prediction.step_seconds)} a step, the "
            "least of the rows that are expected to be equally accurate",
        ),
        Alternative(
            name="most accurate", index=most, note="the highest expected accuracy at any cost"
        ),
        Alternative(
            name="smallest",
            index=smallest,
            note=f"{format_bytes(_needed(entries[smallest]))}, the least of the rows that are "
            "expected to be equally accurate",
        ),
        Alternative(
            name="safest",
            index=safest,
            note=f"{format_bytes(_needed(entries[safest]))}, the widest margin for at most "
            f"{SAFE_TIME_RATIO - 1:.0%} more time",
        ),
        *_full(entries),
        *_paper(entries, baselines),
    )


def _full(entries: Sequence[FrontEntry]) -> Iterator[Alternative]:
    rows = [i for i, entry in enumerate(entries) if entry.plan.candidate.workload.method == "full"]
    if rows:
        best = _least(rows, lambda i: _seconds(entries[i]))
        yield Alternative(name="full", index=best, note="every parameter learns")


def _paper(
    entries: Sequence[FrontEntry], baselines: Mapping[str, Baseline]
) -> Iterator[Alternative]:
    baseline = baselines.get("lora")
    if baseline is None:
        return
    wanted = baseline.prediction.candidate
    rows = [i for i, entry in enumerate(entries) if entry.plan.candidate == wanted]
    need = format_bytes(needed_bytes(baseline.prediction))
    if rows:
        yield Alternative(name="paper", index=rows[0], note="the default of arXiv 2607.02158")
    elif not baseline.fits:
        yield Alternative(name="paper", index=None, note=f"needs {need}, does not fit")


def _least(indices: Sequence[int], value: Callable[[int], float]) -> int:
    return min(indices, key=value)


def _seconds(entry: FrontEntry) -> float:
    """Return the seconds of an image; infinite if not known."""
    load: Workload = entry.plan.candidate.workload
    seconds = entry.plan.prediction.step_seconds
    return math.inf if seconds is None else seconds / load.effective_batch


def _needed(entry: FrontEntry) -> int:
    return needed_bytes(entry.plan.prediction)
