"""The timing of an unlisted GPU, on the emulated GPU of this process and by a made-up clock."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from profiler.running.messages import encode
from profiler.timing.gpu_rates import TimingRequest, time_rates

SECONDS = {"fp32": 0.25, "fp16": 0.0625, "bf16": 0.5, "copy": 0.03125}
"""Seconds of the fastest run of each timing; the others take longer."""

LONGER = (3.0, 1.5, 1.0, 2.0, 1.25)

EVENTS: list[str] = []


class Recorded(TorchDispatchMode):
    """Notes the products and copies that run."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "copy_"):
            EVENTS.append(f"{name} {str(args[0].dtype).removeprefix('torch.')}")
        return func(*args, **(kwargs or {}))


def readings() -> Iterator[float]:
    """Yield the readings of the clock before and after each timed run."""
    durations = [seconds * factor for seconds in SECONDS.values() for factor in LONGER]
    for end, duration in zip(accumulate(durations), durations, strict=True):
        yield end - duration
        yield end


def main() -> None:
    """Print the rates and the order of events."""
    clock, wait = readings(), torch.cuda.synchronize

    def read_clock() -> float:
        EVENTS.append("clock")
        return next(clock)

    def synchronize() -> None:
        EVENTS.append("wait")
        wait()

    torch.cuda.init()
    time.perf_counter, torch.cuda.synchronize = read_clock, synchronize  # type: ignore[assignment]
    with Recorded():
        rates = time_rates(TimingRequest(), lambda *_: None)
    sys.stdout.write(json.dumps({"rates": json.loads(encode(rates)), "events": EVENTS}))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
