"""Parameter counts of a workload, from its model on the ``meta`` device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, cast

import numpy as np

from profiler.arrays import Ints
from profiler.records import Parameters
from profiler.store import Store

if TYPE_CHECKING:
    from torch import Tensor, nn

    from profiler.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCounts:
    """The numbers of a model's parameters, as the store holds them.

    Attributes:
        counts: [2] parameters in all, and those that learn.
    """

    counts: Ints


@cache
def count_parameters(workload: Workload) -> Parameters:
    """Count a workload's parameters, each once, without allocating them; counts are stored."""
    one = workload.replace(micro_batch=1, accumulation=1)

    def count() -> StoredCounts:
        found = _counted(one)
        return StoredCounts(counts=np.array([found.total, found.trainable], dtype=np.int64))

    stored = Store.default().fetch(StoredCounts, ("parameter counts", one.to_json()), count)
    total, trainable = map(int, stored.counts)
    return Parameters(total=total, trainable=trainable)


def _counted(workload: Workload) -> Parameters:
    from profiler.models.build import build_model  # imports torch

    model = build_model(workload, device="meta").model
    sizes = {
        id(parameter): (_elements(module, parameter), parameter.requires_grad)
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
    }
    return Parameters(
        total=sum(n for n, _ in sizes.values()),
        trainable=sum(n for n, learns in sizes.values() if learns),
    )


def _elements(module: nn.Module, parameter: Tensor) -> int:
    """Return the number of weights; a packed 4-bit tensor holds two per byte."""
    if parameter.is_floating_point():
        return parameter.numel()
    rows, columns = cast("tuple[int, int]", module.shape)
    return rows * columns
