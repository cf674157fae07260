"""Exports of a replayed step for other viewers.

    save_snapshot   a pickle in the format of ``torch.cuda.memory._dump_snapshot``, for
                    https://docs.pytorch.org/memory_viz and the functions of
                    ``torch.cuda._memory_viz``
    save_perfetto   JSON of the Trace Event Format, for https://ui.perfetto.dev

The snapshot holds three steps from an empty allocator, as the model of the caching allocator serves
them, with the modelled address of every block. The frames of an entry are its operation, its unit
(of a user's module: the module) and its phase. The Perfetto trace holds the steady step: live bytes
by owner, phases and units.

Limitation: a replay has no clock. One tick, a birth or a death of a storage, is written as one
microsecond.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from profiler.device_rules.caching_allocator import (
    AllocatorSettings,
    CachingAllocator,
    configuration,
)
from profiler.devices.table import DeviceSpec, workspaces_of
from profiler.prediction.allocator_steps import BLOCK_BYTES, run_steps
from profiler.prediction.export_files import export_mark, write_export
from profiler.records import OWNERS
from profiler.replay.event_log import EventLog, Phase
from profiler.replay.unit_spans import phase_spans, unit_spans

STEPS = 3
"""The first step makes the optimizer's state; the third repeats the second."""


def save_snapshot(log: EventLog, device: DeviceSpec, path: Path) -> None:
    """Write a memory snapshot that PyTorch's memory_viz opens.

    Raises:
        InputError: the file cannot be written, or there is another file.
    """
    write_export(path, pickle.dumps(memory_snapshot(log, device)), "snapshot")


def save_perfetto(log: EventLog, path: Path) -> None:
    """Write a trace that Perfetto opens.

    Raises:
        InputError: the file cannot be written, or there is another file.
    """
    events = list(_trace_events(log))
    about = {"program": export_mark("trace"), "clock": "1 us is one tick, not a time"}
    content = {"otherData": about, "traceEvents": events}  # the mark stands first
    write_export(path, json.dumps(content).encode(), "trace")


# ---- snapshot ------------------------------------------------------------------------------------


class _TracedAllocator(CachingAllocator):
    """The model of the caching allocator, with an entry for each request, free and segment."""

    def __init__(self, log: EventLog, settings: AllocatorSettings) -> None:
        super().__init__(settings)
        self._log = log
        self._live_entries: dict[int, dict[str, Any]] = {}
        self.trace: list[dict[str, Any]] = []

    def malloc(self, key: int, nbytes: int) -> int:
        """Serve a request and record it."""
        granted = super().malloc(key, nbytes)
        block = self._live[key]
        if block is not None:
            entry = self._entry("alloc", block.address, granted, _frames(self._log, key))
            entry["category"] = _category(self._log, key)
            self._live_entries[key] = entry
            self.trace.append(entry)
        return granted

    def free(self, key: int) -> None:
        """Free a block and record it."""
        super().free(key)
        made = self._live_entries.pop(key, None)
        if made is not None:
            for action in ("free_requested", "free_completed"):
                self.trace.append(self._entry(action, made["addr"], made["size"], made["frames"]))

    def _entry(
        self, action: str, address: int, size: int, frames: list[dict[str, Any]]
    ) -> dict[str, Any]:
        return {
            "action": action,
            "addr": address,
            "size": size,
            "stream": 0,
            "time_us": len(self.trace),
            "frames": frames,
        }

    def live_frames(self) -> dict[int, list[dict[str, Any]]]:
        """Return the frames of each allocated block by its address."""
        return {entry["addr"]: entry["frames"] for entry in self._live_entries.values()}


def memory_snapshot(log: EventLog, device: DeviceSpec) -> dict[str, Any]:
    """Return a snapshot as ``torch.cuda.memory._snapshot`` does, of the steps that were replayed.

    Args:
        log: log of a steady step.
        device: device that it was replayed for. The steps of a CPU are shown in the same form.
    """
    if device.is_cuda:
        log = log.rounded(BLOCK_BYTES)
    allocator = _TracedAllocator(log, AllocatorSettings.parse(configuration()))
    run_steps(allocator, log, steps=STEPS, workspaces=workspaces_of(device))
    frames = allocator.live_frames()
    return {
        "program": export_mark("snapshot"),  # first, where a later snapshot looks for it
        "device_traces": [allocator.trace],
        "segments": [
            {
                "device": 0,
                "address": segment.address,
                "total_size": segment.total_bytes,
                "allocated_size": segment.allocated_bytes,
                "active_size": segment.allocated_bytes,
                "requested_size": segment.allocated_bytes,
                "stream": 0,
                "segment_type": "small" if segment.is_small else "large",
                "segment_pool_id": (0, 0),
                "is_expandable": segment.is_expandable,
                "frames": [],
                "blocks": list(_blocks(segment.address, segment.blocks, frames)),
            }
            for segment in allocator.segments
        ],
        "allocator_settings": {"PYTORCH_CUDA_ALLOC_CONF": configuration()},
        "external_annotations": [],
    }


def _blocks(
    address: int, blocks: tuple[tuple[int, bool], ...], frames: dict[int, list[dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    for size, is_allocated in blocks:
        yield {
            "address": address,
            "size": size,
            "requested_size": size if is_allocated else 0,
            "state": "active_allocated" if is_allocated else "inactive",
            "frames": frames.get(address, []),
        }
        address += size


def _frames(log: EventLog, key: int) -> list[dict[str, Any]]:
    """Return operation, unit and phase of a storage as stack frames, innermost first."""
    if key < 0:
        return [{"name": "workspace", "filename": "cuBLAS", "line": 0}]
    unit = log.units[log.unit[key]] if log.unit[key] >= 0 else ""
    phase = Phase(int(log.phase[key])).label
    operation = log.operation_names[log.operation[key]]
    names = [operation, *filter(None, [unit]), phase]
    return [{"name": name, "filename": "replay", "line": 0} for name in names]


def _category(log: EventLog, key: int) -> str:
    return "temporary" if key < 0 else OWNERS[log.owner[key]]


# ---- Perfetto ------------------------------------------------------------------------------------

_STEP_TRACK = {"pid": 1, "tid": 1}
_UNIT_TRACK = {"pid": 1, "tid": 2}


def _trace_events(log: EventLog) -> Iterator[dict[str, Any]]:
    for track, name in ((_STEP_TRACK, "phases"), (_UNIT_TRACK, "units")):
        yield {"ph": "M", "name": "thread_name", "args": {"name": name}, **track}
    for span in phase_spans(log.marks, log.ticks):
        yield _trace_slice(span.phase.label, span.begin, span.end, _STEP_TRACK)
    for span in unit_spans(log):
        yield _trace_slice(
            f"{log.units[span.unit]} {span.phase.label}", span.begin, span.end, _UNIT_TRACK
        )
    by_owner = {name: log.live_bytes(select=log.owner == code) for code, name in enumerate(OWNERS)}
    for tick in range(log.ticks + 1):
        args = {name: int(live[tick]) for name, live in by_owner.items()}
        if tick == 0 or np.any([live[tick] != live[tick - 1] for live in by_owner.values()]):
            yield {"ph": "C", "name": "live bytes", "pid": 1, "ts": tick, "args": args}


def _trace_slice(name: str, begin: int, end: int, track: dict[str, int]) -> dict[str, Any]:
    return {"ph": "X", "name": name, "ts": begin, "dur": max(0, end - begin), **track}
