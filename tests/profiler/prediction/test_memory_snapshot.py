"""Exports of a replay, read by PyTorch's own viewers."""

from __future__ import annotations

import json
import pickle
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.cuda._memory_viz as viz
from click.testing import CliRunner

import planner
from planner.cli import cli
from profiler.devices.table import CPU, DeviceSpec, lookup, workspaces_of
from profiler.errors import InputError, UsageError
from profiler.prediction.allocator_steps import workspace_bytes
from profiler.prediction.memory_snapshot import memory_snapshot, save_perfetto, save_snapshot
from profiler.prediction.report import report_of
from profiler.records import OWNERS
from profiler.replay.event_log import Phase
from profiler.replay.step_replay import replay_step
from profiler.workload import Candidate, Workload

CANDIDATE = Candidate(
    workload=Workload(model="test_vit", method="lora", rank=4, num_classes=10, micro_batch=4)
)
GPU = lookup("rtx-3060")


def in_blocks(nbytes: int) -> int:
    """Return a size in whole blocks of 512 bytes."""
    return -(-int(nbytes) // 512) * 512


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


def test_the_last_step_has_the_tensors_of_the_log_in_their_order() -> None:
    log = replay_step(CANDIDATE, device=GPU)
    (trace,) = memory_snapshot(log, GPU)["device_traces"]
    born = [i for i in np.argsort(log.birth, kind="stable") if log.birth[i] > 0]
    expected = [
        (
            in_blocks(log.nbytes[i]),
            log.operation_names[log.operation[i]],
            log.units[log.unit[i]] if log.unit[i] >= 0 else None,
            Phase(int(log.phase[i])).label,
            OWNERS[log.owner[i]],
        )
        for i in born
    ]
    allocations = [entry for entry in trace if entry["action"] == "alloc"][-len(born) :]
    found = []
    for entry in allocations:
        operation, *unit, phase = (frame["name"] for frame in entry["frames"])
        found.append((entry["size"], operation, *(unit or [None]), phase, entry["category"]))
    assert found == expected
    # an address is given again only after the tensor that had it died
    assert len({entry["addr"] for entry in allocations}) < len(born)
    last: dict[int, int] = {}
    for entry, i in zip(allocations, born, strict=True):
        assert last.get(entry["addr"], 0) < log.birth[i]
        last[entry["addr"]] = int(log.death[i])


def test_pytorch_s_own_functions_read_the_snapshot(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        cli,
        [
            *("predict", "--model", "test_vit", "--method", "lora", "--batch-size", "4"),
            *("--rank", "4", "--device", "rtx-3060", "--num-classes", "10", "--json"),
            *("--image-size", "224"),
            *("--snapshot", str(tmp_path / "a.pickle"), "--perfetto", str(tmp_path / "a.json")),
        ],
    )
    assert done.exit_code == 0, done.output
    snapshot = pickle.loads((tmp_path / "a.pickle").read_bytes())
    # what is allocated after a step: parameters, buffers, optimizer state, cuBLAS's workspaces
    log = replay_step(CANDIDATE, device=GPU)
    resident = sum(map(in_blocks, log.nbytes[log.birth == 0]))
    resident += workspace_bytes(log, workspaces_of(GPU))
    flames = [
        line.rsplit(" ", 1) for line in viz.memory(snapshot, format_flamegraph=str).split("\n")
    ]
    allocated = [int(f[1]) for f in flames if f[0].startswith("stream_0;active_allocated")]
    assert sum(allocated) == resident
    assert any(";cuBLAS:0:workspace" in f[0] for f in flames)
    assert f"total_allocated: {resident / 2**20:.1f}MiB" in viz.segsum(snapshot)
    entries = len(snapshot["device_traces"][0])
    assert f"{entries} entries" in viz.trace(snapshot)
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


@pytest.mark.parametrize("option", ["--snapshot", "--perfetto"])
def test_a_file_of_somebody_else_is_left_as_it_is_before_the_replay(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, text = tmp_path / "thesis.tex", "\\section{budgetplan}"
    path.write_text(text)
    monkeypatch.setattr("profiler.replay.step_replay.replay_step", replay_too_early)
    done = CliRunner().invoke(
        cli,
        [
            *("predict", "--model", "test_vit", "--method", "head", "--batch-size", "1"),
            *("--device", "rtx-3060", option, str(path)),
        ],
    )
    assert done.exit_code == 4
    assert "thesis.tex exists and is no" in " ".join(done.output.split())
    assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def replay_too_early(*arguments: object, **options: object) -> None:
    raise AssertionError("the file is refused before the replay")


def test_a_module_is_not_replayed_for_a_file_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text("{}")
    with pytest.raises(InputError, match=r"is no trace of budgetplan"):
        planner.estimate(torch.nn.Linear(2, 2), torch.zeros(1, 2), perfetto=path)
    assert path.read_text() == "{}"


def test_an_export_replaces_only_one_of_its_kind_and_all_of_it(tmp_path: Path) -> None:
    log = replay_step(CANDIDATE, device=GPU)
    path = tmp_path / "a"
    save_snapshot(log, GPU, path)
    save_snapshot(log, GPU, path)
    whole = path.read_bytes()
    assert "segments" in pickle.loads(whole)
    with pytest.raises(InputError, match="is no trace of budgetplan"):
        save_perfetto(log, path)
    assert path.read_bytes() == whole
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UsageError, match="give two files"):
        planner.predict("test_vit", "head", snapshot=path, perfetto=path)


def test_a_full_disk_leaves_the_earlier_file(tmp_path: Path) -> None:
    log = replay_step(CANDIDATE, device=GPU)
    path = tmp_path / "trace.json"
    save_perfetto(log, path)
    whole = path.read_bytes()
    limit, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, hard))
    try:
        with pytest.raises(InputError, match="cannot be written"):
            save_perfetto(log, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]
