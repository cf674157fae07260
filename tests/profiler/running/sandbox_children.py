"""What the children of test_sandbox.py run."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from profiler.errors import UnknownNameError
from profiler.running.sandbox import cap_host_memory, lift_host_cap


def run(request: dict[str, Any], progress: Callable[[str, float], None]) -> dict[str, Any]:
    return ACTIONS[request["action"]](request, progress)


def report(request: dict[str, Any], progress: Callable[[str, float], None]) -> dict[str, Any]:
    print("a library that talks on stdout", flush=True)
    progress("half way", 0.5)
    progress("done", 1.0)
    return {"pid": os.getpid(), "number": request["number"] + 1}


def unknown(request: dict[str, Any], progress: Callable[[str, float], None]) -> dict[str, Any]:
    raise UnknownNameError(kind="model", name="vit_z", known=["vit_s"])


def fail(request: dict[str, Any], progress: Callable[[str, float], None]) -> dict[str, Any]:
    raise RuntimeError("something broke\nand here is a long explanation")


def die(request: dict[str, Any], progress: Callable[[str, float], None]) -> dict[str, Any]:
    print("last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
    return {}


def wait(request: dict[str, Any], progress: Callable[[str, float], None]) -> dict[str, Any]:
    time.sleep(60)
    return {}


def allocate(request: dict[str, Any], progress: Callable[[str, float], None]) -> dict[str, Any]:
    import torch

    cap_host_memory(request["cap_bytes"])
    held = []
    for index in range(request["blocks"]):
        held.append(torch.zeros(request["block_bytes"], dtype=torch.uint8))
        progress("allocating", index / request["blocks"])
    return {"held_bytes": sum(block.nbytes for block in held)}


def lift(request: dict[str, Any], progress: Callable[[str, float], None]) -> dict[str, Any]:
    """Hold a block beyond the cap while it is lifted, then one more under the cap."""
    import torch

    cap_host_memory(request["cap_bytes"])
    put_back = lift_host_cap()
    held = [torch.zeros(request["beyond_bytes"], dtype=torch.uint8)]
    put_back()
    held.append(torch.zeros(request["more_bytes"], dtype=torch.uint8))
    return {"held_bytes": sum(block.nbytes for block in held)}


ACTIONS = {f.__name__: f for f in (report, unknown, fail, die, wait, allocate, lift)}
