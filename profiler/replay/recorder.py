"""The recorder: a dispatch mode that follows every storage and every operation of a step.

Pieces: ``StepClock`` (position and marks), ``StorageTable`` (births and deaths),
``OperationCounter`` (FLOPs and traffic) and the optimizer and gradient rules of ``in_place``. The
dispatch mode sees each operation below autograd, runs it on fake tensors and passes its results to
the pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from profiler.checkpointing.apply import recomputing
from profiler.checkpointing.forward_state import tensors_among
from profiler.checkpointing.host_memory import host_work
from profiler.device_rules.kernel_bytes import (
    BeforeResults,
    Blocks,
    Earlier,
    KernelBytes,
    understated_results,
)
from profiler.device_rules.linear_bias import product_with_bias
from profiler.device_rules.result_layouts import with_real_layout
from profiler.devices.host_link import HostWork
from profiler.operations import Arguments, Operation, only_allocates, only_views
from profiler.replay.event_log import EventLog, Phase
from profiler.replay.in_place import (
    ADD,
    gradient_added_to,
    references_of_unshared_gradient,
    run_update,
)
from profiler.replay.known_results import OperationKey, run_with_key
from profiler.replay.operation_counter import OperationCounter
from profiler.replay.step_clock import StepClock
from profiler.replay.storages import (
    BIRTH,
    DEATH,
    NBYTES,
    OPERATION,
    OWNER,
    OWNER_CODE,
    PHASE,
    REDUCTION,
    UNIT,
    StorageTable,
)
from profiler.replay.unit_spans import phase_spans

_DEVICE = torch.ops.prim.device.default
_COPY = torch.ops.aten.copy_.default


class Recorder(TorchDispatchMode):
    """Follows every storage that is born while the mode is active.

    Args:
        unit_names: names of the backbone's units, in forward order.
        kernel_bytes: memory that the device's kernels hold inside an operation; None for none.
        counter: counts the operations; None for one with its defaults.

    Attributes:
        clock: position in the step, and its marks.
        storages: births and deaths.
        boundary_bytes: bytes of each unit's output, 0 for a unit that was not called.
    """

    def __init__(
        self,
        unit_names: tuple[str, ...],
        *,
        kernel_bytes: KernelBytes | None = None,
        counter: OperationCounter | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unit_names = unit_names
        self.clock = StepClock()
        self.storages = StorageTable(self.clock)
        self.boundary_bytes = [0] * len(unit_names)
        self._kernel_bytes = kernel_bytes
        self._counter = counter if counter is not None else OperationCounter(batch=1)
        # code 0: storages that no operation of the step made
        self._operation_codes: dict[str, int] = {"(given)": 0}
        self._is_view: dict[Operation, bool] = {}
        # the first call runs autograd, which must not happen inside an operation
        references_of_unshared_gradient()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # PyTorch would wrap each call to keep the compiler out; nothing is compiled in a replay
        return False

    def __torch_dispatch__(
        self,
        func: Operation,
        types: object,
        args: Arguments = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Run an operation and record its results."""
        kwargs = kwargs or {}
        # a query for a tensor's device is no operation of the step
        if func.namespace == "prim":
            known = func is _DEVICE and isinstance(args[0], FakeTensor)
            return args[0].fake_device if known else func(*args, **kwargs)
        work = host_work()
        if work is not None:
            return self._run_on_host(func, args, kwargs, work)
        phase = self.clock.phase
        # A real backward stores a sum in a gradient that nothing else references (in_place.py), so
        # the sum takes over that gradient's row. Reference counts are read before the sum exists.
        summed = product_with_bias(func, args)
        if summed is None and func is ADD and phase is Phase.BACKWARD:
            summed = gradient_added_to(args)
        if phase is Phase.OPTIMIZER:
            out, key = run_update(func, args, kwargs), None
        else:
            out, key = run_with_key(func, args, kwargs)
        out = with_real_layout(func, args, out, kwargs)
        if summed is not None:
            self.storages.move(summed, out)
        view = self._is_view.get(func)
        if view is None:
            view = self._is_view[func] = only_views(func)
        if view:
            return out
        # a recomputation has no mark; its phase is set for the records of this operation only
        if phase is Phase.BACKWARD and recomputing():
            self.clock.phase = Phase.RECOMPUTE
            self._record(func, args, kwargs, out, key)
            self.clock.phase = Phase.BACKWARD
        else:
            self._record(func, args, kwargs, out, key)
        return out

    def _run_on_host(
        self, func: Operation, args: Arguments, kwargs: dict[str, object], work: HostWork
    ) -> object:
        """Run an operation of a copy or an update; the host's memory is left out."""
        phase = self.clock.phase
        out = run_update(func, args, kwargs) if phase is Phase.OPTIMIZER else func(*args, **kwargs)
        added = phase if phase is Phase.OPTIMIZER else Phase.RECOMPUTE
        if only_allocates(func):
            if work is HostWork.TO_DEVICE and isinstance(out, Tensor):
                code = self._operation_codes.setdefault(str(func), len(self._operation_codes))
                self.clock.phase = added
                self.storages.follow(out, operation=code)
                self.clock.phase = phase
        elif not self.storages.warming_up and (work is HostWork.UPDATE or func is _COPY):
            touched = args if work is HostWork.UPDATE else args[:1]
            self._counter.count_on_host(touched, work, phase=added, unit=self.clock.unit)
        return out

    def _record(
        self,
        func: Operation,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        out: object,
        key: OperationKey | None,
    ) -> None:
        code = self._operation_codes.setdefault(str(func), len(self._operation_codes))
        blocks = self._blocks_inside(func, args, kwargs)
        if self._kernel_bytes is not None and not self._kernel_bytes.beside_results:
            # the blocks include the results, so they die before those are recorded
            self._release(self._hold(blocks, code))
            blocks = ()
        held = self._hold([b for b in blocks if isinstance(b, BeforeResults)], code)
        self._follow_results(func, args, out, code)
        self._hold_for_a_while([b for b in blocks if not isinstance(b, BeforeResults)], code)
        self._release(held)
        if self.storages.warming_up or only_allocates(func):
            return
        clock = self.clock
        self._counter.count(func, args, kwargs, out, phase=clock.phase, unit=clock.unit, key=key)

    def _blocks_inside(
        self, func: Operation, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Blocks:
        """Return the blocks that an operation holds.

        An optimizer update takes no blocks, because it works in place. The exception is
        bitsandbytes on a CPU, which unpacks its 8-bit state.
        """
        update = self.clock.phase is Phase.OPTIMIZER
        eight_bit = func.namespace == "bitsandbytes" and not self.storages.warming_up
        if self._kernel_bytes is None or (update and not eight_bit):
            return ()
        live_bytes = self.storages.live_bytes
        return self._kernel_bytes.inside(func, args, kwargs, live_bytes=live_bytes)

    def _hold(self, blocks: Sequence[int], code: int) -> list[int]:
        """Record the births of blocks; return their rows."""
        owner = OWNER_CODE["temporary"]
        return [self.storages.birth(n, owner=owner, operation=code) for n in blocks]

    def _hold_for_a_while(self, blocks: Sequence[int], code: int) -> None:
        """Record blocks behind the results, from their births to their deaths."""
        early = self._hold([b for b in blocks if isinstance(b, Earlier)], code)
        others = [b for b in blocks if not isinstance(b, Earlier)]
        rows = self._hold(others[:-1], code)
        self._release(early)
        self._release([*rows, *self._hold(others[-1:], code)])

    def _release(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.storages.death(row)

    def _follow_results(self, func: Operation, args: Arguments, out: Any, code: int) -> None:
        """Record the births of results, in the order in which the device allocates them."""
        found = understated_results(func, args, out)
        if self._kernel_bytes is not None:
            found += self._kernel_bytes.workspaces(func, args, out)
            out = self._kernel_bytes.in_order(func, out)
        real_bytes = {id(tensor): nbytes for tensor, nbytes in found}
        for tensor in tensors_among((out,)):
            nbytes = real_bytes.get(id(tensor))
            self.storages.follow(tensor, operation=code, nbytes=nbytes)

    @contextmanager
    def warm_up(self) -> Iterator[None]:
        """Enclose the first update, which makes the optimizer's state: the next one is steady."""
        self.storages.warming_up, self.clock.phase = True, Phase.OPTIMIZER
        yield
        self.storages.warming_up = False

    def log(self) -> EventLog:
        """Return the event log of a steady step."""
        clock = self.clock
        phases = phase_spans(clock.marks, clock.tick)
        columns = self.storages.steady_state([p for p in phases if p.phase is Phase.FORWARD])
        table = columns.table
        return EventLog(
            nbytes=table[:, NBYTES],
            birth=table[:, BIRTH],
            death=table[:, DEATH],
            owner=table[:, OWNER],
            phase=table[:, PHASE],
            unit=table[:, UNIT],
            operation=table[:, OPERATION],
            reduction=table[:, REDUCTION],
            reductions=columns.reductions,
            shapes=columns.shapes,
            operation_names=tuple(self._operation_codes),
            ticks=clock.tick,
            marks=tuple(clock.marks),
            units=self.unit_names,
            boundary_bytes=tuple(self.boundary_bytes),
            operations=tuple(self._counter.records),
        )
