"""A grid of training steps: backbones x methods x checkpointing x devices, composed in one process.

Each cell is the composed prediction of a workload under a policy, or the reason why there is none.
A published accuracy stands beside its cell if it is of the same weights, method, rank and data set.
``PAPER_RANGES`` are published for the whole grid of arXiv 2607.02158 and not for a cell.

A model without fine-tuning is a row of its own: an inference has no method and no checkpointing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from planner.cost.budget import needed_bytes
from planner.cost.fit_probability import fits_within
from planner.cost.place_by_policy import place_by_policy
from planner.cost.warm_up import profile_families
from planner.placement.policies import parse_policy
from planner.scoring.accuracy_prior import estimate_accuracy
from profiler.errors import InfeasibleError, UsageError

if TYPE_CHECKING:
    from planner.cost.model import CostModel
    from planner.scoring.accuracy_prior import AccuracyEstimate
    from profiler.json_records import JsonObject
    from profiler.records import DeviceLabel, Report
    from profiler.units import DeviceBytes
    from profiler.workload import Workload

GRID_SCHEMA = "budgetplan.grid/1"

ROOT_OF_PAPER = "arXiv 2607.02158, abstract"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRange:
    """A published range for the cells with a policy or method, relative to other cells.

    Attributes:
        applies_to: method or policy of the cells.
        relative_to: method or policy of the cells that it is compared with.
        quantity: ``memory`` or ``energy``.
        low: lowest relative change.
        high: highest relative change.
        source: publication.
        remark: limitation of the number; empty for none.
        model: backbone that the range is about; None for every backbone.
    """

    applies_to: str
    relative_to: str
    quantity: str
    low: float
    high: float
    source: str
    remark: str = ""
    model: str | None = None


PAPER_RANGES = (
    PublishedRange(
        applies_to="adaptive",
        relative_to="none",
        quantity="memory",
        low=-0.79,
        high=-0.43,
        source=ROOT_OF_PAPER,
    ),
    PublishedRange(
        applies_to="adaptive",
        relative_to="none",
        quantity="energy",
        low=0.09,
        high=0.30,
        source=ROOT_OF_PAPER,
        remark="its code counts a part of the forward twice, so it is an upper bound",
    ),
    PublishedRange(
        applies_to="qlora",
        relative_to="full",
        quantity="energy",
        low=-0.30,
        high=-0.20,
        source=ROOT_OF_PAPER,
        model="vit_small_patch16_224",
    ),
    PublishedRange(
        applies_to="bitfit",
        relative_to="full",
        quantity="energy",
        low=-0.30,
        high=-0.20,
        source=ROOT_OF_PAPER,
        model="vit_small_patch16_224",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GridCell:
    """One cell of a grid.

    Attributes:
        workload: backbone, method and batch.
        checkpoint: policy as it was requested, such as ``adaptive``.
        device: the planned device.
        report: composed prediction; None if there is none.
        refusal: why there is no prediction; None if there is one.
        fits: whether it fits the budget at a risk of 1 %; None without a prediction.
        memory_change: relative change of the memory by the policy; None without the cell of
            ``none``.
        time_change: the same of the time of a step.
        energy_change: the same of the energy of a step.
        published: published accuracy of the same weights, method, rank and data set.
    """

    workload: Workload
    checkpoint: str
    device: DeviceLabel
    report: Report | None = None
    refusal: str | None = None
    fits: bool | None = None
    memory_change: float | None = None
    time_change: float | None = None
    energy_change: float | None = None
    published: AccuracyEstimate | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain data, without the table of units."""
        report = None if self.report is None else self.report.to_json()
        if report is not None:
            del report["units"]
        return {
            "kind": "tuned",
            "workload": self.workload.to_json(),
            "checkpoint": self.checkpoint,
            "device": self.device.name,
            "prediction": report,
            "refusal": self.refusal,
            "fits": self.fits,
            "memory_change": self.memory_change,
            "time_change": self.time_change,
            "energy_change": self.energy_change,
            "published_accuracy": None if self.published is None else self.published.to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRow:
    """A model that classifies without fine-tuning, on a device.

    Attributes:
        kind: ``features`` or ``zero_shot``.
        model: name of the model.
        device: the planned device.
        batch: images of an inference.
        precision: type of the weights.
        image_size: height and width of the input in pixels.
        num_classes: number of classes.
        device_bytes: replayed device bytes of an inference.
        fits: whether they fit the budget at a risk of 1 %.
        step_seconds: predicted seconds of the inference of a batch; None if not known.
        energy_joules: predicted energy of the same; None if not known.
        published: published accuracy; None if there is none.
        published_source: its source; None if there is none.
        content: the same and more as JSON (``TrainingFreeOption.to_json``).
    """

    kind: str
    model: str
    device: DeviceLabel
    batch: int
    precision: str
    image_size: int
    num_classes: int
    device_bytes: int
    fits: bool
    step_seconds: float | None
    energy_joules: float | None
    published: float | None
    published_source: str | None
    content: JsonObject

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"device": self.device.name, **self.content}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A grid of cells.

    Attributes:
        cells: the cells: by device, backbone, method, policy.
        budget_bytes: budget in device bytes, which decides ``fits`` and the policies with a budget.
        data: data set whose published accuracies stand beside the cells.
        seconds: duration of the computation.
        training_free: models without fine-tuning, by device.
    """

    cells: tuple[GridCell, ...]
    budget_bytes: int
    data: str
    seconds: float
    training_free: tuple[InferenceRow, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``grid --json`` prints."""
        return {
            "schema": GRID_SCHEMA,
            "budget_bytes": self.budget_bytes,
            "data": self.data,
            "rung": "composed",
            "seconds": self.seconds,
            "cells": [cell.to_json() for cell in self.cells],
            "published_ranges": [asdict(each) for each in PAPER_RANGES],
            "training_free": [row.to_json() for row in self.training_free],
        }


