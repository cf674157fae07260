"""Rates of this machine's processor, by kind of operation.

A roofline from one matrix product and one copy is wrong on a CPU by factors that depend on the kind
of operation: batch normalisation takes five times its traffic, a depthwise convolution four times,
and a large matrix product less than the timed one. So each kind gets a correction factor:

1. time a matrix product, a copy and the Python code of an operation (``plain_cpu_rates``);
2. replay a step at a near batch, with a timer in the recorder. The timer runs each distinct
   operation (function, shapes, dtypes, strides) on real zeros, alone and on cold caches;
3. for each kind, slowness = measured seconds / roofline seconds, summed over its operations. The
   operations of a forward are timed on warm caches too: recomputation finds the memory that the
   backward before it has freed and its own results, and nothing is displaced in between;
4. run AdamW on some of the parameters: its operations run one after the other on the same tensors,
   which stay in the cache, so the optimizer has a slowness of its own. Neither autograd nor a
   module calls them, so their least time is shorter, too; it is that of AdamW on scalars;
5. time the Python code of recomputation (``profiler.timing.recompute_python``).

Cold caches matter: in a step, an operation writes to memory that was not used lately, and backward
reads what forward saved long ago. Timed in a loop, the same operation finds all in the cache, and
the sum over a step was a fifth to a third too short (studies/cpu_time).

No model is built. Timings of operations are shared by all workloads of a process. The cost is a few
steps at the timed batch. The result is stored on disk by backbone, method, precision, threads,
processor, and the batch and rank that were timed.

Other programs disturb the wall clock. With one thread, the clock is therefore the processor time of
the thread, which leaves out the time in which others had the core. The matrix product and the copy
are timed before and after the operations. If the two timings disagree, the machine was busy, and
the result is used in this process but not stored.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._pytree import tree_map

from profiler.arrays import Floats
from profiler.device_rules.cpu_kernels import argument_signature, can_run_on_zeros, zeros_like_it
from profiler.devices.table import CPU
from profiler.environment import processor_name
from profiler.placement import Decision, Placement
from profiler.records import Origin, Spread
from profiler.replay.event_log import OperationRecord, Phase
from profiler.store import Store
from profiler.timing.cpu_spread import cpu_spread
from profiler.timing.operation_tally import OperationTally
from profiler.timing.recompute_python import recompute_python_seconds
from profiler.timing.roofline import Rates
from profiler.workload import Candidate, Workload

TIMED_BATCHES = (1, 4, 16)
"""Micro-batches at which operations are timed; a workload has the rates of the nearest one. Small
images have a larger slowness in small batches, by up to two thirds."""

TIMED_RANKS = (8, 32)
"""Ranks at which operations are timed. Products with up to 8 columns have a sixth of the speed."""

_LEAST_RUNS, _MOST_RUNS, _ENOUGH_SECONDS = 3, 50, 0.005
"""A timing keeps the fastest of its runs. Small operations run more often, because few of their
runs are undisturbed while threads wait for a core."""

LARGEST_RATE_CHANGE = 0.1
"""Share by which the plain rates may differ before and after the timing of a backbone's kinds."""

_UPDATED_VALUES = 1 << 23
"""Parameters that the timing of the optimizer updates at most."""

_FLUSHED_VALUES = 1 << 23
"""Values (32 MiB) that are changed before an operation is timed, so that it finds cold caches."""

_TIMED_SCALARS = 64
"""Scalars whose update gives the least seconds of its operations."""

_COLD_RUNS = 3

_SMALLEST_COLD, _LARGEST_COLD = 1 << 18, 1 << 26
"""Bytes of an operation for which caches are emptied. Below, Python takes most of the time. Above,
the operation itself clears the caches."""

_LAUNCHES_TO_COUNT = 5.0
"""An operation counts towards its kind's slowness if it takes more than this many launches. Shorter
ones measure the launch, which the roofline has as a bound of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedKinds:
    """Timings of a backbone on this processor, in the arrays that ``Store`` keeps.

    Attributes:
        base: [6] FLOP/s of a matrix product, bytes/s of a copy, seconds of an operation's Python
            code, those that recomputation adds to one, slowness of the optimizer, seconds of
            Python code for an operation in it.
        kinds: [kinds] kinds of operation.
        slowness: [kinds] measured over roofline seconds.
        refill_slowness: [kinds] the same of recomputed operations.
    """

    base: Floats
    kinds: npt.NDArray[np.str_]
    slowness: Floats
    refill_slowness: Floats


def cpu_rates(workload: Workload) -> Rates:
    """Return this processor's rates for the operations of a workload."""
    family = workload.replace(
        rank=None if workload.rank is None else _nearest(TIMED_RANKS, workload.rank),
        alpha=None,
        micro_batch=_nearest(TIMED_BATCHES, workload.micro_batch),
        accumulation=1,
        optimizer="adamw",
        grad_clip=None,
    )
    return _stored(family, torch.get_num_threads())


