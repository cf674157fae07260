"""The accuracy to expect of a method before anything is run, and the origin of that number.

    estimate_accuracy   a fraction if published numbers allow one, otherwise None with the reason
    relative_score      a number that orders candidates; it is not an accuracy

An estimate is ``published`` if its pretrained weights, method, rank and data set are those of a
published result. Otherwise it is a ``prior``, derived from a published result on the same data set.
In log-odds, a prior is the published accuracy, plus the difference of the two methods' effects,
plus the small effect of the rank, plus the difference of the two backbones' ImageNet accuracies.
Transfer accuracy follows ImageNet accuracy about linearly in log-odds (Kornblith, Shlens and Le
2019, arXiv 1805.08974); the slope of 1 is an assumption. A data set without a published result has
no value.

The effects of methods come from published tables, each of several methods on one backbone and
benchmark. A cell is modelled as log-odds(accuracy) = benchmark + method, fitted by least squares
(alternating means) with the linear probe at 0. Methods that share no table are therefore compared
through those that they share one with. Full fine-tuning loses to small adapters on 1,000 images,
and wins or ties on many. Tables of the same regime (``few`` up to 5,000 training images, else
``many``) therefore count twenty times as much as those of the other.

Limitations: no table was found for the precision, the optimizer, the batch size or checkpointing.
An estimate does not depend on them. Nothing here is a measurement.

``accuracy_priors.json`` holds the numbers, each with its source.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

EstimateKind = Literal["published", "prior", "probe", "learned"]

Regime = Literal["few", "many"]

Key = TypeVar("Key", bound=Hashable)

FEW_TRAINING_IMAGES = 5_000
"""Largest training set of the regime ``few``. VTAB-1k has 1,000 training images per task, CIFAR-100
and most FGVC tasks have more than 5,000."""

OTHER_REGIME_WEIGHT = 0.05
"""Weight of the other regime's tables, enough to place a method that only they contain."""