def grid_cells(
    workloads: Sequence[Workload | GridCell],
    checkpoints: Sequence[str],
    cost: CostModel,
    label: DeviceLabel,
    *,
    budget_bytes: DeviceBytes,
    threshold: float,
    data: str,
    on_progress: Callable[[str, float], None],
) -> Iterator[GridCell]:
    """Yield the cells for a device.

    Args:
        workloads: workload of each backbone and method, or a refused cell in its place.
        checkpoints: policies as commands write them.
        cost: cost model of the device.
        label: the planned device.
        budget_bytes: budget in device bytes.
        threshold: share of the budget at which the policy ``adaptive`` starts to recompute.
        data: data set whose published accuracies stand beside the cells.
        on_progress: called with (current work, fraction done).
    """
    known = [load for load in workloads if not isinstance(load, GridCell)]
    profile_families(cost.profiles, known, lambda text, done: on_progress(text, 0.9 * done))
    for number, load in enumerate(workloads):
        if isinstance(load, GridCell):
            for word in checkpoints:
                yield replace(load, checkpoint=word, device=label)
            continue
        on_progress(f"{load.model} with {load.method}", 0.9 + 0.1 * number / len(workloads))
        composed = {
            word: _composed_cell(
                load, word, cost, label, budget_bytes=budget_bytes, threshold=threshold
            )
            for word in checkpoints
        }
        plain = composed.get("none")
        for word in checkpoints:
            cell = _with_changes(composed[word], plain)
            yield replace(cell, published=published_for(load, data))


def _composed_cell(
    load: Workload,
    word: str,
    cost: CostModel,
    label: DeviceLabel,
    *,
    budget_bytes: DeviceBytes,
    threshold: float,
) -> GridCell:
    cell = GridCell(workload=load, checkpoint=word, device=label)
    try:
        policy = parse_policy(word, threshold=threshold if word == "adaptive" else None)
        cost.prepare(load)
        placed = place_by_policy(load, policy, cost, budget_bytes=budget_bytes)
        report = replace(cost.predict(placed), device=label)
    except InfeasibleError as error:
        return replace(cell, refusal=f"no placement fits: {error}")
    except UsageError as error:
        return replace(cell, refusal=str(error))
    return replace(cell, report=report, fits=fits_within(report, budget_bytes))


def _with_changes(cell: GridCell, plain: GridCell | None) -> GridCell:
    """Return a cell with its changes relative to the same workload without checkpointing."""
    if plain is None or plain is cell or plain.report is None or cell.report is None:
        return cell
    after, before = cell.report, plain.report
    return replace(
        cell,
        memory_change=_relative_change(needed_bytes(after), needed_bytes(before)),
        time_change=_relative_change(after.step_seconds, before.step_seconds),
        energy_change=_relative_change(after.energy_joules, before.energy_joules),
    )


def _relative_change(after: float | None, before: float | None) -> float | None:
    return None if after is None or not before else after / before - 1


def published_for(load: Workload, data: str) -> AccuracyEstimate | None:
    """Return the accuracy that is published for exactly this cell; None if there is none."""
    found = estimate_accuracy(
        model=load.model,
        method=load.method,
        data=data,
        rank=load.rank,
        image_size=load.image_size,
    )
    return found if found.kind == "published" else None
