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
from profiler.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from planner.cost.comparison_grid import Grid, GridCell, InferenceRow
    from planner.recommendation.request import Notify
    from planner.target_device import TargetDevice
    from profiler.devices.table import DeviceSpec
    from profiler.models.frozen.catalogue import FrozenModel
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
    training_free: Sequence[str] = (),
    on_progress: Notify | None = None,
    **workload: Unpack[WorkloadOptions],
) -> Grid:
    """Compare backbones, methods, checkpointing and devices in one table of composed predictions.

    The defaults are the 60 cells of arXiv 2607.02158: batch 32, fp32, AdamW, 100 classes, 2 GiB.
    A cell that a method or policy refuses has the reason. Models that classify without fine-tuning
    have rows of their own, replayed: one inference on each device.

    Args:
        models: timm names or aliases of the backbones. A name that no backbone has may be that of a
            model without fine-tuning.
        methods: fine-tuning methods.
        checkpoints: checkpoint policies as commands write them.
        devices: devices of the table, ``cpu``, or ``auto``.
        vram: budget in bytes or as text, which each cell is compared with.
        data: data set whose published accuracies stand beside the cells.
        training_free: names of models without fine-tuning, or ``all``.
        on_progress: called with (stage, description, fraction of the stage done).
        **workload: see `WorkloadOptions`; ``checkpoint`` is not among them.

    Raises:
        UnknownNameError: no such model, method, policy or device.
        UsageError: an argument out of its domain.
        InputError: the library of a model without fine-tuning is not installed.
    """
    from planner.placement.policies import parse_policy
    from profiler.units import DeviceBytes

    if "checkpoint" in workload:
        raise UsageError("a grid takes several policies; give them as checkpoints")
    budget_bytes = DeviceBytes(parse_size(vram))
    models, frozen = _split_models(models, training_free)
    lists = {"devices": devices, "methods": methods, "checkpoints": checkpoints}
    for name, given in {**lists, "models": [*models, *frozen]}.items():
        if not given:
            raise UsageError(f"a grid needs at least one of {name}")
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
    workloads = [
        _workload_or_refusal(model, method, workload, targets[0].label)
        for model in models
        for method in methods
    ]
    cells: list[GridCell] = []
    for number, target in enumerate(targets):

        def report(text: str, done: float, number: int = number) -> None:
            notify("grid", text, (number + done) / len(targets))

        cells += grid_cells(
            workloads,
            checkpoints,
            default_cost_model(target.spec),
            target.label,
            budget_bytes=budget_bytes,
            threshold=threshold,
            data=data,
            on_progress=report,
        )
    rows = [
        row
        for target in targets
        for row in _inference_rows(
            frozen,
            target,
            budget_bytes=budget_bytes,
            data=data,
            num_classes=workload["num_classes"],
            notify=notify,
        )
    ]
    return Grid(
        cells=tuple(cells),
        budget_bytes=budget_bytes,
        data=data,
        seconds=time.perf_counter() - began,
        training_free=tuple(rows),
    )


def _split_models(
    models: Sequence[str], training_free: Sequence[str]
) -> tuple[list[str], list[FrozenModel]]:
    """Return the backbones, and the models without fine-tuning, each once."""
    from profiler.models import backbones
    from profiler.models.frozen.catalogue import frozen_model, frozen_models

    def is_backbone(name: str) -> bool:
        try:
            backbones.resolve(name)
        except UnknownNameError:
            return name not in frozen_models()
        return True

    tuned = [name for name in models if is_backbone(name)]
    wanted = [name for name in models if name not in tuned]
    wanted += frozen_models() if "all" in training_free else training_free
    return tuned, [frozen_model(name) for name in dict.fromkeys(wanted)]


def _inference_rows(
    models: Sequence[FrozenModel],
    target: TargetDevice,
    *,
    budget_bytes: int,
    data: str,
    num_classes: int,
    notify: Notify,
) -> list[InferenceRow]:
    """Return the rows of models without fine-tuning on a device."""
    from planner.cost.comparison_grid import InferenceRow
    from planner.training.images.registry import find_named
    from planner.training_free.options import check_library, training_free_options
    from planner.training_free.plan_file import candidate_kind
    from profiler.store import Store

    if not models:
        return []
    for model in models:
        check_library(model)
    named = find_named(data)
    options = training_free_options(
        device=target.spec,
        budget_bytes=budget_bytes,
        data=data,
        num_classes=num_classes,
        train_images=None if named is None else named[0].size_of(named[1]).train_images,
        store=Store.default(),
        models=models,
        on_progress=lambda text, done: notify("training-free", text, done),
    )
    return [
        InferenceRow(
            kind=candidate_kind(option.model),
            model=option.model.name,
            device=target.label,
            batch=option.batch,
            precision=option.precision,
            image_size=option.model.image_size,
            num_classes=num_classes,
            device_bytes=option.device_bytes,
            fits=option.fits,
            step_seconds=option.batch_seconds,
            energy_joules=option.batch_joules,
            published=None if option.accuracy is None else option.accuracy.value,
            published_source=None if option.accuracy is None else option.accuracy.source,
            content=option.to_json(),
        )
        for option in options
    ]


def _workload_or_refusal(
    model: str, method: str, options: WorkloadOptions, label: DeviceLabel
) -> Workload | GridCell:
    """Return the workload, or a cell with the reason why the method refuses the backbone."""
    from planner.cost.comparison_grid import GridCell
    from profiler.models.forward_check import refusal_of_forward
    from profiler.models.methods import get_method

    if options.get("rank") is not None and get_method(method).default_rank is None:
        options = {**options, "rank": None}  # the rank is for the methods that have one
    workload = workload_of(model, method, options)
    reason = refusal_of_forward(workload)
    if reason is None:
        return workload
    return GridCell(workload=workload, checkpoint="none", device=label, refusal=reason)
