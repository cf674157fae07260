"""Does the replay ask for what torch's own CUDA code asks for, and the model reserve what it does?

    export PYTHONPATH=.:studies/gpu_grid
    python studies/hollow_gpu/study.py cells --device rtx-2060-super --count 160
    python studies/hollow_gpu/study.py operations --device rtx-3060 --count 60
    python studies/hollow_gpu/study.py reductions --device rtx-3060 --count 3000
    python studies/hollow_gpu/study.py again            predict all of that anew
    python studies/hollow_gpu/study.py report

No GPU is needed, and none is used: see README.md. Rows are appended to
``results/DEVICE.jsonl``; a run goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from cells import CAP_BYTES, Cell, brim_families, grid, largest_fitting
from compare import predict_row
from run import units_of

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from harness import Rows, provenance, write_summary

from profiler.device_rules.caching_allocator import DEFAULT_CONFIGURATION
from profiler.devices.table import DeviceSpec, lookup
from profiler.running.emulated.gpu import emulated_environment

HERE = Path(__file__).resolve().parent

RESULTS = HERE / "results"
ROOT = HERE.parents[1]
MEMORY_BYTES = 80 << 30
PROCESSES = 2
AT_ONCE = 12
"""Cells of a hollow process; a cell that kills one costs those behind it a new start."""
LEFT_OUT = {"galore": "the workspaces of cuSOLVER, which makes its projections, are not known"}
Row = dict[str, Any]


def environment(spec: DeviceSpec, allocator: str = "") -> dict[str, str]:
    """Return the environment in which torch finds the hollow device."""
    emulated = emulated_environment(spec, memory_bytes=MEMORY_BYTES)
    return os.environ | {
        **emulated,
        # the default is written out, because an empty text is replaced by the planned options
        "PYTORCH_CUDA_ALLOC_CONF": allocator or "expandable_segments:False",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE.parent / "gpu_grid")]),
    }


def ask(request: Row, spec: DeviceSpec, allocator: str = "") -> Iterator[Row]:
    """Run a request on the hollow device and yield its rows."""
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(HERE / "child.py")],
        env=environment(spec, allocator),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        child.stdin.write(json.dumps(request) + "\n")
        child.stdin.close()
        for line in child.stdout:
            yield json.loads(line)


# -- cells -----------------------------------------------------------------------------------------


def chosen(count: int, spec: DeviceSpec) -> list[Cell]:
    """Return the first cells of the GPU grid, and those at the brim of 2 GiB on this device."""
    cells = [cell for cell in grid() if cell.workload.method not in LEFT_OUT]
    return cells[:count] + brim(spec)


def brim(spec: DeviceSpec) -> list[Cell]:
    """Return the largest micro-batches that are predicted to fit 2 GiB, and the next ones."""
    path = RESULTS / f"{spec.name}.brim.json"
    if not path.is_file():
        with ProcessPoolExecutor(PROCESSES) as pool:
            found = pool.map(partial(_brim_of, device=spec.name), brim_families())
            cells = [cell for pair in found for cell in pair]
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps([cell.to_json() for cell in cells]) + "\n", encoding="utf-8")
    return [Cell.from_json(data) for data in json.loads(path.read_text(encoding="utf-8"))]


def _brim_of(family: Cell, *, device: str) -> list[Cell]:
    units = units_of(family.workload.model, family.workload.image_size)

    def cell(batch: int) -> Cell:
        workload = family.workload.replace(micro_batch=batch)
        return Cell(workload=workload, placement=family.placement, extra="brim")

    def reserved(batch: int) -> int:
        data = cell(batch).candidate(units).to_json()
        found = predict_row(data, device=device, allocator=DEFAULT_CONFIGURATION)
        return int(found["reserved"])

    batch = largest_fitting(reserved, cap_bytes=CAP_BYTES, most=512)
    return [cell(b) for b in (batch, batch + max(1, batch // 16)) if 0 < b <= 512]


def run_cells(spec: DeviceSpec, *, count: int, allocator: str) -> None:
    """Run what is not yet among the results, and predict it."""
    name = spec.name + ("" if allocator == DEFAULT_CONFIGURATION else ".native")
    book = Rows(HERE, f"results/{name}")
    known = {row["cell"] for row in book.read()}
    left = [cell for cell in chosen(count, spec) if cell.name not in known]
    with ProcessPoolExecutor(PROCESSES) as pool:
        for first in range(0, len(left), AT_ONCE):
            some = left[first : first + AT_ONCE]
            predicted = pool.map(partial(_predicted, device=spec.name, allocator=allocator), some)
            rows = {row["cell"]: row for row in run_all(some, spec, allocator)}
            for cell, ours in zip(some, predicted, strict=True):
                row = rows[cell.name]
                row.pop("data", None)
                book.append(row | {"predicted": ours})
            print(f"{name}: {first + len(some)} of {len(left)}", flush=True)
    book.pack()


def run_all(cells: Sequence[Cell], spec: DeviceSpec, allocator: str) -> Iterator[Row]:
    """Run cells on the hollow device, in a new process after each that failed."""
    left = list(cells)
    while left:
        rows = list(ask({"what": "cells", "cells": [c.to_json() for c in left]}, spec, allocator))
        yield from rows
        left = left[len(rows) :]
        if not rows or (left and "failed" not in rows[-1]):
            yield {"cell": left.pop(0).name, "failed": "the process died"}


def predict_again(name: str) -> None:
    """Predict every row of a device anew; the values of the hollow GPU and their commit stay."""
    device, _, native = name.partition(".")
    book = Rows(HERE, f"results/{name}")
    rows = book.read()
    cells = {cell.name: cell for cell in chosen(len(grid()), lookup(device))}
    allocator = "backend:native" if native else DEFAULT_CONFIGURATION
    predict = partial(_predicted, device=device, allocator=allocator)
    with ProcessPoolExecutor(PROCESSES) as pool:
        found = pool.map(predict, [cells[row["cell"]] for row in rows])
        made = {"predicted_on": provenance(HERE.name)["commit"]}
        book.write(row | {"predicted": f} | made for row, f in zip(rows, found, strict=True))


def _predicted(cell: Cell, *, device: str, allocator: str) -> Row:
    units = units_of(cell.workload.model, cell.workload.image_size)
    row = predict_row(cell.candidate(units).to_json(), device=device, allocator=allocator)
    return {name: row[name] for name in ("peak", "reserved", "needed", "fits_cap")}


def recorded() -> list[str]:
    """Return the name of every part with rows: a device, with ``.native`` for its other allocator."""
    return sorted(p.name.removesuffix(".jsonl.gz") for p in RESULTS.glob("*.jsonl.gz"))


def read(name: str) -> list[Row]:
    """Return the rows of a part."""
    return Rows(HERE, f"results/{name}").read()


# -- summary ---------------------------------------------------------------------------------------


def summary_of(rows: Sequence[Row]) -> Row:
    """Return how far predictions and model are from what torch's own code did."""
    seen = [row for row in rows if "peak" in row]
    capped = [row for row in seen if "capped" in row]
    return {
        "cells": len(seen),
        "failed": {row["cell"]: row["failed"] for row in rows if "failed" in row},
        "allocator_model_differs": [r["cell"] for r in seen if r["ours"] != r["whole"]],
        "peak": errors([(row["predicted"]["peak"], row["peak"], row["cell"]) for row in seen]),
        "reserved": errors(
            [(row["predicted"]["reserved"], row["reserved"], row["cell"]) for row in seen]
        ),
        "under_2_gib": {
            "said fits, fitted": _count(capped, fits=True, ran_out=False),
            "said fits, ran out": _names(capped, fits=True, ran_out=True),
            "said no, ran out": _count(capped, fits=False, ran_out=True),
            "said no, fitted": _names(capped, fits=False, ran_out=False),
        },
    }


