"""The function behind ``budgetplan grid``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

from planner.api.arguments import (
    WorkloadOptions,
    device_name,
    no_progress,
    parse_size,
    workload_of,
)
from planner.api.early_checks import check_names
from profiler.errors import UsageError

if TYPE_CHECKING:
    from planner.cost.comparison_grid import Grid, GridCell
    from planner.recommendation.request import Notify
    from profiler.devices.table import DeviceSpec
    from profiler.records import DeviceLabel
    from profiler.workload import Workload

PAPER_MODELS = ("vit_s", "tiny_vit", "vim_s", "mambavision_t")
"""Backbones of the grid of arXiv 2607.02158."""

PAPER_GRID_METHODS = ("full", "lora", "adalora", "qlora", "bitfit")
"""Methods of the same grid."""

PAPER_CHECKPOINTS = ("none", "static", "adaptive")
"""Checkpoint policies of the same grid."""


def grid(
    models: Sequence[str] = PAPER_MODELS,
    methods: Sequence[str] = PAPER_GRID_METHODS,
    *,
    checkpoints: Sequence[str] = PAPER_CHECKPOINTS,
    devices: Sequence[str | DeviceSpec] = ("rtx-2060-super",),
    vram: int | str = "2GiB",
    data: str = "cifar100",
    on_progress: Notify | None = None,
    **workload: Unpack[WorkloadOptions],
) -> Grid:
    """Compare backbones, methods, checkpointing and devices in one table of composed predictions.

    The defaults are the 60 cells of arXiv 2607.02158: batch 32, fp32, AdamW, 100 classes, 2 GiB.
    A cell that a method or policy refuses has the reason.

    Args:
        models: timm names or aliases of the backbones.
        methods: fine-tuning methods.
        checkpoints: checkpoint policies as commands write them.
        devices: devices of the table, ``cpu``, or ``auto``.
        vram: budget in bytes or as text, which each cell is compared with.
        data: data set whose published accuracies stand beside the cells.
        on_progress: called with (stage, description, fraction of the stage done).
        **workload: see `WorkloadOptions`; ``checkpoint`` is not among them.

    Raises:
        UnknownNameError: no such model, method, policy or device.
        UsageError: an argument out of its domain.
    """
    from planner.placement.policies import parse_policy
    from profiler.units import DeviceBytes

    if "checkpoint" in workload:
        raise UsageError("a grid takes several policies; give them as checkpoints")
    budget_bytes = DeviceBytes(parse_size(vram))
    for name in map(device_name, devices):
        check_names(models=models, methods=methods, device=name)
    for word in checkpoints:
        parse_policy(word)
    threshold = workload.pop("threshold", 0.5)
    workload.setdefault("num_classes", 100)
    from planner.cost.comparison_grid import Grid, grid_cells
    from planner.cost.place_by_policy import default_cost_model
    from planner.target_device import find_target

    notify, began = on_progress or no_progress, time.perf_counter()
    notify("grid", "building the workloads", 0.0)
    targets = [find_target(name) for name in map(device_name, devices)]
    loads = [
        _load_or_refusal(model, method, workload, targets[0].label)
        for model in models
        for method in methods
    ]
    cells: list[GridCell] = []
    for number, target in enumerate(targets):

        def report(text: str, done: float, number: int = number) -> None:
            notify("grid", text, (number + done) / len(targets))

        cells += grid_cells(
            loads,
            checkpoints,
            default_cost_model(target.spec),
            target.label,
            budget_bytes=budget_bytes,
            threshold=threshold,
            data=data,
            on_progress=report,
        )
    seconds = time.perf_counter() - began
    return Grid(cells=tuple(cells), budget_bytes=budget_bytes, data=data, seconds=seconds)


def _load_or_refusal(
    model: str, method: str, options: WorkloadOptions, label: DeviceLabel
) -> Workload | GridCell:
    """Return the workload, or a cell with the reason why the method refuses the backbone."""
    from planner.cost.comparison_grid import GridCell
    from profiler.models.forward_check import refusal_of_forward
    from profiler.models.methods import get_method

    if options.get("rank") is not None and get_method(method).default_rank is None:
        options = {**options, "rank": None}  # the rank is for the methods that have one
    load = workload_of(model, method, options)
    reason = refusal_of_forward(load)
    if reason is None:
        return load
    return GridCell(workload=load, checkpoint="none", device=label, refusal=reason)
