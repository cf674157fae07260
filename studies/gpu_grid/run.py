"""Measure a broad grid of training steps on a GPU in a few minutes, and compare with predictions.

    python studies/gpu_grid/run.py [--minutes 8] [--out DIR]           on the machine with the GPU
    python studies/gpu_grid/run.py --device cpu --limit 3              dry run without one
    python studies/gpu_grid/run.py --brim                              before: write brim.json
    python studies/gpu_grid/run.py --compare results.json              after, on any machine

The measuring run starts three processes one after the other and never touches the GPU itself, so
that a crash of one loses little: ``grid`` (context, probes, then cell after cell until its time is
up), ``expandable`` (the first cells again under expandable segments), ``fresh`` (a few cells, each
through `profiler.running.measurement` in a process of its own). Every finding is a JSON line on disk at once;
``results.json`` is made of the lines at the end, or later with ``--collect DIR``.

One cell: build, two steps to warm up, peaks reset, five timed steps, then the same step for
`WINDOW_SECONDS` without a pause under the energy meter; everything freed, cuBLAS' workspaces too,
so that each cell begins with an empty allocator. What reserves about 2 GiB runs again from the
start under a cap of 2 GiB. The first `TRACED` cells also bring the allocator's own history.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from cells import CAP_BYTES, EXPANDABLE, NEAR_CAP, Cell, grid, units_of

from profiler.units import MIB
from profiler.workload import Candidate, Workload

HERE = Path(__file__).resolve().parent
SCHEMA = "budgetplan.study.gpu_grid/1"
BRIM = HERE / "brim.json"
WARMUP, TIMED = 2, 5
WINDOW_SECONDS = 0.6
MOST_WINDOW_STEPS = 400
TRACED = 48
BRIM_EVERY = 6
"""After so many cells of the grid comes one that just fits the cap, or just does not."""
SHARES = {"grid": 0.76, "expandable": 0.10, "fresh": 0.14}
FRESH: Sequence[tuple[Workload, int | None]] = (
    (Workload(model="vit_s", method="lora", micro_batch=32, precision="bf16"), None),
    (Workload(model="resnet18", method="full", micro_batch=32), CAP_BYTES),
    (Workload(model="vit_s", method="full", micro_batch=32), 512 * MIB),
)
"""Workload and cap of the runs in processes of their own; the last one must run out."""


# -- the machine ---------------------------------------------------------------------------------


class Machine:
    """What a cell asks of the device it runs on; as it is, the processor, for dry runs."""

    name = "cpu"

    def clear(self) -> None:
        """Free everything that can be freed."""
        gc.collect()

    def reset_peaks(self) -> None:
        """Begin to look for peaks."""

    def memory(self) -> dict[str, int | None]:
        """Return peaks since then, and what is held now; the processor has none."""
        return dict.fromkeys(("allocated", "peak", "reserved", "outside", "retries"))

    def synchronize(self) -> None:
        """Wait for everything that was launched."""

    def cap(self, cap_bytes: int | None) -> None:
        """Limit what the process may reserve."""

    def measure_energy(self, run: Callable[[], None]) -> dict[str, Any]:
        """Run something and return its seconds and joules."""
        start = time.perf_counter()
        run()
        self.synchronize()
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "joules": None, "method": "none", "resolution": None}


class Cuda(Machine):
    """The first CUDA device.

    Args:
        used_before: bytes in use on the device before this process used it; None if not known.
    """

    name = "cuda"

    def __init__(self, used_before: int | None) -> None:
        import torch

        from profiler.devices.nvml import detect_gpu

        self.torch = torch
        self.gpu = detect_gpu()
        self.used_before = used_before
        self.total = torch.cuda.get_device_properties(0).total_memory

    def clear(self) -> None:
        """Free everything, cuBLAS' workspaces too."""
        from probes import clear_cuda

        clear_cuda()

    def reset_peaks(self) -> None:
        """Begin to look for peaks."""
        self.torch.cuda.synchronize()
        self.torch.cuda.reset_peak_memory_stats()

    def memory(self) -> dict[str, int | None]:
        """Return the allocator's peaks, and what the process holds outside it."""
        cuda = self.torch.cuda
        return {
            "allocated": cuda.memory_allocated(),
            "peak": cuda.max_memory_allocated(),
            "reserved": cuda.max_memory_reserved(),
            "outside": self._outside(),
            "retries": cuda.memory_stats().get("num_alloc_retries", 0),
        }

    def _outside(self) -> int | None:
        """What this process holds beside the allocator: context, kernels, libraries."""
        if self.gpu is None or self.used_before is None:
            return None
        return self.gpu.used_bytes() - self.used_before - self.torch.cuda.memory_reserved()

    def synchronize(self) -> None:
        """Wait for everything that was launched."""
        self.torch.cuda.synchronize()

    def cap(self, cap_bytes: int | None) -> None:
        """Limit what the allocator may reserve."""
        share = 1.0 if cap_bytes is None else cap_bytes / self.total
        self.torch.cuda.set_per_process_memory_fraction(share)

    def measure_energy(self, run: Callable[[], None]) -> dict[str, Any]:
        """Run something and return its seconds and joules, by NVML."""
        from profiler.devices.energy_meter import EnergyMeter

        if self.gpu is None:
            return super().measure_energy(run)
        with EnergyMeter(self.gpu, synchronize=self.synchronize) as meter:
            run()
        energy = meter.energy
        return {
            "seconds": energy.seconds,
            "joules": energy.joules,
            "method": energy.method,
            "resolution": energy.resolution,
            "reason": energy.reason,
        }


