"""Sums of gradients are in place where autograd adds in place, by the CPU allocator's events."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from profiler.device_rules.cpu_allocator import memory_events
from profiler.replay.recorder import Recorder
from profiler.replay.storages import BIRTH, DEATH, NBYTES

NBYTES_OF_A_TENSOR = 4 * 1000


def used_twice(a: Tensor, b: Tensor) -> Tensor:
    product = a * b
    return (product.sin() * product.cos()).sum()


def first_gradient_is_shared(a: Tensor, b: Tensor) -> Tensor:
    """The gradient of the sum belongs to both addends when that of the cosine is added to it."""
    left, right = a * 2.0, b * 2.0
    used_again = right.cos()
    return ((left + right).sin() + used_again).sum()


def second_gradient_is_shared(a: Tensor, b: Tensor) -> Tensor:
    left, right = a * 2.0, b * 2.0
    both = left + right
    return (right.cos() + both).sum()


GRAPHS = (used_twice, first_gradient_is_shared, second_gradient_is_shared)


def real_live(graph: Callable[[Tensor, Tensor], Tensor]) -> list[int]:
    """Return the number of live tensors after each event of a real forward and backward."""
    leaves = [torch.rand(1000, requires_grad=True) for _ in range(2)]
    held: list[Tensor] = []
    changes = memory_events(lambda: held.extend(torch.autograd.grad(graph(*leaves), leaves)))
    return running_total([n for n in changes if abs(n) == NBYTES_OF_A_TENSOR])


def replayed_live(graph: Callable[[Tensor, Tensor], Tensor]) -> list[int]:
    recorder = Recorder(())
    with FakeTensorMode(), recorder:
        leaves = [torch.empty(1000, requires_grad=True) for _ in range(2)]
        begin = recorder.clock.tick
        with recorder.clock.in_phase("forward"):
            out = [graph(*leaves)]
        with recorder.clock.in_phase("backward"):
            held = torch.autograd.grad(out.pop(), leaves)
        ticks = [
            (row[column], sign * row[NBYTES])
            for row in recorder.storages.rows
            for column, sign in ((BIRTH, 1), (DEATH, -1))
            if row[column] > begin and row[NBYTES] == NBYTES_OF_A_TENSOR
        ]
        del held
    return running_total([change for _, change in sorted(ticks)])


def running_total(changes: list[int]) -> list[int]:
    return [sum(changes[: i + 1]) // NBYTES_OF_A_TENSOR for i in range(len(changes))]


@pytest.mark.parametrize("graph", GRAPHS)
def test_live_tensors_are_those_of_the_allocator(
    graph: Callable[[Tensor, Tensor], Tensor],
) -> None:
    assert replayed_live(graph) == real_live(graph)
