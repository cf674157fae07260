"""Intervals of times that are predicted for a processor whose operations were timed.

``cpu_spread.json`` holds the ratios of measured to predicted seconds in the studies of training
steps (studies/cpu_time) and of inferences (studies/cpu_inference), whose summaries write it.
Nothing is fitted to their cells. They ran one thread in fp32. Their clock is the processor time, as
if no other program ran.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Literal

from profiler.records import Spread

CPU_SPREAD_FILE = Path(__file__).with_name("cpu_spread.json")

TimedWork = Literal["training step", "inference"]


@cache
def cpu_spread(work: TimedWork, *, threads: int, precision: str = "fp32") -> Spread:
    """Return the spread of measured over predicted seconds on a timed processor.

    The studies ran one thread in fp32. With several threads or in another precision, their spread
    is an assumption without coverage.

    Args:
        work: kind of run.
        threads: threads of the process.
        precision: precision of the run.
    """
    data: dict[str, Any] = json.loads(CPU_SPREAD_FILE.read_text(encoding="utf-8"))
    row = data["spreads"][work]
    coverage = row["coverage"] if threads == 1 and precision == "fp32" else None
    return Spread(low=row["low"], high=row["high"], coverage=coverage)
