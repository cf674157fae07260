"""Exports of a replay, read by PyTorch's own viewers."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch.cuda._memory_viz as viz
from click.testing import CliRunner

from planner.cli import cli
from profiler.devices.table import CPU, DeviceSpec, lookup
from profiler.prediction.memory_snapshot import memory_snapshot, save_perfetto
from profiler.prediction.report import report_of
from profiler.replay.step_replay import replay_step
from profiler.workload import Candidate, Workload

CANDIDATE = Candidate(
    workload=Workload(model="test_vit", method="lora", rank=4, num_classes=10, micro_batch=4)
)
GPU = lookup("rtx-3060")


def highest(trace: list[dict[str, Any]]) -> int:
    live = most = 0
    for entry in trace:
        if entry["action"] == "alloc":
            live += entry["size"]
        elif entry["action"] == "free_completed":
            live -= entry["size"]
        most = max(most, live)
    return most


@pytest.mark.parametrize("device", [GPU, CPU], ids=["gpu", "cpu"])
def test_the_snapshot_has_the_predicted_peak_and_segments(device: DeviceSpec) -> None:
    log = replay_step(CANDIDATE, device=device)
    memory = report_of(CANDIDATE, log, device=device).memory
    snapshot = memory_snapshot(log, device)
    (trace,) = snapshot["device_traces"]
    if device.is_cuda:
        assert highest(trace) == memory.peak_bytes
        reserved = sum(segment["total_size"] for segment in snapshot["segments"])
        assert reserved == memory.reserved_bytes
    else:
        assert highest(trace) == pytest.approx(memory.peak_bytes, rel=0.01)  # in blocks of 512 B
    for segment in snapshot["segments"]:
        assert sum(block["size"] for block in segment["blocks"]) == segment["total_size"]
    live: dict[int, tuple[int, int]] = {}  # no two blocks that live at once overlap
    for entry in trace:
        begin, end = entry["addr"], entry["addr"] + entry["size"]
        if entry["action"] == "alloc":
            assert all(end <= other[0] or other[1] <= begin for other in live.values())
            live[begin] = begin, end
        elif entry["action"] == "free_completed":
            del live[begin]


def test_pytorch_s_own_functions_read_the_snapshot(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        cli,
        [
            *("predict", "--model", "test_vit", "--method", "lora", "--batch-size", "4"),
            *("--device", "rtx-3060", "--num-classes", "10", "--json"),
            *("--snapshot", str(tmp_path / "a.pickle"), "--perfetto", str(tmp_path / "a.json")),
        ],
    )
    assert done.exit_code == 0, done.output
    snapshot = pickle.loads((tmp_path / "a.pickle").read_bytes())
    assert "aten.addmm" in viz.memory(snapshot, format_flamegraph=str) or viz.memory(
        snapshot, format_flamegraph=str
    )
    for shown in (viz.trace(snapshot), viz.segsum(snapshot)):
        assert "Bytes" in shown or "iB" in shown
    for page in (viz.trace_plot(snapshot), viz.segment_plot(snapshot)):
        assert "MemoryViz.js" in page
    assert json.loads((tmp_path / "a.json").read_text())["traceEvents"]


def test_the_perfetto_trace_has_the_live_bytes_of_the_step(tmp_path: Path) -> None:
    log = replay_step(CANDIDATE, device=GPU)
    save_perfetto(log, tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    sums = [sum(event["args"].values()) for event in events if event["ph"] == "C"]
    assert max(sums) == log.peak_bytes
    slices = [event for event in events if event["ph"] == "X"]
    assert {"forward", "backward", "optimizer"} <= {event["name"] for event in slices}
    assert "blocks.0 forward" in {event["name"] for event in slices}
    assert all(0 <= s["ts"] <= s["ts"] + s["dur"] <= log.ticks for s in slices)


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        cli,
        [
            *("predict", "--model", "test_vit", "--method", "head", "--batch-size", "1"),
            *("--device", "rtx-3060", "--snapshot", str(tmp_path / "no" / "a.pickle")),
        ],
    )
    assert done.exit_code == 4
    assert "cannot be written" in done.output
