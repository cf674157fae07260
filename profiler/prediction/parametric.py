"""Parametric profiles: memory and work of a training step as functions of batch and rank.

A *family* is a workload without its micro-batch, accumulation, rank and optimizer (``family_of``).
All members of a family run the same operations in the same order; only sizes differ. So the size of
every storage, and the FLOPs and the traffic of every operation, is a polynomial

    c0 + cB*B + cr*r + cBr*B*r          (B: micro-batch, r: rank of the method)

No value mixes terms with B and terms without B.

**Probes.** Two replays determine the four coefficients, both at B = 1009, one at r = 4 and one at
r = 8. A method without a rank needs only one.

- Rank: the difference of the two sizes, divided by 4, is the slope in r; the remainder is free of
  r. A profile for one rank needs one replay, at that rank; its slopes in r are zero.
- Batch: 1009 is a prime, and no other dimension is divisible by 1009. So a size is a multiple of
  1009 exactly if the batch is one of its factors. In that case remainder and slope, divided by
  1009, are cB and cBr; otherwise they are c0 and cr.

**Peaks.** A sum of such polynomials is again such a polynomial, so the live bytes after each tick
are a vector of four coefficients. The peak over a unit's forward or backward is the maximum over
its ticks, and the tick that attains it depends on B and r. Only the ticks that are highest at some
point of a grid of B and r are kept, which are few. Their polynomials are the *lines* of the unit's
*envelope* (``Envelope``).

**Composition.** An *option* is a decision for a unit and its parts. Each option is profiled in a
step of its own, in which all units have this option. A placement that mixes options is composed
unit by unit (``planner.placement.chain``) from

    stored_i    bytes that stay between unit i's forward and its backward: saved tensors and output
    cached_i    bytes that stay from unit i's forward to the end of the forward: autocast's cached
                weight casts, unless a saved tensor shares them
    forward_i   envelope during unit i's forward, above stored and cached bytes of earlier units
    backward_i  envelope during unit i's backward, above static bytes, stored bytes of earlier units
                and gradients of later units

**Exception.** The sizes of buffers of partial sums in CUDA reductions are no polynomials: they
depend on how many blocks of threads the GPU runs (profiler/device_rules/cuda_reductions.py). Each
line of an envelope therefore has the index of the reduction whose buffer is alive at its tick, and
the buffer's size is computed for each B.

Limitations:

- Composition assumes that a unit's numbers do not depend on its neighbours' options. If two units
  can save the same tensor (ResNet's ReLU saves its result, which is the next unit's input), the
  profile assumes the neighbour's option that costs more.
- With a skip connection across units, the units form no chain. The profile is then an
  approximation, which the replay of a candidate checks.
- Partial sums of layer norm's weight gradients at very many rows are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import lru_cache

import numpy as np

from profiler.arrays import Floats, Ints, Mask
from profiler.devices.table import DeviceSpec
from profiler.models.methods import with_rank_in_name
from profiler.placement import Placement
from profiler.prediction.allocator_steps import accumulated_deaths
from profiler.prediction.profile_records import (
    PROBE_BATCH,
    Envelope,
    OptionProfile,
    UpdateProfile,
    Work,
    partial_sum_bytes,
    terms,
)
from profiler.prediction.step_storages import StepStorages
from profiler.records import OWNERS
from profiler.replay.event_log import EventLog, Phase
from profiler.replay.unit_spans import first_spans, phase_spans
from profiler.workload import Candidate, Lever, Workload

PROBE_RANKS = (4, 8)
"""Ranks of the two probes of a method with a rank."""

RANK_IS_A_DIVISOR = frozenset({"side"})
"""Methods with sizes divided by the rank, which are no polynomials: each rank is a family."""

RANK_OF_THE_UPDATE = frozenset({"galore"})
"""Methods whose rank changes only the optimizer's update. GaLore projects a matrix only if both its
sides exceed the rank. So sizes are no polynomials of the rank, and the update is replayed for each
rank."""

BLOCKWISE = frozenset({"adamw8bit"})
"""Optimizers with state in blocks of values, and in fp32 for small tensors. Their state is no
polynomial of the rank, so the update is replayed for each rank."""

_GRADIENT = OWNERS.index("gradient")

_CAST = "aten._to_copy.default"

# where envelopes are evaluated to find the ticks that can be the highest
_BATCH_GRID = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)

_RANK_GRID = (1, 2, 4, 8, 16, 32, 64, 128)

_GRID = np.stack([terms(b, r) for b in _BATCH_GRID for r in _RANK_GRID], axis=1)


@lru_cache(maxsize=1 << 15)
def family_of(workload: Workload, *, of_one_image: bool = False) -> Workload:
    """Return the workload that represents its family in replays.

    Args:
        workload: any member of the family.
        of_one_image: whether the family has only micro-batch 1. There a dimension of size 1 can
            make a strided tensor contiguous, so that an operation copies nothing: TinyViT's
            attention on a CPU copies no queries, keys and values if one window is the whole map.
    """
    named = with_rank_in_name(workload.method, workload.rank)
    if named is not None:
        workload = workload.replace(method=named, rank=None)
    return workload.replace(
        micro_batch=1 if of_one_image else PROBE_BATCH,
        accumulation=1,
        optimizer="adamw",
        rank=_family_rank(workload),
        alpha=None,
        grad_clip=None,
        levers=(),  # the replayed rung has the levers' memory; rates have their time
    )


def update_family_of(workload: Workload) -> Workload:
    """Return the workload that represents all workloads with the same optimizer update.

    The precision does not matter: parameters and optimizer state are fp32 under autocast too.
    """
    fused: tuple[Lever, ...] = ("fused",) if "fused" in workload.levers else ()
    family = family_of(workload).replace(precision="fp32", levers=fused)
    if workload.rank is None or not _has_one_rank(workload.method, workload.optimizer):
        return family
    return family.replace(rank=workload.rank)


def _has_one_rank(method: str, optimizer: str) -> bool:
    return method in RANK_OF_THE_UPDATE or optimizer in BLOCKWISE


def _family_rank(workload: Workload) -> int | None:
    if workload.rank is None or workload.method in RANK_IS_A_DIVISOR:
        return workload.rank
    return PROBE_RANKS[0]


Replayer = Callable[[Candidate], EventLog]


def profile_option(
    family: Workload,
    placement: Placement,
    replayer: Replayer,
    device: DeviceSpec,
    *,
    rank: int | None = None,
) -> OptionProfile:
    """Replay a family under one placement and return its profile.

    Args:
        family: a result of ``family_of``.
        placement: decisions, the same option for all units.
        replayer: replays a candidate without an optimizer step.
        device: device of the replays; it decides the partial sums of reductions.
        rank: the only rank that the profile will be used for; None for every rank.

    Raises:
        ValueError: the probes have different operations (the network depends on batch or rank).
    """
    probes = _probes(family) if rank is None else [family.replace(rank=rank)]
    logs = [replayer(Candidate(workload=workload, placement=placement)) for workload in probes]
    return _option_profile(logs, device)


def profile_update(family: Workload, optimizer: str, replayer: Replayer) -> UpdateProfile:
    """Replay the optimizer's update of a family and return its profile.

    Args:
        family: a result of ``update_family_of``.
        optimizer: name of the optimizer.
        replayer: replays the update of a candidate.
    """
    probes = [family] if _has_one_rank(family.method, optimizer) else _probes(family)
    probes = [probe.replace(optimizer=optimizer) for probe in probes]
    logs = [replayer(Candidate(workload=workload)) for workload in probes]
    sizes = _sizes(logs)
    log = logs[0]
    state_code = OWNERS.index("optimizer")
    state = sizes[(log.owner == state_code) & (log.birth == 0)].sum(axis=0)
    live = _live(log, sizes)
    temporary = live - live[0]
    # a single line instead of an envelope: the tick with the largest sum over the grid
    highest = temporary[np.argmax((temporary @ _GRID).sum(axis=1))]
    chosen = (log.birth > 0) | (log.owner == state_code)  # neither parameters nor gradients
    return UpdateProfile(
        state=state,
        temporary=highest,
        work=_work(logs).of(Phase.OPTIMIZER),
        sizes=sizes[chosen],
        spans=np.stack([log.birth, log.death], axis=1)[chosen],
        ticks=np.array(log.ticks),
    )


def at_micro_batch(log: EventLog, micro_batch: int, device: DeviceSpec) -> EventLog:
    """Return a family's log with the sizes of another micro-batch, without a rank."""
    partial = partial_sum_bytes(log.reductions, micro_batch, device)
    # storages without a known reduction (-1, -2) take the 0 at the end
    sizes = _sizes([log]) @ terms(micro_batch, None) + partial[np.maximum(log.reduction, -1)]
    return replace(log, nbytes=np.rint(sizes).astype(np.int64))


