"""What the children of test_sandbox.py run."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable

from profiler.errors import UnknownNameError
from profiler.running.memory_caps import cap_host_memory, lift_host_cap, timed_without_cap
from profiler.running.messages import Message

Progress = Callable[[str, float], None]


class Nothing(Message, frozen=True, kw_only=True):
    pass


class Number(Message, frozen=True, kw_only=True):
    number: int


class Seen(Message, frozen=True, kw_only=True):
    number: int
    pid: int


class Blocks(Message, frozen=True, kw_only=True):
    blocks: int
    block_bytes: int
    cap_bytes: int | None


class Lift(Message, frozen=True, kw_only=True):
    beyond_bytes: int
    more_bytes: int
    cap_bytes: int


class Held(Message, frozen=True, kw_only=True):
    held_bytes: int


class MappedBlocks(Message, frozen=True, kw_only=True):
    uncapped: int
    capped: int
    timed: int
    kept_bytes: int


def report(request: Number, progress: Progress) -> Seen:
    print("a library that talks on stdout", flush=True)
    progress("half way", 0.5)
    progress("done", 1.0)
    return Seen(number=request.number + 1, pid=os.getpid())


def unknown(request: Nothing, progress: Progress) -> Nothing:
    raise UnknownNameError(kind="model", name="vit_z", known=["vit_s"])


def fail(request: Nothing, progress: Progress) -> Nothing:
    raise RuntimeError("something broke\nand here is a long explanation")


def die(request: Nothing, progress: Progress) -> Nothing:
    print("last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
    return request


def wait(request: Nothing, progress: Progress) -> Nothing:
    time.sleep(60)
    return request


def not_a_number(request: Number, progress: Progress) -> list[float]:
    return [float("nan")]


def overdone(request: Nothing, progress: Progress) -> Nothing:
    progress("done twice", 2.0)
    return request


def garbled(request: Nothing, progress: Progress) -> Nothing:
    """Write a line that is no message where the parent reads messages."""
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        is_channel = number > 2 and os.path.exists(f"/proc/self/fd/{name}")
        if is_channel and os.readlink(f"/proc/self/fd/{name}").startswith("pipe:"):
            os.write(number, b'{"type": "gossip"}\n')
    time.sleep(60)
    return request


def allocate(request: Blocks, progress: Progress) -> Held:
    import torch

    if request.cap_bytes is not None:
        cap_host_memory(request.cap_bytes)
    held = []
    for index in range(request.blocks):
        held.append(torch.zeros(request.block_bytes, dtype=torch.uint8))
        progress("allocating", index / request.blocks)
    return Held(held_bytes=sum(block.nbytes for block in held))


def lift(request: Lift, progress: Progress) -> Held:
    """Hold a block beyond the cap while it is lifted, then one more under the cap."""
    import torch

    cap_host_memory(request.cap_bytes)
    set_again = lift_host_cap()
    held = [torch.zeros(request.beyond_bytes, dtype=torch.uint8)]
    set_again()
    held.append(torch.zeros(request.more_bytes, dtype=torch.uint8))
    return Held(held_bytes=sum(block.nbytes for block in held))


def count_mapped_blocks(request: Blocks, progress: Progress) -> MappedBlocks:
    """Count which blocks come from the kernel each time, in all situations of a measurement.

    ``kept_bytes`` are those at the end of the heap after its last block was freed.
    """
    kept = _kept_bytes(request.blocks * request.block_bytes)
    uncapped = _mapped_blocks(request)
    cap_host_memory(request.cap_bytes)
    capped = _mapped_blocks(request)
    with timed_without_cap():
        timed = _mapped_blocks(request)
    return MappedBlocks(uncapped=uncapped, capped=capped, timed=timed, kept_bytes=kept)


def _mapped_blocks(request: Blocks) -> int:
    """Return by how many the blocks that glibc took by mmap grow, once it has seen their size."""
    import torch

    torch.zeros(request.block_bytes, dtype=torch.uint8)
    before = _mallinfo().hblks
    held = [torch.zeros(request.block_bytes, dtype=torch.uint8) for _ in range(request.blocks)]
    found: int = _mallinfo().hblks - before
    del held
    return found


def _kept_bytes(block_bytes: int) -> int:
    """Take a block from the end of the heap and free it; return the free bytes there."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.free(ctypes.c_void_p(libc.malloc(ctypes.c_size_t(block_bytes))))
    kept: int = _mallinfo().keepcost
    return kept


class _Mallinfo2(ctypes.Structure):
    """``struct mallinfo2`` of glibc (mallinfo(3))."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
            "fordblks", "keepcost",
        )
    ]  # fmt: skip


def _mallinfo() -> _Mallinfo2:
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _Mallinfo2
    found: _Mallinfo2 = mallinfo()
    return found


def time_then_hold(request: Lift, progress: Progress) -> Held:
    """Free a block beyond the cap while steps are timed, then hold one under the cap."""
    import torch

    cap_host_memory(request.cap_bytes)
    with timed_without_cap():
        torch.zeros(request.beyond_bytes, dtype=torch.uint8)
    held = torch.zeros(request.more_bytes, dtype=torch.uint8)
    return Held(held_bytes=held.nbytes)


def report_and_wait(request: Nothing, progress: Progress) -> Nothing:
    progress(str(os.getpid()), 0.5)
    time.sleep(60)
    return request


def smallest_products(call: Number, _: Progress) -> Seen:
    """Return how many of ``number`` products of denormal values are not 0."""
    import torch

    left = torch.full((call.number,), 1e-41) * 0.5
    return Seen(number=int(left.count_nonzero()), pid=os.getpid())
