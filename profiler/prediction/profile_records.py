"""Records of parametric profiles: polynomials in batch and rank, envelopes and work.

``profiler.prediction.parametric`` explains the model and makes these records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from profiler.arrays import Floats, Ints, Mask
from profiler.device_rules.cuda_reductions import Reduction
from profiler.devices.table import DeviceSpec, multiprocessors
from profiler.prediction.step_storages import StepStorages
from profiler.replay.event_log import Phase
from profiler.timing.kernel_rates import KernelRates
from profiler.timing.roofline import Rates
from profiler.timing.step_load import SECONDS, loads_of_bounds, loads_of_parts

PROBE_BATCH = 1009
"""Micro-batch of the probes: a prime, so that it divides exactly the sizes with a factor B."""


def terms(batch: float, rank: float | None) -> Floats:
    """Return [4] the monomials (1, B, r, B*r); r is 0 for a method without a rank."""
    r = rank or 0
    return np.array([1.0, batch, r, batch * r])


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """The highest live bytes of each unit, as the maximum of a few polynomials (lines).

    Attributes:
        lines: [L, 4] coefficients, unit after unit; every unit has at least one line.
        reduction: [L] index of the reduction whose partial sums are alive as well, -1 for none.
        starts: [units] index of each unit's first line.
    """

    lines: Floats
    reduction: Ints
    starts: Ints

    def at(self, point: Floats, partial_sums: Floats) -> Floats:
        """Return [units] highest live bytes at a point.

        Args:
            point: [4] the monomials (``terms``).
            partial_sums: [reductions + 1] bytes of each reduction's partial sums, then a 0.
        """
        # reduction -1 indexes the 0 at the end
        values = self.lines @ point + partial_sums[self.reduction]
        highest: Floats = np.maximum.reduceat(values, self.starts)
        return highest


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Operations of a part of the step, with FLOPs and traffic as polynomials.

    Attributes:
        flops: [operations, 4] coefficients of the FLOPs.
        moved_bytes: [operations, 4] coefficients of the bytes read and written.
        launches: [operations] kernels that the operation launches on a GPU.
        unit: [operations] unit index, -1 outside all units.
        phase: [operations] phase code.
        kind: [operations] index into ``kinds``.
        kinds: names of the kinds (``OperationRecord.kind``).
        begins_refill: [operations] whether the operation is the first of a recomputation.
        intercepted: [operations] see ``OperationRecord.intercepted``.
        kernel: [operations] index into ``kernels``.
        kernels: names of the kernel shapes (``profiler.replay.kernel_shapes``).
        dims: [operations, 6, 4] coefficients of the kernel shapes' dimensions.
    """

    flops: Floats
    moved_bytes: Floats
    launches: Ints
    unit: Ints
    phase: Ints
    kind: Ints
    kinds: npt.NDArray[np.str_]
    begins_refill: Mask
    intercepted: Ints
    kernel: Ints
    kernels: npt.NDArray[np.str_]
    dims: Floats

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
            intercepted=self.intercepted[chosen],
            kernel=self.kernel[chosen],
            kernels=self.kernels,
            dims=self.dims[chosen],
        )

    def seconds(self, point: Floats, roofline: Rates) -> Floats:
        """Return [operations] seconds at a point."""
        each: Floats = self.loads(point, roofline)[:, SECONDS]
        return each

    def loads(self, point: Floats, roofline: Rates) -> Floats:
        """Return [operations, LOAD_SUMS] loads at a point (``profiler.timing.step_load``)."""
        if roofline.kernels is not None:
            parts = self.kernel_parts(point, roofline.kernels)
            return roofline.corrected(loads_of_parts(parts, self.launches))
        bounds = roofline.bounds(
            self.flops @ point,
            self.moved_bytes @ point,
            launches=self.launches,
            slowness=roofline.slowness_of(
                self.kinds.tolist(), self.kind, is_refill=self.phase == Phase.RECOMPUTE
            ),
        )
        added = roofline.python_seconds(self.begins_refill, self.intercepted)
        return roofline.corrected(loads_of_bounds(bounds, self.launches, added_seconds=added))

    def kernel_parts(self, point: Floats, kernels: KernelRates) -> Floats:
        """Return [operations, SLOTS] seconds of each term at a point."""
        return kernels.parts(
            self.kernels,
            self.kernel,
            dims=self.dims @ point,
            moved_bytes=self.moved_bytes @ point,
            launches=self.launches,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class OptionProfile:
    """Memory and work of a step in which every unit has the same option.

    Attributes:
        base: [4] live bytes when the first forward begins (parameters, buffers, inputs).
        stored: [units, 4] bytes that stay between the unit's forward and its backward.
        cached: [units, 4] bytes that stay from the unit's forward to the end of the forward.
        forward: envelope over each unit's forward, above stored and cached bytes of earlier ones.
        backward: envelope over each unit's backward without accumulation, above the bytes that
            earlier units store and the gradients of later units.
        accumulating: envelope over each unit's backward in a step that accumulates: the gradients
            of all units are alive from the start, and new ones are added to them.
        head: envelope from the last unit's exit to the first backward, above the live bytes at that
            exit.
        gradients: [units + 1, 4] bytes of parameter gradients that each unit's backward creates;
            the last row is the head's.
        boundary: [units, 4] bytes of the unit's output.
        reductions: [reductions, 5] fields of each ``Reduction``.
        work: the operations of the step.
        steps: the storages of the step, for the caching allocator.
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
    steps: StepStorages

    def partial_sums(self, micro_batch: int, device: DeviceSpec) -> Floats:
        """Return [reductions + 1] bytes of each reduction's partial sums, then a 0."""
        known = [Reduction(*row) for row in self.reductions.tolist()]
        return partial_sum_bytes(known, micro_batch, device)

    @property
    def recompute_work(self) -> Work:
        """The operations of recomputation; the search needs them at every micro-batch."""
        known = _RECOMPUTE_WORK.get(self)
        if known is None:
            known = _RECOMPUTE_WORK[self] = self.work.of(Phase.RECOMPUTE)
        return known

    @property
    def learns_in_units(self) -> bool:
        """Whether any unit runs backward."""
        return bool(self.backward.lines.any())


_RECOMPUTE_WORK: WeakKeyDictionary[OptionProfile, Work] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateProfile:
    """Memory and work of the optimizer.

    Attributes:
        state: [4] bytes of the optimizer's state, alive through the whole step.
        temporary: [4] highest extra bytes of the update, above parameters, gradients and state.
        work: operations of the update.
        sizes: [storages, 4] bytes of the state and of the temporaries.
        spans: [storages, 2] their births (0 for the state) and deaths, in ticks of the update.
        ticks: length of the update.
    """

    state: Floats
    temporary: Floats
    work: Work
    sizes: Floats
    spans: Ints
    ticks: Ints


def partial_sum_bytes(
    reductions: Sequence[Reduction], micro_batch: int, device: DeviceSpec
) -> Floats:
    """Return [reductions + 1] bytes of partial sums at a micro-batch, then a 0."""

    # a size has the factor B exactly if the probe's batch divides it
    def at_batch(size: int) -> int:
        return size // PROBE_BATCH * micro_batch if size % PROBE_BATCH == 0 else size

    found = [0.0] * (len(reductions) + 1)
    if not reductions:
        return np.array(found)
    on = multiprocessors(device)
    for index, seen in enumerate(reductions):
        here = replace(seen, outputs=at_batch(seen.outputs), inputs=at_batch(seen.inputs))
        # only the partial sums; the counters behind them have storages of their own
        found[index] = float(sum(here.scratch_bytes(on)[:1]))
    return np.array(found)
