"""The profile of a family of workloads: what any micro-batch, rank and placement will need.

A *family* is everything of a workload but micro-batch, accumulation, rank and optimizer. One
replay per placement option (two for a method with a rank) gives, for every storage, its size as
``c0 + cB*B + cr*r + cBr*B*r``: the sequence of operations does not depend on either, and at a
micro-batch that is a large prime a size is a multiple of it exactly when the batch is in it. Live
bytes after every event are then such a polynomial too, and the peak of a unit's forward or
backward is the upper envelope of few of them. (One image on a CPU, and every rank of some methods,
is a family of its own: ``family_of``.)

    stored_i    growth over unit i's forward (and the glue before it) of what it leaves behind: its
                output, and what is still there when backward begins
    forward_i   envelope of live bytes during it, above what units before it left and cached
    backward_i  envelope during its backward, above static + what earlier units store + gradients
                of later units

    cached_i    what unit i's forward leaves until the last unit has run, but not to backward:
                autocast's copies of weights, where no saved tensor is one

One thing is no polynomial: the buffers that CUDA's sums leave partial results in
(profiler/device_rules/cuda_reductions.py). A line that has one says of which reduction it is, and
its bytes at a micro-batch are computed then. (Those of layer norm's gradients at very many rows are left out.)

Units are composed as a chain (``planner.placement.chain``): the option of one unit does not change
another's numbers. Where it would, a number is what it is beside the neighbour that costs most: a
unit's input may be saved by itself alone, and go while it runs backward, or by the unit before it
too (ResNet's ReLU saves its result), and stay. Where a network is no chain (a skip connection
across units), this is an approximation, and replay decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
import numpy.typing as npt

from profiler.arrays import Floats, Ints, Mask
from profiler.device_rules.cuda_reductions import Reduction
from profiler.devices.table import DeviceSpec, multiprocessors
from profiler.models.methods import with_rank_in_name
from profiler.placement import Placement
from profiler.records import OWNERS
from profiler.replay.event_log import EventLog, Phase
from profiler.replay.unit_spans import first_spans, phase_spans
from profiler.timing.roofline import Rates
from profiler.workload import Candidate, Workload

PROBE_BATCH = 1009
"""A prime: what it divides has the batch as a factor (see ``_coefficients``)."""

PROBE_RANKS = (4, 8)

RANK_IS_A_DIVISOR = frozenset({"side"})
"""Methods of whose rank no size is a polynomial: every rank is a family of its own."""

RANK_OF_THE_UPDATE = frozenset({"galore"})
"""Methods whose rank only their optimizer knows. There no size is a polynomial of it (GaLore leaves
matrices alone that have no side above it), so the update of every rank is replayed by itself."""

BLOCKWISE = frozenset({"adamw8bit"})
"""Optimizers whose state is in blocks, and in another precision for small matrices."""

_GRADIENT = OWNERS.index("gradient")

_SUM, _CAST = "aten.add.Tensor", "aten._to_copy.default"

_BATCH_GRID = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)

_RANK_GRID = (1, 2, 4, 8, 16, 32, 64, 128)


def terms(batch: float, rank: float | None) -> Floats:
    """Return [4] the monomials (1, B, r, B*r) at a point."""
    r = rank or 0
    return np.array([1.0, batch, r, batch * r])


_GRID = np.stack([terms(b, r) for b in _BATCH_GRID for r in _RANK_GRID], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """For each unit, the upper envelope of a few polynomials.

    Attributes:
        lines: [L, 4] coefficients, unit after unit; every unit has at least one line.
        reduction: [L] of which reduction partial sums are there as well, -1 for none.
        starts: [units] first line of each unit.
    """

    lines: Floats
    reduction: Ints
    starts: Ints

    def at(self, point: Floats, partial_sums: Floats) -> Floats:
        """Return [units] the envelope's value at a point.

        Args:
            point: the monomials.
            partial_sums: [reductions + 1] bytes of each one's, and 0.
        """
        values = self.lines @ point + partial_sums[self.reduction]
        highest: Floats = np.maximum.reduceat(values, self.starts)
        return highest


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Operations of a part of the step, as polynomials.

    Attributes:
        flops: [operations, 4].
        moved_bytes: [operations, 4].
        launches: [operations] kernels on a GPU.
        unit: [operations] unit index, -1 outside.
        phase: [operations] phase code.
        kind: [operations] index into ``kinds``.
        kinds: what the operations compute.
        begins_refill: [operations] whether a frame begins to run again with it.
    """

    flops: Floats
    moved_bytes: Floats
    launches: Ints
    unit: Ints
    phase: Ints
    kind: Ints
    kinds: npt.NDArray[np.str_]
    begins_refill: Mask

    def of(self, *phases: Phase) -> Work:
        """Return the operations of some phases."""
        chosen = np.isin(self.phase, phases)
        return Work(
            flops=self.flops[chosen],
            moved_bytes=self.moved_bytes[chosen],
            launches=self.launches[chosen],
            unit=self.unit[chosen],
            phase=self.phase[chosen],
            kind=self.kind[chosen],
            kinds=self.kinds,
            begins_refill=self.begins_refill[chosen],
        )

    def seconds(self, point: Floats, roofline: Rates) -> Floats:
        """Return [operations] roofline seconds at a point."""
        seconds = roofline.seconds(
            self.flops @ point,
            self.moved_bytes @ point,
            launches=self.launches,
            slowness=roofline.slowness_of(self.kinds.tolist())[self.kind],
        )
        return seconds + self.begins_refill * roofline.refill_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionProfile:
    """What the units need when all of them run under one option.

    Attributes:
        base: [4] live bytes when the first forward begins (parameters, buffers, inputs).
        stored: [units, 4].
        cached: [units, 4].
        forward: envelope over each unit's forward.
        backward: envelope over each unit's backward, in a step of one micro-batch.
        accumulating: likewise when gradients of all units are there from the start.
        head: envelope from the last unit's exit to the first backward, above that exit.
        gradients: [units + 1, 4] gradients that each unit's backward leaves, the head's last.
        boundary: [units, 4] bytes of the unit's output.
        reductions: [reductions, 5] fields of each ``Reduction``.
        work: the operations.
    """

    base: Floats
    stored: Floats
    cached: Floats
    forward: Envelope
    backward: Envelope
    accumulating: Envelope
    head: Envelope
    gradients: Floats
    boundary: Floats
    reductions: Ints
    work: Work

    def partial_sums(self, micro_batch: int, device: DeviceSpec) -> Floats:
        """Return [reductions + 1] bytes of each reduction's partial sums, and 0."""
        known = [Reduction(*row) for row in self.reductions.tolist()]
        return _partial_sums(known, micro_batch, device)

    @property
    def learns_in_units(self) -> bool:
        """Whether any unit runs backward."""
        return bool(self.backward.lines.any())


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateProfile:
    """What the optimizer needs.

    Attributes:
        state: [4] bytes that live through the whole step.
        temporary: [4] highest extra bytes of the update, above parameters, gradients and state.
        work: its operations.
    """

    state: Floats
    temporary: Floats
    work: Work


