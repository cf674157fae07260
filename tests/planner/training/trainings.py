"""Trainings of a small model on few digits, and their results."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from planner.plan import Plan
from planner.training.history import TrainResult
from planner.training.images.image_set import ImageData
from planner.training.plan_check import load_data_for
from planner.training.resolve_recipe import RecipeChanges
from planner.training.run_options import RunOptions
from planner.training.trained_model import MODEL_FOLDER
from planner.training.training_run import train
from profiler.placement import Decision, Placement
from profiler.workload import Workload

OF_RUN = {field.name for field in fields(RunOptions)}
OF_RECIPE = {field.name for field in fields(RecipeChanges)}


VIT = "test_vit"


STATIC = Placement(decisions={f"blocks.{i}": Decision.RECOMPUTE for i in range(6)})


def workload(**changes: Any) -> Workload:
    base = Workload(
        model=VIT, method="lora", rank=4, micro_batch=8, accumulation=2, image_size=32,
        num_classes=10,
    )  # fmt: skip
    return base.replace(**changes)


@cache
def digits(image_size: int, *, train_images: int = 1437, test_images: int = 360) -> ImageData:
    """Some of the digits; a whole training set of ``train_images``, no selection image in it."""
    data = load_data_for(workload(image_size=image_size), "digits")
    return replace(
        data,
        train=data.training_whole().sample(train_images, seed=0),
        test=data.test.sample(test_images, seed=0),
        selection_positions=(),
    )


def run(plan: Plan, output: Path, **changes: Any) -> TrainResult:
    size = plan.candidate.workload.image_size
    given: dict[str, Any] = {
        "images": digits(size, train_images=40, test_images=20),
        "epochs": 2,
        "output": output,
        "pretrained": False,
    }
    given |= changes
    of_run = {key: given.pop(key) for key in OF_RUN & given.keys()}
    given["changes"] = RecipeChanges(**{key: given.pop(key) for key in OF_RECIPE & given.keys()})
    return train(plan, RunOptions(data="digits", **of_run), **given)


def learned(output: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    (file,) = (output / MODEL_FOLDER).glob("*.safetensors")
    return load_file(file)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


class StopError(Exception):
    pass


def other_data() -> ImageData:
    data = digits(32, train_images=40, test_images=20)
    return replace(data, source=replace(data.source, fingerprint="another"))
