"""The quantities that a kernel's time on a GPU is a weighted sum of.

A kernel's seconds are a sum over terms, each a physical quantity over a rate of the data sheet,
times a coefficient of the kernel's class:

    flops      FLOPs of a matrix product / peak rate
    tile       the same with rows, columns and inner dimension padded to a tile of 128 x 32 x 32
    unaligned  FLOPs of half-precision products whose columns or inner dimension is no multiple
               of 8, which tensor cores cannot load aligned / peak rate
    reread     bytes of the second matrix that are read again for each strip of rows of the first,
               in fp32 on boards before Volta, whose library has no large tiles / bandwidth
    bytes      bytes read and written / bandwidth
    short      bytes x min(64 / length, 4) of normalisations over short rows or small images
    waves      bytes x ceil(C / S) x S / C of batch normalisation: a block of threads normalises a
               channel, so that C channels run in waves of the S multiprocessors
    few        bytes x S / C of the same
    values     values that adding a bias, or its gradient, reads and writes / bandwidth
    launch     kernels launched
    moved      bytes that a copy moves between host and device / bandwidth of the link between them,
               or that an update on the host touches / its rate
    latency    such copies and operations, which take a least time each

A backward convolution is two matrix products (*first*: the input's gradient, *second*: the
weight's). ``kernel_terms`` computes [operations, SLOTS] quantities, ``slot_keys`` the coefficient
and the rate of each slot of a kernel name. Fit and prediction both call these two.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from functools import cache
from typing import NamedTuple

import numpy as np

from profiler.arrays import Floats, Ints, Mask
from profiler.devices.host_link import HostWork

SLOTS = 12
"""Quantities of an operation: three for each of two matrix products, six for the rest."""

PRODUCT_SLOTS = slice(0, 6)
"""Slots of matrix products."""

FIRST_PRODUCT, SECOND_PRODUCT = slice(0, 3), slice(3, 6)
"""Slots of ``flops``, ``tile``, and ``unaligned`` or ``reread`` of each matrix product."""

BYTES, SHORT, WAVES, FEW, VALUES, LAUNCH = range(6, SLOTS)
"""Slots of the other terms."""

LATENCY, MOVED = VALUES, LAUNCH
"""Slots of work that involves the host, which has no other terms. Its bytes are in the slot of the
launch, because the GPU computes nothing meanwhile."""

TILE_ROWS, TILE_COLUMNS, TILE_INNER = 128.0, 32.0, 32.0
ALIGNMENT = 8.0
STRIP_ROWS, HELD_COLUMNS, CACHED_BYTES = 128.0, 512.0, 1e5
"""Rows of a strip (half as many where those suffice to end the matrix), and for each multiprocessor
the columns in work at a time and the bytes of the second-level cache (P4, GTX 1080: 2 MiB for 20).
"""

VOLTA = (7, 0)
"""First generation for which the library has tiles that make rereading cheap."""

SHORT_ROW, LARGEST_SHORT = 64.0, 4.0


class PeakRate(Enum):
    """A rate that quantities are divided by."""

    HALF = "half"
    SINGLE = "single"
    BYTES = "bytes"
    LAUNCHES = "launches"


class Slot(NamedTuple):
    """Coefficient and rate of a slot; the class is empty for a slot that the kernel lacks."""

    kernel_class: str
    term: str
    rate: PeakRate


class ProductLayout(Enum):
    """Matrix products in a kernel."""

    NONE = 0
    PRODUCT = 1
    CONVOLUTION = 2
    BACKWARD = 3
    ONLY_INPUT = 4
    ONLY_WEIGHT = 5


_ABSENT = Slot("", "", PeakRate.LAUNCHES)

_ROW_NORMS = ("softmax", "softmax_backward", "layer_norm", "layer_norm_backward")

HOST_WORK = frozenset(HostWork)
"""Names of work that involves the host."""

_PRODUCTS = ("matmul", "batched_matmul", "attention", "attention_backward")


@cache
def layout_of(name: str) -> ProductLayout:
    """Return the matrix products in a kernel with this name."""
    kind, *flags = name.split()
    if kind in _PRODUCTS:
        return ProductLayout.PRODUCT
    if not kind.startswith("convolution"):
        return ProductLayout.NONE
    if kind == "convolution" or "depthwise" in flags:
        return ProductLayout.CONVOLUTION
    if "no_input" in flags:
        return ProductLayout.ONLY_WEIGHT
    return ProductLayout.ONLY_INPUT if "no_weight" in flags else ProductLayout.BACKWARD


@cache
def slot_keys(name: str) -> tuple[Slot, ...]:
    """Return [SLOTS] the coefficient and the rate of each quantity of a kernel name.

    Work that involves the host has no slots: its seconds are not fitted.
    """
    slots = [_ABSENT] * SLOTS
    if name in HOST_WORK:
        return tuple(slots)
    kind, *flags = name.split()
    is_depthwise = "depthwise" in flags
    rate = PeakRate.HALF if "half" in flags else PeakRate.SINGLE
    layout = layout_of(name)
    first, second = _classes_of_products(name, layout)
    if is_depthwise:
        # ordinary units compute it at any precision, and tiles do not matter
        slots[0] = Slot(first, "flops", PeakRate.SINGLE)
    elif kind.startswith("attention"):
        slots[0] = Slot(first, "flops", rate)
    elif layout is not ProductLayout.NONE:
        slots[FIRST_PRODUCT] = _product_slots(first, rate)
    if layout is ProductLayout.BACKWARD:
        slots[SECOND_PRODUCT] = _product_slots(second, rate)
    slots[BYTES] = Slot(first, "bytes", PeakRate.BYTES)
    if kind in _ROW_NORMS or kind.startswith("batch_norm"):
        slots[SHORT] = Slot(first, "short", PeakRate.BYTES)
    if kind.startswith("batch_norm"):
        slots[WAVES] = Slot(first, "waves", PeakRate.BYTES)
        slots[FEW] = Slot(first, "few", PeakRate.BYTES)
    if "bias" in flags:
        side = "backward" if kind.endswith("backward") else "forward"
        bias_class = " ".join([f"bias_{side}", *_half_flag(flags)])
        slots[VALUES] = Slot(bias_class, "values", PeakRate.BYTES)
    slots[LAUNCH] = Slot(first, "launch", PeakRate.LAUNCHES)
    return tuple(slots)


def _product_slots(name: str, rate: PeakRate) -> list[Slot]:
    last = Slot(name, "unaligned", rate)
    if rate is PeakRate.SINGLE:
        last = Slot(name, "reread", PeakRate.BYTES)
    return [Slot(name, "flops", rate), Slot(name, "tile", rate), last]


def _classes_of_products(name: str, layout: ProductLayout) -> tuple[str, str]:
    """Return the classes of the first and the second matrix product of a kernel name.

    The first one is also the class of all other terms. A forward has the same class twice.
    """
    whole = kernel_class(name)
    if not name.startswith("convolution_backward") or "depthwise" in name.split():
        return whole, whole
    of_input = whole.replace("convolution_backward", "convolution_dgrad")
    of_weight = whole.replace("convolution_backward", "convolution_wgrad")
    return (of_weight if layout is ProductLayout.ONLY_WEIGHT else of_input), of_weight


@cache
def kernel_class(name: str) -> str:
    """Return the class that a kernel name shares coefficients with: kind and some flags."""
    kind, *flags = name.split()
    half = _half_flag(flags)
    if not kind.startswith("convolution"):
        if kind in {"matmul", "batched_matmul", "reduction", "attention", "attention_backward"}:
            return " ".join([kind, *half])
        return " ".join([kind, *half, *(flag for flag in flags if flag == "strided")])
    grouping, edge = convolution_shape(flags)
    if grouping != "depthwise":
        return " ".join([kind, grouping, *half])
    size = "k3" if edge <= 3 else "k5" if edge <= 5 else "k7"
    stride = [] if "s1" in flags else ["strided"]
    return " ".join([kind, grouping, size, *stride, *half])


def convolution_shape(flags: Sequence[str]) -> tuple[str, int]:
    """Return the grouping of a convolution, and an edge of its kernel in elements.

    Args:
        flags: words behind the kind in the name of its kernel shape, such as ``dense k3x3 s1``.
    """
    grouping = next(f for f in flags if f in {"dense", "pointwise", "grouped", "depthwise"})
    size = next(f for f in flags if f[0] == "k" and f[1:2].isdigit())
    return grouping, int(size[1:].split("x")[0])


def _half_flag(flags: Sequence[str]) -> list[str]:
    return [flag for flag in flags if flag == "half"]


def kernel_terms(
    names: Sequence[str],
    index: Ints,
    *,
    dims: Floats,
    moved_bytes: Floats,
    launches: Ints,
    multiprocessors: int,
    rereads: bool = False,
) -> Floats:
    """Return [operations, SLOTS] quantities, not divided by rates.

    Args:
        names: names of kernel shapes.
        index: [operations] position of each operation's name.
        dims: [operations, 6] dimensions (``profiler.replay.kernel_shapes``).
        moved_bytes: [operations] bytes read and written.
        launches: [operations] kernels launched.
        multiprocessors: S of the terms ``waves`` and ``reread``.
        rereads: whether the board is of a generation before ``VOLTA``.
    """
    terms = np.zeros((len(index), SLOTS))
    terms[:, BYTES] = moved_bytes
    is_host_work = np.array([name in HOST_WORK for name in names], dtype=bool)[index]
    terms[:, LATENCY] = np.where(is_host_work, launches, 0)
    terms[:, LAUNCH] = np.where(is_host_work, moved_bytes, launches)
    layout = np.array([layout_of(name).value for name in names])[index]
    is_half = np.array(["half" in name.split() for name in names], dtype=bool)[index]
    _add_products(
        terms, layout, dims, is_half=is_half, rereading=multiprocessors if rereads else None
    )
    kind = np.array([_NORM_CODES.get(name.split()[0], 0) for name in names])[index]
    norms = np.flatnonzero(kind)
    if len(norms):
        length = np.where(kind[norms] == 1, dims[norms, 1], dims[norms, 2])
        moved = moved_bytes[norms]
        terms[norms, SHORT] = moved * np.minimum(SHORT_ROW / np.maximum(length, 1.0), LARGEST_SHORT)
        channels = np.maximum(dims[norms, 1], 1.0)
        blocks = float(multiprocessors)
        terms[norms, WAVES] = moved * np.ceil(channels / blocks) * blocks / channels
        terms[norms, FEW] = moved * blocks / channels
    return terms


_NORM_CODES = {kind: 1 for kind in _ROW_NORMS} | {"batch_norm": 2, "batch_norm_backward": 2}


def first_product(layout: Ints, dims: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Return batch, rows, columns and inner dimension of the first matrix product of kernels.

    Args:
        layout: [kernels] values of ``ProductLayout`` but ``NONE``.
        dims: [kernels, 6] dimensions (``profiler.replay.kernel_shapes``).
    """
    groups, out, columns, inner, kernel, image = dims.T.copy()
    plain = is_plain(layout)
    only_weight = layout == ProductLayout.ONLY_WEIGHT.value
    # forward [out, inner * kernel] x [.., columns]; its input's gradient [image, columns * kernel]
    # x [.., inner]; its weight's gradient [columns, out] x [out, inner * kernel]
    rows = np.where(plain, out, np.where(only_weight, columns, image))
    wide = np.where(plain, columns, np.where(only_weight, inner * kernel, inner))
    deep = np.where(plain, inner * kernel, np.where(only_weight, out, columns * kernel))
    return groups, rows, wide, deep