def family_of(workload: Workload, *, of_one_image: bool = False) -> Workload:
    """Return the workload that stands for its family.

    Args:
        workload: any of the family.
        of_one_image: whether it is the family of micro-batch 1 alone. A dimension of one is no
            hindrance to a view, so operations may copy less there, or more (TinyViT's attention on
            a CPU, where one window is the whole map: no copies of queries, keys and values).
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
    )


def update_family_of(workload: Workload) -> Workload:
    """Return the workload that stands for all of the same update.

    Parameters and optimizer state are fp32 in any case.
    """
    family = family_of(workload).replace(precision="fp32")
    if workload.rank is None or not _is_of_one_rank(workload.method, workload.optimizer):
        return family
    return family.replace(rank=workload.rank)


def _is_of_one_rank(method: str, optimizer: str) -> bool:
    return method in RANK_OF_THE_UPDATE or optimizer in BLOCKWISE


def _family_rank(workload: Workload) -> int | None:
    if workload.rank is None or workload.method in RANK_IS_A_DIVISOR:
        return workload.rank
    return PROBE_RANKS[0]


Replayer = Callable[[Candidate], EventLog]


def profile_option(
    family: Workload, placement: Placement, replayer: Replayer, device: DeviceSpec
) -> tuple[OptionProfile, list[EventLog]]:
    """Replay a family under one placement and return its polynomials and what they were read off.

    Args:
        family: of ``family_of``.
        placement: for all units.
        replayer: makes the logs.
        device: device of the replays; it decides the partial sums of reductions.

    Raises:
        ValueError: the replays do not line up (the network's operations depend on the batch).
    """
    logs = [
        replayer(Candidate(workload=workload, placement=placement)) for workload in _probes(family)
    ]
    return _option_profile(logs, device), logs


def profile_update(family: Workload, optimizer: str, replayer: Replayer) -> UpdateProfile:
    """Replay the optimizer's step of a family (of ``update_family_of``)."""
    probes = [family] if _is_of_one_rank(family.method, optimizer) else _probes(family)
    probes = [probe.replace(optimizer=optimizer) for probe in probes]
    logs = [replayer(Candidate(workload=workload)) for workload in probes]
    sizes = _sizes(logs)
    log = logs[0]
    state_code = OWNERS.index("optimizer")
    state = sizes[(log.owner == state_code) & (log.birth == 0)].sum(axis=0)
    live = _live(log, sizes)
    temporary = live - live[0]
    highest = temporary[np.argmax((temporary @ _GRID).sum(axis=1))]
    return UpdateProfile(state=state, temporary=highest, work=_work(logs).of(Phase.OPTIMIZER))


def at_micro_batch(log: EventLog, micro_batch: int, device: DeviceSpec) -> EventLog:
    """Return a family's log as it would be at another micro-batch: only sizes differ."""
    partial = _partial_sums(log.reductions, micro_batch, device)
    sizes = _sizes([log]) @ terms(micro_batch, None) + partial[np.maximum(log.reduction, -1)]
    return replace(log, nbytes=np.rint(sizes).astype(np.int64))


def _partial_sums(reductions: Sequence[Reduction], micro_batch: int, device: DeviceSpec) -> Floats:
    """Return [reductions + 1] bytes of partial sums at a micro-batch, and 0 for what has none."""

    def there(size: int) -> int:
        return size // PROBE_BATCH * micro_batch if size % PROBE_BATCH == 0 else size

    found = [0.0] * (len(reductions) + 1)
    if not reductions:
        return np.array(found)
    on = multiprocessors(device)
    for index, seen in enumerate(reductions):
        here = replace(seen, outputs=there(seen.outputs), inputs=there(seen.inputs))
        found[index] = float(sum(here.scratch_bytes(on)[:1]))
    return np.array(found)


def _sizes(logs: Sequence[EventLog]) -> Floats:
    """Return [storages, 4] coefficients, of partial sums none."""
    sizes = _coefficients([log.nbytes for log in logs])
    sizes[logs[0].reduction != -1] = 0.0
    return sizes


def _probes(family: Workload) -> list[Workload]:
    if family.rank is None or family.method in RANK_IS_A_DIVISOR | RANK_OF_THE_UPDATE:
        return [family]
    return [family, family.replace(rank=PROBE_RANKS[1])]


def _coefficients(values: Sequence[Ints]) -> Floats:
    """Read c0 + cB*B + cr*r + cBr*B*r off values seen at (p, r1) and, where given, (p, r2).

    The micro-batch p is a prime that no other dimension has: a value is a multiple of it exactly
    when the batch is a factor of it, so one replay tells both parts apart.
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
    """Which reduction's partial sums are there after each tick, and their bytes over the grid."""

    def __init__(self, log: EventLog, device: DeviceSpec) -> None:
        self.at_tick = np.full(log.ticks + 1, -1)
        buffers = np.flatnonzero(log.reduction >= 0)
        for index in buffers.tolist():
            self.at_tick[log.birth[index] : log.death[index]] = log.reduction[index]
        each = [_partial_sums(log.reductions, batch, device) for batch in _BATCH_GRID]
        self.on_grid = np.repeat(np.stack(each, axis=1), len(_RANK_GRID), axis=1)

    def envelope(self, runs: Sequence[tuple[slice, Floats]]) -> Envelope:
        """Return the envelope of units, each given by when it runs and its lines there."""
        kept, reductions = [], []
        for span, run in runs:
            lines = run if len(run) else np.zeros((1, 4))
            reduction = self.at_tick[span] if len(run) else np.array([-1])
            values = lines @ _GRID + self.on_grid[reduction]
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
    level = live[moments.start] + _levels(log, sizes, moments)
    stored = np.diff(level, axis=0)
    there = level + _cached(log, sizes, moments)
    spans = [slice(exits[i], exits[i + 1] + 1) for i in range(count)]
    forward = sums.envelope([(span, live[span] - there[i]) for i, span in enumerate(spans)])
    turn = min([begin for begin, _ in moments.backwards.values()], default=log.ticks)
    ending = slice(exits[-1], turn + 1)
    head = sums.envelope([(ending, live[ending] - there[-1])])
    is_gradient = (log.owner == _GRADIENT) & (log.birth > moments.start)
    gradients = np.zeros((count + 1, 4))
    gradients[count] = sizes[is_gradient & (log.birth <= turn)].sum(axis=0)
    for index, (begin, end) in moments.backwards.items():
        born = is_gradient & (log.birth > begin) & (log.birth <= end)
        gradients[index] = sizes[born].sum(axis=0)
    gradients_live = _live_of(log, sizes, is_gradient)
    passing = _live_of(log, sizes, is_gradient, death=_soon(log))
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
    )


