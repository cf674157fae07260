"""The ImageNet accuracy of pretrained weights, by which backbones are compared.

``imagenet_top1.csv`` is a selection of timm's ``results/results-imagenet.csv`` (Apache-2.0,
github.com/huggingface/pytorch-image-models), made by ``studies/imagenet_top1``: of each model the
row at its training size. ``accuracy_priors.json`` adds backbones that timm's table lacks.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from planner.scoring.published_tables import priors

IMAGENET_TABLE = Path(__file__).with_name("imagenet_top1.csv")
"""Selection of timm's table, made by ``studies/imagenet_top1``."""


def imagenet_top1(model: str) -> float | None:
    """Return the ImageNet-1k top-1 accuracy of pretrained weights; None if it is not known.

    Args:
        model: canonical backbone name; without a tag it means timm's default weights.
    """
    weights = tagged_name(model)
    found = _top1_by_weights().get(weights)
    if found is None:
        found = priors()["imagenet"]["top1"].get(weights)
    return None if found is None else float(found)


def tagged_name(model: str) -> str:
    """Return a model name with the tag of its weights: timm's default if there is none."""
    if "." in model:
        return model
    tag = priors()["default_weights"]["tags"].get(model)
    return _default_weights().get(model, model) if tag is None else f"{model}.{tag}"


@lru_cache(maxsize=1)
def _imagenet_rows() -> tuple[Mapping[str, str], ...]:
    with IMAGENET_TABLE.open(newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


@lru_cache(maxsize=1)
def _top1_by_weights() -> Mapping[str, float]:
    return {row["model"]: float(row["top1_percent"]) / 100 for row in _imagenet_rows()}


@lru_cache(maxsize=1)
def _default_weights() -> Mapping[str, str]:
    """Return the tagged name of timm's default weights by architecture."""
    return {
        r["model"].partition(".")[0]: r["model"] for r in _imagenet_rows() if r["is_default"] == "1"
    }