def is_plain(layout: Ints) -> Mask:
    """Return [kernels] whether a kernel is one product in the forward direction."""
    plain: Mask = (layout == ProductLayout.PRODUCT.value) | (
        layout == ProductLayout.CONVOLUTION.value
    )
    return plain


def _add_products(
    terms: Floats,
    layout: Ints,
    dims: Floats,
    *,
    is_half: Mask,
    rereading: int | None,
) -> None:
    """Fill the slots of matrix products and of biases.

    Args:
        terms: [operations, SLOTS] quantities, which are changed.
        layout: [operations] values of ``ProductLayout``.
        dims: [operations, 6] dimensions.
        is_half: [operations] whether the product is in 16 bits.
        rereading: multiprocessors of a board that reads again; None for no such board.
    """
    chosen = np.flatnonzero(layout)
    if not len(chosen):
        return
    kind, half = layout[chosen], is_half[chosen]
    first = _matrix_product(*first_product(kind, dims[chosen]), is_half=half, rereading=rereading)
    terms[chosen, FIRST_PRODUCT] = first
    groups, out, columns, inner, kernel, _ = dims[chosen].T.copy()
    both = kind == ProductLayout.BACKWARD.value
    if both.any():
        sizes = (groups, columns, inner * kernel, out)
        weight = _matrix_product(*sizes, is_half=half, rereading=rereading)
        terms[chosen, SECOND_PRODUCT] = weight * both[:, None]
    # a forward reads and writes its result once more, a backward reads the gradient
    passes = np.where(kind == ProductLayout.CONVOLUTION.value, 2.0, 1.0)
    terms[chosen, VALUES] = passes * groups * out * columns