def _levels(log: EventLog, sizes: Floats, moments: _Moments) -> Floats:
    """Return [units + 1, 4] bytes that each unit leaves behind, above those at the start.

    That is what is still there when backward begins, and the unit's own output: whether that lasts
    is for the next unit to say. Not what others hold meanwhile (a caller's variable).
    """
    backward = _start_of(log, Phase.BACKWARD)
    lasting = _live_of(log, sizes, log.death > backward)
    level: Floats = lasting[[moments.start, *moments.exits]] - lasting[moments.start]
    has_batch = _has_batch(log, sizes)
    for index, (enter, leave) in enumerate(zip(moments.enters, moments.exits, strict=True)):
        own = (log.birth > enter) & (log.birth <= leave)
        passing = (log.death > leave) & (log.death <= backward)
        level[index + 1] += sizes[own & passing & has_batch].sum(axis=0)
    return level


def _cached(log: EventLog, sizes: Floats, moments: _Moments) -> Floats:
    """Return [units + 1, 4] bytes that units up to each have cached: there is no batch in them."""
    last, backward = moments.exits[-1], _start_of(log, Phase.BACKWARD)
    passing = (log.birth > moments.start) & (log.death > last) & (log.death <= backward)
    cached = passing & ~_has_batch(log, sizes)
    there: Floats = _live_of(log, sizes, cached)[[moments.start, *moments.exits]]
    return there


