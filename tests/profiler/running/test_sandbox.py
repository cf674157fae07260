"""Real child processes: their results, their errors, their caps and their deaths."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from profiler.errors import MeasurementError, OutOfMemoryError, UsageError
from profiler.running.sandbox import run_in_process
from profiler.units import MIB

CHILD = "sandbox_children:run"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parents[2])]))


def test_result_and_progress_come_from_another_process() -> None:
    seen: list[tuple[str, float]] = []
    result = run_in_process(
        CHILD,
        {"action": "report", "number": 41},
        on_progress=lambda text, done: seen.append((text, done)),
    )
    assert result["number"] == 42
    assert result["pid"] != os.getpid()
    assert seen == [("half way", 0.5), ("done", 1.0)]


def test_a_users_error_keeps_its_class_and_line() -> None:
    with pytest.raises(UsageError, match="unknown model 'vit_z'; did you mean vit_s") as caught:
        run_in_process(CHILD, {"action": "unknown"})
    assert caught.value.exit_code == 2


def test_any_other_error_is_a_failed_measurement_of_one_line() -> None:
    with pytest.raises(MeasurementError) as caught:
        run_in_process(CHILD, {"action": "fail"})
    assert str(caught.value) == "something broke"
    assert not isinstance(caught.value, OutOfMemoryError)


def test_a_killed_child_is_a_failed_measurement_with_its_last_words() -> None:
    with pytest.raises(MeasurementError, match="code -15: last words") as caught:
        run_in_process(CHILD, {"action": "die"})
    assert not isinstance(caught.value, OutOfMemoryError)


def test_the_cap_is_enforced() -> None:
    cap = 128 * MIB
    blocks = {"action": "allocate", "blocks": 12, "block_bytes": 64 * MIB, "cap_bytes": cap}
    shares: list[float] = []
    with pytest.raises(OutOfMemoryError) as caught:
        run_in_process(CHILD, blocks, cap_bytes=cap, on_progress=lambda _, s: shares.append(s))
    assert caught.value.cap_bytes == cap
    # it could hold the cap, and stopped at the cap and the slack (256 MiB) at the latest
    assert cap <= len(shares) * 64 * MIB <= cap + 256 * MIB


def test_below_the_cap_all_is_well() -> None:
    cap = 192 * MIB
    blocks = {"action": "allocate", "blocks": 2, "block_bytes": 64 * MIB, "cap_bytes": cap}
    assert run_in_process(CHILD, blocks, cap_bytes=cap)["held_bytes"] == 128 * MIB


def test_a_lifted_cap_comes_back_above_what_was_taken_meanwhile() -> None:
    cap, beyond = 64 * MIB, 1024 * MIB
    within = {"action": "lift", "beyond_bytes": beyond, "more_bytes": cap, "cap_bytes": cap}
    assert run_in_process(CHILD, within, cap_bytes=cap)["held_bytes"] == beyond + cap
    with pytest.raises(OutOfMemoryError):
        run_in_process(CHILD, within | {"more_bytes": beyond}, cap_bytes=cap)


def test_a_slow_child_is_stopped_and_that_is_no_lack_of_memory() -> None:
    with pytest.raises(MeasurementError, match=r"more than 0\.5 s") as caught:
        run_in_process(CHILD, {"action": "wait"}, cap_bytes=MIB, timeout_seconds=0.5)
    assert not isinstance(caught.value, OutOfMemoryError)
