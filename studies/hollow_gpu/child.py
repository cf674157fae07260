"""What runs on the hollow GPU: training steps and single operations, in a process of its own.

Started by study.py with the environment of `study.environment`; writes JSON lines to its output.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from cells import CAP_BYTES, NEAR_CAP, Cell
from probes import clear_cuda
from run import units_of
from torch.utils._python_dispatch import TorchDispatchMode

from profiler.device_rules.caching_allocator import AllocatorSettings, CachingAllocator
from profiler.device_rules.cuda_reductions import reduction_of
from profiler.device_rules.cuda_scratch import CudaKernels
from profiler.device_rules.kernel_bytes import bytes_inside
from profiler.devices.table import Multiprocessors
from profiler.running.measurement import build_step

STEPS = 3
"""The optimizer's state is made in the first; the third repeats the second."""
NEGLIGIBLE_BYTES = 4096
Row = dict[str, Any]


def emit(row: Row) -> None:
    """Write a row."""
    print(json.dumps(row), flush=True)


def multiprocessors() -> Multiprocessors:
    """Return those of the hollow device."""
    found = torch.cuda.get_device_properties(0)
    return Multiprocessors(
        count=found.multi_processor_count, threads=found.max_threads_per_multi_processor
    )


# -- training steps --------------------------------------------------------------------------------


def run_cell(cell: Cell, *, cap_bytes: int | None = None) -> Row:
    """Run a cell from an empty allocator; its peaks, and what our model makes of its requests."""
    clear_cuda()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(1.0 if cap_bytes is None else cap_bytes / total)
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.memory._record_memory_history(context=None, max_entries=1_000_000)
    try:
        torch.manual_seed(0)
        units = units_of(cell.workload.model, cell.workload.image_size)
        step, batches = build_step(cell.candidate(units), device="cuda")
        for _ in range(STEPS - 1):
            step.run(batches)
        whole = peaks()  # reserve is taken by the first steps, the steady peak is asked for
        torch.cuda.reset_peak_memory_stats()
        step.run(batches)
        steady = peaks()
        history = torch.cuda.memory._snapshot()["device_traces"][0]
        largest = {name: max(whole[name], steady[name]) for name in whole}
        return {**steady, "ours": follow(history), "whole": largest}
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    finally:
        step = batches = None
        torch.cuda.memory._record_memory_history(enabled=None)


def peaks() -> dict[str, int]:
    """Return the real allocator's own account."""
    return {
        "peak": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
    }


def follow(history: list[dict[str, Any]]) -> dict[str, int]:
    """Feed the real requests to our model of the allocator."""
    settings = AllocatorSettings.parse(os.environ.get("PYTORCH_CUDA_ALLOC_CONF", ""))
    allocator = CachingAllocator(settings)
    live: dict[int, int] = {}
    for number, entry in enumerate(history):
        if entry["action"] == "alloc":
            live[entry["addr"]] = number
            allocator.malloc(number, entry["size"])
        elif entry["action"] == "free_completed" and entry["addr"] in live:
            allocator.free(live.pop(entry["addr"]))
    return {"peak": allocator.peak_allocated_bytes, "reserved": allocator.peak_reserved_bytes}


