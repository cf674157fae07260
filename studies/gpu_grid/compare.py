"""Hold predictions against what a GPU did: bytes, the 2 GiB promise, time, single operations.

Needs no GPU. Every measured cell is replayed for the device it ran on. Written beside the results:
``comparison.json`` (everything) and ``calibration.json`` (`calibration.py`); a summary is
printed. What is looked at:

    cells       replayed against measured peak and reserved bytes, signed, by every axis
    workspace   the same with cuBLAS' workspaces as the probes found them, to tell that error apart
    promise     was there a cell predicted to fit the cap that ran out?
    histories   the allocator's own requests, fed to `profiler.device_rules.caching_allocator`: does the model reserve
                what the real one did? And which sizes did a real step ask for that a replay did
                not, and the other way round?
    probes      bytes inside and kept by single operations, measured and by our rules
    time        measured over roofline by kind of backbone and precision, and the calibration
"""

from __future__ import annotations

import gzip
import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from backbone_kinds import backbone_kind
from calibration_fit import CalibrationRun, fit_calibration, work_of
from cells import CAP_BYTES, EXPANDABLE, Cell, brim_families, largest_fitting, units_of

from profiler.device_rules.caching_allocator import (
    AllocatorSettings,
    CachingAllocator,
    SimulatedOutOfMemory,
)
from profiler.devices.table import DeviceSpec, cuda_context, device_spec, workspaces_of
from profiler.errors import UsageError
from profiler.prediction.allocator_steps import BLOCK_BYTES, SIMULATED_STEPS, run_steps
from profiler.prediction.report import report_of
from profiler.replay.event_log import EventLog
from profiler.replay.step_replay import replay_step
from profiler.timing.rates import published_rates
from profiler.units import MIB
from profiler.workload import PRECISIONS, Candidate

SCHEMA = "budgetplan.study.gpu_grid.comparison/1"
PROCESSES = 2
AXES = ("model", "method", "precision", "optimizer", "placement", "extra")
LINEAR_PROBE = "linear with bias"
Row = dict[str, Any]


# -- predictions ---------------------------------------------------------------------------------


def predict_row(data: Mapping[str, Any], *, device: str, allocator: str = "") -> Row:
    """Replay a measured cell's candidate for a device, under the allocator's options."""
    candidate = Candidate.from_json(data)
    spec = device_spec(device)
    log = replay_step(candidate, device=spec)
    settings = AllocatorSettings.parse(allocator)
    report = report_of(candidate, log, device=spec, settings=settings)
    log = log.rounded(BLOCK_BYTES)
    return {
        "peak": report.memory.peak_bytes,
        "reserved": report.memory.reserved_bytes,
        "needed": report.memory.needed_bytes - cuda_context(spec).nbytes,
        "seconds": report.step_seconds,
        "fits_cap": fits(log, settings, workspaces=workspaces_of(spec)),
        "work": work_of(log.operations, candidate.workload),
        "sizes": Counter(int(n) for n, birth in zip(log.nbytes, log.birth, strict=True) if birth),
    }


def fits(log: EventLog, settings: AllocatorSettings, *, workspaces: Sequence[int]) -> bool:
    """Tell whether the modelled allocator serves the step under the cap, releases and all."""
    allocator = CachingAllocator(settings, limit_bytes=CAP_BYTES)
    try:
        run_steps(allocator, log, steps=SIMULATED_STEPS, workspaces=workspaces)
    except SimulatedOutOfMemory:
        return False
    return True