def errors(pairs: Sequence[tuple[int, int, str]]) -> Row:
    """Return median and largest relative error, and the cells beyond 2 %."""
    if not pairs:
        return {}
    off = sorted(((ours / real - 1, name) for ours, real, name in pairs), key=lambda e: -abs(e[0]))
    sizes = [abs(error) for error, _ in off]
    return {
        "median": statistics.median(sizes),
        "largest": off[0][0],
        "exact": sum(size == 0 for size in sizes),
        "within_2_percent": sum(size <= 0.02 for size in sizes),
        "beyond_2_percent": {name: round(error, 4) for error, name in off if abs(error) > 0.02},
    }


def _names(rows: Sequence[Row], *, fits: bool, ran_out: bool) -> list[str]:
    return [
        row["cell"]
        for row in rows
        if row["predicted"]["fits_cap"] is fits
        and bool(row["capped"].get("out_of_memory")) is ran_out
    ]


def _count(rows: Sequence[Row], *, fits: bool, ran_out: bool) -> int:
    return len(_names(rows, fits=fits, ran_out=ran_out))


def native_over_expandable(device: str) -> Row:
    """Return by how much more is really reserved in segments of fixed size, over the same cells."""
    expandable, native = (
        {row["cell"]: row["reserved"] for row in read(name) if "reserved" in row}
        for name in (device, f"{device}.native")
    )
    ratios = [native[cell] / expandable[cell] for cell in native.keys() & expandable.keys()]
    found = {"smallest": min(ratios), "median": statistics.median(ratios), "largest": max(ratios)}
    return {"cells": len(ratios)} | found


def report() -> Row:
    """Summarise every file of results."""
    parts = {name: read(name) for name in recorded()}
    return {
        "all": summary_of([row for rows in parts.values() for row in rows]),
        "devices": {name: summary_of(rows) for name, rows in parts.items()},
        "reserved_native_over_expandable": native_over_expandable("rtx-2060-super"),
        "operations": {
            p.name.partition(".")[0]: json.loads(p.read_text(encoding="utf-8"))
            for p in sorted(RESULTS.glob("*.operations.json"))
        },
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("cells", "again", "operations", "reductions", "report"))
    parser.add_argument("--device", default="rtx-2060-super")
    parser.add_argument("--count", type=int, default=160)
    parser.add_argument("--allocator", default=DEFAULT_CONFIGURATION)
    given = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if given.what == "report":
        found = report()
        write_summary(HERE, [row for name in recorded() for row in read(name)], **found)
        print(json.dumps(found, indent=1))
        return
    if given.what == "again":
        for name in recorded():
            predict_again(name)
        return
    spec = lookup(given.device)
    if given.what == "cells":
        run_cells(spec, count=given.count, allocator=given.allocator)
    elif given.what == "operations":
        cells = [c.to_json() for c in chosen(given.count, spec)[: given.count]]
        (row,) = ask({"what": "operations", "cells": cells}, spec)
        path = RESULTS / f"{spec.name}.operations.json"
        path.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    else:
        (row,) = ask({"what": "reductions", "count": given.count}, spec)
        path = RESULTS / f"{spec.name}.reductions.json"
        path.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