def _matrix_product(
    batch: Floats,
    rows: Floats,
    columns: Floats,
    inner: Floats,
    *,
    is_half: Mask,
    rereading: int | None,
) -> Floats:
    """Return [products, 3] FLOPs, padded FLOPs, and unaligned FLOPs or bytes read again."""
    flops = 2.0 * batch * rows * columns * inner
    padded = 2.0 * batch * _padded_up(rows, TILE_ROWS)
    padded *= _padded_up(columns, TILE_COLUMNS) * _padded_up(inner, TILE_INNER)
    unaligned = (inner % ALIGNMENT != 0) | (columns % ALIGNMENT != 0)
    last = np.where(is_half, flops * unaligned, 0.0)
    if rereading is not None:
        again = _reread_bytes(batch, rows, columns, inner, multiprocessors=rereading)
        last = np.where(is_half, last, again)
    return np.stack([flops, padded, last], axis=1)


def _reread_bytes(
    batch: Floats, rows: Floats, columns: Floats, inner: Floats, *, multiprocessors: int
) -> Floats:
    """Return [products] bytes of the second matrix that strips of rows read again.

    Its part in the cache is not read again. If it has fewer columns than are in work at a time,
    several strips run together and share reads: by a root, which the measured kernels follow over
    two orders of magnitude of columns.
    """
    rest = rows % STRIP_ROWS
    strip = np.where((rest > 0) & (rest <= STRIP_ROWS / 2), STRIP_ROWS / 2, STRIP_ROWS)
    apart = np.sqrt(np.minimum(columns / (HELD_COLUMNS * multiprocessors), 1.0))
    once = 4.0 * columns * inner
    beyond_cache = np.maximum(once - CACHED_BYTES * multiprocessors, 0.0)
    found: Floats = batch * np.ceil(rows / strip) * beyond_cache * apart
    return found


def _padded_up(size: Floats, tile: float) -> Floats:
    padded: Floats = np.ceil(size / tile) * tile
    return padded
