"""Ranks methods by published comparisons on the same family of backbones and amount of images.

    method_evidence   the comparisons of a method, and its tier
    relative_score    the tier as a number that orders candidates; it is not an accuracy

A method beats another if, over the tables of the family and regime that have both, it is nowhere
lower, somewhere higher by more than ``MARGIN``, and itself in at least two tables (in the only one,
if there is one). A success on one benchmark thus never outranks methods that were compared more
often. Methods that no method beats form the first tier. The second tier is made in the same way of
the rest, and so on. Methods of a tier are expected to be equally accurate.

Methods without a comparison on the family and regime come last, all in one tier. If the family has
no comparison at all, ``full`` comes first and ``head`` second, which is the common practice and no
published result.

Ranks and widths have nearly no effect: the only published pair (LoRA of rank 4 and 8 on ViT-S)
differs by 0.004 in log-odds. No table was found for precision, micro-batch or checkpointing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any

from planner.scoring.published_tables import (
    MARGIN,
    Regime,
    comparable_tables,
    compared_family,
    images_of,
    log_odds,
    method_effects,
    priors,
    regime_of,
    table_name,
)

TIE_SLACK = 0.05
"""Log-odds by which a method may be lower in a table and still beat another in the others."""

TABLES_TO_WIN = 2
"""Tables in which a method must stand to beat another, if there are as many."""

FAMILY_WORDS = {
    "vit": "Vision Transformers",
    "vim": "Vim",
    "conv": "convolutional backbones with BatchNorm",
}
"""Families of backbones in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodEvidence:
    """The published comparisons that place a method on a backbone.

    Attributes:
        tier: 1 for the methods that no other method beats, and so on.
        score: the tier as a number in log-odds, the same for all methods of the tier.
        tables: names of the tables that have the method.
        effect: mean log-odds over a linear probe in these tables; None without a table.
        strength: the strength of the evidence in words.
        reason: one clause: the origin of the tier.
    """

    tier: int
    score: float
    tables: tuple[str, ...]
    effect: float | None
    strength: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RelativeScore:
    """A number that orders candidates that share backbone and data set.

    Attributes:
        value: the score of the method's tier and the small effect of the rank. With random weights
            it is the logarithm of the number of trainable parameters instead.
        reason: one clause: the origin of the value.
    """

    value: float
    reason: str


TRAINS_ALL, ALL_PARAMETERS = frozenset({"full", "galore"}), 20.0
"""Methods that train all parameters, and what that adds to a score of random weights: more than the
logarithm of any number of parameters."""


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

    Published effects do not apply to random weights (MambaPEFT, arXiv 2411.03855, has only full
    training from scratch). Methods that train all parameters then rank first, because the others
    keep random ones; of the others those with more trainable parameters (an assumption).

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
        size = math.log10(1 + (trainable_parameters or 0))
        return RelativeScore(
            value=size + (ALL_PARAMETERS if method in TRAINS_ALL else 0.0),
            reason="random weights: all parameters first, then by their number (an assumption)",
        )
    evidence = method_evidence(model=model, method=method, data=data, train_images=train_images)
    step = rank_step(method, effective_rank(method, rank))
    return RelativeScore(value=evidence.score + step, reason=evidence.reason)


def method_evidence(
    *, model: str, method: str, data: str = "", train_images: int | None = None
) -> MethodEvidence:
    """Return the comparisons that place a method on a backbone.

    Args:
        model: canonical backbone name.
        method: name of the method.
        data: name of a data set, for its number of training images.
        train_images: number of training images; None for that of a named data set.
    """
    images = images_of(data, train_images)
    family, regime = compared_family(model), regime_of(images)
    tiers = _tiers(family, regime)
    name = table_name(method)
    if name not in tiers:
        return _without_comparison(model, method, family, regime)
    tier, score = tiers[name]
    tables = [t for t in comparable_tables(family, regime) if name in t["accuracy"]]
    stand_in = priors()["stand_ins"].get(method)
    if stand_in is None:
        strength = _strength(model, tables)
        reason = f"{method} against other methods in {' and '.join(t['name'] for t in tables)}"
    else:
        strength = f"indirect: taken as {stand_in['method']}"
        reason = f"taken as {stand_in['method']} because {stand_in['reason']}"
    return MethodEvidence(
        tier=tier,
        score=score,
        tables=() if stand_in is not None else tuple(t["name"] for t in tables),
        effect=method_effects(family, regime)[name],
        strength=strength,
        reason=reason,
    )


