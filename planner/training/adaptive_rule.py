"""The adaptive rule of arXiv 2607.02158 at run time.

    AdaptiveRule        the budget, and the share in use at which recomputation begins
    live_bytes_reader   a function that returns the bytes in use on a device

The rule compares the bytes in use with ``threshold * budget`` when the forward enters a unit, and
recomputes the unit if they have reached it. ``planner.placement.policies`` predicts these decisions
for a plan; here they are made during the training, as the paper's code makes them. Limitation: the
rule does not guarantee the budget, because the units that it keeps first may already exceed it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import torch

from profiler.errors import DeviceError, UsageError
from profiler.records import DeviceKind


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveRule:
    """When the adaptive rule recomputes a unit.

    Attributes:
        budget_bytes: memory budget in bytes.
        threshold: share of the budget that must be in use.

    Raises:
        UsageError: the budget or the threshold is not positive.
    """

    budget_bytes: int
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.budget_bytes < 1 or not self.threshold > 0:
            raise UsageError(
                "the adaptive rule needs a positive budget and threshold, "
                f"got {self.budget_bytes} bytes and {self.threshold}"
            )


def live_bytes_reader(device: DeviceKind) -> Callable[[], int]:
    """Return a function that returns the number of bytes in use.

    On CUDA these are the live bytes of PyTorch's allocator. On a CPU, PyTorch takes its memory from
    malloc; the function returns the growth of malloc's bytes in use since this call, so the call
    must come before the model is built.

    Args:
        device: kind of the device of the training.

    Raises:
        DeviceError: a CPU whose C library has no ``mallinfo2`` (glibc has it from 2.33).
    """
    if device == "cuda":
        return lambda: torch.cuda.memory_allocated(device)
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError) as error:
        raise DeviceError(
            "the adaptive rule reads the memory in use by mallinfo2, which this C library lacks "
            "(glibc has it from 2.33); use another --checkpoint"
        ) from error
    mallinfo2.restype = _Mallinfo2
    before = mallinfo2().in_use_bytes
    return lambda: max(0, mallinfo2().in_use_bytes - before)


class _Mallinfo2(ctypes.Structure):
    """``struct mallinfo2`` of malloc.h: ten byte and block counts over all arenas."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )

    @property
    def in_use_bytes(self) -> int:
        """Bytes in use: in arenas (``uordblks``) and in separate mappings (``hblkhd``)."""
        return int(self.uordblks + self.hblkhd)