PRIORS = Path(__file__).with_name("accuracy_priors.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyEstimate:
    """An expected accuracy, published or derived, but not measured in this run.

    Attributes:
        value: fraction of held-out images classified correctly; None if not known.
        kind: ``published`` for exactly this configuration, ``prior`` if derived from published
            ones, ``probe`` if short trainings here show it, ``learned`` if fitted to trainings
            here; None without a value.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RelativeScore:
    """A number that orders candidates that share backbone and data set.

    Attributes:
        value: expected gain over a linear probe in log-odds. With random weights it is the
            logarithm of the number of trainable parameters instead.
        reason: one clause: the origin of the value.
    """

    value: float
    reason: str


def estimate_accuracy(
    *,
    model: str,
    method: str,
    data: str,
    rank: int | None = None,
    pretrained: bool = True,
    train_images: int | None = None,
) -> AccuracyEstimate:
    """Return the expected accuracy, or the reason why there is none.

    Args:
        model: canonical backbone name, with or without timm's tag of the weights.
        method: name of the method, such as ``full``, ``head`` or ``lora``.
        data: ``cifar100``, ``dtd``, ``digits`` or a folder.
        rank: rank of a low-rank method; None for 8.
        pretrained: whether training starts from pretrained weights.
        train_images: number of training images; None for that of a named data set.
    """
    if not pretrained:
        return _no_estimate(
            "the weights are random and every published number is of pretrained ones"
        )
    weights, rank = _tagged_name(model), _effective_rank(method, rank)
    known = [entry for entry in _priors()["published"] if entry["data"] == data]
    if not known:
        return _no_estimate(f"no published accuracy on {data} was found")
    for entry in known:
        if (entry["model"], entry["method"], entry["rank"]) == (weights, method, rank):
            return AccuracyEstimate(
                value=entry["accuracy"],
                # A note marks a number that was read from a published range.
                kind="prior" if "note" in entry else "published",
                source=entry["source"],
                reason=entry.get("note", "published for this backbone, method and data set"),
            )
    return _derived(weights, method, rank, known, train_images=_images(data, train_images))


def relative_score(
    *,
    model: str,
    method: str,
    data: str,
    rank: int | None = None,
    pretrained: bool = True,
    train_images: int | None = None,
    trainable_parameters: int | None = None,
) -> RelativeScore:
    """Return a number that orders the methods on a backbone. It is not an accuracy.

    If ``estimate_accuracy`` has values, the order is that of the estimates. Published effects do
    not apply to random weights (MambaPEFT, arXiv 2411.03855, has only full training from
    scratch). A method with more trainable parameters then ranks higher (an assumption).

    Args:
        model: canonical backbone name.
        method: name of the method, such as ``full``, ``head`` or ``lora``.
        data: ``cifar100``, ``dtd``, ``digits`` or a folder.
        rank: rank of a low-rank method; None for 8. A higher rank has a slightly higher score.
        pretrained: whether training starts from pretrained weights.
        train_images: number of training images; None for that of a named data set.
        trainable_parameters: number of trainable parameters; used with random weights only.
    """
    if not pretrained:
        return RelativeScore(
            value=math.log10(1 + (trainable_parameters or 0)),
            reason="random weights: ordered by the number of trainable parameters (an assumption)",
        )
    images = _images(data, train_images)
    guess = estimate_accuracy(model=model, method=method, data=data, rank=rank, train_images=images)
    probe = estimate_accuracy(model=model, method="head", data=data, train_images=images)
    if guess.value is not None and probe.value is not None:
        return RelativeScore(
            value=_log_odds(guess.value) - _log_odds(probe.value), reason=guess.reason
        )
    effect = _effect(method, images)
    if effect is not None:
        step = _rank_step(method, _effective_rank(method, rank))
        return RelativeScore(value=effect + step, reason=_effect_source(method, images))
    return _assumed(method, images)


# ---- methods in no table -----------------------------------------------------------------------


def _assumed(method: str, images: int | None) -> RelativeScore:
    """Return a score for a method in no table: midway between two methods, or the median."""
    family = "partial_k" if method.startswith("partial_") else method
    between = _priors()["between"].get(family)
    if between is not None:
        low, high = between["methods"]
        return RelativeScore(
            value=(_known_effect(low, images) + _known_effect(high, images)) / 2,
            reason=f"no table was found for {method}; placed midway between {low} and {high} "
            f"because {between['reason']} (an assumption)",
        )
    effects = sorted(_effects(_regime(images)).values())
    return RelativeScore(
        value=effects[len(effects) // 2],
        reason=f"no table was found for {method}; placed at the median of the known methods",
    )


# ---- deriving a prior --------------------------------------------------------------------------


def _derived(
    weights: str,
    method: str,
    rank: int | None,
    known: list[dict[str, Any]],
    *,
    train_images: int | None,
) -> AccuracyEstimate:
    effect = _effect(method, train_images)
    if effect is None:
        return _no_estimate(f"no published comparison of {method} with other methods was found")
    usable = [e for e in known if _level_step(e["model"], weights) is not None]
    if not usable:
        return _no_estimate(f"neither this data set nor ImageNet has a known accuracy of {weights}")
    # The nearest published result: same weights first, then same method, then full fine-tuning.
    anchor = min(
        usable,
        key=lambda e: (
            e["model"] != weights,
            e["method"] != _table_name(method),
            e["method"] != "full",
            abs(math.log2((e["rank"] or 1) / (rank or 1))),
        ),
    )
    log_odds = (
        _log_odds(anchor["accuracy"])
        + (_level_step(anchor["model"], weights) or 0.0)
        + effect
        + _rank_step(method, rank)
        - _known_effect(anchor["method"], train_images)
        - _rank_step(anchor["method"], anchor["rank"])
    )
    return AccuracyEstimate(
        value=1 / (1 + math.exp(-log_odds)),
        kind="prior",
        source=anchor["source"],
        reason=_derivation(anchor, weights, method, rank, train_images),
    )


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
        steps.append(_effect_source(method, train_images))
    if _rank_step(anchor["method"], anchor["rank"]) != _rank_step(method, rank):
        steps.append("moved by the small effect of the rank")
    return "; ".join([text, *steps])


def _level_step(origin: str, target: str) -> float | None:
    """Return the difference of ImageNet log-odds; None if a backbone is not in the table."""
    if origin == target:
        return 0.0
    top1: Mapping[str, float] = _priors()["imagenet"]["top1"]
    if origin not in top1 or target not in top1:
        return None
    return _log_odds(top1[target]) - _log_odds(top1[origin])


def _tagged_name(model: str) -> str:
    """Return a model name with the tag of its weights: timm's default if there is none."""
    tag = _priors()["default_weights"]["tags"].get(model)
    return model if tag is None else f"{model}.{tag}"


# ---- effects of methods ------------------------------------------------------------------------


def _effect(method: str, train_images: int | None) -> float | None:
    """Return the log-odds gain over a linear probe; None if no table has the method."""
    return _effects(_regime(train_images)).get(_table_name(method))


def _table_name(method: str) -> str:
    """Return the method whose table entries are used: nearly always the method itself."""
    stand_in = _priors()["stand_ins"].get(method)
    return method if stand_in is None else str(stand_in["method"])


def _known_effect(method: str, train_images: int | None) -> float:
    effect = _effect(method, train_images)
    assert effect is not None, f"accuracy_priors.json has no table with {method}"
    return effect


@lru_cache(maxsize=3)
def _effects(regime: Regime | None) -> Mapping[str, float]:
    """Return the effect of every method in the tables, in log-odds over the linear probe.

    If the regime is not known, all tables have the same weight.
    """
    cells = [
        (t, method, _log_odds(accuracy), _table_weight(table, regime))
        for t, table in enumerate(_priors()["tables"])
        for method, accuracy in table["accuracy"].items()
    ]
    effects = {method: 0.0 for _, method, _, _ in cells}
    for _ in range(10_000):
        levels = _means((t, y - effects[m], 1.0) for t, m, y, _ in cells)
        fitted = _means((m, y - levels[t], w) for t, m, y, w in cells)
        change = max(abs(fitted[m] - effects[m]) for m in effects)
        effects = fitted
        if change < 1e-12:
            break
    return {method: effect - effects["head"] for method, effect in sorted(effects.items())}


def _means(rows: Iterable[tuple[Key, float, float]]) -> dict[Key, float]:
    """Return the weighted mean of each key over rows of (key, value, weight)."""
    sums: dict[Key, tuple[float, float]] = {}
    for key, value, weight in rows:
        total, mass = sums.get(key, (0.0, 0.0))
        sums[key] = total + weight * value, mass + weight
    return {key: total / mass for key, (total, mass) in sums.items()}


def _table_weight(table: Mapping[str, Any], regime: Regime | None) -> float:
    return 1.0 if regime in (None, table["images"]) else OTHER_REGIME_WEIGHT


def _regime(train_images: int | None) -> Regime | None:
    if train_images is None:
        return None
    return "few" if train_images <= FEW_TRAINING_IMAGES else "many"


def _images(data: str, train_images: int | None) -> int | None:
    known: Mapping[str, int] = _priors()["train_images"]
    return train_images if train_images is not None else known.get(data)


def _effective_rank(method: str, rank: int | None) -> int | None:
    entry = _priors()["rank"]
    if method not in entry["methods"]:
        return None
    return rank if rank is not None else int(entry["reference"])


def _rank_step(method: str, rank: int | None) -> float:
    """Return the effect of a rank in log-odds, relative to the reference rank.

    Limitation: the slope comes from the only published pair of ranks, 4 and 8.
    """
    if rank is None:
        return 0.0
    entry = _priors()["rank"]
    (r1, a1), (r2, a2) = ((int(r), a) for r, a in entry["measured"].items())
    slope = (_log_odds(a2) - _log_odds(a1)) / math.log2(r2 / r1)
    low, high = entry["range"]
    return float(slope * math.log2(min(max(rank, low), high) / entry["reference"]))


# ---- sentences ---------------------------------------------------------------------------------


def _effect_source(method: str, train_images: int | None) -> str:
    """Return the tables that a method's effect was fitted to, as one clause."""
    stand_in = _priors()["stand_ins"].get(method)
    if stand_in is not None:
        return f"taken as {stand_in['method']} because {stand_in['reason']}"
    regime = _regime(train_images)
    tables = [t for t in _priors()["tables"] if method in t["accuracy"]]
    near = [t for t in tables if regime in (None, t["images"])] or tables
    return f"{method} against other methods in {' and '.join(t['name'] for t in near)}"


def _no_estimate(reason: str) -> AccuracyEstimate:
    return AccuracyEstimate(value=None, kind=None, source=None, reason=reason)


def _log_odds(accuracy: float) -> float:
    return math.log(accuracy / (1 - accuracy))


@lru_cache(maxsize=1)
def _priors() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(PRIORS.read_text(encoding="utf-8"))
    return data
