"""The accuracy to expect of a candidate before anything is run, and the origin of that number.

An estimate is ``published`` if its pretrained weights, method, rank and data set are those of a
published result. Otherwise it is a ``prior``, derived from a published result on the same data set.
In log-odds, a prior is the published accuracy, plus the difference of the two methods' effects on
the family of backbones, plus the small effect of the rank, plus the difference of the two
backbones' ImageNet accuracies. Transfer accuracy follows ImageNet accuracy about linearly in
log-odds (Kornblith, Shlens and Le 2019, arXiv 1805.08974); the slope of 1 is an assumption. A data
set without a published result at the image size has no value, and neither have weights from a file,
because every published result is of weights that are named. All published results here are of
224 px; of DINOv2-L this is the size of its image processor, because its source names none.

Limitations: no table was found for the precision, the optimizer, the batch size or checkpointing.
An estimate does not depend on them. Nothing here is a measurement.

``accuracy_priors.json`` holds the numbers, each with its source (``published_tables.py``).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from planner.scoring.imagenet_accuracy import imagenet_top1, tagged_name
from planner.scoring.method_evidence import effective_rank, method_evidence, rank_step
from planner.scoring.published_tables import (
    compared_family,
    from_log_odds,
    images_of,
    log_odds,
    method_effects,
    priors,
    regime_of,
    table_name,
)
from planner.scoring.table_errors import difference_error, interval_of

COVERAGE = 0.8
"""Stated coverage of the interval of an expected accuracy."""

EstimateKind = Literal["published", "prior", "probe", "learned"]
"""Origin of an expected accuracy (``AccuracyEstimate.kind``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyEstimate:
    """An expected accuracy, published or derived, but not measured in this run.

    Attributes:
        value: fraction of held-out images classified correctly; None if not known.
        kind: ``published`` for exactly this configuration, ``prior`` if derived from published
            ones, ``probe`` if short trainings here show it; None without a value. ``learned``, a
            model fitted to trainings here, is a word of the JSON format that no estimate has: such
            a model did not beat the probe (studies/probe).
        source: publication of the number; None without value.
        reason: one clause: how the value was derived, or why there is none.
        low: lower end of the interval; None without one.
        high: upper end of the interval; None without one.
        coverage: probability with which the interval is expected to hold the accuracy, in (0, 1);
            None without an interval.
    """

    value: float | None
    kind: EstimateKind | None
    source: str | None
    reason: str
    low: float | None = None
    high: float | None = None
    coverage: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain data for the provenance of a plan."""
        return asdict(self)


def estimate_accuracy(
    *,
    model: str,
    method: str,
    data: str,
    rank: int | None = None,
    pretrained: bool = True,
    weights_file: bool = False,
    image_size: int | None = None,
    train_images: int | None = None,
) -> AccuracyEstimate:
    """Return the expected accuracy, or the reason why there is none.

    Args:
        model: canonical backbone name, with or without timm's tag of the weights.
        method: name of the method, such as ``full``, ``head`` or ``lora``.
        data: ``cifar100``, ``dtd``, ``digits`` or a folder.
        rank: rank of a low-rank method; None for 8.
        pretrained: whether training starts from pretrained weights.
        weights_file: whether they are from a file of the user.
        image_size: height and width of the images in pixels; None for the published size.
        train_images: number of training images; None for that of a named data set.
    """
    if not pretrained:
        return _no_estimate(
            "the weights are random and every published number is of pretrained ones"
        )
    if weights_file:
        return _no_estimate(
            "the weights are from a file and every published number is of other weights"
        )
    weights, rank = tagged_name(model), effective_rank(method, rank)
    known = [entry for entry in priors()["published"] if entry["data"] == data]
    if not known:
        return _no_estimate(f"no published accuracy on {data} was found")
    sizes = sorted({entry["image_size"] for entry in known})
    known = [entry for entry in known if image_size in (None, entry["image_size"])]
    if not known:
        return _no_estimate(
            f"every published accuracy on {data} is of {' or '.join(map(str, sizes))} px and none "
            f"of {image_size} px"
        )
    for entry in known:
        if (entry["model"], entry["method"], entry["rank"]) == (weights, method, rank):
            return AccuracyEstimate(
                value=entry["accuracy"],
                # A note marks a number that was read from a published range.
                kind="prior" if "note" in entry else "published",
                source=entry["source"],
                reason=entry.get("note", "published for this backbone, method and data set"),
            )
    return _derived(weights, method, rank, known, train_images=images_of(data, train_images))


# ---- deriving a prior --------------------------------------------------------------------------


def _derived(
    weights: str,
    method: str,
    rank: int | None,
    known: list[dict[str, Any]],
    *,
    train_images: int | None,
) -> AccuracyEstimate:
    usable = [e for e in known if _level_step(e["model"], weights) is not None]
    if not usable:
        return _no_estimate(f"neither this data set nor ImageNet has a known accuracy of {weights}")
    # The nearest published result: same weights first, then same method, then full fine-tuning.
    anchor = min(
        usable,
        key=lambda e: (
            e["model"] != weights,
            e["method"] != table_name(method),
            e["method"] != "full",
            abs(math.log2((e["rank"] or 1) / (rank or 1))),
        ),
    )
    change = 0.0
    if table_name(anchor["method"]) != table_name(method):
        effects = [_effect(weights, each, train_images) for each in (method, anchor["method"])]
        if effects[0] is None or effects[1] is None:
            family = compared_family(weights) or "such backbones"
            return _no_estimate(f"no published comparison of {method} on {family} was found")
        change = effects[0] - effects[1]
    expected = (
        log_odds(anchor["accuracy"])
        + (_level_step(anchor["model"], weights) or 0.0)
        + change
        + rank_step(method, rank)
        - rank_step(anchor["method"], anchor["rank"])
    )
    low, high, coverage = _interval_of_derived(expected, anchor, weights, method)
    return AccuracyEstimate(
        value=from_log_odds(expected),
        kind="prior",
        source=anchor["source"],
        reason=_derivation(anchor, weights, method, rank, train_images),
        low=low,
        high=high,
        coverage=coverage,
    )


def _interval_of_derived(
    expected: float, anchor: dict[str, Any], weights: str, method: str
) -> tuple[float, float, float] | tuple[None, None, None]:
    """Return the interval of a derived accuracy and its coverage.

    The error of a difference of methods was measured by leaving tables out. That of another
    backbone cannot be: only one published pair of backbones shares a data set and a method. Then
    there is no interval.
    """
    same_method = table_name(anchor["method"]) == table_name(method)
    if anchor["model"] != weights or same_method:
        return None, None, None
    error = difference_error().deviation
    return (*interval_of(expected, error, coverage=COVERAGE), COVERAGE)


def _derivation(
    anchor: dict[str, Any], weights: str, method: str, rank: int | None, train_images: int | None
) -> str:
    """Return how the published accuracy of the anchor became the estimate, as one clause."""
    at = f" r={anchor['rank']}" if anchor["rank"] else ""
    text = f"from {anchor['accuracy']:.1%} published for {anchor['method']}{at}"
    steps = []
    if anchor["model"] != weights:
        text += f" of {anchor['model']}"
        steps.append("moved by the backbones' ImageNet accuracies")
    if anchor["method"] != method:
        steps.append(_effect_source(weights, method, train_images))
    if rank_step(anchor["method"], anchor["rank"]) != rank_step(method, rank):
        steps.append("moved by the small effect of the rank")
    return "; ".join([text, *steps])


def _level_step(origin: str, target: str) -> float | None:
    """Return the difference of ImageNet log-odds; None if a backbone is not in the table."""
    if origin == target:
        return 0.0
    before, after = imagenet_top1(origin), imagenet_top1(target)
    if before is None or after is None:
        return None
    return log_odds(after) - log_odds(before)


# ---- effects of methods ------------------------------------------------------------------------


def _effect(weights: str, method: str, train_images: int | None) -> float | None:
    """Return the log-odds gain over a linear probe; None if no comparable table has the method."""
    effects = method_effects(compared_family(weights), regime_of(train_images))
    return effects.get(table_name(method))


def _effect_source(weights: str, method: str, train_images: int | None) -> str:
    """Return the tables that a method's effect was fitted to, as one clause."""
    stand_in = priors()["stand_ins"].get(method)
    if stand_in is not None:
        return f"taken as {stand_in['method']} because {stand_in['reason']}"
    evidence = method_evidence(model=weights, method=method, train_images=train_images)
    return evidence.reason


def _no_estimate(reason: str) -> AccuracyEstimate:
    return AccuracyEstimate(value=None, kind=None, source=None, reason=reason)
