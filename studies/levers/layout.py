"""Factors of channels-last on the time of kernels, fitted to timm's two tables of training runs.

The ratio of a model's two step times is predicted as a sum over classes of kernels: the share of
the step's predicted time that a class takes, times the class's factor. The shares are those of the
product's kernel rates on the RTX 3090. Kernels without an order of dimensions have the factor 1.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from profiler.arrays import Floats
from profiler.devices.table import device_spec
from profiler.timing.kernel_rates import kernel_file
from profiler.timing.lever_factors import UNALIGNED, UNFITTED, is_unaligned, layout_class

CLASSES = ("dense", "pointwise", UNALIGNED, "depthwise", "batch_norm", UNFITTED)

RIDGE, HUBER, ROUNDS, FOLDS = 0.03, 0.05, 12, 5

COVERAGE = 0.9

Row = Mapping[str, Any]


def measured_ratios(folder: Path) -> dict[str, float]:
    """Return seconds with channels last over seconds with channels first, by key of a replay."""
    seconds: dict[str, dict[str, float]] = {}
    for order in ("nchw", "nhwc"):
        with (folder / f"timm_train_amp_{order}_rtx3090.csv").open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["train_step_time"]:
                    key = f"train {row['model']} {row['train_batch_size']} {row['train_img_size']}"
                    seconds.setdefault(key, {})[order] = float(row["train_step_time"])
    return {key: v["nhwc"] / v["nchw"] for key, v in seconds.items() if len(v) == 2}


def shares_of(row: Row) -> Floats:
    """Return [CLASSES + 1] shares of a step's predicted time; the last is that of all others."""
    operations = row["operations"]
    names = sorted({op[2] for op in operations})
    rates = kernel_file().rates(device_spec("rtx-3090"), "fp16")
    assert rates is not None
    parts = rates.parts(
        names,
        np.array([names.index(op[2]) for op in operations]),
        dims=np.array([op[3] for op in operations], dtype=float),
        moved_bytes=np.array([op[5] for op in operations], dtype=float),
        launches=np.array([op[6] for op in operations]),
    )
    seconds = parts.sum(axis=1) * np.array([op[7] for op in operations], dtype=float)
    found = np.zeros(len(CLASSES) + 1)
    for op, value in zip(operations, seconds, strict=True):
        name = layout_class(op[2])
        if name in ("dense", "pointwise") and is_unaligned(np.array([op[3]]))[0]:
            name = UNALIGNED
        found[CLASSES.index(name) if name else -1] += value
    # the update of timm's benchmark: 14 passes over fp32 parameters (studies/time_model)
    found[-1] += row["parameters"] * 14 * 4 / rates.bytes_per_second
    shares: Floats = found / found.sum()
    return shares


def fit(shares: Floats, ratios: Floats) -> Floats:
    """Return [CLASSES] factors by least squares in relative errors, outliers weighted down."""
    weight = np.ones(len(ratios))
    factors = np.ones(len(CLASSES))
    for _ in range(ROUNDS):
        rows = shares[:, :-1] / ratios[:, None] * weight[:, None]
        target = (1.0 - shares[:, -1] / ratios) * weight
        pull = RIDGE * np.sqrt(len(ratios)) * np.eye(len(CLASSES))
        factors, _ = nnls(
            np.vstack([rows, pull]),
            np.concatenate([target, pull @ np.ones(len(CLASSES))]),
            maxiter=10_000,
        )
        errors = np.abs(np.log(predict(shares, factors) / ratios))
        weight = np.sqrt(HUBER / np.maximum(errors, HUBER))
    return factors


def predict(shares: Floats, factors: Floats) -> Floats:
    """Return [runs] predicted ratios."""
    predicted: Floats = shares[:, :-1] @ factors + shares[:, -1]
    return predicted


def family_of(model: str) -> str:
    """Return a model's family as studies/time_model does: its first word."""
    name = re.sub(r"^(tf|legacy|gluon|ssl|swsl|adv|tv|jx|ig|ese|nf|eca)_", "", model)
    found = re.match(r"[a-z]+", name)
    return found.group(0) if found else name


def left_out(shares: Floats, ratios: Floats, families: Sequence[str], *, seed: int) -> Floats:
    """Return [runs] predictions, each by a fit without the run's family."""
    names = sorted(set(families))
    np.random.default_rng(seed).shuffle(names)
    predicted = np.zeros(len(ratios))
    for fold in range(FOLDS):
        out = np.array([family in set(names[fold::FOLDS]) for family in families])
        predicted[out] = predict(shares[out], fit(shares[~out], ratios[~out]))
    return predicted