def never_below(method: str, other: str, *, model: str, train_images: int | None) -> bool:
    """Return whether a method is in no shared table below another by more than the margin.

    Two methods that share no table are not known to be so, unless the family has no comparison of
    either: then nothing sets one above the other.
    """
    first, second = table_name(method), table_name(other)
    family, regime = compared_family(model), regime_of(train_images)
    differences = _differences(first, second, family, regime)
    if not differences:
        tables = comparable_tables(family, regime)
        return not any({first, second} & table["accuracy"].keys() for table in tables)
    return all(difference >= -margin for difference, margin in differences)


def _strength(model: str, tables: list[dict[str, Any]]) -> str:
    words = "strong" if len(tables) >= TABLES_TO_WIN else "weak"
    return f"{words}: {len(tables)} {'comparison' if len(tables) == 1 else 'comparisons'} on " + (
        FAMILY_WORDS.get(compared_family(model) or "", "this family")
    )


def _without_comparison(
    model: str, method: str, family: str | None, regime: Regime | None
) -> MethodEvidence:
    """Return the place of a method that was not compared on the family and regime."""
    tiers = _tiers(family, regime)
    where = f"{FAMILY_WORDS.get(family or '', f'backbones like {model}')}"
    where += "" if regime is None else f" with {regime} images"
    reason = f"no published comparison of {method} on {where}"
    if tiers:
        last = max(tier for tier, _ in tiers.values())
        lowest = min(score for _, score in tiers.values())
        tier, score = last + 1, lowest - 2 * MARGIN
    else:
        tier, score = {"full": (1, 2 * MARGIN), "head": (2, 0.0)}.get(method, (3, -2 * MARGIN))
        if tier < 3:
            reason += "; full training, then the linear probe, are the common practice"
    return MethodEvidence(
        tier=tier, score=score, tables=(), effect=None, strength="none", reason=reason
    )


@lru_cache(maxsize=16)
def _tiers(family: str | None, regime: Regime | None) -> Mapping[str, tuple[int, float]]:
    """Return tier and score of every method in the tables; scores fall by at least the margin."""
    effects = method_effects(family, regime)
    left, found = set(effects), dict[str, tuple[int, float]]()
    previous = math.inf
    for tier in count(1):
        if not left:
            return found
        best = {m for m in left if not any(_beats(n, m, family, regime) for n in left)}
        best = best or set(left)
        score = min(previous - MARGIN, sum(effects[m] for m in best) / len(best))
        found |= {method: (tier, score) for method in best}
        left, previous = left - best, score
    raise AssertionError("unreachable")


def _beats(first: str, second: str, family: str | None, regime: Regime | None) -> bool:
    tables = comparable_tables(family, regime)
    breadth = sum(first in table["accuracy"] for table in tables)
    differences = _differences(first, second, family, regime)
    return (
        breadth >= min(TABLES_TO_WIN, len(tables))
        and bool(differences)
        and all(difference >= -TIE_SLACK for difference, _ in differences)
        and any(difference > margin for difference, margin in differences)
    )


def _differences(
    first: str, second: str, family: str | None, regime: Regime | None
) -> list[tuple[float, float]]:
    """Return (difference, margin) in log-odds of two methods in each table that has both."""
    return [
        (log_odds(cells[first]) - log_odds(cells[second]), table.get("margin", MARGIN))
        for table in comparable_tables(family, regime)
        if first in (cells := table["accuracy"]) and second in cells
    ]


# ---- ranks ---------------------------------------------------------------------------------------


def effective_rank(method: str, rank: int | None) -> int | None:
    """Return the rank of a method of the LoRA family, 8 if none is given; None for others."""
    entry = priors()["rank"]
    if method not in entry["methods"]:
        return None
    return rank if rank is not None else int(entry["reference"])


def rank_step(method: str, rank: int | None) -> float:
    """Return the effect of a rank in log-odds, relative to the reference rank.

    Limitation: the slope comes from the only published pair of ranks, 4 and 8.
    """
    if rank is None:
        return 0.0
    entry = priors()["rank"]
    (r1, a1), (r2, a2) = ((int(r), a) for r, a in entry["measured"].items())
    slope = (log_odds(a2) - log_odds(a1)) / math.log2(r2 / r1)
    low, high = entry["range"]
    return float(slope * math.log2(min(max(rank, low), high) / entry["reference"]))
