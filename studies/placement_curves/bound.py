"""What no recomputation of whole operators can beat, whatever units, menus and segments it has.

A linear program over one traced step that keeps everything. At the end of forward and at some
backward operators (``MOMENTS``) it says of every forward tensor how much of it lives and how much
will be made again later, and asks that

- what is read then lives; what is read then or later lives or will be made again;
- what will be made again has inputs that live or will be made again;
- what lives and did not live at the end of forward was made again, and every making is paid;
- static tensors, what lives, and the gradients that lived then in the trace are within the budget.

Every schedule that runs the traced operators, forward once and backward in autograd's order, keeps
these (Jain et al., Checkmate, MLSys 2020, have the whole problem); that it may keep and run parts
of an operator, and that other moments are not asked, only makes the bound lower. Outside is what
serves a backward otherwise: an activation's output in place of its input (``SERVED_OTHERWISE``).
"""

from __future__ import annotations

import contextlib
import io
import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import rows
import torch
from evaluator import altered, pretended_accelerator
from scipy.optimize import linprog
from scipy.sparse import coo_array, csr_array
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.runtime_estimator import RuntimeEstimator
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from profiler.replay.fake_model import to_fake
from profiler.units import MIB
from profiler.workload import Candidate, Workload

POLICY = "bound, any operators"
MOMENTS = 24
"""Backward operators at which memory is asked for; twice as many changed nothing on ViT-S."""
SERVED_OTHERWISE = {"mobilenetv2_100"}
"""A dropped ReLU6 is had again in place, and its output serves its backward (``profiler.checkpointing.recompute``)."""
Version = tuple[int, int]
"""A storage and how often it had been written to."""


@dataclass(slots=True)
class Operation:
    """One executed operator: what it read and made, and what lived then."""

    milliseconds: float
    reads: list[Version]
    makes: list[Version]
    backward: bool
    gradient_bytes: int
    sums: bool


@dataclass(slots=True)
class Trace:
    """Storages are numbered in the order of their birth; ``static`` ones were there before."""

    sizes: list[int] = field(default_factory=list)
    static: set[int] = field(default_factory=set)
    operations: list[Operation] = field(default_factory=list)


