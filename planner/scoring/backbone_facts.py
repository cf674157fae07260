"""Predicted cost of training well-known backbones, for quick answers that replay nothing.

    backbone_facts   facts of each backbone
    other_backbone   a backbone that is expected to be better than another of about its size

``backbone_facts.csv`` is written by ``studies/backbone_facts``: composed predictions of full
training in fp16 on an RTX 2060 SUPER. They are used as ratios of two backbones. Accuracies are
those of ImageNet (``imagenet_accuracy.py``).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from planner.scoring.imagenet_accuracy import imagenet_top1
from planner.scoring.published_tables import MARGIN, log_odds

FACTS = Path(__file__).with_name("backbone_facts.csv")
"""Predictions of ``studies/backbone_facts``."""

SIZE_RATIO = 1.5
"""Largest ratio of the parameters of two backbones of about the same size."""

CLEAR_SAVING = 0.2
"""Relative saving of time or memory at which another backbone is named. Predicted times of other
families of models are off by 14 % at the 90th percentile (studies/time_model)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneFacts:
    """Predicted cost of a backbone.

    Attributes:
        model: canonical backbone name.
        parameters: number of parameters.
        top1: ImageNet-1k top-1 accuracy of the default weights.
        seconds_per_image: predicted time of full training, 32 images a step.
        full_bytes: predicted device bytes of full training, 32 images.
        least_full_bytes: predicted device bytes of full training with 2 images and recomputation.
        least_bytes: the same of an efficient method.
    """

    model: str
    parameters: int
    top1: float
    seconds_per_image: float
    full_bytes: int
    least_full_bytes: int
    least_bytes: int

    @property
    def smallest_bytes(self) -> int:
        """Predicted device bytes of the smallest training that is known."""
        return min(self.least_bytes, self.least_full_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherBackbone:
    """A backbone that is expected to be better in the same budget.

    Attributes:
        model: canonical backbone name.
        better_at: ``more accurate``, ``faster`` or ``smaller``.
        top1_difference: its ImageNet accuracy minus that of the requested backbone.
        time_ratio: its predicted time over that of the requested backbone, of full training.
        memory_ratio: its predicted memory over that of the requested backbone.
        text: the difference in one clause.
    """

    model: str
    better_at: Literal["more accurate", "faster", "smaller"]
    top1_difference: float
    time_ratio: float
    memory_ratio: float
    text: str

    def to_json(self) -> dict[str, Any]:
        """Return plain data for an answer."""
        return asdict(self)


@lru_cache(maxsize=1)
def backbone_facts() -> Mapping[str, BackboneFacts]:
    """Return the facts of each backbone by its name, those without a known accuracy left out."""
    found = {}
    with FACTS.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            top1 = imagenet_top1(row["model"])
            if top1 is None:
                continue
            found[row["model"]] = BackboneFacts(
                model=row["model"],
                parameters=int(row["parameters"]),
                top1=top1,
                seconds_per_image=float(row["full_seconds_per_image"]),
                full_bytes=int(row["full_device_bytes"]),
                least_full_bytes=int(row["least_full_bytes"]),
                least_bytes=int(row["least_efficient_bytes"]),
            )
    return found


def other_backbone(model: str, *, budget_bytes: int) -> OtherBackbone | None:
    """Return a backbone of about the same size that is better in the same budget.

    It is the most accurate one that costs no more, else the fastest or else the smallest one that
    is as accurate. None if there is none, or if the facts of the requested backbone are not known.

    Args:
        model: canonical name of the requested backbone, with its default weights.
        budget_bytes: budget in device bytes.
    """
    facts = backbone_facts()
    own = facts.get(model)
    if own is None:
        return None
    rivals = [
        each
        for each in facts.values()
        if each.model != model
        and 1 / SIZE_RATIO <= each.parameters / own.parameters <= SIZE_RATIO
        and each.smallest_bytes <= budget_bytes
        and log_odds(each.top1) >= log_odds(own.top1)
    ]
    better = [
        each
        for each in rivals
        if log_odds(each.top1) > log_odds(own.top1) + MARGIN
        and each.seconds_per_image <= own.seconds_per_image
    ]
    if better:
        return _compared(own, max(better, key=lambda each: each.top1), "more accurate")
    limit = 1 - CLEAR_SAVING
    faster = [e for e in rivals if e.seconds_per_image <= limit * own.seconds_per_image]
    if faster:
        best = min(faster, key=lambda each: each.seconds_per_image)
        return _compared(own, best, "faster")
    smaller = [
        each
        for each in rivals
        if each.full_bytes <= limit * own.full_bytes
        and each.seconds_per_image <= own.seconds_per_image
    ]
    if smaller:
        return _compared(own, min(smaller, key=lambda each: each.full_bytes), "smaller")
    return None


def _compared(
    own: BackboneFacts,
    other: BackboneFacts,
    better_at: Literal["more accurate", "faster", "smaller"],
) -> OtherBackbone:
    time, memory = (
        other.seconds_per_image / own.seconds_per_image,
        other.full_bytes / own.full_bytes,
    )
    return OtherBackbone(
        model=other.model,
        better_at=better_at,
        top1_difference=other.top1 - own.top1,
        time_ratio=time,
        memory_ratio=memory,
        text=(
            f"{other.model} is expected to be {better_at}: ImageNet {100 * other.top1:.1f} % "
            f"against {100 * own.top1:.1f} %, {time:.2g} times the time and {memory:.2g} times the "
            "memory (predicted, full training in fp16 on an RTX 2060 SUPER)"
        ),
    )