def _sizes(logs: Sequence[EventLog]) -> Floats:
    """Return [storages, 4] coefficients of the sizes, zeros for partial sums."""
    sizes = _coefficients([log.nbytes for log in logs])
    sizes[logs[0].reduction != -1] = 0.0
    return sizes


def has_two_probes(family: Workload) -> bool:
    """Return whether the sizes of a family depend on the rank, so that two replays are needed."""
    return family.rank is not None and family.method not in RANK_IS_A_DIVISOR | RANK_OF_THE_UPDATE


def _probes(family: Workload) -> list[Workload]:
    return [family, family.replace(rank=PROBE_RANKS[1])] if has_two_probes(family) else [family]


def _coefficients(values: Sequence[Ints]) -> Floats:
    """Return [values, 4] coefficients of c0 + cB*B + cr*r + cBr*B*r.

    Args:
        values: [values] at (B, r) = (p, r1) and, for a method with a rank, at (p, r2), where p is
            ``PROBE_BATCH`` and r1, r2 are ``PROBE_RANKS``. No value has both a part with the
            factor B and a part without it.

    Raises:
        ValueError: the probes have different numbers of values.
    """
    if len({len(v) for v in values}) != 1:
        raise ValueError("the replays have different numbers of storages or operations")
    prime, (low, high) = PROBE_BATCH, PROBE_RANKS
    first = values[0].astype(float)
    by_rank = (values[1] - first) / (high - low) if len(values) > 1 else np.zeros_like(first)
    rest = first - by_rank * low
    batched = values[0] % prime == 0
    zero = np.zeros_like(first)
    return np.stack(
        [
            np.where(batched, zero, rest),
            np.where(batched, rest / prime, zero),
            np.where(batched, zero, by_rank),
            np.where(batched, by_rank / prime, zero),
        ],
        axis=1,
    )


