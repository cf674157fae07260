"""How fast this processor is at each kind of operation of a backbone.

A roofline of one matmul and one copy is far off on a CPU: batch normalisation takes five times its
traffic, a depthwise convolution four times, a large matmul less than the one that was timed. So
the distinct operations of one replayed step are really run, each alone and on zeros, at a small
batch, and each kind gets the ratio of its seconds to the roofline's. That costs about a step of
that batch, no model is built, and it is kept on disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._pytree import tree_map

from profiler.arrays import Floats
from profiler.checkpointing.apply import apply_placement
from profiler.device_rules.cpu_kernels import describe, zeros_like_it
from profiler.devices.table import CPU
from profiler.environment import processor_name
from profiler.placement import Decision, Placement
from profiler.store import Store
from profiler.timing.roofline import Rates
from profiler.workload import Candidate, Workload

TIMED_BATCH = 4
"""Of which operations are timed: most kinds' ratios are the same at 4 and at 16 images. One image
has its own, where it is asked for."""

_LEAST_RUNS, _MOST_RUNS, _ENOUGH_SECONDS = 3, 50, 0.005
"""Small operations run more often: where threads wait for a core, few runs are undisturbed."""

_MOST_OF_LAUNCH = 5.0
"""An operation tells of its kind's rate if it takes so many times a launch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """What was timed, as ``Store`` keeps it.

    Attributes:
        base: [4] FLOP/s of a matmul, bytes/s of a copy, seconds of a launch and of a refill.
        kinds: [kinds] names.
        slowness: [kinds] times the roofline's seconds.
    """

    base: Floats
    kinds: npt.NDArray[np.str_]
    slowness: Floats


def cpu_rates(workload: Workload) -> Rates:
    """Return this processor's rates for the operations of a workload's backbone."""
    family = workload.replace(
        method="full",
        rank=None,
        alpha=None,
        micro_batch=1 if workload.micro_batch == 1 else TIMED_BATCH,
        accumulation=1,
        optimizer="adamw",
        grad_clip=None,
    )
    return _stored(family, torch.get_num_threads())


@cache
def _stored(family: Workload, threads: int) -> Rates:
    key = ("cpu rates", family.to_json(), threads, processor_name())
    timed = Store.default().fetch(Timed, key, lambda: _timed(family))
    flops, nbytes, launch, refill = timed.base.tolist()
    return Rates(
        flops_per_second=flops,
        bytes_per_second=nbytes,
        watts=None,
        source="each kind of operation timed on this processor",
        launch_seconds=launch,
        slowness=dict(zip(timed.kinds.tolist(), timed.slowness.tolist(), strict=True)),
        refill_seconds=refill,
    )


def _timed(family: Workload) -> Timed:
    from profiler.models.build import build_model
    from profiler.replay.step_replay import KernelMemory, ReplayOptions, replay_step

    units = build_model(family, device="meta").units
    placement = Placement(decisions=dict.fromkeys(units, Decision.DROP_CHEAP))
    base = plain_cpu_rates()
    stopwatch = Stopwatch(base)
    options = ReplayOptions(optimizer=False, kernel_memory=KernelMemory.NONE, repeated_units=True)
    # the placement adds the kinds that only a recomputation runs
    replay_step(
        Candidate(workload=family, placement=placement),
        device=CPU,
        options=options,
        timer=stopwatch,
    )
    found = stopwatch.slowness()
    return Timed(
        base=np.array(
            [
                base.flops_per_second,
                base.bytes_per_second,
                base.launch_seconds,
                refill_seconds(),
            ]
        ),
        kinds=np.array(list(found), dtype=np.str_),
        slowness=np.array(list(found.values()), dtype=np.float64),
    )


@cache
def plain_cpu_rates() -> Rates:
    """Measure this processor's matmul and copy rates and its launch, a quarter of a second."""
    size = 1024
    a, b = torch.rand(size, size), torch.rand(size, size)
    source, small = torch.rand(1 << 23), torch.rand(1)
    target = torch.empty_like(source)
    return Rates(
        flops_per_second=2.0 * size**3 / _quickest(lambda: a @ b),
        bytes_per_second=2.0 * source.numel() * 4 / _quickest(lambda: target.copy_(source)),
        watts=None,
        source="matmul and copy timed on this processor",
        launch_seconds=_quickest(lambda: small + small),
    )


@cache
def refill_seconds() -> float:
    """Measure what a frame costs besides its operations, in less than a tenth of a second.

    Its calls are watched in forward and it is run again in backward, all of that in Python: on
    tensors of a few values that is nearly all that a unit takes longer which drops what is cheap.
    """
    units = [f"{i}" for i in range(8)]
    model = nn.Sequential(*[_Toy() for _ in units])
    refills = 2 * len(units)  # a norm and an activation function each

    def step() -> None:
        model(torch.zeros(1, 4, 8)).sum().backward()

    placement = Placement(decisions=dict.fromkeys(units, Decision.DROP_CHEAP))
    plain = dropping = float("inf")
    for _ in range(_LEAST_RUNS):
        plain = min(plain, _quickest(step))
        with apply_placement(model, placement):
            dropping = min(dropping, _quickest(step))
    return max(dropping - plain, 0.0) / refills


class _Toy(nn.Module):
    """A residual MLP, with what PyTorch calls between the layers of one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down(nn.functional.gelu(self.up(self.norm(x))))
        return x + y


def _quickest(run: Callable[[], object]) -> float:
    fastest, spent, runs = float("inf"), 0.0, 0
    while runs < _LEAST_RUNS or (spent < _ENOUGH_SECONDS and runs < _MOST_RUNS):
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        fastest, spent, runs = min(fastest, seconds), spent + seconds, runs + 1
    return fastest


class Stopwatch:
    """Really runs each distinct operation of a replay and adds seconds up by kind.

    Args:
        base: what the seconds are held against.
    """

    def __init__(self, base: Rates) -> None:
        self._base = base
        self._seconds: dict[str, float] = {}
        self._sums: dict[str, tuple[float, float]] = {}

    def time(
        self,
        kind: str,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        flops: int,
        moved_bytes: int,
    ) -> None:
        """Time an operation, or recall it."""
        key = f"{func} {tree_map(describe, (args, kwargs))}"
        if key not in self._seconds:
            self._seconds[key] = _run(func, args, kwargs)
        seconds, expected = self._seconds[key], self._base.seconds(flops, moved_bytes)
        if seconds > _MOST_OF_LAUNCH * self._base.launch_seconds:
            taken, predicted = self._sums.get(kind, (0.0, 0.0))
            self._sums[kind] = taken + seconds, predicted + expected

    def slowness(self) -> dict[str, float]:
        """Return how many times the roofline's seconds each kind takes."""
        return {kind: taken / expected for kind, (taken, expected) in self._sums.items()}


def _run(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    """Return the seconds of an operation on zeros; 0 where it is not defined on them."""
    with unset_fake_temporarily(), torch.no_grad():
        real, named = tree_map(zeros_like_it, (args, dict(kwargs)))
        try:
            func(*real, **named)  # a library's first call makes what it then keeps
            return _quickest(lambda: func(*real, **named))
        except (RuntimeError, ValueError, IndexError, TypeError):
            return 0.0
