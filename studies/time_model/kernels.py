"""Single forward kernels in fp32 on five GPUs (NeuSight), fitted with one GPU left out.

Rates are those of the boards that were measured, which are not all in the product's device table.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fit import Key, errors_of, fit

from profiler.arrays import Floats
from profiler.timing.kernel_terms import kernel_terms, slot_keys

MOST_ROWS = 2500
"""Rows of a table that are used, drawn at random."""

MICRO_RUNS, DRAWS = 8, 20
"""Kernels of a left-out board that a calibration would measure, and how often they are drawn."""

CLOCK_EXPONENT = 0.75
"""Exponent of the sustained clock, chosen by the errors of T4 and P4 left out of the fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """A measured board: peak FP32 FLOP/s, bytes/s, multiprocessors, watts, full watts per FLOP/s."""

    file: str
    flops: float
    bandwidth: float
    blocks: int
    watts: float
    full: float

    @property
    def clock(self) -> float:
        """Share of the boost clock that the board sustains."""
        return float(min(1.0, (self.watts / self.flops / self.full) ** CLOCK_EXPONENT))


_VOLTA, _PASCAL, _AMPERE = 250 / 14e12, 250 / 9.3e12, 250 / 19.5e12

BOARDS: Mapping[str, Board] = {
    "V100 PCIe": Board(
        file="V100", flops=14e12, bandwidth=900e9, blocks=80, watts=250, full=_VOLTA
    ),
    "T4": Board(file="T4", flops=8.1e12, bandwidth=320e9, blocks=40, watts=70, full=_VOLTA),
    "P100 PCIe": Board(
        file="P100", flops=9.3e12, bandwidth=732e9, blocks=56, watts=250, full=_PASCAL
    ),
    "P4": Board(file="P4", flops=5.5e12, bandwidth=192e9, blocks=20, watts=75, full=_PASCAL),
    "A100 PCIe": Board(
        file="A100", flops=19.5e12, bandwidth=1555e9, blocks=108, watts=250, full=_AMPERE
    ),
}
"""Data sheets of Tesla V100 PCIe, T4 (12 nm: the V100's watts per FLOP/s), P100, P4 and A100."""

OPERATIONS = {
    "linear": "matmul",
    "bmm": "batched_matmul",
    "conv": "convolution dense k3x3 s1",
    "ln": "layer_norm",
    "softmax": "softmax",
    "gelu": "activation",
    "relu": "relu",
    "add": "add",
    "mul": "mul",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """Measured kernels of an operation on a board.

    Attributes:
        sums: [rows, keys] terms in seconds.
        seconds: [rows] measured.
        roofline: [rows] the longer of arithmetic and traffic.
        keys: coefficient keys.
    """

    sums: Floats
    seconds: Floats
    roofline: Floats
    keys: list[Key]


def read_kernels(folder: Path, operation: str, board: Board) -> Kernels:
    """Return the measured kernels of an operation on a board."""
    (path,) = sorted(folder.glob(f"neusight_{operation}_*-{board.file}[-.]*gz"))
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    chosen = np.random.default_rng(0).permutation(len(rows))[:MOST_ROWS]
    rows = [rows[i] for i in chosen]
    shapes = [_shape(operation, row) for row in rows]
    dims = np.array([shape[0] for shape in shapes], dtype=float)
    moved = np.array([shape[1] for shape in shapes], dtype=float)
    name = OPERATIONS[operation]
    terms = kernel_terms(
        [name],
        np.zeros(len(rows), dtype=np.int64),
        dims=dims,
        moved_bytes=moved,
        launches=np.ones(len(rows), dtype=np.int64),
        multiprocessors=board.blocks,
    )
    rates = {"single": board.flops * board.clock, "bytes": board.bandwidth, "launches": 1.0}
    slots = [(i, slot) for i, slot in enumerate(slot_keys(name)) if slot.kernel_class]
    slots = [(i, slot) for i, slot in slots if slot.term != "unaligned"]
    arithmetic = terms[:, 0] / board.flops
    return Kernels(
        sums=np.stack([terms[:, i] / rates[slot.rate.value] for i, slot in slots], axis=1),
        seconds=np.array([float(row["Latency"]) / 1e3 for row in rows]),
        roofline=np.maximum(arithmetic, moved / board.bandwidth),
        keys=[(slot.kernel_class, slot.term) for _, slot in slots],
    )


def _shape(operation: str, row: Mapping[str, str]) -> tuple[tuple[int, ...], int]:
    """Return dimensions and bytes of a kernel."""
    if operation in {"linear", "bmm"}:
        batch, m, n, k = (int(row[name]) for name in ("B", "M", "N", "K"))
        if operation == "linear":
            batch, m = 1, batch * m
        return (batch, m, n, k, 1, m), 4 * batch * (m * k + k * n + m * n)
    if operation == "conv":
        names = ("B", "Input_Channel", "Output_Channel", "Kernel_Szie", "Input_Size")
        batch, inner, outer, kernel, size = (int(row[name]) for name in names)
        side = (size + 2 * int(row["Padding"]) - kernel) // int(row["Stride"]) + 1
        moved = batch * (inner * size**2 + outer * side**2) + inner * outer * kernel**2
        return (1, batch * side**2, outer, inner, kernel**2, batch * size**2), 4 * moved
    rows, length = int(row["B"]), int(row["H"])
    passes = 3 if operation in {"add", "mul"} else 2
    return (rows, length, 0, 0, 0, 0), 4 * passes * rows * length


def errors_by_board(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Return errors by operation and left-out board, with the roofline's median beside them."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for operation in OPERATIONS:
        known = {name: read_kernels(folder, operation, board) for name, board in BOARDS.items()}
        for out, kernels in known.items():
            rest = [k for name, k in known.items() if name != out]
            coefficients = fit(
                np.concatenate([k.sums for k in rest]),
                np.concatenate([k.seconds for k in rest]),
                kernels.keys,
            )
            errors = errors_of(kernels.sums @ coefficients, kernels.seconds)
            errors["roofline_median_error"] = errors_of(kernels.roofline, kernels.seconds)[
                "median_error"
            ]
            errors["median_error_after_micro_runs"] = _error_after_micro_runs(
                kernels.sums @ coefficients, kernels.seconds
            )
            found.setdefault(operation, {})[out] = errors
    return found


def _error_after_micro_runs(predicted: Floats, measured: Floats) -> float:
    """Return the median error if a few kernels of the board are measured.

    All others are divided by the median ratio of those few, as a calibration would do. The few are
    drawn several times; the median over the draws is returned.
    """
    ratio = predicted / measured
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(DRAWS):
        order = rng.permutation(len(ratio))
        known, others = ratio[order[:MICRO_RUNS]], ratio[order[MICRO_RUNS:]]
        errors.append(np.median(np.abs(others / np.median(known) - 1)))
    return round(float(np.median(errors)), 4)


def pooled_coefficients(folder: Path) -> dict[Key, float]:
    """Return the coefficients of fp32 products, fitted to all boards."""
    found: dict[Key, float] = {}
    for operation in ("linear", "bmm", "conv"):
        known = [read_kernels(folder, operation, board) for board in BOARDS.values()]
        coefficients = fit(
            np.concatenate([k.sums for k in known]),
            np.concatenate([k.seconds for k in known]),
            known[0].keys,
        )
        found |= dict(zip(known[0].keys, map(float, coefficients), strict=True))
    return found
