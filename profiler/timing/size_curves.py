"""How the seconds of a matrix product depend on its size, beyond what the terms say.

Libraries choose among tiles, algorithms (Winograd's, explicit matrices) and splits by heuristics
that no formula here has. Five curves, one for each size, give the mean effect as factors that are
multiplied: piecewise linear in logarithms, and constant outside of their knots. They were fitted to
five boards; ``studies/time_model`` has the errors with each board left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from profiler.arrays import Floats

PRODUCT_SIZES = ("batch", "rows", "columns", "inner", "waves")
"""Sizes of a product; ``waves`` is its number of tiles over that of the multiprocessors."""

WAVE_ROWS, WAVE_COLUMNS = 128.0, 64.0
"""The tile of the most frequent fp32 kernels in the measurements (``sgemm_128x64``)."""


def product_sizes(
    batch: Floats, rows: Floats, columns: Floats, inner: Floats, *, multiprocessors: int
) -> Floats:
    """Return [products, PRODUCT_SIZES] sizes of [batch, rows, inner] x [batch, inner, columns]."""
    tiles = batch * np.ceil(rows / WAVE_ROWS) * np.ceil(columns / WAVE_COLUMNS)
    return np.stack([batch, rows, columns, inner, tiles / multiprocessors], axis=1)


class SizeCurves:
    """Curves of a class of kernels.

    Args:
        curves: ascending ``sizes`` of the knots and their ``factors``, by ``PRODUCT_SIZES``.
    """

    def __init__(self, curves: Mapping[str, Mapping[str, Any]]) -> None:
        self._knots = [
            np.log(np.array(curves[name]["sizes"], dtype=float)) for name in PRODUCT_SIZES
        ]
        self._values = [
            np.log(np.array(curves[name]["factors"], dtype=float)) for name in PRODUCT_SIZES
        ]

    def factors(self, sizes: Floats) -> Floats:
        """Return [products] factors on seconds for [products, PRODUCT_SIZES] sizes."""
        total = np.zeros(len(sizes))
        for size, knots, values in zip(np.log(sizes).T, self._knots, self._values, strict=True):
            total += np.interp(size, knots, values)
        return np.exp(total)
