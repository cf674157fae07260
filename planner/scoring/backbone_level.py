"""How accurate a backbone is expected to be beside others, before anything is run.

The level of a backbone is the log-odds of an accuracy of its pretrained weights: that of full
training on the data set where one is published or derived for every backbone, else the ImageNet
accuracy. Transfer accuracy follows ImageNet accuracy about linearly in log-odds (Kornblith, Shlens
and Le 2019, arXiv 1805.08974). Backbones within ``MARGIN`` of the best of a tier share its level,
because smaller differences of published accuracies distinguish nothing. A backbone without a known
accuracy comes last. Weights from a file have none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from planner.scoring.accuracy_prior import estimate_accuracy
from planner.scoring.imagenet_accuracy import imagenet_top1
from planner.scoring.published_tables import MARGIN, log_odds


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneLevel:
    """The expected level of a backbone.

    Attributes:
        model: canonical backbone name.
        imagenet_top1: ImageNet-1k top-1 accuracy of its weights; None if not known.
        tier: 1 for the backbones that are expected to be the most accurate, and so on.
        score: level of the tier in log-odds. It orders backbones and is not an accuracy.
        reason: one clause: the origin of the level.
    """

    model: str
    imagenet_top1: float | None
    tier: int
    score: float
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return plain data for an answer."""
        return asdict(self)


def backbone_levels(
    models: Sequence[str],
    *,
    data: str = "",
    image_sizes: Mapping[str, int] = MappingProxyType({}),
    from_files: Collection[str] = (),
    train_images: int | None = None,
) -> Mapping[str, BackboneLevel]:
    """Return the level of each backbone.

    Args:
        models: canonical backbone names.
        data: name of a data set or a folder.
        image_sizes: height and width of the images of each backbone in pixels; a backbone that is
            not in it has the published size.
        from_files: backbones whose weights are from a file of the user.
        train_images: number of training images; None for that of a named data set.
    """
    top1 = {model: None if model in from_files else imagenet_top1(model) for model in models}
    values, source = top1, "ImageNet top-1 accuracy"
    estimates = {
        model: estimate_accuracy(
            model=model,
            method="full",
            data=data,
            weights_file=model in from_files,
            image_size=image_sizes.get(model),
            train_images=train_images,
        )
        for model in models
    }
    if all(each.value is not None for each in estimates.values()):
        values = {model: each.value for model, each in estimates.items()}
        source = f"accuracy of full training on {data}, published or derived"
    known = {model: value for model, value in values.items() if value is not None}
    tiers = _backbone_tiers({model: log_odds(value) for model, value in known.items()})
    last = max((tier for tier, _ in tiers.values()), default=0)
    lowest = min((score for _, score in tiers.values()), default=0.0)
    found = {}
    for model in models:
        tier, score = tiers.get(model, (last + 1, lowest - 2 * MARGIN))
        reason = f"{source} of {100 * known[model]:.1f} %" if model in known else f"no {source}"
        if model in from_files:
            reason = "weights from a file, of no known accuracy"
        found[model] = BackboneLevel(
            model=model, imagenet_top1=top1[model], tier=tier, score=score, reason=reason
        )
    return found


def _backbone_tiers(levels: Mapping[str, float]) -> dict[str, tuple[int, float]]:
    """Return (tier, level of the tier's best) of each backbone."""
    found: dict[str, tuple[int, float]] = {}
    tier, top = 0, float("inf")
    for model in sorted(levels, key=lambda name: -levels[name]):
        if levels[model] < top - MARGIN:
            tier, top = tier + 1, levels[model]
        found[model] = (tier, top)
    return found
