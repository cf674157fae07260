"""The paper's rule at run time: look at the memory in use on entering a unit, then decide.

    AdaptiveRule    the budget and the share of it from which on units are recomputed
    memory_in_use   the number that the rule looks at

``planner.placement.policies`` foresees what the rule will decide; here it decides by itself, as
the code of arXiv 2607.02158 does (facts/seeds.md section 1.2). It promises nothing: what it has
kept by the time it begins to recompute may be too much.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from profiler.errors import UsageError


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
    """Return a function that says how many bytes are in use.

    Args:
        device: on CUDA, what PyTorch's allocator has given out. A CPU's keeps no count, so there it
            is the process's resident memory, less what was resident before the call of this
            function: call it before the model is built. What malloc keeps for later use counts.
    """
    if torch.device(device).type == "cuda":
        return lambda: torch.cuda.memory_allocated(device)
    _give_back_free_memory()
    before = _resident_bytes()
    return lambda: max(0, _resident_bytes() - before)


def _give_back_free_memory() -> None:
    """Have malloc return what it keeps for later use, so that it is not used up unnoticed."""
    with suppress(OSError, AttributeError):  # glibc's own
        ctypes.CDLL(None).malloc_trim(0)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