def run_cells(cells: list[Cell]) -> None:
    """Run cells, those near the cap again under it; a failure ends it, as its tensors may stay."""
    for cell in cells:
        row: Row = {"cell": cell.name, "extra": cell.extra, "data": cell.to_json()}
        try:
            row |= run_cell(cell)
            reserved = row.get("reserved", 0)
            if cell.extra == "brim" or NEAR_CAP[0] <= reserved <= NEAR_CAP[1]:
                row["capped"] = run_cell(cell, cap_bytes=CAP_BYTES)
        except (RuntimeError, NotImplementedError) as error:
            row["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        emit(row)
        if "failed" in row:
            return


# -- single operations -----------------------------------------------------------------------------


class Watch(TorchDispatchMode):
    """Holds what every operation takes inside itself against `profiler.device_rules.cuda_scratch`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels = CudaKernels(multiprocessors())
        self.calls: dict[str, int] = {}
        self.off: dict[str, list[int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation between two looks at the allocator."""
        kwargs = kwargs or {}
        torch.cuda.reset_peak_memory_stats()
        before = requested()["current"]
        out = func(*args, **kwargs)
        after = requested()
        growth, inside = after["current"] - before, after["peak"] - before
        ours = growth + bytes_inside(self.kernels.inside(func, args, kwargs))
        name = str(func)
        self.calls[name] = self.calls.get(name, 0) + 1
        if abs(ours - inside) > NEGLIGIBLE_BYTES:
            self.off.setdefault(name, []).append(ours - inside)
        return out


def requested() -> dict[str, int]:
    """Return bytes asked for, now and at most."""
    found: dict[str, int] = torch._C._cuda_memoryStats(0)["requested_bytes"]["all"]
    return found


def run_operations(cells: list[Cell]) -> None:
    """Run one step of every cell, operation by operation."""
    watch = Watch()
    for cell in cells:
        units = units_of(cell.workload.model, cell.workload.image_size)
        step, batches = build_step(cell.candidate(units), device="cuda")
        step.run(batches)
        with watch:
            step.run(batches)
        step = batches = None
        clear_cuda()
    emit({"cells": len(cells), "calls": watch.calls, "off": watch.off})


def run_reductions(count: int) -> None:
    """Sum random tensors over random dimensions, and compare the scratch with the formula's."""
    on, different, spread = multiprocessors(), [], 0
    for image, dims, wide_loads, run in random_reductions(count):
        allocated = requested()["allocated"]
        result = run()
        taken = requested()["allocated"] - allocated - result.untyped_storage().nbytes()
        found = reduction_of(
            image.shape,
            image.stride(),
            dims,
            offset=int(image.storage_offset()),
            partial_bytes=4,
            wide_loads=wide_loads,
        )
        ours = 0 if found is None else sum(found.scratch_bytes(on))
        spread += taken > 0
        if ours != taken:
            different.append({"shape": image.shape, "stride": image.stride(), "dims": dims})
    emit({"reductions": count, "with_scratch": spread, "different": different})


def random_reductions(count: int) -> Iterator[tuple[torch.Tensor, list[int], int, Any]]:
    """Yield (tensor, dimensions, inputs loaded at once, what runs the reduction)."""
    rng = random.Random(0)
    sizes = (1, 2, 3, 4, 7, 16, 32, 49, 64, 96, 100, 192, 196, 197, 384, 768, 1000)
    for _ in range(count):
        shape = [rng.choice(sizes) for _ in range(rng.randint(1, 4))]
        while torch.Size(shape).numel() > 1 << 27:
            shape[rng.randrange(len(shape))] = 2
        dtype = rng.choice((torch.float32, torch.float16, torch.bfloat16))
        image = torch.empty(shape, device="cuda", dtype=dtype)
        if rng.random() < 0.4:
            image = image.permute(rng.sample(range(len(shape)), len(shape)))
        if rng.random() < 0.2 and image.shape[-1] > 2:
            image = image[..., 1:]
        if rng.random() < 0.2:
            image = image.unsqueeze(0).expand(rng.choice((2, 3)), *image.shape)
        dims = [dim for dim in range(image.dim()) if rng.random() < 0.6] or [0]
        summed, keep = rng.random() < 0.5, rng.random() < 0.5
        reduce = torch.sum if summed else torch.mean
        wide_loads = 8 if summed and dtype != torch.float32 else 4
        yield image, dims, wide_loads, lambda f=reduce, x=image, d=dims, k=keep: f(x, d, keepdim=k)


def main() -> None:
    """Do what the first line of the input asks for."""
    request = json.loads(sys.stdin.readline())
    cells = [Cell.from_json(data) for data in request.get("cells", ())]
    if request["what"] == "cells":
        run_cells(cells)
    elif request["what"] == "operations":
        run_operations(cells)
    else:
        run_reductions(int(request["count"]))
    sys.stdout.flush()
    os._exit(0)  # cuDNN's frontend does not survive the end of a process without cuDNN


if __name__ == "__main__":
    main()