def _nearest(timed: tuple[int, ...], size: int) -> int:
    """Return the timed size of the smallest ratio to a size, the larger of two that tie."""
    return min(timed, key=lambda each: (max(each / size, size / each), -each))


@cache
def _stored(family: Workload, threads: int) -> Rates:
    key = ("cpu rates, recomputation in real steps", family.to_json(), threads, processor_name())
    timed = _fetch_steady(Store.default(), key, lambda: _time_kinds(family))
    spread = cpu_spread("training step", threads=threads, precision=family.precision)
    return _rates_of(timed, spread=spread)


def cpu_inference_rates(
    key: tuple[object, ...], replay: Callable[[KindTimer], object], *, store: Store
) -> tuple[Rates, bool]:
    """Return this processor's rates for the operations of an inference, and whether they are kept.

    Rates that were timed while the machine was busy are used in this process and not stored.

    Args:
        key: JSON data that identifies the operations.
        replay: replays the inference on fake tensors with a timer.
        store: store of the timings.
    """

    def time_operations() -> TimedKinds:
        base = plain_cpu_rates()
        timer = KindTimer(base)
        replay(timer)
        return _timed_kinds(base, timer, recompute_python=0.0, update=base)

    whole = (
        "cpu rates of an inference",
        *key,
        torch.get_num_threads(),
        processor_name(),
    )
    name = f"{store.folder} {whole}"
    if name not in _INFERENCE_RATES:
        timed = _fetch_steady(store, whole, time_operations)
        spread = cpu_spread("inference", threads=torch.get_num_threads())
        _INFERENCE_RATES[name] = _rates_of(timed, spread=spread)
    return _INFERENCE_RATES[name], store.holds(whole)


_INFERENCE_RATES: dict[str, Rates] = {}
"""Rates of inferences that this process has timed or read."""


def _rates_of(timed: TimedKinds, *, spread: Spread) -> Rates:
    flops, nbytes, launch, recompute_python, update, update_launch = timed.base.tolist()
    return Rates(
        flops_per_second=flops,
        bytes_per_second=nbytes,
        watts=None,
        source="each kind of operation timed on this processor",
        launch_seconds=launch,
        slowness=dict(zip(timed.kinds.tolist(), timed.slowness.tolist(), strict=True)),
        refill_slowness=dict(
            zip(timed.kinds.tolist(), timed.refill_slowness.tolist(), strict=True)
        ),
        recompute_python_seconds=recompute_python,
        update_slowness=update,
        update_launch_seconds=update_launch,
        origin=Origin.MEASURED,
        spread=spread,
    )


def _fetch_steady(
    store: Store, key: tuple[object, ...], time_operations: Callable[[], TimedKinds]
) -> TimedKinds:
    """Return stored timings, or time the kinds and store them unless the machine was busy."""
    stored = store.find(TimedKinds, key)
    if stored is not None:
        return stored
    timed = time_operations()
    if differ_little(timed.base[:2].tolist(), time_product_and_copy()):
        store.keep(key, timed)
    return timed


def differ_little(before: Sequence[float], after: Sequence[float]) -> bool:
    """Return whether two timings of the same rates agree, so that the machine was not busy."""
    pairs = zip(before, after, strict=True)
    return all(max(pair) <= (1.0 + LARGEST_RATE_CHANGE) * min(pair) for pair in pairs)


def _time_kinds(family: Workload) -> TimedKinds:
    from profiler.models.build import build_model
    from profiler.replay.step_replay import KernelMemory, ReplayOptions, replay_step

    # some kinds run only in a recomputation (normalisation with given statistics)
    built = build_model(family, device="meta")
    units = built.units
    placement = Placement(decisions=dict.fromkeys(units, Decision.DROP_CHEAP))
    candidate = Candidate(workload=family, placement=placement)
    base = plain_cpu_rates()
    timer = KindTimer(base, times_refills=True)
    # All units run: each operation counts towards its kind as often as a step runs it.
    options = ReplayOptions(optimizer=False, kernel_memory=KernelMemory.NONE)
    log = replay_step(candidate, device=CPU, options=options, timer=timer)
    in_units = [op for op in log.operations if op.phase is Phase.FORWARD and op.unit >= 0]
    recompute_python = recompute_python_seconds(
        [op.moved_bytes for op in in_units], clock=_clock(), launch_seconds=base.launch_seconds
    )
    shapes = [tuple(p.shape) for p in built.model.parameters() if p.requires_grad]
    update = time_update(shapes, base)
    return _timed_kinds(base, timer, recompute_python=recompute_python, update=update)


