"""A request: search space, budget, device, and how real runs are made."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from planner.search.pareto import HypervolumeStagnation
from planner.search.space import Space
from planner.training.images.load import load_data
from planner.training.run_options import RunOptions
from profiler.records import DeviceLabel
from profiler.workload import Workload

if TYPE_CHECKING:
    pass

CLASSES = {"digits": 10, "cifar100": 100, "dtd": 47}

Notify = Callable[[str, str, float], None]


# ---- what is asked and answered ------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked.

    Attributes:
        space: what may be chosen.
        budget_bytes: of device memory, the CUDA context included.
        device: what is planned for.
        run: options of the real runs; the seed is also that of the search.
        validations: how many are; 0 for none.
        has_weights: whether the backbone has its pretrained weights, here or where it will run.
        trials: of the search.
        study: name of the study.
        storage: URL, or None for a file under ``studies/``.
        stop: rule to end the search early.
        out: folder of the plan files.
        left_out: methods and precisions that are not searched, and why.
    """

    space: Space
    budget_bytes: int
    device: DeviceLabel
    run: RunOptions
    study: str
    trials: int
    storage: str | None = None
    validations: int = 3
    has_weights: bool = True
    stop: HypervolumeStagnation | None = None
    out: Path = Path("plans")
    left_out: Mapping[str, str] = field(default_factory=dict)


# ---- the question --------------------------------------------------------------------------------


def classes_of(data: str, *, image_size: int) -> int:
    """Return the width of the classifier for some data, without downloading any.

    Raises:
        InputError: the folder cannot be read.
    """
    if data in CLASSES:
        return CLASSES[data]
    flat = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return load_data(data, image_size=image_size, mean=flat[0], std=flat[1]).num_classes


def check_weights(base: Workload, weights: Path) -> None:
    """Refuse a file of weights before anything is computed.

    Raises:
        InputError: it cannot be read, or holds another model's weights.
    """
    from profiler.models import backbones

    model = backbones.build(
        base.model, num_classes=base.num_classes, image_size=base.image_size, device="meta"
    )
    with warnings.catch_warnings():
        # loading into a model that allocates nothing copies nothing, and torch says so
        warnings.simplefilter("ignore", UserWarning)
        backbones.load_weights(model, base.model, weights=weights, pretrained=False)


def study_name(model: str, device: DeviceLabel, budget_bytes: int) -> str:
    """Return a name for a new study: readable, and another one each second."""
    budget = f"{budget_bytes / 1e6:.0f}MB"
    moment = datetime.now().strftime("%Y%m%d-%H%M%S")
    return f"{model.replace('/', '_')}-{device.name}-{budget}-{moment}"
