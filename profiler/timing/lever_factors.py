"""Factors of a workload's levers on the seconds of kernels.

    channels_last  a factor by class of kernel (``layout_class``), fitted to published runs of the
                   same models in both orders (studies/levers)
    tf32           FLOPs of fp32 matrix products at the rate of TF32's tensor cores

The factors of ``channels_last`` are for kernels that a step without the lever runs on images with
channels outermost, in 16 bits. Kernels whose images have channels innermost already, such as those
of ConvNeXt, gain nothing. ``fused`` needs no factor: its replay has other kernels.

Three kinds have no factor (``UNFITTED``): grouped convolutions, which took 0.6 to 4 times as long
with channels last (torch 1.12), group norms, and depthwise kernels above 7 x 7, which three models
have. A step with such kernels has no predicted time under the lever.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from profiler.arrays import Floats, Ints
from profiler.devices.table import AMPERE, DeviceSpec
from profiler.records import Spread
from profiler.timing.kernel_terms import ALIGNMENT, PRODUCT_SLOTS, SLOTS, convolution_shape

LAYOUT_FILE = Path(__file__).with_name("channels_last.json")

LAYOUT_CAPABILITY = (7, 0)
"""Volta, the first generation with tensor cores. In fp32 without them the order gains nothing."""

TF32_SHARE = 0.5
"""Peak rate of TF32 over that of fp16 with fp32 accumulation: 156 of 312 TFLOP/s on the A100 (data
sheet, June 2021), 82.6 of 165.2 on the RTX 4090 (Ada whitepaper v2.1, table 2)."""

_TF32_PRODUCTS = ("matmul", "batched_matmul")
"""Kinds whose products the lever changes. Convolutions may use TF32 without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeverFactors:
    """Factors on the terms of kernels.

    Attributes:
        layout: factor by class of kernel; empty without ``channels_last``.
        products: factor on the FLOP terms of fp32 matrix products.
    """

    layout: Mapping[str, float] = field(default_factory=dict)
    products: float = 1.0

    def of_operations(self, names: Sequence[str], index: Ints, dims: Floats) -> Floats:
        """Return [operations, SLOTS] factors.

        Args:
            names: names of kernel shapes.
            index: [operations] position of each operation's name.
            dims: [operations, 6] dimensions.
        """
        classes = [layout_class(name) for name in names]
        by_name = np.array([self.layout.get(found, 1.0) for found in classes])
        can_be_odd = np.array([found in _ALIGNED for found in classes], dtype=bool)
        odd = can_be_odd[index] & is_unaligned(dims)
        factors = np.where(odd, self.layout.get(UNALIGNED, 1.0), by_name[index])
        slots = np.repeat(factors[:, None], SLOTS, axis=1)
        single = np.array([_is_single_product(name) for name in names], dtype=bool)[index]
        slots[single, PRODUCT_SLOTS] *= self.products
        return slots


NO_LEVERS = LeverFactors()


def _is_single_product(name: str) -> bool:
    kind, *flags = name.split()
    return kind in _TF32_PRODUCTS and "half" not in flags


def is_unaligned(dims: Floats) -> npt.NDArray[np.bool_]:
    """Return [operations] whether a convolution's channels are no multiple of 8, for its dims."""
    odd: npt.NDArray[np.bool_] = (dims[:, 2:4] % ALIGNMENT != 0).any(axis=1)
    return odd


UNFITTED = "unfitted"

UNALIGNED = "unaligned"
"""Class of dense and pointwise convolutions whose channels are no multiple of 8, which tensor cores
cannot load aligned. It depends on the dimensions, not on the name."""

_ALIGNED = ("dense", "pointwise")

_LARGEST_DEPTHWISE = 7


def layout_class(name: str) -> str:
    """Return the class of a kernel whose time depends on the order of dimensions; else nothing."""
    kind, *flags = name.split()
    if kind.startswith("group_norm"):
        return UNFITTED  # autocast computes it in fp32
    if "half" not in flags or "nhwc" in flags:
        return ""
    if kind.startswith("batch_norm"):
        return "" if "given" in flags else "batch_norm"  # the published runs compute statistics
    if not kind.startswith("convolution"):
        return ""
    grouping, edge = convolution_shape(flags)
    is_large = grouping == "depthwise" and edge > _LARGEST_DEPTHWISE
    return UNFITTED if grouping == "grouped" or is_large else grouping


def lever_factors(device: DeviceSpec, levers: Collection[str]) -> LeverFactors:
    """Return the factors of levers on a device."""
    return LeverFactors(
        layout=layout_fit()["factors"] if "channels_last" in levers else {},
        products=_tf32_factor(device) if "tf32" in levers else 1.0,
    )


def can_gain(device: DeviceSpec, lever: str) -> bool:
    """Return whether a device has the hardware that a lever uses."""
    capability = device.compute_capability or (0, 0)
    if lever == "channels_last":
        return capability >= LAYOUT_CAPABILITY
    return lever != "tf32" or _tf32_factor(device) < 1.0


def _tf32_factor(device: DeviceSpec) -> float:
    """Return the seconds of a product in TF32 over those in fp32, at peak rates."""
    half, single = device.fp16_tensor_flops, device.fp32_flops
    if (device.compute_capability or (0, 0)) < AMPERE or half is None or single is None:
        return 1.0
    return min(1.0, single / (TF32_SHARE * half))


@cache
def layout_fit() -> Mapping[str, Any]:
    """Return ``channels_last.json``: factors, and the spread of measured over predicted ratios."""
    data: Mapping[str, Any] = json.loads(LAYOUT_FILE.read_text(encoding="utf-8"))
    return data


def layout_spread() -> Spread:
    """Return the spread of the ratio of step times with and without ``channels_last``."""
    row = layout_fit()["spread"]
    return Spread(low=row["low"], high=row["high"], coverage=row["coverage"])
