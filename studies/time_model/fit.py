"""Least squares of step times over the terms of kernels, and its cross-validation by family.

The seconds of a step are linear in the coefficients (``profiler.timing.kernel_terms``), so a
non-negative least-squares problem in relative errors finds them. Three things keep the fit physical:

- every coefficient is drawn to a prior of the same size for all kernels of a kind, which decides
  where the runs say nothing;
- elementwise kernels, copies and reductions take at least the time that the bandwidth allows;
- outliers are weighted down (Huber, by reweighting).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import nnls

from profiler.arrays import Floats
from profiler.timing.kernel_terms import SLOTS, kernel_terms, slot_keys

Key = tuple[str, str]

RIDGE, HUBER, ROUNDS, FOLDS = 0.05, 0.05, 12, 5

RECORDED = "recorded"
"""First word of the classes of the host's launches in a table of single kernels. Their terms are
the least time of the table."""

PRIORS = {
    "flops": 0.3,
    "tile": 0.8,
    "unaligned": 0.5,
    "reread": 1.0,
    "bytes": 1.3,
    "short": 0.4,
    "waves": 0.6,
    "few": 0.3,
    "launch": 4e-6,
    "values": 3.0,
}
"""Coefficients by term before any run is seen."""

AT_LEAST_THE_BANDWIDTH = (
    "add", "mul", "relu", "activation", "elementwise", "copy", "cat", "softmax", "layer_norm",
    "group_norm", "optimizer", "pool",
)  # fmt: skip


def prior_of(key: Key) -> float:
    """Return the prior of a coefficient."""
    kind, term = key
    if kind.startswith(RECORDED):
        return 1.0
    if "depthwise" in kind and term == "flops":
        return 6.0
    if kind.startswith("attention") and term == "flops":
        return 2.0
    if term != "bytes":
        return PRIORS[term]
    if kind.startswith(("pool_backward", "gather")):
        return 3.0
    return 1.8 if "strided" in kind and "depthwise" not in kind else PRIORS[term]


def least_of(key: Key) -> float:
    """Return the lower bound of a coefficient."""
    kind, term = key
    return 1.0 if term == "bytes" and kind.startswith(AT_LEAST_THE_BANDWIDTH) else 0.0


def terms_of(row: Mapping[str, Any], rates: Mapping[str, float], blocks: int) -> dict[Key, float]:
    """Return the sums of a run's terms, in seconds at a coefficient of 1."""
    operations = row["operations"]
    names = sorted({op[2] for op in operations})
    index = np.array([names.index(op[2]) for op in operations])
    terms = kernel_terms(
        names,
        index,
        dims=np.array([op[3] for op in operations], dtype=float),
        moved_bytes=np.array([op[5] for op in operations], dtype=float),
        launches=np.array([op[6] for op in operations]),
        multiprocessors=blocks,
    )
    by_name = np.zeros((len(names), SLOTS))
    np.add.at(by_name, index, terms * np.array([op[7] for op in operations], dtype=float)[:, None])
    found: dict[Key, float] = {}
    for name, sums in zip(names, by_name, strict=True):
        for slot, value in zip(slot_keys(name), sums, strict=True):
            if slot.kernel_class and value:
                key = (slot.kernel_class, slot.term)
                found[key] = found.get(key, 0.0) + value / rates[slot.rate.value]
    if row["key"].startswith("train"):
        # SGD with weight decay and Nesterov momentum, one kernel at a time as in torch 1.12:
        # 14 passes over fp32 parameters in 5 kernels
        found["optimizer", "bytes"] = row["parameters"] * 14 * 4 / rates["bytes"]
        found["optimizer", "launch"] = float(5 * row["tensors"])
    return found


def matrix_of(runs: Sequence[Mapping[Key, float]]) -> tuple[Floats, list[Key]]:
    """Return [runs, keys] sums and the keys."""
    keys = sorted({key for run in runs for key in run})
    return np.array([[run.get(key, 0.0) for key in keys] for run in runs]), keys


def fit(sums: Floats, seconds: Floats, keys: Sequence[Key]) -> Floats:
    """Return [keys] coefficients for [runs, keys] sums and [runs] measured seconds."""
    prior = np.array([prior_of(key) for key in keys])
    least = np.array([least_of(key) for key in keys])
    scaled = sums * prior / seconds[:, None]
    rest = 1.0 - sums @ least / seconds
    pull = RIDGE * (1.0 - least / prior)
    weight = np.ones(len(seconds))
    found = least
    for _ in range(ROUNDS):
        rows = np.vstack([scaled * weight[:, None], RIDGE * np.eye(len(keys))])
        above, _ = nnls(rows, np.concatenate([rest * weight, pull]), maxiter=50_000)
        found = least + prior * above
        errors = np.abs(np.log(np.maximum(sums @ found / seconds, 1e-3)))
        weight = np.sqrt(HUBER / np.maximum(errors, HUBER))
    return found


def family_of(model: str) -> str:
    """Return a model's family: the first word of its name, without names of weights' origins."""
    name = re.sub(
        r"^(tf|legacy|gluon|ssl|swsl|adv|tv|jx|ig|ese|nf|eca)_", "", model.split(".", maxsplit=1)[0]
    )
    found = re.match(r"[a-z]+", name)
    return found.group(0) if found else name


def left_out(
    sums: Floats, seconds: Floats, keys: Sequence[Key], families: Sequence[str], *, seed: int = 0
) -> Floats:
    """Return [families] predictions, each by a fit without the run's family.

    Args:
        sums: [runs, keys] sums. Runs behind those with a family are in all fits.
        seconds: [runs] measured seconds.
        keys: [keys] keys of the coefficients.
        families: family of each of the first runs.
        seed: seed of the partition into folds.
    """
    names = sorted(set(families))
    np.random.default_rng(seed).shuffle(names)
    predicted = np.zeros(len(families))
    always = np.ones(len(seconds) - len(families), dtype=bool)
    for fold in range(FOLDS):
        out = np.array([family in set(names[fold::FOLDS]) for family in families])
        known = np.concatenate([~out, always])
        predicted[out] = sums[: len(out)][out] @ fit(sums[known], seconds[known], keys)
    return predicted


def errors_of(predicted: Floats, measured: Floats, batch: Floats | None = None) -> dict[str, float]:
    """Return median and 90th percentile of absolute errors, bias, and tau of images per second."""
    from scipy.stats import kendalltau

    ratio = predicted / measured
    found = {
        "rows": len(ratio),
        "median_error": round(float(np.median(np.abs(ratio - 1))), 4),
        "p90_error": round(float(np.quantile(np.abs(ratio - 1), 0.9)), 4),
        "bias": round(float(np.median(ratio)) - 1, 4),
    }
    if batch is not None:
        tau = kendalltau(batch / predicted, batch / measured)[0]
        found["tau_images_per_second"] = round(float(tau), 4)
    return found


def tau_with_errors_of(
    predicted: Floats, measured: Floats, batch: Floats, *, scale: float
) -> float:
    """Return Kendall's tau of images/s if the errors were those of other models.

    The mean over shuffled errors, multiplied by ``scale`` in logarithms: what tau follows from the
    size of the errors alone.
    """
    from scipy.stats import kendalltau

    errors = np.log(predicted / measured)
    rng = np.random.default_rng(0)
    taus = [
        kendalltau(batch / measured, batch / measured * np.exp(scale * rng.permutation(errors)))[0]
        for _ in range(20)
    ]
    return round(float(np.mean(taus)), 4)
