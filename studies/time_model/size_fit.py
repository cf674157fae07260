"""Fits the size curves of a class of kernels to single kernels of several boards.

First the coefficients of the terms, without a launch, to kernels that take clearly longer than the
host's launch, less that launch. Then the curves (``profiler.timing.size_curves``), with the launch
added again, to all kernels, in relative errors of which large ones weigh less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from fit import HUBER, Key, fit
from scipy.optimize import least_squares

from profiler.arrays import Floats
from profiler.timing.size_curves import PRODUCT_SIZES

KNOTS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles of the sizes of the fitted kernels."""

RIDGE = 1.0
"""Draws the logarithm of every factor to 0, against thousands of errors."""

LEAST_OVER_LAUNCH = 1.5
"""Kernels that the coefficients are fitted to take at least this multiple of the launch."""


Curves = dict[str, dict[str, list[float]]]
"""Sizes and factors by name of ``PRODUCT_SIZES``, as in ``kernel_coefficients.json``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SizedRows:
    """Kernels of a board.

    Attributes:
        terms: [rows, keys] seconds at coefficients of 1, without the launch.
        sizes: [rows, PRODUCT_SIZES] sizes.
        seconds: [rows] measured.
        launch: seconds of the host's launch.
    """

    terms: Floats
    sizes: Floats
    seconds: Floats
    launch: float


def fit_sized(boards: Sequence[SizedRows], keys: Sequence[Key]) -> tuple[Floats, Curves]:
    """Return [keys] coefficients of the terms and the curves, fitted to all boards."""
    terms = np.concatenate([rows.terms for rows in boards])
    seconds = np.concatenate([rows.seconds for rows in boards])
    sizes = np.concatenate([rows.sizes for rows in boards])
    launch = np.concatenate([np.full(len(rows.seconds), rows.launch) for rows in boards])
    is_long = seconds > LEAST_OVER_LAUNCH * launch
    coefficients = fit(terms[is_long], (seconds - launch)[is_long], keys)
    knots = [np.unique(np.quantile(size, KNOTS)) for size in sizes.T]
    weights = np.concatenate([_hats(*pair) for pair in zip(sizes.T, knots, strict=True)], axis=1)
    base = terms @ coefficients

    def residuals(values: Floats) -> Floats:
        errors = np.log((launch + base * np.exp(weights @ values)) / seconds)
        return np.concatenate([errors, RIDGE * values])

    def slopes(values: Floats) -> Floats:
        kernel = base * np.exp(weights @ values)
        rows = weights * (kernel / (launch + kernel))[:, None]
        return np.concatenate([rows, RIDGE * np.eye(len(values))])

    start = np.zeros(weights.shape[1])
    found = least_squares(residuals, start, jac=slopes, loss="soft_l1", f_scale=HUBER).x
    factors = np.split(np.exp(found), np.cumsum([len(k) for k in knots])[:-1])
    curves = {
        name: {"sizes": _rounded(at), "factors": _rounded(factor)}
        for name, at, factor in zip(PRODUCT_SIZES, knots, factors, strict=True)
    }
    return coefficients, curves


def _hats(sizes: Floats, knots: Floats) -> Floats:
    """Return [sizes, knots] weights of the knots in an interpolation of logarithms."""
    unit = np.eye(len(knots))
    return np.stack([np.interp(np.log(sizes), np.log(knots), row) for row in unit], axis=1)


def _rounded(values: Floats) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
