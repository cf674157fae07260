"""Rates of this machine's processor, by kind of operation.

A roofline from one matrix product and one copy is wrong on a CPU by factors that depend on the kind
of operation: batch normalisation takes five times its traffic, a depthwise convolution four times,
and a large matrix product less than the timed one. So each kind gets a correction factor:

1. time a matrix product, a copy and a tiny addition: the plain rates (``plain_cpu_rates``);
2. replay a step of the backbone at a small batch, with a timer in the recorder. The timer runs each
   distinct operation (function, shapes, dtypes, strides) on real zeros, alone;
3. for each kind, slowness = measured seconds / roofline seconds, summed over its operations.

No model is built, and no weight is allocated. The cost is about one step at the small batch. The
result is stored on disk by backbone, precision, threads and processor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._pytree import tree_map

from profiler.arrays import Floats
from profiler.checkpointing.apply import apply_placement
from profiler.device_rules.cpu_kernels import argument_signature, can_run_on_zeros, zeros_like_it
from profiler.devices.table import CPU
from profiler.environment import processor_name
from profiler.placement import Decision, Placement
from profiler.records import Origin
from profiler.store import Store
from profiler.timing.roofline import Rates
from profiler.workload import Candidate, Workload

TIMED_BATCH = 4
"""Micro-batch at which operations are timed. Slowness is nearly the same at 4 and at 16 images for
most kinds. At one image it differs, so micro-batch 1 has rates of its own."""

_LEAST_RUNS, _MOST_RUNS, _ENOUGH_SECONDS = 3, 50, 0.005
"""A timing keeps the fastest of its runs. Small operations run more often, because few of their
runs are undisturbed while threads wait for a core."""

_LAUNCHES_TO_COUNT = 5.0
"""An operation counts towards its kind's slowness if it takes more than this many launches. Shorter
ones measure the launch, which the roofline has as a bound of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedKinds:
    """Timings of a backbone on this processor, in the arrays that ``Store`` keeps.

    Attributes:
        base: [4] FLOP/s of a matrix product, bytes/s of a copy, seconds of a launch, seconds of a
            recomputation.
        kinds: [kinds] kinds of operation.
        slowness: [kinds] measured over roofline seconds.
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
    timed = Store.default().fetch(TimedKinds, key, lambda: _time_kinds(family))
    flops, nbytes, launch, refill = timed.base.tolist()
    return Rates(
        flops_per_second=flops,
        bytes_per_second=nbytes,
        watts=None,
        source="each kind of operation timed on this processor",
        launch_seconds=launch,
        slowness=dict(zip(timed.kinds.tolist(), timed.slowness.tolist(), strict=True)),
        refill_seconds=refill,
        origin=Origin.MEASURED,
    )


def _time_kinds(family: Workload) -> TimedKinds:
    from profiler.models.build import build_model
    from profiler.replay.step_replay import KernelMemory, ReplayOptions, replay_step

    # some kinds run only in a recomputation (normalisation with given statistics)
    units = build_model(family, device="meta").units
    placement = Placement(decisions=dict.fromkeys(units, Decision.DROP_CHEAP))
    candidate = Candidate(workload=family, placement=placement)
    base = plain_cpu_rates()
    timer = KindTimer(base)
    options = ReplayOptions(optimizer=False, kernel_memory=KernelMemory.NONE, repeated_units=True)
    replay_step(candidate, device=CPU, options=options, timer=timer)
    found = timer.slowness()
    rates = [base.flops_per_second, base.bytes_per_second, base.launch_seconds, refill_seconds()]
    return TimedKinds(
        base=np.array(rates),
        kinds=np.array(list(found), dtype=np.str_),
        slowness=np.array(list(found.values()), dtype=np.float64),
    )


@cache
def plain_cpu_rates() -> Rates:
    """Time a matrix product, a copy and a launch on this processor (a quarter of a second)."""
    size = 1024
    a, b = torch.rand(size, size), torch.rand(size, size)
    source, small = torch.rand(1 << 23), torch.rand(1)
    target = torch.empty_like(source)
    return Rates(
        flops_per_second=2.0 * size**3 / _fastest_seconds(lambda: a @ b),
        bytes_per_second=2.0 * source.numel() * 4 / _fastest_seconds(lambda: target.copy_(source)),
        watts=None,
        source="matmul and copy timed on this processor",
        launch_seconds=_fastest_seconds(lambda: small + small),
    )


@cache
def refill_seconds() -> float:
    """Return the Python seconds that a recomputation adds to its operations.

    A checkpointed call is recorded in forward and called again in backward, both in Python. On
    tensors of a few values nearly all time is Python's. The difference between a step with and one
    without checkpointing is divided by the number of recomputations. Takes less than 0.1 s.
    """
    units = [f"{i}" for i in range(8)]
    model = nn.Sequential(*[_ResidualMlp() for _ in units])
    recomputations = 2 * len(units)  # a norm and an activation function in each unit

    def step() -> None:
        model(torch.zeros(1, 4, 8)).sum().backward()

    placement = Placement(decisions=dict.fromkeys(units, Decision.DROP_CHEAP))
    plain = checkpointed = float("inf")
    for _ in range(_LEAST_RUNS):
        plain = min(plain, _fastest_seconds(step))
        with apply_placement(model, placement):
            checkpointed = min(checkpointed, _fastest_seconds(step))
    return max(checkpointed - plain, 0.0) / recomputations


class _ResidualMlp(nn.Module):
    """A tiny residual MLP, the unit of the model that ``refill_seconds`` times."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down(nn.functional.gelu(self.up(self.norm(x))))
        return x + y