def _has_batch(log: EventLog, sizes: Floats) -> Mask:
    """Return [storages] whether the batch is a factor of it."""
    batched: Mask = (sizes[:, 1] != 0) | (sizes[:, 3] != 0)
    if batched.any():
        return batched
    # of one image nothing tells, but all that units leave beside results are autocast's copies
    copies = [code for code, name in enumerate(log.operation_names) if name == _CAST]
    one_image: Mask = ~np.isin(log.operation, copies)
    return one_image


def _freed(log: EventLog, sizes: Floats, moments: _Moments, index: int) -> Floats:
    """Return [ticks + 1, 4] what backward has freed of what the units before one had left."""
    before = moments.exits[index - 1] if index else moments.start
    left = (log.birth > moments.start) & (log.birth <= before)
    freed = left & (log.death > _start_of(log, Phase.BACKWARD)) & (log.death <= log.ticks)
    delta = np.zeros((log.ticks + 2, 4))
    np.add.at(delta, log.death[freed], sizes[freed])
    return np.cumsum(delta, axis=0)[: log.ticks + 1]


def _live_of(log: EventLog, sizes: Floats, chosen: Mask, death: Ints | None = None) -> Floats:
    delta = np.zeros((log.ticks + 2, 4))
    np.add.at(delta, log.birth[chosen], sizes[chosen])
    np.subtract.at(delta, (log.death if death is None else death)[chosen], sizes[chosen])
    return np.cumsum(delta, axis=0)[: log.ticks + 1]


def _soon(log: EventLog) -> Ints:
    """Return when each storage would die if it were added to something at once.

    That is at the next birth by another operation: autograd runs AccumulateGrad before it goes on,
    but first adds the gradients of an input that two have read.
    """
    sums = [code for code, name in enumerate(log.operation_names) if name == _SUM]
    order = np.argsort(log.birth, kind="stable")
    death = log.death.copy()
    following = log.ticks
    for position in range(len(order) - 1, -1, -1):
        index = order[position]
        death[index] = min(death[index], following)
        previous = order[position - 1] if position else index
        operation = log.operation[index]
        if log.operation[previous] != operation and operation not in sums:
            following = int(log.birth[index])
    return death


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moments:
    """Ticks of the first micro-batch: forward begins, each unit's forward, each unit's backward."""

    start: int
    enters: list[int]
    exits: list[int]
    backwards: dict[int, tuple[int, int]]

    @classmethod
    def of(cls, log: EventLog) -> _Moments:
        start = _start_of(log, Phase.FORWARD)
        forwards, backwards = first_spans(log, Phase.FORWARD), first_spans(log, Phase.BACKWARD)
        enters, exits, last = [], [], start
        for index in range(len(log.units)):  # a unit that was not called takes no time
            span = forwards.get(index)
            last = max(last, last if span is None else span.end)
            enters.append(last if span is None else span.begin)
            exits.append(last)
        # no unit runs backward where only the classifier learns
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
    # an operation moves weights and activations alike: the two parts are told apart at the source
    batched = [np.array([op.batched_bytes for op in log.operations]) for log in logs]
    fixed = [np.array([op.moved_bytes - op.batched_bytes for op in log.operations]) for log in logs]
    moved = _coefficients(batched) + _coefficients(fixed)
    kinds, kind = np.unique([op.kind for op in operations], return_inverse=True)
    return Work(
        flops=flops,
        moved_bytes=moved,
        launches=np.array([op.launches for op in operations], dtype=np.int64),
        unit=np.array([op.unit for op in operations], dtype=np.int64),
        phase=np.array([op.phase for op in operations], dtype=np.int64),
        kind=kind.astype(np.int64),
        kinds=kinds.astype(np.str_),
        begins_refill=np.array([op.begins_refill for op in operations], dtype=np.bool_),
    )
