"""Python seconds of recomputation on a CPU.

A placement costs time beside the recomputed operations. Python intercepts every operation of a
unit's forward, packs the tensors that it saves, and calls functions again in backward. This takes
longer where operations move more bytes, because they drive Python's code and objects out of the
caches. On the machine of studies/cpu_time an operation cost 30 microseconds on warm caches, and 80
after each operation had moved 4 MiB; both twice that while other programs ran.

`recompute_python_seconds` returns the seconds for each intercepted operation and for each
recomputation; in a fit to real steps the two cost the same. Two blocks on few values, where nearly
all time is Python's, are run with and without recomputation. After each of their operations,
another kernel reads a part of a large buffer, as the next operation of a real step would read and
write its own tensors. The seconds of these kernels do not count. Parts follow one another: a buffer
that is used again would stay in the caches, and leave room for Python's objects. Several kinds of
kernels take turns, because their code displaces Python's too: where the parts were only copied,
Python cost a fifth less.

Real steps cost a quarter more than such blocks (`IN_REAL_STEPS`): the objects of a unit are used
once in a step, those of a small block more often. This is the only number fitted to real models.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from statistics import median

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from profiler.checkpointing.apply import apply_placement, recomputing
from profiler.placement import Decision, Placement
from profiler.replay.event_log import Phase
from profiler.timing.operation_tally import OperationTally

FOOTPRINTS = (1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22)
"""Bytes that are moved between two operations. At the first, all stays in the caches. Beyond the
last, the cost is taken as constant, though it still grows a little."""

_BUFFER_BYTES = 1 << 26
"""Size of the buffer: twice the largest cache of most processors."""

IN_REAL_STEPS = 1.25
"""Cost in real steps over that in the blocks, fitted to the steps of six backbones on one processor
(studies/cpu_time, which has the error with each backbone left out)."""

_UNITS, _ROUNDS = 4, 5

_WIDTH = 64
"""Channels of the kernels that fill the caches."""

Clock = Callable[[], float]


def recompute_python_seconds(
    operation_bytes: Sequence[int], *, clock: Clock, launch_seconds: float
) -> float:
    """Return the Python seconds of an intercepted operation and of a recomputation.

    Args:
        operation_bytes: bytes moved by each operation in the forward of the units; the cost is the
            average over them.
        clock: clock of the timings.
        launch_seconds: seconds of an operation on few values, which recomputed ones are counted
            with elsewhere.
    """
    if not operation_bytes:
        return 0.0
    seconds, recomputed = _timed_costs(clock, torch.get_num_threads())
    moved = np.maximum(operation_bytes, FOOTPRINTS[0])
    costs = np.interp(np.log(moved), np.log(FOOTPRINTS), seconds)
    in_blocks = max(float(np.mean(costs)) - recomputed * launch_seconds, 0.0)
    return IN_REAL_STEPS * in_blocks


@cache
def _timed_costs(clock: Clock, threads: int) -> tuple[tuple[float, ...], float]:
    """Return the seconds that recomputation adds to an operation, by footprint.

    The second value is the number of operations that are recomputed for an intercepted one. Takes
    four seconds of the processor.
    """
    caches = _Caches(clock)
    blocks = [
        (_AttentionBlock(caches), torch.zeros(1, 4, 8)),
        (_ConvBlock(caches), torch.zeros(1, 4, 4, 4)),
    ]
    runs = [
        _Run(block, x, decision, caches)
        for block, x in blocks
        for decision in (Decision.DROP_CHEAP, Decision.RECOMPUTE)
    ]
    counted = sum(run.intercepted + run.refills for run in runs)
    recomputed = sum(run.recomputed for run in runs)
    added = [sum(run.added_seconds(footprint) for run in runs) for footprint in FOOTPRINTS]
    return tuple(seconds / counted for seconds in added), recomputed / counted


class _Caches:
    """Runs kernels on parts of a large buffer between operations, and sums their seconds.

    Args:
        clock: clock of the timings.
    """

    def __init__(self, clock: Clock) -> None:
        self.seconds = 0.0
        self.clock = clock
        self._buffer = torch.zeros(_BUFFER_BYTES // 4 // _WIDTH, _WIDTH)
        weight = torch.zeros(_WIDTH, _WIDTH)
        self._kernels: Iterator[Callable[[torch.Tensor], object]] = itertools.cycle(
            (
                lambda part: part @ weight,
                lambda part: functional.layer_norm(part, (_WIDTH,)),
                functional.gelu,
                lambda part: part + part,
            )
        )
        self._parts: Iterator[torch.Tensor] | None = None

    def set_footprint(self, nbytes: int) -> None:
        """Set the bytes to move; at most the first footprint for none."""
        is_small = nbytes <= FOOTPRINTS[0]
        self._parts = (
            None if is_small else itertools.cycle(self._buffer.split(nbytes // 8 // _WIDTH))
        )

    def fill(self, _: object = None) -> None:
        """Fill the caches with the next part and the result of the next kernel."""
        if self._parts is not None:
            start = self.clock()
            with torch.no_grad():
                next(self._kernels)(next(self._parts))
            self.seconds += self.clock() - start


class _Between(nn.Module):
    """Fills the caches after an operation, in forward, in recomputation and in backward."""

    def __init__(self, caches: _Caches) -> None:
        super().__init__()
        self._caches = caches

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._caches.fill()
        if x.requires_grad and not recomputing():
            x.register_hook(self._caches.fill)
        return x


class _AttentionBlock(nn.Module):
    """A transformer's block: attention and an MLP, each after a normalisation."""

    def __init__(self, caches: _Caches) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.act, self.down = nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)
        self.between = _Between(caches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        between = self.between
        n, tokens, width = x.shape
        qkv = between(self.qkv(between(self.first(x)))).reshape(n, tokens, 3, 2, width // 2)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = between(functional.scaled_dot_product_attention(query, key, value))
        x = x + between(self.proj(mixed.transpose(1, 2).reshape(n, tokens, width)))
        hidden = between(self.act(between(self.up(between(self.second(x))))))
        y: torch.Tensor = x + between(self.down(hidden))
        return y


class _ConvBlock(nn.Sequential):
    """Two convolutions, each with a batch normalisation and an activation."""

    def __init__(self, caches: _Caches) -> None:
        layers = [
            layer
            for _ in range(2)
            for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        ]
        super().__init__(*[part for layer in layers for part in (layer, _Between(caches))])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return x + y


class _Run:
    """Steps of a model of equal blocks, with and without recomputation.

    Args:
        block: block that the model is built from, by copies.
        x: input of a step.
        decision: decision for all blocks.
        caches: fills the caches.

    Attributes:
        intercepted: operations in the forward of a block.
        refills: recomputations in a block.
        recomputed: operations that they run.
    """

    def __init__(
        self, block: nn.Module, x: torch.Tensor, decision: Decision, caches: _Caches
    ) -> None:
        self._units = [f"{i}" for i in range(_UNITS)]
        self._model = nn.Sequential(*[type(block)(caches) for _ in self._units])
        self._x, self._caches = x, caches
        self._placement = Placement(decisions=dict.fromkeys(self._units, decision))
        caches.set_footprint(0)
        tally = OperationTally(Phase.FORWARD)
        with apply_placement(self._model, self._placement, units=self._units), tally:
            loss = self._model(self._x).sum()
            tally.phase = Phase.BACKWARD
            loss.backward()
        records = tally.records
        self.intercepted = sum(op.intercepted for op in records) / _UNITS
        self.refills = sum(op.begins_refill for op in records) / _UNITS
        self.recomputed = sum(op.phase is Phase.RECOMPUTE for op in records) / _UNITS

    def added_seconds(self, footprint: int) -> float:
        """Return the seconds that recomputation adds to a block: the median of several pairs.

        Args:
            footprint: bytes that are moved between operations.
        """
        added = []
        for _ in range(_ROUNDS):
            plain = self._seconds(footprint)
            with apply_placement(self._model, self._placement, units=self._units):
                added.append(self._seconds(footprint) - plain)
        return max(median(added), 0.0) / _UNITS

    def _seconds(self, footprint: int) -> float:
        """Return the seconds of a step without those of the kernels that fill the caches."""
        self._caches.set_footprint(0)
        self._step()  # the first step of a placement also sets it up
        self._caches.set_footprint(footprint)
        self._caches.seconds, start = 0.0, self._caches.clock()
        self._step()
        return self._caches.clock() - start - self._caches.seconds

    def _step(self) -> None:
        self._model(self._x).sum().backward()