class Tracer(RuntimeEstimator):
    """Writes down what PyTorch's estimator sees."""

    def __init__(self) -> None:
        super().__init__(gpu_type="NVIDIA A100")
        self.trace = Trace()
        self.backward = False
        self.written: dict[int, int] = {}
        self._alive: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._gradients: set[int] = set()

    def storage(self, tensor: torch.Tensor) -> int:
        """Return a tensor's storage, which is new if it was never seen."""
        untyped = tensor.untyped_storage()
        key = untyped._cdata
        if key in self._alive:
            return self._alive[key][1]
        number = len(self.trace.sizes)
        self.trace.sizes.append(untyped.nbytes())

        def died(_: object) -> None:
            if self._alive.get(key, (None, -1))[1] == number:
                del self._alive[key]
            self._gradients.discard(number)

        self._alive[key] = (weakref.ref(untyped, died), number)
        if self.backward:
            self._gradients.add(number)
        return number

    def _versions(self, values: Any) -> list[Version]:
        storages = [self.storage(v) for v in tree_leaves(values) if isinstance(v, torch.Tensor)]
        return [(s, self.written.get(s, 0)) for s in dict.fromkeys(storages)]

    def milliseconds(self, func, args, kwargs, out, *, estimated: float) -> float:
        """Return what running the operator again takes."""
        return estimated

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run the operator as the estimator does."""
        if func.namespace == "prim":
            return super().__torch_dispatch__(func, types, args, kwargs)
        reads = self._versions((args, kwargs))
        before = self.total_runtime
        out = super().__torch_dispatch__(func, types, args, kwargs)
        taken = self.milliseconds(func, args, kwargs, out, estimated=self.total_runtime - before)
        if func._schema.is_mutable:
            changed = [
                value
                for value, argument in zip(args, func._schema.arguments, strict=False)
                if argument.alias_info is not None and argument.alias_info.is_write
            ]
            for number in {self.storage(t) for t in changed if isinstance(t, torch.Tensor)}:
                self.written[number] = self.written.get(number, 0) + 1
        makes = [version for version in self._versions(out) if version not in reads]
        self.trace.operations.append(
            Operation(
                milliseconds=taken,
                reads=reads,
                makes=makes,
                backward=self.backward,
                gradient_bytes=sum(self.trace.sizes[s] for s in self._gradients),
                sums=func is torch.ops.aten.add.Tensor,
            )
        )
        return out


def traced(workload: Workload, tracer: Tracer | None = None) -> Trace:
    """Return the operators of one forward and backward that keep everything."""
    tracer = tracer or Tracer()
    built = altered(Candidate(workload=workload))
    model, size = built.model, workload.image_size
    with FakeTensorMode(allow_non_fake_inputs=True), pretended_accelerator():
        to_fake(model)
        images = torch.empty(workload.micro_batch, 3, size, size)
        labels = torch.empty(workload.micro_batch, dtype=torch.long)
        for tensor in (*model.parameters(), *model.buffers(), images, labels):
            tracer.trace.static.add(tracer.storage(tensor))
        with contextlib.redirect_stdout(io.StringIO()):
            with tracer("operator-level-cost-model"):
                loss = F.cross_entropy(model(images), labels)
                tracer.backward = True
                loss.backward()
    return tracer.trace


Variables = dict[Version, int]
"""Of each forward tensor, the number of a variable of the program."""


class _Inequalities:
    """Rows of a linear program: a weighted sum of variables is at most a limit."""

    def __init__(self) -> None:
        self.limits: list[float] = []
        self._entries: list[tuple[int, int, float]] = []

    def at_most(self, limit: float, *terms: tuple[int, float]) -> None:
        self._entries.extend((len(self.limits), variable, factor) for variable, factor in terms)
        self.limits.append(limit)

    def matrix(self, variables: int) -> csr_array:
        row, column, factor = zip(*self._entries, strict=True)
        return coo_array((factor, (row, column)), shape=(len(self.limits), variables)).tocsr()


class Bound:
    """The linear program of one trace, for any budget."""

    def __init__(self, trace: Trace, moments: int = MOMENTS) -> None:
        self.trace = trace
        self.forward = [op for op in trace.operations if not op.backward and op.makes]
        self.backward = [op for op in trace.operations if op.backward]
        self.maker = {v: i for i, op in enumerate(self.forward) for v in op.makes}
        self.versions = list(self.maker)
        self._static_bytes = sum(trace.sizes[s] for s in trace.static)
        self.moments = self._moments(moments)
        self._write_program()

    def _moments(self, count: int) -> list[int]:
        """Return the backward operators that need most, one in every stretch of them."""
        allowed = [m for m, op in enumerate(self.backward) if not op.sums]
        parts = np.array_split(np.array(allowed), min(count, len(allowed)))
        return [max(part.tolist(), key=self._needed) for part in parts]

    def _read(self, m: int) -> set[Version]:
        return {v for v in self.backward[m].reads if v in self.maker}

    def _needed(self, m: int) -> int:
        return sum(map(self._bytes, self._read(m))) + self.backward[m].gradient_bytes

    def _bytes(self, version: Version) -> int:
        return self.trace.sizes[version[0]]

    def least_milliseconds(self, budget: int) -> float | None:
        """Return the bound within a budget in bytes, None where nothing fits."""
        limits = self._limits.copy()
        limits[self._of_memory] += budget / MIB
        found = linprog(
            self._costs, A_ub=self._matrix, b_ub=limits, bounds=self._bounds, method="highs"
        )
        return float(found.fun) if found.status == 0 else None

    def _write_program(self) -> None:
        """Write down all but the budget: it is added to the limits of memory."""
        reruns, tensors = len(self.forward), len(self.versions)
        number = {v: reruns + k for k, v in enumerate(self.versions)}
        moments = [None, *self.moments]
        count = reruns + 2 * tensors * len(moments)
        self._costs = np.zeros(count)
        self._costs[:reruns] = [op.milliseconds for op in self.forward]
        least, most = np.zeros(count), np.ones(count)
        most[:reruns] = np.inf
        rows, self._of_memory = _Inequalities(), []
        for stage, m in enumerate(moments):
            live = {v: k + 2 * tensors * stage for v, k in number.items()}
            later = {v: k + tensors for v, k in live.items()}
            self._require_making(rows, live, later, kept=None if m is None else number)
            self._require_reading(rows, live, later, since=m or 0)
            if m is not None:
                least[[live[v] for v in self._read(m)]] = 1
            self._of_memory.append(len(rows.limits))
            self._require_room(rows, live, m)
        self._matrix, self._limits = rows.matrix(count), np.array(rows.limits)
        self._bounds = np.stack([least, most], 1)

    def _require_making(
        self, rows: _Inequalities, live: Variables, later: Variables, *, kept: Variables | None
    ) -> None:
        """What was or will be made again is paid for; what will be has its inputs then."""
        for v, operation in self.maker.items():
            rows.at_most(0, (later[v], 1), (operation, -1))
            if kept is not None:
                rows.at_most(0, (live[v], 1), (kept[v], -1), (later[v], 1), (operation, -1))
            for u in self.forward[operation].reads:
                if self.maker.get(u, operation) != operation:
                    rows.at_most(0, (later[v], 1), (live[u], -1), (later[u], -1))

    def _require_reading(
        self, rows: _Inequalities, live: Variables, later: Variables, *, since: int
    ) -> None:
        """What is read from a moment on lives then or will be made again."""
        for v in set().union(*map(self._read, range(since, len(self.backward)))):
            rows.at_most(-1, (live[v], -1), (later[v], -1))

    def _require_room(self, rows: _Inequalities, live: Variables, m: int | None) -> None:
        """What lives fits into the budget (which is added later) beside all else that does, in MiB."""
        gradients = 0 if m is None else self.backward[m].gradient_bytes
        held = ((variable, self._bytes(v) / MIB) for v, variable in live.items())
        rows.at_most(-(self._static_bytes + gradients) / MIB, *held)


def run(models: list[str]) -> None:
    """Add the bound within the budget of each of our rows."""
    for (model, method, rank), group in rows.curves(rows.read("evaluator")):
        ours = [r for r in group if r["policy"] == "optimal" and "milliseconds" in r]
        if not ours or model in SERVED_OTHERWISE or (models and model not in models):
            continue
        known = {r["setting"] for r in group if r["policy"] == POLICY}
        workload = Workload(
            model=model, method=method, rank=rank, micro_batch=ours[0]["micro_batch"]
        )
        bound = Bound(traced(workload))
        for within in ours:
            if within["setting"] in known:
                continue
            budget = within["budget_bytes"]
            row = {name: within[name] for name in (*rows.KEY, "micro_batch")}
            row |= {
                "policy": POLICY,
                "peak_bytes": budget,
                "added_milliseconds": bound.least_milliseconds(budget),
            }
            rows.append("evaluator", row)
            print(model, method, row["setting"], row["added_milliseconds"], flush=True)