def _timed_kinds(
    base: Rates, timer: KindTimer, *, recompute_python: float, update: Rates
) -> TimedKinds:
    found, again = timer.slowness(), timer.refill_slowness()
    rates = [
        base.flops_per_second, base.bytes_per_second, base.launch_seconds, recompute_python,
        update.other_slowness, update.launch_seconds,
    ]  # fmt: skip
    return TimedKinds(
        base=np.array(rates),
        kinds=np.array(list(found), dtype=np.str_),
        slowness=np.array(list(found.values()), dtype=np.float64),
        refill_slowness=np.array([again.get(kind, slow) for kind, slow in found.items()]),
    )


@cache
def plain_cpu_rates() -> Rates:
    """Time a matrix product, a copy and Python's code on this processor (a quarter of a second)."""
    flops, moved = time_product_and_copy()
    return Rates(
        flops_per_second=flops,
        bytes_per_second=moved,
        watts=None,
        source="matmul and copy timed on this processor",
        launch_seconds=eager_seconds(),
    )


def time_product_and_copy() -> tuple[float, float]:
    """Return FLOP/s of a matrix product and bytes/s of a copy, timed now."""
    size = 1024
    a, b = torch.rand(size, size), torch.rand(size, size)
    source = torch.rand(1 << 23)
    target = torch.empty_like(source)
    product = _fastest_seconds(lambda: a @ b)
    copy = _fastest_seconds(lambda: target.copy_(source))
    return 2.0 * size**3 / product, 2.0 * source.numel() * 4 / copy


def eager_seconds() -> float:
    """Return the seconds of an operation on a few values: nearly all Python and autograd."""
    units = [f"{i}" for i in range(8)]
    model = nn.Sequential(*[_ResidualMlp() for _ in units])
    tally = OperationTally(Phase.FORWARD)

    def step() -> None:
        model(torch.zeros(1, 4, 8)).sum().backward()

    with tally:
        step()
    return _fastest_seconds(step) / tally.count


def time_update(shapes: Sequence[tuple[int, ...]], base: Rates) -> Rates:
    """Return the rates of the operations of AdamW's update.

    Args:
        shapes: shapes of the trained parameters; the first that fit in ``_UPDATED_VALUES`` are
            updated, or that number of values if the first one is larger: a classifier of a million
            classes has gigabytes.
        base: plain rates.
    """
    parameters: list[torch.Tensor] = []
    left = _UPDATED_VALUES
    for shape in shapes:
        values = math.prod(shape)
        if values > left and parameters:
            break
        size = shape if values <= left else (left,)
        parameters.append(torch.zeros(size, requires_grad=True))
        left -= values
    if not parameters:
        return base
    scalars = [torch.zeros(1, requires_grad=True) for _ in range(_TIMED_SCALARS)]
    seconds, records = _time_adamw(scalars)
    rates = replace(base, launch_seconds=seconds / sum(op.launches for op in records))
    seconds, records = _time_adamw(parameters)
    return replace(rates, other_slowness=seconds / rates.total_seconds(records))


def _time_adamw(parameters: list[torch.Tensor]) -> tuple[float, list[OperationRecord]]:
    """Return the seconds and the operations of an update."""
    optimizer = torch.optim.AdamW(parameters, foreach=False)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    tally = OperationTally(Phase.OPTIMIZER)
    with tally:
        optimizer.step()
    return _fastest_seconds(optimizer.step), tally.records


class _ResidualMlp(nn.Module):
    """A tiny residual MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down(nn.functional.gelu(self.up(self.norm(x))))
        return x + y


def _clock() -> Callable[[], float]:
    """Return the clock of timings: processor time with one thread, else the wall clock."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def _fastest_seconds(run: Callable[[], object]) -> float:
    clock = _clock()
    fastest, spent, runs = float("inf"), 0.0, 0
    while runs < _LEAST_RUNS or (spent < _ENOUGH_SECONDS and runs < _MOST_RUNS):
        start = clock()
        run()
        seconds = clock() - start
        fastest, spent, runs = min(fastest, seconds), spent + seconds, runs + 1
    return fastest


