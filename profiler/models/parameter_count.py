"""Parameter counts of a workload, from its model on the ``meta`` device."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, cast

from profiler.records import Parameters

if TYPE_CHECKING:
    from torch import Tensor, nn

    from profiler.workload import Workload


@cache
def count_parameters(workload: Workload) -> Parameters:
    """Count a workload's parameters, each once, without allocating them."""
    from profiler.models.build import build_model  # imports torch

    model = build_model(workload.replace(micro_batch=1, accumulation=1), device="meta").model
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
