"""Fits a class of kernels to single kernels of several boards.

A time is the host's launch, a property of the machine that recorded the table, plus the kernel's.
The kernel takes the sum of its terms, times its curves over its sizes if the class has some
(``profiler.timing.size_curves``), and at least the time that the board's power allows if the class
has a power bound (``profiler.timing.kernel_rates``). Coefficients, bound and curves are found
together, by the logarithms of the errors, of which large ones weigh less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from fit import HUBER, Key, least_of, prior_of
from scipy.optimize import least_squares

from profiler.arrays import Floats
from profiler.timing.kernel_rates import power_bound_factor
from profiler.timing.size_curves import PRODUCT_SIZES

KNOTS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles of the sizes of the fitted kernels."""

COEFFICIENT_RIDGE, CURVE_RIDGE = 0.1, 10.0
"""Draw the logarithms of coefficients to those of their priors, and those of factors to 0, against
thousands of errors."""

Curves = dict[str, dict[str, list[float]]]
"""Sizes and factors by name of ``PRODUCT_SIZES``, as in ``kernel_coefficients.json``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRows:
    """Kernels of a board.

    Attributes:
        terms: [rows, keys] seconds at coefficients of 1, without the launch.
        bound: [rows] least seconds that the power allows, at a bound of 1.
        sizes: [rows, PRODUCT_SIZES] sizes.
        seconds: [rows] measured.
        launch: seconds of the host's launch.
    """

    terms: Floats
    bound: Floats
    sizes: Floats
    seconds: Floats
    launch: float


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
    seconds = np.concatenate([rows.seconds for rows in boards])
    launch = np.concatenate([np.full(len(rows.seconds), rows.launch) for rows in boards])
    sizes = np.concatenate([rows.sizes for rows in boards])
    knots = [np.unique(np.quantile(size, KNOTS)) for size in sizes.T] if has_curves else []
    least = np.array([least_of(key) for key in keys])
    above = np.array([prior_of(key) for key in keys]) - least
    model = _Model(
        terms=np.concatenate([rows.terms for rows in boards]),
        least=least,
        above=above,
        bound=np.concatenate([rows.bound for rows in boards]) if has_bound else None,
        hats=np.concatenate([_hats(*pair) for pair in zip(sizes.T, knots, strict=True)], axis=1)
        if has_curves
        else np.zeros((len(seconds), 0)),
    )
    ridge = np.full(model.parameters, COEFFICIENT_RIDGE)
    ridge[model.first_curve :] = CURVE_RIDGE

    def residuals(values: Floats) -> Floats:
        errors = np.log((launch + model.seconds(values)) / seconds)
        return np.concatenate([errors, ridge * values])

    start = np.zeros(model.parameters)
    found = least_squares(residuals, start, loss="soft_l1", f_scale=HUBER, max_nfev=60).x
    factors = np.split(
        np.exp(found[model.first_curve :]), np.cumsum([len(each) for each in knots])[:-1]
    )
    curves = {
        name: {"sizes": _rounded(at), "factors": _rounded(factor)}
        for name, at, factor in zip(PRODUCT_SIZES, knots, factors, strict=True)
    } if has_curves else None  # fmt: skip
    return FittedKernels(
        coefficients=least + above * np.exp(found[: len(keys)]),
        bound=float(np.exp(found[len(keys)])) if has_bound else None,
        curves=curves,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """Seconds of kernels without their launch, as a function of logarithms.

    The parameters are those of the coefficients above their least values over the priors', of the
    bound if there is one, and of the factors at the knots.

    Attributes:
        terms: [rows, keys] as in `KernelRows`.
        least: [keys] least coefficients.
        above: [keys] priors above them.
        bound: [rows] as in `KernelRows`; None without a bound.
        hats: [rows, knots] weights of the factors.
    """

    terms: Floats
    least: Floats
    above: Floats
    bound: Floats | None
    hats: Floats

    @property
    def first_curve(self) -> int:
        return len(self.least) + (self.bound is not None)

    @property
    def parameters(self) -> int:
        return self.first_curve + self.hats.shape[1]

    def seconds(self, values: Floats) -> Floats:
        """Return [rows] seconds."""
        coefficients = self.least + self.above * np.exp(values[: len(self.least)])
        found: Floats = self.terms @ coefficients
        found = found * np.exp(self.hats @ values[self.first_curve :])
        if self.bound is not None:
            found = found * power_bound_factor(found, self.bound * np.exp(values[len(self.least)]))
        return found


def _hats(sizes: Floats, knots: Floats) -> Floats:
    """Return [sizes, knots] weights of the knots in an interpolation of logarithms."""
    unit = np.eye(len(knots))
    return np.stack([np.interp(np.log(sizes), np.log(knots), row) for row in unit], axis=1)


def _rounded(values: Floats) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