def _fastest_cold_seconds(run: Callable[[], object]) -> float:
    """Return the seconds of an operation whose tensors are in no cache."""
    clock = _clock()
    flushed, fastest = _flushed(), float("inf")
    for _ in range(_COLD_RUNS):
        flushed.add_(1.0)
        start = clock()
        run()
        fastest = min(fastest, clock() - start)
    return fastest


@cache
def _flushed() -> torch.Tensor:
    return torch.zeros(_FLUSHED_VALUES)


_SECONDS: dict[tuple[int, bool, str], float] = {}
"""Seconds of operations by threads, whether the caches are cold, and signature. All timers of the
process share them."""


class KindTimer:
    """Runs each distinct operation of a replay on real tensors and sums its seconds by kind.

    Args:
        base: plain rates; the roofline with these rates gives the expected seconds.
        times_refills: whether operations of the forward and of recomputation are timed on warm
            caches too.
    """

    def __init__(self, base: Rates, *, times_refills: bool = False) -> None:
        self._base = base
        self._times_refills = times_refills
        self._sums: dict[str, tuple[float, float]] = {}
        self._refill_sums: dict[str, tuple[float, float]] = {}

    def time(
        self,
        kind: str,
        func: OpOverload,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        *,
        flops: int,
        moved_bytes: int,
        phase: Phase,
    ) -> None:
        """Add an operation's seconds to its kind; run it if it was not seen before.

        Args:
            kind: the operation's kind (``OperationRecord.kind``).
            func: the operation.
            args: positional arguments, fake tensors among them.
            kwargs: keyword arguments.
            flops: FLOPs of the operation.
            moved_bytes: bytes read and written.
            phase: the phase it runs in.
        """
        is_cold = _SMALLEST_COLD <= moved_bytes <= _LARGEST_COLD
        call = func, args, kwargs
        roofline = float(self._base.seconds(flops, moved_bytes))
        self._add(self._sums, kind, _seconds_of(*call, is_cold=is_cold), roofline)
        if self._times_refills and phase in {Phase.FORWARD, Phase.RECOMPUTE}:
            self._add(self._refill_sums, kind, _seconds_of(*call, is_cold=False), roofline)

    def _add(
        self, sums: dict[str, tuple[float, float]], kind: str, seconds: float, roofline: float
    ) -> None:
        if seconds > _LAUNCHES_TO_COUNT * self._base.launch_seconds:
            measured, expected = sums.get(kind, (0.0, 0.0))
            sums[kind] = measured + seconds, expected + roofline

    def slowness(self) -> dict[str, float]:
        """Return measured over roofline seconds, by kind."""
        return {kind: measured / expected for kind, (measured, expected) in self._sums.items()}

    def refill_slowness(self) -> dict[str, float]:
        """Return the same of recomputed operations, by kind."""
        sums = self._refill_sums.items()
        return {kind: measured / expected for kind, (measured, expected) in sums}


def _seconds_of(
    func: OpOverload, args: tuple[object, ...], kwargs: Mapping[str, object], *, is_cold: bool
) -> float:
    """Return the seconds of an operation, which runs if the process has not seen it."""
    signature = f"{func} {tree_map(argument_signature, (args, kwargs))}"
    key = torch.get_num_threads(), is_cold, signature
    if key not in _SECONDS:
        _SECONDS[key] = _run_on_zeros(func, args, kwargs, is_cold=is_cold)
    return _SECONDS[key]


def _run_on_zeros(
    func: OpOverload,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    *,
    is_cold: bool,
) -> float:
    """Return the seconds of an operation on zeros; 0 if it cannot run on them.

    Args:
        func: the operation.
        args: positional arguments, fake tensors among them.
        kwargs: keyword arguments.
        is_cold: whether to empty the caches before each run, which would hold its tensors.
    """
    fastest_seconds = _fastest_cold_seconds if is_cold else _fastest_seconds
    if not can_run_on_zeros(func, args, kwargs):
        return 0.0
    with unset_fake_temporarily(), torch.no_grad():
        try:
            real, named = tree_map(zeros_like_it, (args, dict(kwargs)))
            func(*real, **named)  # the first call of a library also sets it up
            return fastest_seconds(lambda: func(*real, **named))
        except (RuntimeError, MemoryError, ValueError, IndexError, TypeError):
            return 0.0