def _live(log: EventLog, sizes: Floats) -> Floats:
    """Return [ticks + 1, 4] live bytes after each tick."""
    delta = np.zeros((log.ticks + 2, 4))
    np.add.at(delta, log.birth, sizes)
    np.subtract.at(delta, log.death, sizes)
    return np.cumsum(delta, axis=0)[: log.ticks + 1]


class _Sums:
    """Partial sums of reductions: the one alive after each tick, and its bytes on the grid.

    Attributes:
        at_tick: [ticks + 1] index of the reduction, -1 for none.
        on_grid: [reductions + 1, points] bytes at each point of the grid, then zeros.
    """

    def __init__(self, log: EventLog, device: DeviceSpec) -> None:
        self.at_tick = np.full(log.ticks + 1, -1)
        buffers = np.flatnonzero(log.reduction >= 0)
        for index in buffers.tolist():
            self.at_tick[log.birth[index] : log.death[index]] = log.reduction[index]
        # the rank varies fastest in the grid, and partial sums do not depend on it
        each = [partial_sum_bytes(log.reductions, batch, device) for batch in _BATCH_GRID]
        self.on_grid = np.repeat(np.stack(each, axis=1), len(_RANK_GRID), axis=1)

    def envelope(self, runs: Sequence[tuple[slice, Floats]]) -> Envelope:
        """Return the envelope of some units.

        Args:
            runs: for each unit, the slice of ticks in which it runs, and [ticks, 4] live bytes.
        """
        kept, reductions = [], []
        for span, run in runs:
            lines = run if len(run) else np.zeros((1, 4))
            reduction = self.at_tick[span] if len(run) else np.array([-1])
            values = lines @ _GRID + self.on_grid[reduction]
            # only lines that are the highest at some point of the grid can matter
            highest = np.unique(np.argmax(values, axis=0))
            kept.append(lines[highest])
            reductions.append(reduction[highest])
        starts = np.cumsum([0, *[len(lines) for lines in kept[:-1]]])
        return Envelope(
            lines=np.concatenate(kept),
            reduction=np.concatenate(reductions),
            starts=starts.astype(np.int64),
        )


