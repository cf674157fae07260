"""The paper's rule at run time: look at the memory in use on entering a unit, then decide.

    AdaptiveRule    the budget and the share of it from which on units are recomputed
    memory_in_use   the number that the rule looks at

``planner.placement.policies`` foresees what the rule will decide; here it decides by itself, as
the code of arXiv 2607.02158 does (facts/seeds.md section 1.2). It promises nothing: what it has
kept by the time it begins to recompute may be too much.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import torch

from profiler.errors import DeviceError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveRule:
    """When a unit is recomputed.

    Attributes:
        budget_bytes: the budget.
        threshold: the share of it that has to be in use.
    """

    budget_bytes: int
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.budget_bytes < 1 or not self.threshold > 0:
            raise UsageError(
                "the adaptive rule needs a positive budget and threshold, "
                f"got {self.budget_bytes} bytes and {self.threshold}"
            )


def memory_in_use(device: str) -> Callable[[], int]:
    """Return a function that says how many bytes are allocated.

    Args:
        device: on CUDA, PyTorch's allocator is asked. On a CPU it takes its memory from malloc, and
            glibc's is asked what it has given out since the call of this function: call it before
            the model is built.

    Raises:
        DeviceError: a CPU, and a C library that does not say.
    """
    if torch.device(device).type == "cuda":
        return lambda: torch.cuda.memory_allocated(device)
    try:
        ask = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError) as error:
        raise DeviceError(
            "the adaptive rule asks malloc how much memory is in use, and this C library does not "
            "say (glibc 2.33 does); use another --checkpoint"
        ) from error
    ask.restype = _Mallinfo2
    before = ask().given_out
    return lambda: max(0, ask().given_out - before)


class _Mallinfo2(ctypes.Structure):
    """``struct mallinfo2`` of malloc.h: ten counts, of all arenas together."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )

    @property
    def given_out(self) -> int:
        """Bytes in use, in arenas and in mappings of their own."""
        return int(self.uordblks + self.hblkhd)