def _fastest_seconds(run: Callable[[], object]) -> float:
    fastest, spent, runs = float("inf"), 0.0, 0
    while runs < _LEAST_RUNS or (spent < _ENOUGH_SECONDS and runs < _MOST_RUNS):
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        fastest, spent, runs = min(fastest, seconds), spent + seconds, runs + 1
    return fastest


class KindTimer:
    """Runs each distinct operation of a replay on real tensors and sums its seconds by kind.

    Args:
        base: plain rates; the roofline with these rates gives the expected seconds.
    """

    def __init__(self, base: Rates) -> None:
        self._base = base
        self._seconds: dict[str, float] = {}
        self._sums: dict[str, tuple[float, float]] = {}

    def time(
        self,
        kind: str,
        func: OpOverload,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        *,
        flops: int,
        moved_bytes: int,
    ) -> None:
        """Add an operation's seconds to its kind; run it if it was not seen before.

        Args:
            kind: the operation's kind (``OperationRecord.kind``).
            func: the operation.
            args: positional arguments, fake tensors among them.
            kwargs: keyword arguments.
            flops: FLOPs of the operation.
            moved_bytes: bytes read and written.
        """
        key = f"{func} {tree_map(argument_signature, (args, kwargs))}"
        if key not in self._seconds:
            self._seconds[key] = _run_on_zeros(func, args, kwargs)
        seconds = self._seconds[key]
        if seconds > _LAUNCHES_TO_COUNT * self._base.launch_seconds:
            measured, expected = self._sums.get(kind, (0.0, 0.0))
            roofline = float(self._base.seconds(flops, moved_bytes))
            self._sums[kind] = measured + seconds, expected + roofline

    def slowness(self) -> dict[str, float]:
        """Return measured over roofline seconds, by kind."""
        return {kind: measured / expected for kind, (measured, expected) in self._sums.items()}


def _run_on_zeros(
    func: OpOverload, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> float:
    """Return the seconds of an operation on zeros; 0 if it cannot run on them."""
    if not can_run_on_zeros(func, args, kwargs):
        return 0.0
    with unset_fake_temporarily(), torch.no_grad():
        real, named = tree_map(zeros_like_it, (args, dict(kwargs)))
        try:
            func(*real, **named)  # the first call of a library also sets it up
            return _fastest_seconds(lambda: func(*real, **named))
        except (RuntimeError, ValueError, IndexError, TypeError):
            return 0.0
