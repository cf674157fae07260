"""Fits a class of kernels to single kernels of several boards.

A time is the host's launch, a property of the machine that recorded the table, plus the kernel's.
The kernel takes the sum of its terms, times its curves over its sizes if the class has some
(``profiler.timing.size_curves``), and at least the time that the board's power allows if the class
has a power bound (``profiler.timing.kernel_rates``). Coefficients and bound are found first, so that
they hold for classes that take them without the curves, all by the logarithms of the errors, of
which large ones weigh less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from fit import HUBER, Key, least_of, prior_of
from scipy.optimize import least_squares

from profiler.arrays import Floats
from profiler.timing.kernel_rates import power_bound_factor
from profiler.timing.size_curves import PRODUCT_SIZES

KNOTS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles of the sizes of the fitted kernels."""

COEFFICIENT_RIDGE, CURVE_RIDGE = 0.1, 1.0
"""Draw the logarithms of coefficients to those of their priors, and those of factors to 0, against
thousands of errors."""

Curves = dict[str, dict[str, list[float]]]
"""Sizes and factors by name of ``PRODUCT_SIZES``, as in ``kernel_coefficients.json``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRows:
    """Kernels of a class.

    Attributes:
        terms: [rows, keys] seconds at coefficients of 1, without the launch.
        bound: [rows] least seconds that the power allows, at a bound of 1.
        sizes: [rows, PRODUCT_SIZES] sizes.
        seconds: [rows] measured.
        launch: [rows] seconds of the host's launch.
    """

    terms: Floats
    bound: Floats
    sizes: Floats
    seconds: Floats
    launch: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedKernels:
    """Coefficients of a class.

    Attributes:
        coefficients: [keys] coefficients of the terms.
        bound: coefficient of the power bound; None without one.
        curves: curves over sizes; None without any.
    """

    coefficients: Floats
    bound: float | None
    curves: Curves | None


def fit_rows(
    boards: Sequence[KernelRows], keys: Sequence[Key], *, has_bound: bool, has_curves: bool
) -> FittedKernels:
    """Return the fit of a class to the kernels of all boards."""
    rows = KernelRows(
        terms=np.concatenate([each.terms for each in boards]),
        bound=np.concatenate([each.bound for each in boards]),
        sizes=np.concatenate([each.sizes for each in boards]),
        seconds=np.concatenate([each.seconds for each in boards]),
        launch=np.concatenate([each.launch for each in boards]),
    )
    coefficients, bound = _fit_terms(rows, keys, has_bound=has_bound)
    curves = None
    if has_curves:
        curves = _fit_curves(rows, rows.terms @ coefficients, bound=bound)
    return FittedKernels(coefficients=coefficients, bound=bound, curves=curves)


def _fit_terms(
    rows: KernelRows, keys: Sequence[Key], *, has_bound: bool
) -> tuple[Floats, float | None]:
    """Return [keys] coefficients and the bound, without curves."""
    least = np.array([least_of(key) for key in keys])
    above = np.array([prior_of(key) for key in keys]) - least
    start = np.zeros(len(keys) + has_bound)

    def coefficients(values: Floats) -> Floats:
        found: Floats = least + above * np.exp(values[: len(keys)])
        return found

    def bound(values: Floats) -> float | None:
        return float(np.exp(values[-1])) if has_bound else None

    def residuals(values: Floats) -> Floats:
        errors = _errors(rows, rows.terms @ coefficients(values), bound=bound(values))
        return np.concatenate([errors, COEFFICIENT_RIDGE * values])

    found = _least_squares(residuals, start)
    return coefficients(found), bound(found)


def _fit_curves(rows: KernelRows, base: Floats, *, bound: float | None) -> Curves:
    """Return curves over the sizes by which [rows] seconds at their coefficients are multiplied."""
    knots = [np.unique(np.quantile(size, KNOTS)) for size in rows.sizes.T]
    hats = [_hats(size, at) for size, at in zip(rows.sizes.T, knots, strict=True)]
    weights = np.concatenate(hats, axis=1)

    def residuals(values: Floats) -> Floats:
        errors = _errors(rows, base * np.exp(weights @ values), bound=bound)
        return np.concatenate([errors, CURVE_RIDGE * values])

    found = np.exp(_least_squares(residuals, np.zeros(weights.shape[1])))
    factors = np.split(found, np.cumsum([len(at) for at in knots])[:-1])
    return {
        name: {"sizes": _rounded(at), "factors": _rounded(factor)}
        for name, at, factor in zip(PRODUCT_SIZES, knots, factors, strict=True)
    }


def _least_squares(residuals: Callable[[Floats], Floats], start: Floats) -> Floats:
    found: Floats = least_squares(residuals, start, loss="soft_l1", f_scale=HUBER, max_nfev=60).x
    return found


def _errors(rows: KernelRows, seconds: Floats, *, bound: float | None) -> Floats:
    """Return [rows] logarithms of predicted over measured times."""
    if bound is not None:
        seconds = seconds * power_bound_factor(seconds, bound * rows.bound)
    found: Floats = np.log((rows.launch + seconds) / rows.seconds)
    return found


def _hats(sizes: Floats, knots: Floats) -> Floats:
    """Return [sizes, knots] weights of the knots in an interpolation of logarithms."""
    unit = np.eye(len(knots))
    return np.stack([np.interp(np.log(sizes), np.log(knots), row) for row in unit], axis=1)


def _rounded(values: Floats) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