# -- one cell ------------------------------------------------------------------------------------


def measure_cell(cell: Cell, machine: Machine, *, traced: bool = False) -> dict[str, Any]:
    """Run one cell, under the cap as well if it comes near it; whatever happens is a row."""
    candidate = cell.candidate(units_of(cell.workload.model, cell.workload.image_size))
    row: dict[str, Any] = {"cell": cell.name, "extra": cell.extra, **candidate.to_json()}
    start = time.perf_counter()
    with _reporting(row, machine):
        row |= _measure(candidate, machine, traced=traced)
    reserved = row.get("memory", {}).get("reserved")
    if reserved and (cell.extra == "brim" or NEAR_CAP[0] <= reserved <= NEAR_CAP[1]):
        row["capped"] = {"cap_bytes": CAP_BYTES}
        with _reporting(row["capped"], machine):
            row["capped"] |= _run_under_cap(candidate, machine)
    row["wall_seconds"] = round(time.perf_counter() - start, 3)
    return row


@contextmanager
def _reporting(row: dict[str, Any], machine: Machine) -> Iterator[None]:
    """Start with an empty allocator and no cap, and turn an error into a field of the row."""
    from profiler.running.memory_caps import is_out_of_memory

    machine.clear()
    try:
        yield
    except Exception as error:
        row["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
        row["out_of_memory"] = is_out_of_memory(error)
    finally:
        machine.cap(None)
        machine.clear()


def _measure(candidate: Candidate, machine: Machine, *, traced: bool) -> dict[str, Any]:
    import torch

    from profiler.running.measurement import build_step

    torch.manual_seed(0)
    before = machine.memory()["allocated"]
    start = time.perf_counter()
    with History() if traced else nullcontext() as history:
        step, batches = build_step(candidate, device=machine.name)
        machine.synchronize()
        built = time.perf_counter() - start
        for _ in range(WARMUP):
            step.run(batches)
        if history is not None:
            history.mark()
            step.run(batches)
    machine.reset_peaks()
    seconds = [_timed(lambda: step.run(batches), machine) for _ in range(TIMED)]
    memory = machine.memory()
    energy = _energy(lambda: step.run(batches), machine, statistics.median(seconds))
    return {
        "before_bytes": before,
        "memory": memory,
        "step_seconds": [round(s, 6) for s in seconds],
        "energy": energy,
        "build_seconds": round(built, 3),
        **({} if history is None else {"trace": history.encoded()}),
    }


def _timed(run: Callable[[], object], machine: Machine) -> float:
    start = time.perf_counter()
    run()
    machine.synchronize()
    return time.perf_counter() - start


def _energy(run: Callable[[], object], machine: Machine, step_seconds: float) -> dict[str, Any]:
    steps = max(3, min(MOST_WINDOW_STEPS, math.ceil(WINDOW_SECONDS / step_seconds)))

    def window() -> None:
        for _ in range(steps):
            run()

    if machine.name == "cpu":
        steps = 1
    return machine.measure_energy(window) | {"steps": steps}


def _run_under_cap(candidate: Candidate, machine: Machine) -> dict[str, Any]:
    import torch

    from profiler.running.measurement import build_step

    torch.manual_seed(0)
    machine.cap(CAP_BYTES)
    retries = machine.memory()["retries"]
    machine.reset_peaks()
    step, batches = build_step(candidate, device=machine.name)
    for _ in range(WARMUP + 1):
        step.run(batches)
    machine.synchronize()
    memory = machine.memory()
    again = None if retries is None else (memory["retries"] or 0) - retries
    return {"memory": memory, "retries": again, "out_of_memory": False}


class History:
    """The CUDA allocator's own record of what is asked of it inside a ``with`` block."""

    def __init__(self) -> None:
        self._entries: list[dict[str, Any]] = []
        self._older = self._mark = 0

    def __enter__(self) -> History:
        import torch

        torch.cuda.memory._record_memory_history(context=None, max_entries=1_000_000)
        self._older = len(torch.cuda.memory._snapshot()["device_traces"][0])
        return self

    def __exit__(self, *_: object) -> None:
        import torch

        try:
            self._entries = self._read()
        finally:
            torch.cuda.memory._record_memory_history(enabled=None)

    def mark(self) -> None:
        """Note that the steady step begins."""
        self._mark = len(self._read())

    def _read(self) -> list[dict[str, Any]]:
        import torch

        return list(torch.cuda.memory._snapshot()["device_traces"][0][self._older :])

    def encoded(self) -> dict[str, Any]:
        """Return the record as numbers."""
        return encode_history(self._entries, mark=self._mark)


def encode_history(entries: Sequence[dict[str, Any]], *, mark: int) -> dict[str, Any]:
    """Turn the allocator's entries into numbers.

    ``events``: a positive number is a request of so many bytes; ``-k`` frees the k-th request
    (counted from 1). ``segments``: (events so far, bytes fetched from the driver, negative if given
    back). ``steady_from``: how many events there were when the steady step began.
    """
    events: list[int] = []
    segments: list[tuple[int, int]] = []
    live: dict[int, int] = {}
    requests = steady_from = 0
    for index, entry in enumerate(entries):
        if index == mark:
            steady_from = len(events)
        action, size = entry["action"], int(entry["size"])
        if action == "alloc":
            requests += 1
            live[entry["addr"]] = requests
            events.append(size)
        elif action == "free_completed" and entry["addr"] in live:
            events.append(-live.pop(entry["addr"]))
        elif action in {"segment_alloc", "segment_map"}:
            segments.append((len(events), size))
        elif action in {"segment_free", "segment_unmap"}:
            segments.append((len(events), -size))
    return {"events": events, "segments": segments, "steady_from": steady_from}


# -- the parts of a run --------------------------------------------------------------------------


class Book:
    """Findings, one JSON line each, on disk as soon as they are made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._traces = path.with_suffix(".traces.jsonl.gz")

    def write(self, kind: str, row: dict[str, Any]) -> None:
        """Append a row; a cell's trace goes to a file of its own."""
        row = dict(row)
        trace = row.pop("trace", None)
        if trace is not None:
            with gzip.open(self._traces, "at", encoding="utf-8") as file:
                file.write(json.dumps({"cell": row["cell"], **trace}) + "\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **row}) + "\n")


def order(cells: Sequence[Cell], brim: Sequence[Cell]) -> list[Cell]:
    """Return the grid with a brim cell after every few of its cells."""
    left = list(brim)
    mixed: list[Cell] = []
    for index, cell in enumerate(cells, 1):
        mixed.append(cell)
        if index % BRIM_EVERY == 0 and left:
            mixed.append(left.pop(0))
    return mixed + left


def brim_cells() -> list[Cell]:
    """Return the cells that `--brim` found; none if it was not run."""
    if not BRIM.is_file():
        return []
    data = json.loads(BRIM.read_text(encoding="utf-8"))
    return [Cell.from_json(cell) for cell in data["cells"]]


def run_grid(
    book: Book, *, device: str, deadline: float, limit: int | None, probes: bool = True
) -> None:
    """Measure probes and cells until the time or the cells are over."""
    machine = _open_machine(book, device)
    if device == "cuda" and probes:
        from probes import measure_probes

        for row in measure_probes():
            book.write("probe", row)
    cells = order(grid(), brim_cells())[:limit]
    if device == "cpu":
        cells = [replace(c, workload=c.workload.replace(micro_batch=1)) for c in cells]
    for index, cell in enumerate(cells):
        if time.monotonic() > deadline:
            break
        row = measure_cell(cell, machine, traced=device == "cuda" and probes and index < TRACED)
        book.write("cell", {"index": index} | row)
        print(f"{index:4d} {row['wall_seconds']:6.2f} s  {_says(row)}  {cell.name}", flush=True)


def _says(row: dict[str, Any]) -> str:
    if "failed" in row:
        return str(row["failed"])[:60]
    memory, capped = row["memory"], row.get("capped")
    peak, reserved = (
        "-" if memory[key] is None else f"{memory[key] / MIB:.1f}" for key in ("peak", "reserved")
    )
    under = "" if capped is None else f" capped: {'OOM' if capped['out_of_memory'] else 'fits'}"
    milliseconds = statistics.median(row["step_seconds"]) * 1e3
    return f"{peak:>8} MiB {reserved:>8} MiB {milliseconds:8.2f} ms{under}"


def _open_machine(book: Book, device: str) -> Machine:
    """Start the device, and write down what this run depends on."""
    import torch

    from profiler.devices.nvml import detect_gpu
    from profiler.environment import environment

    if device == "cpu":
        book.write("environment", environment().to_json())
        return Machine()
    gpu = detect_gpu()
    used_before = None if gpu is None else gpu.used_bytes()
    torch.cuda.init()
    torch.zeros(1, device="cuda")
    machine = Cuda(used_before)
    capability = torch.cuda.get_device_capability()
    found = environment().to_json() | {
        "gpu": torch.cuda.get_device_name(),
        "capability": list(capability),
        "device": None if gpu is None else gpu.spec.name,
        "total_bytes": machine.total,
        "cudnn": torch.backends.cudnn.version(),
        "driver": _driver(),
        "peft": _version("peft"),
        "allocator": os.environ.get("PYTORCH_CUDA_ALLOC_CONF", ""),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
        "matmul_allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "used_before_bytes": used_before,
        "context_bytes": machine.memory()["outside"],
    }
    book.write("environment", found)
    book.write("idle", machine.measure_energy(lambda: time.sleep(1.0)))
    return machine


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def run_fresh(book: Book, *, device: str, deadline: float, limit: int | None) -> None:
    """Measure a few cells the way the product does, each in a process of its own."""
    from profiler.errors import BudgetplanError
    from profiler.running.measurement import measure

    for asked, cap_bytes in FRESH[:limit]:
        if time.monotonic() > deadline:
            break
        workload = asked.replace(micro_batch=1) if device == "cpu" else asked
        row: dict[str, Any] = {"workload": workload.to_json(), "cap_bytes": cap_bytes}
        start = time.perf_counter()
        try:
            report = measure(Candidate(workload=workload), device=device, cap_bytes=cap_bytes)
            row |= {"measurement": report.to_json()}
        except BudgetplanError as error:
            row |= {"failed": f"{type(error).__name__}: {error}"}
        book.write("fresh", row | {"wall_seconds": round(time.perf_counter() - start, 2)})


def run_all(out: Path, *, device: str, minutes: float, limit: int | None) -> None:
    """Run the parts, each in a process of its own, and collect what they found."""
    out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    end = 0.0
    for part, share in SHARES.items():
        end += share * minutes * 60
        left = end - (time.monotonic() - start)
        if device == "cpu" and part == "expandable":
            continue
        _run_part(part, out, device=device, seconds=max(10.0, left), limit=limit)
        collect(out)
    print(f"{time.monotonic() - start:.0f} s in all; results in {out}")


def _run_part(part: str, out: Path, *, device: str, seconds: float, limit: int | None) -> None:
    command = [sys.executable, __file__, "--part", part, "--device", device, "--out", str(out)]
    command += ["--minutes", str(seconds / 60)]
    if limit is not None:
        command += ["--limit", str(limit)]
    environment = dict(os.environ)
    if part == "expandable":
        environment["PYTORCH_CUDA_ALLOC_CONF"] = EXPANDABLE
    try:
        # a part looks at the clock between two cells, so it may need a little longer
        subprocess.run(command, env=environment, timeout=seconds + 40, check=False)
    except subprocess.TimeoutExpired:
        print(f"part {part} was stopped after {seconds + 40:.0f} s", flush=True)


def run_part(part: str, out: Path, *, device: str, minutes: float, limit: int | None) -> None:
    """Run one part in this process."""
    out.mkdir(parents=True, exist_ok=True)
    book = Book(out / f"{part}.jsonl")
    deadline = time.monotonic() + 60 * minutes
    if part == "fresh":
        run_fresh(book, device=device, deadline=deadline, limit=limit)
    else:
        run_grid(book, device=device, deadline=deadline, limit=limit, probes=part == "grid")


def collect(out: Path) -> Path:
    """Make ``results.json`` of the lines that the parts wrote."""
    parts: dict[str, Any] = {}
    for path in sorted(out.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        by_kind: dict[str, list[Any]] = {}
        for row in rows:
            by_kind.setdefault(row.pop("kind"), []).append(row)
        parts[path.stem] = by_kind
    results = out / "results.json"
    results.write_text(json.dumps({"schema": SCHEMA, "parts": parts}) + "\n", encoding="utf-8")
    return results


def main() -> None:
    """Measure, prepare or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")
    parser.add_argument("--limit", type=int, help="most cells of a part")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", HERE / "out")))
    parser.add_argument("--part", choices=tuple(SHARES), help="only this part, in this process")
    parser.add_argument("--collect", type=Path, metavar="DIR", help="make results.json again")
    parser.add_argument("--brim", action="store_true", help="look for the brim cells (no GPU)")
    parser.add_argument("--compare", type=Path, metavar="RESULTS")
    parser.add_argument("--plan-for", default=None, help="device name; default: the one measured")
    options = parser.parse_args()
    how = {"device": options.device, "minutes": options.minutes, "limit": options.limit}
    if options.collect:
        print(collect(options.collect))
    elif options.brim:
        from compare import find_brim

        find_brim(BRIM, device=options.plan_for or "h200")
    elif options.compare:
        from compare import compare

        compare(options.compare, device=options.plan_for, limit=options.limit)
    elif options.part:
        run_part(options.part, options.out, **how)
    else:
        run_all(options.out, **how)


if __name__ == "__main__":
    main()