def find_brim(path: Path, *, device: str) -> None:
    """Write the cells whose micro-batch is the largest predicted to fit the cap, and one more."""
    cells: list[Cell] = []
    for family in brim_families():
        units = units_of(family.workload.model, family.workload.image_size)
        reserved: dict[int, int] = {}

        def cell(batch: int, family: Cell = family) -> Cell:
            workload = family.workload.replace(micro_batch=batch)
            return Cell(workload=workload, placement=family.placement, extra="brim")

        def look(batch: int, cell: Any = cell, units: Any = units, reserved: Any = reserved) -> int:
            if batch not in reserved:
                data = cell(batch).candidate(units).to_json()
                reserved[batch] = predict_row(data, device=device)["reserved"]
            return reserved[batch]

        batch = largest_fitting(look, cap_bytes=CAP_BYTES, most=512)
        found = [b for b in (batch, batch + max(1, batch // 16)) if 0 < b <= 512]
        cells += [cell(b) for b in found]
        print(family.name, {b: f"{look(b) / MIB:.0f} MiB" for b in found}, flush=True)
        data = {"device": device, "cap_bytes": CAP_BYTES, "cells": [c.to_json() for c in cells]}
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


# -- comparing -----------------------------------------------------------------------------------


def compare(
    path: Path, *, device: str | None, limit: int | None, processes: int = PROCESSES
) -> Row:
    """Read results, replay every cell, write, print and return what differs."""
    parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
    environment = parts["grid"]["environment"][0]
    device = device or environment.get("device")
    if device is None:
        raise SystemExit("the results name no device of the table; say one with --plan-for")
    replayed = partial(joined, device=device, limit=limit, processes=processes)
    rows = replayed(parts["grid"])
    expandable = replayed(parts.get("expandable", {}), allocator=EXPANDABLE)
    spec = device_spec(device)
    probes = compare_probes(parts["grid"].get("probe", ()), spec)
    workspace = probed_workspace(parts["grid"].get("probe", ()))
    found = {
        "schema": SCHEMA,
        "device": device,
        "environment": environment,
        "cells": cell_errors(rows),
        "cells_with_probed_workspace": None
        if workspace is None
        else cell_errors(with_workspace(rows, workspace - sum(workspaces_of(spec)))),
        "expandable": cell_errors(expandable),
        "failed": [
            {"cell": r["cell"], "reason": r["failed"]}
            for r in parts["grid"].get("cell", ())
            if "failed" in r
        ],
        "promise": promise(rows),
        "workspace": {"modelled": sum(workspaces_of(spec)), "probed": workspace},
        "context": context(parts, modelled=cuda_context(spec).nbytes),
        "histories": histories(path.parent / "grid.traces.jsonl.gz", rows),
        "probes": probes,
        "time": time_ratios(rows),
        "fresh": parts.get("fresh", {}).get("fresh", []),
    }
    runs = [run_of(row) for row in rows]
    base = {p: r for p in PRECISIONS if (r := published_rates(spec, precision=p)) is not None}
    source = f"{len(runs)} cells of studies/gpu_grid, {environment['gpu']}"
    try:
        calibration = fit_calibration(runs, device=device, base=base, source=source)
    except (UsageError, ValueError) as error:
        print(f"no calibration: {error}")
    else:
        calibration.save(path.parent / "calibration.json")
        found["calibration"] = json.loads((path.parent / "calibration.json").read_text())
    (path.parent / "comparison.json").write_text(json.dumps(found, indent=1) + "\n")
    print(summary(found))
    return found


def joined(
    part: Mapping[str, Any],
    *,
    device: str,
    limit: int | None,
    allocator: str = "",
    processes: int = PROCESSES,
) -> list[Row]:
    """Return the cells that ran, each with its prediction beside its measurement."""
    ran = [row for row in part.get("cell", ()) if "failed" not in row][:limit]
    replayer = partial(predict_row, device=device, allocator=allocator)
    wanted = [{k: row[k] for k in ("workload", "placement")} for row in ran]
    if processes == 1:
        predictions = list(map(replayer, wanted))
    else:
        with ProcessPoolExecutor(max_workers=processes) as pool:
            predictions = list(pool.map(replayer, wanted))
    return [row | {"predicted": p} for row, p in zip(ran, predictions, strict=True)]


def cell_errors(rows: Sequence[Row]) -> Row:
    """Return, for peak and reserved bytes, the distribution of predicted over measured less 1."""
    return {key: _distribution(rows, key) for key in ("peak", "reserved")} if rows else {}


def _distribution(rows: Sequence[Row], key: str) -> Row:
    signed = [(row, row["predicted"][key] / row["memory"][key] - 1) for row in rows]
    sizes = sorted(abs(error) for _, error in signed)
    by_axis: dict[str, dict[str, list[float]]] = {axis: defaultdict(list) for axis in AXES}
    for row, error in signed:
        for axis, value in _values(row).items():
            by_axis[axis][value].append(error)
    worst = sorted(signed, key=lambda pair: -abs(pair[1]))
    return {
        "cells": len(rows),
        "median": statistics.median(sizes),
        "worst": sizes[-1],
        "within_2_percent": sum(size <= 0.02 for size in sizes),
        "within_5_percent": sum(size <= 0.05 for size in sizes),
        "median_signed_by": {
            axis: {value: statistics.median(errors) for value, errors in sorted(values.items())}
            for axis, values in by_axis.items()
        },
        "beyond_2_percent": [
            {
                "cell": row["cell"],
                "error": error,
                "measured": row["memory"][key],
                "predicted": row["predicted"][key],
            }
            for row, error in worst
            if abs(error) > 0.02
        ],
    }


def _values(row: Row) -> dict[str, str]:
    workload = row["workload"]
    return {axis: str(workload[axis]) for axis in AXES[:4]} | {
        "placement": row["placement"]["policy"],
        "extra": row["extra"],
    }


def with_workspace(rows: Sequence[Row], difference: int) -> list[Row]:
    """Return the rows with so many bytes more predicted."""
    return [
        row
        | {
            "predicted": row["predicted"]
            | {key: row["predicted"][key] + difference for key in ("peak", "reserved")}
        }
        for row in rows
    ]


def promise(rows: Sequence[Row]) -> Row:
    """Return what came of the runs under the cap, by what was predicted of them."""
    tested = [row for row in rows if "capped" in row]

    def cells(*, predicted: bool, ran: bool, key: str) -> list[str]:
        return [
            row["cell"]
            for row in tested
            if _fits_by(row, key) == predicted and (not row["capped"]["out_of_memory"]) == ran
        ]

    return {
        "cap_bytes": CAP_BYTES,
        "tested": len(tested),
        **{
            key: {
                "said fits, fitted": len(cells(predicted=True, ran=True, key=key)),
                "said fits, ran out": cells(predicted=True, ran=False, key=key),
                "said no, fitted": cells(predicted=False, ran=True, key=key),
                "said no, ran out": len(cells(predicted=False, ran=False, key=key)),
            }
            for key in ("reserved bytes", "simulated under the cap")
        },
        "needed retries": [row["cell"] for row in tested if row["capped"].get("retries")],
    }


def _fits_by(row: Row, key: str) -> bool:
    predicted = row["predicted"]
    if key == "reserved bytes":
        return bool(predicted["reserved"] <= CAP_BYTES)
    return bool(predicted["fits_cap"])


def context(parts: Mapping[str, Any], *, modelled: int) -> Row:
    """Return what the process held outside the allocator, at the start and as cells went by."""
    grid = parts["grid"]
    outside = [
        value
        for row in grid.get("cell", ())
        if (value := row.get("memory", {}).get("outside")) is not None
    ]
    fresh = [
        memory["device_bytes"] - memory["reserved_bytes"]
        for row in parts.get("fresh", {}).get("fresh", ())
        if (memory := row.get("measurement", {}).get("memory")) and memory["reserved_bytes"]
    ]
    return {
        "modelled": modelled,
        "bare": grid["environment"][0].get("context_bytes"),
        "after_cells": {"first": outside[0], "last": outside[-1]} if outside else None,
        "in_fresh_processes": fresh,
    }


# -- the allocator's history ---------------------------------------------------------------------


def histories(path: Path, rows: Sequence[Row]) -> list[Row]:
    """Compare each recorded history with the allocator's model, and its sizes with the replay."""
    if not path.is_file():
        return []
    by_cell = {row["cell"]: row for row in rows}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        traces = [json.loads(line) for line in file]
    return [
        {"cell": trace["cell"]}
        | modelled_history(trace)
        | differing_sizes(trace, by_cell[trace["cell"]]["predicted"]["sizes"])
        for trace in traces
        if trace["cell"] in by_cell
    ]


def modelled_history(trace: Mapping[str, Any]) -> Row:
    """Feed the real requests to the allocator's model; return both peaks of reserved bytes."""
    model = CachingAllocator(AllocatorSettings())
    for number, event in _numbered(trace["events"]):
        if event > 0:
            model.malloc(number, event)
        else:
            model.free(-event)
    levels = np.cumsum([size for _, size in trace["segments"]])
    return {
        "real_reserved": int(levels.max(initial=0)),
        "modelled_reserved": model.peak_reserved_bytes,
    }


def _numbered(events: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield (number of the request, event); frees carry the number already."""
    requests = 0
    for event in events:
        requests += event > 0
        yield requests, event


def differing_sizes(trace: Mapping[str, Any], replayed: Mapping[int, int]) -> Row:
    """Return the sizes that only a real step asked for, and those that only a replay did."""
    steady = trace["events"][trace["steady_from"] :]
    real = Counter(-(-size // BLOCK_BYTES) * BLOCK_BYTES for size in steady if size > 0)
    replay_sizes = Counter(replayed)

    def largest(sizes: Counter[int]) -> list[tuple[int, int]]:
        return sorted(sizes.items(), key=lambda item: -item[0] * item[1])[:12]

    return {
        "only_real": largest(real - replay_sizes),
        "only_replayed": largest(replay_sizes - real),
    }


# -- probes --------------------------------------------------------------------------------------


def compare_probes(rows: Sequence[Row], spec: DeviceSpec) -> list[Row]:
    """Return measured and modelled bytes of every stage of every probe."""
    if not rows:
        return []
    from probes import replay_probe

    table = []
    for row in rows:
        ours = replay_probe(row["probe"], spec)
        for stage, modelled in ours.items():
            warm, cold = (row[state].get(stage) for state in ("warm", "cold"))
            if warm is not None:
                table.append(
                    {
                        "probe": row["probe"],
                        "stage": stage,
                        "measured": warm,
                        "modelled": modelled,
                        "kept_when_cold": cold["growth"] - warm["growth"],
                    }
                )
    return table


def probed_workspace(rows: Sequence[Row]) -> int | None:
    """Return what a linear layer's forward and backward keep the first time only."""
    for row in rows:
        if row["probe"] == LINEAR_PROBE and "failed" not in row["cold"] | row["warm"]:
            return sum(
                row["cold"][stage]["growth"] - row["warm"][stage]["growth"] for stage in row["cold"]
            )
    return None


# -- time ----------------------------------------------------------------------------------------


def step_seconds(row: Row) -> float:
    """Return seconds of a step: of the long window, where steps follow without a pause."""
    energy = row["energy"]
    return float(energy["seconds"] / energy["steps"])


def run_of(row: Row) -> CalibrationRun:
    """Return a measured cell as the calibration wants it."""
    energy, model = row["energy"], row["workload"]["model"]
    return CalibrationRun(
        backbone=model,
        kind=backbone_kind(model),
        precision=row["workload"]["precision"],
        work=row["predicted"]["work"],
        step_seconds=step_seconds(row),
        energy_joules=energy["joules"] and energy["joules"] / energy["steps"],
    )


def time_ratios(rows: Sequence[Row]) -> list[Row]:
    """Return measured over roofline seconds by kind of backbone and precision."""
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row["predicted"]["seconds"]:
            key = (backbone_kind(row["workload"]["model"]), row["workload"]["precision"])
            groups[key].append(step_seconds(row) / row["predicted"]["seconds"])
    return [
        {
            "kind": kind,
            "precision": precision,
            "cells": len(ratios),
            "smallest": min(ratios),
            "median": statistics.median(ratios),
            "largest": max(ratios),
        }
        for (kind, precision), ratios in sorted(groups.items())
    ]


# -- printing ------------------------------------------------------------------------------------


def summary(found: Mapping[str, Any]) -> str:
    """Return the comparison as text."""
    return "\n".join(
        [
            f"{found['device']}: {found['environment'].get('gpu')}",
            *_cell_lines("replayed", found["cells"]),
            *_cell_lines("with the probed workspace", found["cells_with_probed_workspace"]),
            *_cell_lines("expandable segments", found["expandable"]),
            f"failed: {len(found['failed'])}",
            f"promise: {json.dumps(found['promise'], indent=1)}",
            f"workspace: {found['workspace']}",
            f"context: {found['context']}",
            *_history_lines(found["histories"]),
            *_probe_lines(found["probes"]),
            *(
                f"time {t['kind']} {t['precision']}: {t['median']:.2f} x roofline"
                f" ({t['smallest']:.2f} to {t['largest']:.2f}, {t['cells']} cells)"
                for t in found["time"]
            ),
            *_calibration_lines(found.get("calibration")),
        ]
    )


def _cell_lines(title: str, errors: Row | None) -> Iterator[str]:
    for key, found in (errors or {}).items():
        yield (
            f"{title} {key}: {found['cells']} cells, median {found['median']:.3%}, worst"
            f" {found['worst']:.2%}, within 2 % {found['within_2_percent']}, within 5 %"
            f" {found['within_5_percent']}"
        )
        for bad in found["beyond_2_percent"][:8]:
            yield f"    {bad['error']:+.2%}  {bad['cell']}"
        for axis, values in found["median_signed_by"].items():
            shown = "  ".join(f"{value} {error:+.2%}" for value, error in values.items())
            yield f"    by {axis}: {shown}"


def _history_lines(rows: Sequence[Row]) -> Iterator[str]:
    if rows:
        off = [r for r in rows if r["real_reserved"] != r["modelled_reserved"]]
        yield f"histories: {len(rows)}, allocator model differs in {len(off)}"
        for row in off[:8]:
            yield f"    {row['modelled_reserved'] / row['real_reserved'] - 1:+.2%}  {row['cell']}"
        for row in rows[:8]:
            yield f"    only real {row['only_real'][:4]} only replayed {row['only_replayed'][:4]}"


def _probe_lines(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        off = {
            key: row["measured"][key] - row["modelled"][key]
            for key in ("inside", "growth")
            if row["measured"][key] != row["modelled"][key]
        }
        if off or row["kept_when_cold"]:
            yield (
                f"probe {row['probe']}, {row['stage']}: measured less modelled {off},"
                f" kept when cold {row['kept_when_cold']}"
            )


def _calibration_lines(calibration: Row | None) -> Iterator[str]:
    for fit in (calibration or {}).get("time", ()):
        yield (
            f"calibration {fit['kind']} {fit['precision']}: x{fit['arithmetic']:.2f} arithmetic,"
            f" x{fit['traffic']:.2f} traffic, x{fit['launch']:.2f} launch; left-out backbones"
            f" median {fit['median_error']}, largest {fit['largest_error']};"
            f" uncalibrated {fit['uncalibrated_median_error']:.1%}"
        )
    for precision, fit in (calibration or {}).get("energy", {}).items():
        yield (
            f"energy {precision}: {fit['fixed_joules']:.3f} J + {fit['watts']:.0f} W x s, median"
            f" {fit['median_error']}; through the origin {fit['watts_through_origin']:.0f} W,"
            f" median {fit['median_error_through_origin']}"
        )
