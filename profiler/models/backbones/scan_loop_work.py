"""Launches and bytes of the selective scan's PyTorch loops, for the roofline.

Inside a scan operator a GPU runs the loops of scan_loops.py, one kernel per operation. For 197
positions these are about 320 launches forward and 960 backward. A recorder sees the operator only,
so ``loop_work`` counts its launches and bytes on one small sequence and scales them: launches and
bytes are linear in the number of chunks, bytes also in the channels and in the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from profiler.models.backbones.scan_loops import (
    BACKWARD_ARRAYS,
    CHUNK_POSITIONS,
    FORWARD_ARRAYS,
    ScanInputs,
    WantedGradients,
    backward_loops,
    forward_loops,
    scan_workspace,
)
from profiler.models.backbones.scan_operators import backward_results, forward_results
from profiler.operations import Arguments, Operation, bytes_in, only_allocates, only_views

COUNTED_CHUNKS = 3
"""Most whole chunks of a sequence that is counted. An image of 8,192 pixels has 16,384."""


class LoopWork(NamedTuple):
    """Work of the loops inside one scan operator.

    Attributes:
        launches: operations per turn, each a kernel on a GPU. A batch larger than the scratch
            takes more turns; they are not counted, because each operation then moves as many bytes
            as the scratch holds and its launch no longer matters.
        moved_bytes: bytes that all operations read and write.
    """

    launches: int
    moved_bytes: int


def loop_work(func: Operation, args: Arguments) -> LoopWork | None:
    """Return the work of the PyTorch loops inside a scan operator; None for any other operator.

    Args:
        func: an operator (``OpOverload``).
        args: its arguments; only shapes and flags are read.
    """
    if func.namespace != "budgetplan":
        return None
    given = {a.name: value for a, value in zip(func._schema.arguments, args, strict=True)}
    (batch, length, inner), (states, _) = given["u"].shape, given["rates"].shape
    groups = given["b"].shape[3]
    wanted = WantedGradients(*given["wanted"]) if "wanted" in given else None
    # Bytes are linear in the channels of a group: two small counts give slope and intercept.
    one, two = (
        _sequence_work(length, states, groups, channels, softplus=given["softplus"], wanted=wanted)
        for channels in (1, 2)
    )
    channel_bytes = two.moved_bytes - one.moved_bytes
    sequence_bytes = one.moved_bytes + channel_bytes * (inner // groups - 1)
    # The counts are in float32, of four bytes an element.
    return LoopWork(one.launches, batch * sequence_bytes * given["u"].element_size() // 4)


def _sequence_work(
    length: int,
    states: int,
    groups: int,
    channels: int,
    *,
    softplus: bool,
    wanted: WantedGradients | None,
) -> LoopWork:
    """Return the work for a sequence of any length; the arguments are those of `_one_sequence`."""

    def counted(positions: int) -> LoopWork:
        return _one_sequence(positions, states, groups, channels, softplus=softplus, wanted=wanted)

    more = max(0, length // CHUNK_POSITIONS - COUNTED_CHUNKS)
    most = counted(length - more * CHUNK_POSITIONS)
    if more == 0:
        return most
    less = counted(length - (more + 1) * CHUNK_POSITIONS)
    return LoopWork(
        most.launches + more * (most.launches - less.launches),
        most.moved_bytes + more * (most.moved_bytes - less.moved_bytes),
    )


@cache
def _one_sequence(
    length: int,
    states: int,
    groups: int,
    channels: int,
    *,
    softplus: bool,
    wanted: WantedGradients | None,
) -> LoopWork:
    """Count the loops while they run on one float32 sequence of very few channels.

    Args:
        length: positions.
        states: states per channel.
        groups: groups of channels.
        channels: channels of a group.
        softplus: whether the step sizes are softplus(delta).
        wanted: gradients of the backward pass; None for the forward pass.
    """
    with unset_fake_temporarily(), torch.no_grad():
        u = torch.zeros(1, length, groups * channels)
        rates, b = torch.zeros(states, groups * channels), torch.zeros(1, length, states, groups)
        y, kept = forward_results(u, rates, keep_states=True)
        inputs, count = ScanInputs(u, u, rates, b, b, rates[0]), _OperationCount()
        if wanted is None:
            scratch = scan_workspace(u, states=states, arrays=FORWARD_ARRAYS)
            with count:
                forward_loops(inputs, scratch, y, kept, softplus=softplus)
        else:
            scratch = scan_workspace(u, states=states, arrays=BACKWARD_ARRAYS)
            results = backward_results(inputs, wanted)
            with count:
                backward_loops(
                    u, inputs, kept, scratch, results=results, wanted=wanted, softplus=softplus
                )
    return LoopWork(count.launches, count.moved_bytes)


class _OperationCount(TorchDispatchMode):
    """Counts the operations that launch a kernel, and the bytes that they read and write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches = self.moved_bytes = 0

    def __torch_dispatch__(
        self,
        func: Operation,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Run the operation and count it, unless it is a view or an allocation."""
        out = func(*args, **(kwargs or {}))
        if not only_views(func) and not only_allocates(func):
            self.launches += 1
            self.moved_bytes += bytes_in((args, out))
        return out
