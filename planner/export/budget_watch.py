"""Compare the memory of a running training with the budget and the prediction of its plan."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from planner.plan import Plan
from profiler.errors import warn_caller
from profiler.units import format_bytes_as

NEAR_THE_EDGE = 0.95
"""Share of the budget from which a training is warned: the allocator's blocks vary by a few
percent when an evaluation or a logger allocates as well."""

Peaks = tuple[int, int]
"""Highest allocated and highest reserved bytes since the start."""


class BudgetWatch:
    """Watches a training from its start to its end.

    On CUDA the caching allocator is capped at the budget, as ``budgetplan train`` does. On a CPU
    nothing is read but the time of the steps.

    Args:
        plan: the plan that is trained.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._read: Callable[[], Peaks] | None = None
        self._steps = 0
        self._seconds = 0.0
        self._step_began: float | None = None
        self._has_warned = False

    def start(self, *, on_cuda: bool) -> None:
        """Set the cap and begin to count."""
        if on_cuda and self._read is None:
            from planner.training.training_device import cap_to_budget

            cap_to_budget(self._plan)
            self._read = _cuda_peaks_from_now()
        self._steps, self._seconds, self._step_began = 0, 0.0, None

    def before_step(self) -> None:
        """Note the beginning of an optimizer step; later calls before its end are ignored."""
        if self._step_began is None:
            self._step_began = time.perf_counter()

    def after_step(self) -> None:
        """Count an optimizer step; warn once if the memory comes near the budget."""
        self._steps += 1
        if self._step_began is not None:
            self._seconds += time.perf_counter() - self._step_began
            self._step_began = None
        if self._read is None or self._has_warned:
            return
        needed = self._device_bytes(self._read()[1])
        if needed > NEAR_THE_EDGE * self._plan.budget_bytes:
            self._has_warned = True
            size = partial(format_bytes_as, asked=self._plan.budget_bytes)
            warn_caller(
                f"this training needs {size(needed)} of the plan's "
                f"{size(self._plan.budget_bytes)}; {size(self._predicted)} were "
                "predicted; a smaller micro-batch needs less",
            )

    def record(self) -> dict[str, Any]:
        """Return measured bytes and seconds; null where nothing was read."""
        peaks = (None, None) if self._read is None else self._read()
        seconds = self._seconds / self._steps if self._steps else None
        return {
            "steps": self._steps,
            "seconds_per_step": seconds,
            "peak_bytes": peaks[0],
            "reserved_bytes": peaks[1],
            "predicted_peak_bytes": self._plan.prediction.memory.peak_bytes,
            "budget_bytes": self._plan.budget_bytes,
        }

    @property
    def _predicted(self) -> int:
        memory = self._plan.prediction.memory
        return memory.device_bytes or memory.peak_bytes

    def _device_bytes(self, reserved: int) -> int:
        """Return reserved bytes plus the CUDA context that the plan counts."""
        memory = self._plan.prediction.memory
        if memory.device_bytes is None or memory.reserved_bytes is None:
            return reserved
        return reserved + memory.device_bytes - memory.reserved_bytes


def _cuda_peaks_from_now() -> Callable[[], Peaks]:
    import torch

    torch.cuda.reset_peak_memory_stats()
    return lambda: (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())