def _option_profile(logs: Sequence[EventLog], device: DeviceSpec) -> OptionProfile:
    log = logs[0]
    sizes = _sizes(logs)
    live = _live(log, sizes)
    sums = _Sums(log, device)
    moments = _Moments.of(log)
    count = len(log.units)
    exits = [moments.start, *moments.exits]

    # [forward] level: bytes that units so far store for backward, by unit; there: level plus the
    # autocast weight casts that they have cached
    level = live[moments.start] + _levels(log, sizes, moments)
    stored = np.diff(level, axis=0)
    there = level + _cached(log, sizes, moments)
    spans = [slice(exits[i], exits[i + 1] + 1) for i in range(count)]
    forward = sums.envelope([(span, live[span] - there[i]) for i, span in enumerate(spans)])

    # [head] from the last exit to the first backward of a unit
    turn = min([begin for begin, _ in moments.backwards.values()], default=log.ticks)
    ending = slice(exits[-1], turn + 1)
    head = sums.envelope([(ending, live[ending] - there[-1])])

    # [gradients] by the unit in whose backward they are accumulated
    is_gradient = (log.owner == _GRADIENT) & (log.birth > moments.start)
    gradients = np.zeros((count + 1, 4))
    gradients[count] = sizes[is_gradient & (log.birth <= turn)].sum(axis=0)
    for index, (begin, end) in moments.backwards.items():
        born = is_gradient & (log.birth > begin) & (log.birth <= end)
        gradients[index] = sizes[born].sum(axis=0)
    gradients_live = _live_of(log, sizes, is_gradient)
    passing = _live_of(log, sizes, is_gradient, death=accumulated_deaths(log))

    # [backward] Bytes above the level at the unit's entry. Tensors of earlier units that have been
    # freed early are added back: the chain counts them as stored until their own unit's backward.
    # One micro-batch: the gradients live at the start are subtracted, because the chain adds them.
    # Accumulating: all gradients are subtracted, because the chain counts them as static; a new
    # gradient counts only until it is added to the old one (passing).
    backward, accumulating = [], []
    for index in range(count):
        begin, end = moments.backwards.get(index, (0, -1))
        span = slice(begin, end + 1)
        above = live[span] - level[index] + _freed(log, sizes, moments, index)[span]
        backward.append((span, above - (gradients_live[begin] if end >= 0 else 0)))
        accumulating.append((span, above - gradients_live[span] + passing[span]))
    return OptionProfile(
        base=live[moments.start],
        stored=stored,
        cached=np.diff(there - level, axis=0),
        forward=forward,
        backward=sums.envelope(backward),
        accumulating=sums.envelope(accumulating),
        head=head,
        gradients=gradients,
        boundary=_coefficients([np.array(each.boundary_bytes) for each in logs]),
        reductions=np.array([astuple(r) for r in log.reductions], dtype=np.int64).reshape(-1, 5),
        work=_work(logs),
        steps=StepStorages.of(log, sizes),
    )


def _levels(log: EventLog, sizes: Floats, moments: _Moments) -> Floats:
    """Return [units + 1, 4] bytes stored for backward at the start and after each unit.

    They are counted above the start of the forward. Storages count that are still alive when
    backward begins, and the output of the unit that has just run. The output counts even if it dies
    before backward, because the next unit's option decides whether it is saved. Storages that only
    a variable of the calling code keeps alive during the forward do not count.
    """
    backward = _start_of(log, Phase.BACKWARD)
    lasting = _live_of(log, sizes, log.death > backward)
    level: Floats = lasting[[moments.start, *moments.exits]] - lasting[moments.start]
    # an output has the factor B; cached weight casts have not (``_cached``)
    has_batch = _has_batch(log, sizes)
    for index, (enter, leave) in enumerate(zip(moments.enters, moments.exits, strict=True)):
        own = (log.birth > enter) & (log.birth <= leave)
        passing = (log.death > leave) & (log.death <= backward)
        level[index + 1] += sizes[own & passing & has_batch].sum(axis=0)
    return level


def _cached(log: EventLog, sizes: Floats, moments: _Moments) -> Floats:
    """Return [units + 1, 4] bytes of cached weight casts at the start and after each unit.

    Autocast caches them until the end of the forward: they outlive the last unit, die before
    backward, and have no factor B.
    """
    last, backward = moments.exits[-1], _start_of(log, Phase.BACKWARD)
    passing = (log.birth > moments.start) & (log.death > last) & (log.death <= backward)
    cached = passing & ~_has_batch(log, sizes)
    there: Floats = _live_of(log, sizes, cached)[[moments.start, *moments.exits]]
    return there


