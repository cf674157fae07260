"""The timeline of a small log written by hand, and the files drawn of it."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from profiler.errors import InputError, UsageError
from profiler.prediction.save_timeline import save_timeline
from profiler.prediction.timeline import STACK, Timeline, unit_label
from profiler.records import OWNERS
from profiler.replay.event_log import EventLog, Mark, MarkKind, Phase

TICKS = 40
# nbytes, birth, death, owner, phase, unit; nothing happens before tick 11, when the step begins
STORAGES = (
    (1000, 0, TICKS, "parameter", 0, -1),
    (100, 11, 35, "input", 1, -1),
    (400, 13, 30, "activation", Phase.FORWARD, 0),
    (500, 16, 24, "activation", Phase.FORWARD, 1),
    (700, 20, 22, "temporary", Phase.BACKWARD, 1),
    (300, 26, 28, "activation", Phase.RECOMPUTE, 0),
    (250, 31, 39, "gradient", Phase.BACKWARD, 0),
)
MARKS = (
    Mark(10, MarkKind.PHASE, Phase.INPUT),
    Mark(12, MarkKind.PHASE, Phase.FORWARD),
    Mark(12, MarkKind.ENTER, 0),
    Mark(14, MarkKind.EXIT, 0),
    Mark(15, MarkKind.ENTER, 1),
    Mark(17, MarkKind.EXIT, 1),
    Mark(18, MarkKind.PHASE, Phase.BACKWARD),
    Mark(19, MarkKind.BACKWARD, 1),
    Mark(25, MarkKind.BACKWARD, 0),
    Mark(36, MarkKind.PHASE, Phase.OPTIMIZER),
)


@pytest.fixture
def log() -> EventLog:
    table = np.array(
        [(n, b, d, OWNERS.index(o), p, u) for n, b, d, o, p, u in STORAGES], dtype=np.int64
    )
    return EventLog(
        nbytes=table[:, 0],
        birth=table[:, 1],
        death=table[:, 2],
        owner=table[:, 3],
        phase=table[:, 4],
        unit=table[:, 5],
        operation=np.zeros(len(table), dtype=np.int64),
        reduction=np.full(len(table), -1),
        reductions=(),
        operation_names=("aten.made_up",),
        ticks=TICKS,
        marks=MARKS,
        units=("blocks.0", "blocks.1"),
        boundary_bytes=(400, 500),
        operations=(),
    )


def test_peak_and_owners(log):
    timeline = Timeline.of(log)
    assert timeline.peak_bytes == 1000 + 100 + 400 + 500 + 700 == log.peak_bytes
    at_peak = {"parameter": 1000, "input": 100, "activation": 900, "temporary": 700}
    assert timeline.at_peak() == dict.fromkeys(STACK, 0) | at_peak
    assert timeline.place(timeline.peak_tick) == ("backward", "blocks.1")
    assert timeline.peak_label == "peak 2.64 KiB in backward, blocks.1"
    assert timeline.highest.gradient == 250


def test_idle_ticks_are_left_out(log):
    timeline = Timeline.of(log)
    events = {t for _, b, d, *_ in STORAGES for t in (b, d) if 0 < t < TICKS}
    assert timeline.total_ticks == len(events) + 1
    # an order is kept: 1000, +100, +400, +500, +700, -700, -500, +300, -300, -400, +250, -100, -250
    steps = [1000, 100, 400, 500, 700, -700, -500, 300, -300, -400, 250, -100, -250]
    expected = np.cumsum(steps)
    np.testing.assert_array_equal(timeline.owners.sum(axis=0)[: len(steps)], expected)


def test_spans(log):
    timeline = Timeline.of(log)
    assert [s.name for s in timeline.phases] == ["input", "forward", "backward", "optimizer"]
    kinds = [(s.name, s.kind) for s in timeline.units]
    assert kinds == [
        ("blocks.0", "forward"),
        ("blocks.1", "forward"),
        ("blocks.1", "backward"),
        ("blocks.0", "backward"),
        ("blocks.0", "recompute"),
    ]
    again = timeline.units[-1]
    assert timeline.place(again.start) == ("recompute", "blocks.0")


@pytest.mark.parametrize("columns", [1, 2, 3, 5])
def test_few_columns_still_show_the_peak(log, columns):
    timeline = Timeline.of(log, columns=columns)
    assert len(timeline.ticks) <= columns
    assert timeline.peak_bytes == log.peak_bytes
    assert timeline.owners.sum(axis=0).max() == log.peak_bytes


def test_html_stands_alone(log, tmp_path):
    path = tmp_path / "step.html"
    save_timeline(log, path, title="a <b> & c", caption="no <workspace>")
    text = path.read_text()
    assert "a &lt;b&gt; &amp; c" in text
    assert "no &lt;workspace&gt;" in text
    assert not re.search(r"https?:|src=|href=|@import|url\(", text)
    svg = ET.fromstring(re.search(r"<svg.*?</svg>", text, re.DOTALL).group())
    assert len(svg.findall("path")) == 5  # owners that hold something
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1))
    assert max(sum(column) for column in data["bytes"]) == log.peak_bytes
    assert data["owners"] == list(STACK)


def test_png(log, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "step.PNG"
    save_timeline(log, path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    save_timeline(log, path)  # replaces its own


def test_what_cannot_be_drawn(log, tmp_path):
    with pytest.raises(UsageError, match=r"\.png or \.html, got 'step\.pdf'"):
        save_timeline(log, tmp_path / "step.pdf")
    with pytest.raises(InputError, match="cannot be written"):
        save_timeline(log, tmp_path / "nowhere" / "step.html")


def test_a_plot_replaces_only_a_plot(log, tmp_path):
    path = tmp_path / "step.html"
    save_timeline(log, path)
    save_timeline(log, path)
    page = "<!doctype html>\n<!-- budgetplan page -->\n"
    path.write_text(page)
    with pytest.raises(InputError, match="is no plot of budgetplan"):
        save_timeline(log, path)
    assert path.read_text() == page


def test_unit_labels():
    assert unit_label("blocks.11") == "11"
    assert unit_label("stages.2.blocks.1") == "2.1"
    assert unit_label("stem") == "stem"
