"""Intervals of a processor's predicted seconds, held against the rows of the studies."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from profiler.timing.cpu_spread import cpu_spread

STUDIES = Path(__file__).parents[3] / "studies"


def _rows(study: str) -> list[dict[str, Any]]:
    text = gzip.decompress((STUDIES / study / "rows.jsonl.gz").read_bytes()).decode()
    return [json.loads(line) for line in text.splitlines()]


def _training_ratios() -> list[float]:
    """Measured over predicted seconds of the cells whose two readings agree."""
    readings = [(r["first_seconds"], r["second_seconds"], r["load"][0]) for r in _rows("cpu_time")]
    return [min(a, b) / predicted for a, b, predicted in readings if max(a, b) <= 1.1 * min(a, b)]


def _inference_ratios() -> list[float]:
    return [row["seconds"] / row["predicted_seconds"] for row in _rows("cpu_inference")]


@pytest.mark.parametrize(
    ("work", "ratios"), [("training step", _training_ratios), ("inference", _inference_ratios)]
)
def test_the_interval_of_one_thread_holds_its_stated_share_of_the_readings(work, ratios):
    spread, found = cpu_spread(work, threads=1), ratios()
    inside = sum(spread.low <= ratio <= spread.high for ratio in found)
    assert spread.coverage is not None
    assert inside / len(found) == pytest.approx(spread.coverage, abs=2 / len(found))


@pytest.mark.parametrize(("threads", "precision"), [(2, "fp32"), (1, "bf16"), (1, "fp16")])
def test_nothing_is_claimed_for_what_the_studies_did_not_run(threads, precision):
    one = cpu_spread("training step", threads=1)
    other = cpu_spread("training step", threads=threads, precision=precision)
    assert other.coverage is None
    assert (other.low, other.high) == (one.low, one.high)
