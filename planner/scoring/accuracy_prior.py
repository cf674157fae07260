"""What is expected of a method's accuracy before anything is run, and how far that can be trusted.

    estimate         a fraction where published numbers allow one, else None; with its reason
    relative_score   a number to rank candidates by; an ordering only, never shown as accuracy

An estimate is ``published`` when backbone weights, method, rank and data set are those of a
published result. Otherwise it is a ``prior``: the nearest published result on the *same data set*,
moved in log-odds by the difference of the methods' effects, by the rank, and by the difference of
the backbones' ImageNet log-odds (transfer accuracy follows ImageNet accuracy about linearly in
log-odds: Kornblith, Shlens and Le 2019, arXiv:1805.08974; a slope of 1 is our assumption). No data
set without a published result has a value. Nothing here is a measurement.

The effects come from tables of methods on one backbone and benchmark each. A cell is modelled as
log-odds(accuracy) = benchmark + method (least squares by alternating means, linear probe at 0), so
that methods which share no table are compared through those they share one with. Full fine-tuning
loses to small adapters on 1,000 images and wins or ties on many, so the tables of the regime
at hand count twenty times those of the other: ``few`` up to 5,000 training images, else ``many``.

No table was found for precision, optimizer, batch size or checkpointing, so none has an effect
here. The numbers, each with its source, are in ``accuracy_priors.json``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

Kind = Literal["published", "prior"]

Regime = Literal["few", "many"]

Key = TypeVar("Key", bound=Hashable)

# VTAB-1k has 1,000 training images a task, most FGVC tasks and CIFAR-100 more than 5,000
FEW_IMAGES = 5_000

# weight of the other regime's tables: enough to place a method that only they hold
OTHER_REGIME_WEIGHT = 0.05

PRIORS = Path(__file__).with_name("accuracy_priors.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyEstimate:
    """An expected accuracy that nobody here has measured.

    Attributes:
        value: fraction of held-out images, or None where nothing is known.
        kind: ``published`` for the very configuration, ``prior`` when derived; None without value.
        source: where the numbers come from; None without value.
        reason: one sentence: how the value came about, or why there is none.
    """

    value: float | None
    kind: Kind | None
    source: str | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a plan file."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class RelativeScore:
    """A place in an ordering of candidates of one backbone and one data set.

    Attributes:
        value: larger is expected to be more accurate; the gain over a linear probe in log-odds.
        reason: one sentence.
    """

    value: float
    reason: str


def estimate(
    *,
    model: str,
    method: str,
    data: str,
    rank: int | None = None,
    pretrained: bool = True,
    train_images: int | None = None,
) -> AccuracyEstimate:
    """Return the accuracy to expect, or say why none can be named.

    Args:
        model: canonical backbone name, with or without timm's tag of the weights.
        method: ``full``, ``head``, ``lora``, ...
        data: ``cifar100``, ``dtd``, ``digits`` or a folder.
        rank: of a low-rank method; None means 8, the usual one.
        pretrained: whether the backbone has its pretrained weights.
        train_images: size of the training set; known for the named data sets.
    """
    if not pretrained:
        return _nothing("the weights are random and every published number is of pretrained ones")
    weights, rank = _weights(model), _effective_rank(method, rank)
    known = [entry for entry in _priors()["published"] if entry["data"] == data]
    if not known:
        return _nothing(f"no published accuracy on {data} was found")
    for entry in known:
        if (entry["model"], entry["method"], entry["rank"]) == (weights, method, rank):
            return AccuracyEstimate(
                value=entry["accuracy"],
                # a note says that the number was not printed as such, but read from a range
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
    """Return a number to rank the methods of one backbone by: an ordering only.

    Where ``estimate`` has a value the order is that of the estimates. With random weights the
    published effects say nothing, and what trains more parameters ranks higher (MambaPEFT's tables
    have only full training from scratch).

    Args:
        model: canonical backbone name.
        method: ``full``, ``head``, ``lora``, ...
        data: the data set, for the regime when ``train_images`` is not given.
        rank: of a low-rank method; a higher one ranks slightly higher.
        pretrained: whether the backbone has its pretrained weights.
        train_images: size of the training set.
        trainable_parameters: used only with random weights.
    """
    if not pretrained:
        return RelativeScore(
            value=math.log10(1 + (trainable_parameters or 0)),
            reason="random weights: ordered by the number of trainable parameters, an assumption",
        )
    images = _images(data, train_images)
    guess = estimate(model=model, method=method, data=data, rank=rank, train_images=images)
    probe = estimate(model=model, method="head", data=data, train_images=images)
    if guess.value is not None and probe.value is not None:
        return RelativeScore(
            value=_log_odds(guess.value) - _log_odds(probe.value), reason=guess.reason
        )
    effect = _effect(method, images)
    if effect is not None:
        step = _rank_step(method, _effective_rank(method, rank))
        return RelativeScore(value=effect + step, reason=_because(method, images))
    return _assumed(method, images)


# ---- ranking what no table holds ---------------------------------------------------------------


def _assumed(method: str, images: int | None) -> RelativeScore:
    """Place a method without a table: between two that it lies between, else in the middle."""
    family = "partial_k" if method.startswith("partial_") else method
    between = _priors()["between"].get(family)
    if between is not None:
        low, high = between["methods"]
        return RelativeScore(
            value=(_known_effect(low, images) + _known_effect(high, images)) / 2,
            reason=f"no table was found for {method}; placed midway between {low} and {high} "
            f"because {between['reason']}, an assumption",
        )
    effects = sorted(_effects(_regime(images)).values())
    return RelativeScore(
        value=effects[len(effects) // 2],
        reason=f"nothing is known of {method}; placed at the median of the known methods",
    )


# ---- deriving a value --------------------------------------------------------------------------


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
        return _nothing(f"no published comparison of {method} with other methods was found")
    usable = [e for e in known if _level_step(e["model"], weights) is not None]
    if not usable:
        return _nothing(f"neither this data set nor ImageNet has a known accuracy of {weights}")
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
        reason=_path(anchor, weights, method, rank, train_images),
    )


def _path(
    anchor: dict[str, Any], weights: str, method: str, rank: int | None, train_images: int | None
) -> str:
    """Tell in one sentence how the anchor became the estimate."""
    at = f" r={anchor['rank']}" if anchor["rank"] else ""
    text = f"from {anchor['accuracy']:.1%} published for {anchor['method']}{at}"
    steps = []
    if anchor["model"] != weights:
        text += f" of {anchor['model']}"
        steps.append("moved by the backbones' ImageNet accuracies")
    if anchor["method"] != method:
        steps.append(_because(method, train_images))
    if _rank_step(anchor["method"], anchor["rank"]) != _rank_step(method, rank):
        steps.append("moved by the small effect of the rank")
    return "; ".join([text, *steps])


def _level_step(origin: str, target: str) -> float | None:
    """Return the difference of ImageNet log-odds; None when a backbone is not in the table."""
    if origin == target:
        return 0.0
    top1: Mapping[str, float] = _priors()["imagenet"]["top1"]
    if origin not in top1 or target not in top1:
        return None
    return _log_odds(top1[target]) - _log_odds(top1[origin])


def _weights(model: str) -> str:
    """Return the name with its tag: a bare timm name means the default weights."""
    tag = _priors()["default_weights"]["tags"].get(model)
    return model if tag is None else f"{model}.{tag}"


# ---- effects of methods ------------------------------------------------------------------------


def _effect(method: str, train_images: int | None) -> float | None:
    """Return the log-odds gain over a linear probe, or None when no table or stand-in has it."""
    return _effects(_regime(train_images)).get(_table_name(method))


def _table_name(method: str) -> str:
    """Return the method whose numbers stand for this one: nearly always itself."""
    stand_in = _priors()["stand_ins"].get(method)
    return method if stand_in is None else str(stand_in["method"])


def _known_effect(method: str, train_images: int | None) -> float:
    effect = _effect(method, train_images)
    assert effect is not None, f"accuracy_priors.json has no table with {method}"
    return effect


@lru_cache(maxsize=3)
def _effects(regime: Regime | None) -> Mapping[str, float]:
    """Fit log-odds = table + method; weights by regime, all tables alike when it is not known."""
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
    """Return the weighted mean of each key over (key, value, weight)."""
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
    return "few" if train_images <= FEW_IMAGES else "many"


def _images(data: str, train_images: int | None) -> int | None:
    known: Mapping[str, int] = _priors()["train_images"]
    return train_images if train_images is not None else known.get(data)


def _effective_rank(method: str, rank: int | None) -> int | None:
    entry = _priors()["rank"]
    if method not in entry["methods"]:
        return None
    return rank if rank is not None else int(entry["reference"])


def _rank_step(method: str, rank: int | None) -> float:
    """Log-odds per doubling of the rank, as far as the one published pair of ranks tells."""
    if rank is None:
        return 0.0
    entry = _priors()["rank"]
    (r1, a1), (r2, a2) = ((int(r), a) for r, a in entry["measured"].items())
    slope = (_log_odds(a2) - _log_odds(a1)) / math.log2(r2 / r1)
    low, high = entry["range"]
    return float(slope * math.log2(min(max(rank, low), high) / entry["reference"]))


# ---- words -------------------------------------------------------------------------------------


def _because(method: str, train_images: int | None) -> str:
    """Name the tables behind a method's effect."""
    stand_in = _priors()["stand_ins"].get(method)
    if stand_in is not None:
        return f"taken as {stand_in['method']} because {stand_in['reason']}"
    regime = _regime(train_images)
    tables = [t for t in _priors()["tables"] if method in t["accuracy"]]
    near = [t for t in tables if regime in (None, t["images"])] or tables
    return f"{method} against other methods in {' and '.join(t['name'] for t in near)}"


def _nothing(reason: str) -> AccuracyEstimate:
    return AccuracyEstimate(value=None, kind=None, source=None, reason=reason)


def _log_odds(accuracy: float) -> float:
    return math.log(accuracy / (1 - accuracy))


@lru_cache(maxsize=1)
def _priors() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(PRIORS.read_text(encoding="utf-8"))
    return data
