"""torch's own CUDA code, run without a GPU, against the replay and the model of its allocator."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from profiler.devices.table import lookup
from profiler.running.emulated.libraries import why_not_emulated
from profiler.workload import Workload

STUDIES = Path(__file__).parents[2] / "studies"
DEVICE = "rtx-2060-super"
CELLS = [
    ("vit_t", "full", "none", {"precision": "bf16", "micro_batch": 16}),
    ("vit_t", "lora", "static", {"micro_batch": 32, "accumulation": 2}),
    ("resnet18", "full", "alternate", {"optimizer": "sgd", "micro_batch": 16}),
    ("swin_t", "bitfit", "cheap", {"precision": "fp16", "micro_batch": 4}),
    # exact only if workspaces are allocated behind the results of their operation, as they are
    ("tiny_vit", "full", "static", {"precision": "fp16", "micro_batch": 24, "accumulation": 2}),
]


def _reason() -> str | None:
    """Why no GPU can be emulated here."""
    import torch

    if torch.cuda.is_available():
        return "there is a GPU: tests/profiler/test_on_gpu.py asks it"
    return why_not_emulated() or None


STUDY_FOLDERS = ("hollow_gpu", "gpu_grid")


@pytest.fixture(scope="module")
def study() -> Any:
    reason = _reason()
    if reason is not None:
        if os.environ.get("CI") and "not installed" in reason:
            pytest.fail(f"{reason}, and CI is expected to have it")
        pytest.skip(reason)
    import study

    return study


def _cells() -> list[Any]:
    from cells import Cell

    return [
        Cell(
            workload=Workload(model=model, method=method, image_size=224, **changes),
            placement=placement,
        )
        for model, method, placement, changes in CELLS
    ]


def test_every_reduction_takes_the_scratch_that_the_formula_says(study: Any) -> None:
    (row,) = study.ask({"what": "reductions", "count": 600}, lookup("rtx-3060"))
    assert row["with_scratch"] > 50
    assert row["different"] == []


@pytest.mark.parametrize(
    ("allocator", "which"), [("", slice(2)), ("expandable_segments:True", slice(2, 5))]
)
def test_steps_allocate_and_reserve_what_is_predicted(
    study: Any, allocator: str, which: slice
) -> None:
    cells = _cells()[which]
    request = {"what": "cells", "cells": [cell.to_json() for cell in cells]}
    rows = list(study.ask(request, lookup(DEVICE), allocator))
    assert [row["cell"] for row in rows] == [cell.name for cell in cells]
    for row, cell in zip(rows, cells, strict=True):
        # our model of the allocator, fed with the real requests, is the real one to the byte
        assert row["ours"] == row["whole"], row["cell"]
        predicted = study._predicted(cell, device=DEVICE, allocator=allocator)
        assert predicted["peak"] == pytest.approx(row["peak"], rel=0.005), row["cell"]
        assert predicted["reserved"] == row["reserved"], row["cell"]


def test_what_single_operations_take_is_known(study: Any) -> None:
    request = {"what": "operations", "cells": [cell.to_json() for cell in _cells()[2:4]]}
    (row,) = study.ask(request, lookup(DEVICE))
    assert sum(row["calls"].values()) > 1000
    # a scattered sum sorts by a library's own plan
    assert set(row["off"]) <= {"aten.index_put.default"}