def _has_batch(log: EventLog, sizes: Floats) -> Mask:
    """Return [storages] whether the size has the batch as a factor."""
    batched: Mask = (sizes[:, 1] != 0) | (sizes[:, 3] != 0)
    if batched.any():
        return batched
    # At batch size 1, divisibility cannot identify batched tensors. All remaining unbatched tensors
    # are autocast weight casts, so those are selected by operation name.
    copies = [code for code, name in enumerate(log.operation_names) if name == _CAST]
    one_image: Mask = ~np.isin(log.operation, copies)
    return one_image


def _freed(log: EventLog, sizes: Floats, moments: _Moments, index: int) -> Floats:
    """Return [ticks + 1, 4] bytes of the units before ``index`` that backward has freed so far."""
    before = moments.exits[index - 1] if index else moments.start
    left = (log.birth > moments.start) & (log.birth <= before)
    freed = left & (log.death > _start_of(log, Phase.BACKWARD)) & (log.death <= log.ticks)
    delta = np.zeros((log.ticks + 2, 4))
    np.add.at(delta, log.death[freed], sizes[freed])
    return np.cumsum(delta, axis=0)[: log.ticks + 1]


def _live_of(log: EventLog, sizes: Floats, chosen: Mask, death: Ints | None = None) -> Floats:
    """Return [ticks + 1, 4] live bytes of some storages; ``death`` replaces the recorded deaths."""
    delta = np.zeros((log.ticks + 2, 4))
    np.add.at(delta, log.birth[chosen], sizes[chosen])
    np.subtract.at(delta, (log.death if death is None else death)[chosen], sizes[chosen])
    return np.cumsum(delta, axis=0)[: log.ticks + 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moments:
    """Ticks of the only micro-batch.

    Attributes:
        start: start of the forward.
        enters: [units] start of each unit's forward.
        exits: [units] end of each unit's forward; a unit that was not called has the end of the
            unit before it.
        backwards: start and end of each unit's backward, by unit index.
    """

    start: int
    enters: list[int]
    exits: list[int]
    backwards: dict[int, tuple[int, int]]

    @classmethod
    def of(cls, log: EventLog) -> _Moments:
        start = _start_of(log, Phase.FORWARD)
        forwards, backwards = first_spans(log, Phase.FORWARD), first_spans(log, Phase.BACKWARD)
        enters, exits, last = [], [], start
        for index in range(len(log.units)):
            span = forwards.get(index)
            last = max(last, last if span is None else span.end)
            enters.append(last if span is None else span.begin)
            exits.append(last)
        ranges = {index: (span.begin, span.end) for index, span in backwards.items()}
        return cls(start=start, enters=enters, exits=exits, backwards=ranges)


def _start_of(log: EventLog, phase: Phase) -> int:
    return next(s.begin for s in phase_spans(log.marks, log.ticks) if s.phase is phase)


def _work(logs: Sequence[EventLog]) -> Work:
    counts = {len(log.operations) for log in logs}
    if len(counts) != 1:
        raise ValueError("the replays have different numbers of operations")
    operations = logs[0].operations
    flops = _coefficients([np.array([op.flops for op in log.operations]) for log in logs])
    # A single operation moves both weights and activations, so divisibility cannot classify the sum
    # of their bytes. The recorder counts the two apart (``OperationRecord.batched_bytes``).
    batched = [np.array([op.batched_bytes for op in log.operations]) for log in logs]
    fixed = [np.array([op.moved_bytes - op.batched_bytes for op in log.operations]) for log in logs]
    moved = _coefficients(batched) + _coefficients(fixed)
    kinds, kind = np.unique([op.kind for op in operations], return_inverse=True)
    kernels, kernel = np.unique([op.kernel for op in operations], return_inverse=True)
    dims = [np.array([op.dims for op in log.operations]).reshape(-1, 6) for log in logs]
    columns = [_coefficients([values[:, d] for values in dims]) for d in range(6)]
    return Work(
        flops=flops,
        moved_bytes=moved,
        launches=np.array([op.launches for op in operations], dtype=np.int64),
        unit=np.array([op.unit for op in operations], dtype=np.int64),
        phase=np.array([op.phase for op in operations], dtype=np.int64),
        kind=kind.astype(np.int64),
        kinds=kinds.astype(np.str_),
        begins_refill=np.array([op.begins_refill for op in operations], dtype=np.bool_),
        intercepted=np.array([op.intercepted for op in operations], dtype=np.int64),
        kernel=kernel.astype(np.int64),
        kernels=kernels.astype(np.str_),
        dims=np.stack(columns, axis=1),
    )
