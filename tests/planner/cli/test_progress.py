"""Progress of a whole command: one bar that never runs backwards, and JSON events."""

from __future__ import annotations

import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from planner.cli.progress import (
    BAR_CELLS,
    RECOMMEND_STAGES,
    StageClock,
    _Bar,
    place_text,
    progress_bar,
    recommend_stages,
    times_text,
)

STAGES = ("start", "profile", "search", "unforeseen", "replay", "validate")


@given(st.lists(st.tuples(st.sampled_from(STAGES), st.floats(-1, 2)), max_size=30))
def test_it_never_runs_backwards_and_never_exceeds_the_whole(
    updates: list[tuple[str, float]],
) -> None:
    clock, last = StageClock(RECOMMEND_STAGES), 0.0
    for stage, fraction in updates:
        clock.update(stage, fraction)
        assert last <= clock.fraction <= 1
        assert 1 <= clock.number <= clock.stages
        last = clock.fraction


def test_times_are_of_the_whole_command() -> None:
    seconds = [0.0]
    clock = StageClock({"a": 1, "b": 3}, now=lambda: seconds[0])
    clock.update("a", 0.0)
    assert clock.remaining_seconds is None
    seconds[0] = 10.0
    clock.update("b", 1 / 3)  # half of the whole
    assert clock.remaining_seconds == pytest.approx(10)
    assert place_text(clock) == "2 of 2 b"
    assert times_text(clock) == "0:10, 0:10 left"
    seconds[0] = 4000.0
    assert times_text(clock).startswith("1:06:40")


def test_the_stages_stand_in_the_order_in_which_they_run() -> None:
    whole = recommend_stages(probes=True, validates=True, rehearses=True, finds_rate=True)
    assert list(whole) == [
        "start", "profile", "search", "replay", "probe", "rehearse", "validate", "learning rate",
        "training-free",
    ]  # fmt: skip
    short = recommend_stages(
        probes=True, validates=False, rehearses=False, lists_training_free=False
    )
    assert list(short) == ["start", "profile", "search", "replay", "probe"]


def test_a_stage_that_runs_again_does_not_count_backwards() -> None:
    clock = StageClock({"replay": 1, "probe": 1, "validate": 1})
    for stage in ("replay", "probe", "replay"):
        clock.update(stage, 0.5)
    assert place_text(clock) == "2 of 3 replay"
    assert clock.fraction == 0.5


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_bar_keeps_its_cells_and_its_times_at_every_width(width: int) -> None:
    seconds = [0.0]
    clock = StageClock(RECOMMEND_STAGES, now=lambda: seconds[0])
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="standard")
    with _Bar(clock, console) as bar:
        bar("start", "loading", 0.0)
        seconds[0] = 61.0
        bar("validate", "1 of 3: vit_small_patch16_224, lora r8, 8x4, fp16, adamw, step 3", 0.5)
        bar.message("a reading [not markup]")
    assert isinstance(console.file, io.StringIO)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    lines = [line for line in text.replace("\r", "\n").splitlines() if "validate" in line]
    assert lines
    assert "6 of 6 validate" in lines[-1]
    assert "1:01, 0:" in lines[-1]
    assert "left" in lines[-1]
    assert sum(lines[-1].count(c) for c in "━╸╺") >= BAR_CELLS
    assert "a reading [not markup]" in text


def test_events_are_json_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("events", as_json=True, stages={"a": 1, "b": 1}) as display:
        display("a", "work", 0.5)
        display("b", "more", 1.0)
        display.message("a reading")
    shown = capsys.readouterr()
    assert shown.out == ""
    events = [json.loads(line) for line in shown.err.splitlines()]
    assert [e["event"] for e in events] == ["progress", "progress", "message"]
    assert [(e["stage"], e["stage_number"], e["fraction"]) for e in events[:2]] == [
        ("a", 1, 0.25), ("b", 2, 1.0),
    ]  # fmt: skip


def test_json_is_silent_without_a_choice(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(None, as_json=True) as display:
        display("a", "work", 0.5)
    assert capsys.readouterr() == ("", "")
