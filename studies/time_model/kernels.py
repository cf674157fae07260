"""Single forward kernels in fp32 on five GPUs (NeuSight), fitted with one GPU left out.

Rates are those of the boards that were measured, which are not all in the product's device table.
Traffic is divided by the bandwidth that a board sustains in long sums and products of two tensors,
relative to `reference_share`. A board that is left out takes the share of its `RELATIVES`.

A measured time holds the host's launch, which overlaps with other kernels in a training step, and
which is a property of the machine that recorded the table. The product takes none of it. So errors
are given with the launch of the table, which is its least time, with the mean launch of the other
boards, and for kernels that take more than `LONG_OVER_LEAST` times the launch.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fit import RECORDED, Key, errors_of
from kernel_fit import FittedKernels, KernelRows, fit_rows

from profiler.arrays import Floats
from profiler.timing.kernel_rates import power_bound_factor
from profiler.timing.kernel_terms import ProductLayout, first_product, kernel_terms, slot_keys
from profiler.timing.size_curves import SizeCurves, product_sizes

MOST_ROWS = 2500
"""Rows of a table that are used, drawn at random."""

STREAMING, STREAMING_SECONDS = ("add", "mul"), 300e-6
"""Operations that the sustained bandwidth is read from, and the least seconds of their traffic."""

LEAST_QUANTILE, LONG_OVER_LEAST = 0.02, 3.0
"""Quantile of a table's times that counts as its least, and from which multiple kernels are long."""

LEAST_OVER_LAUNCH = 1.5
"""Kernels that take part in the fit of training steps take at least this multiple of the launch."""

MEMORY_BOUND, DRAWN_ROWS = ("ln", "softmax", "gelu", "relu", "add", "mul"), 60
"""Operations whose kernels take part in the fit of training steps, and rows drawn of each table;
they take at least `LEAST_OVER_LAUNCH` times its least time."""

CLOCK_EXPONENT = 0.75
"""Exponent of the sustained clock, chosen by the errors of T4 and P4 left out of the fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What the time of an operation has beside the plain terms.

    Attributes:
        curves: factors over the sizes (``profiler.timing.size_curves``).
        power_bound: the boost clock and the time that the power allows, for the sustained clock.
        rereads: the term ``reread``.
    """

    curves: bool = False
    power_bound: bool = False
    rereads: bool = False


PLAIN = Form()

FORMS = {
    "linear": Form(power_bound=True, rereads=True),
    "bmm": Form(power_bound=True, curves=True),
    "conv": Form(curves=True),
}
"""Forms of matrix products, chosen by the errors on boards left out; others are plain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """A measured board.

    Attributes:
        file: its name in the tables' names.
        flops: peak FP32 FLOP/s.
        bandwidth: bytes/s.
        blocks: multiprocessors.
        watts: power limit.
        full: watts per FLOP/s at full clock.
        rereads: whether it is of a generation before Volta.
    """

    file: str
    flops: float
    bandwidth: float
    blocks: int
    watts: float
    full: float
    rereads: bool = False

    @property
    def power_share(self) -> float:
        """Watts per FLOP/s over those at full clock, at most 1."""
        return float(min(1.0, self.watts / self.flops / self.full))

    @property
    def clock(self) -> float:
        """Share of the boost clock that the board sustains."""
        return float(self.power_share**CLOCK_EXPONENT)


_VOLTA, _PASCAL, _AMPERE = 250 / 14e12, 250 / 9.3e12, 250 / 19.5e12

BOARDS: Mapping[str, Board] = {
    "V100 PCIe": Board(
        file="V100", flops=14e12, bandwidth=900e9, blocks=80, watts=250, full=_VOLTA
    ),
    "T4": Board(file="T4", flops=8.1e12, bandwidth=320e9, blocks=40, watts=70, full=_VOLTA),
    "P100 PCIe": Board(
        file="P100", flops=9.3e12, bandwidth=732e9, blocks=56, watts=250, full=_PASCAL, rereads=True
    ),
    "P4": Board(
        file="P4", flops=5.5e12, bandwidth=192e9, blocks=20, watts=75, full=_PASCAL, rereads=True
    ),
    "A100 PCIe": Board(
        file="A100", flops=19.5e12, bandwidth=1555e9, blocks=108, watts=250, full=_AMPERE
    ),
}
"""Data sheets of Tesla V100 PCIe, T4 (12 nm: the V100's watts per FLOP/s), P100, P4 and A100."""

RELATIVES: Mapping[str, str] = {
    "V100 PCIe": "A100 PCIe", "A100 PCIe": "V100 PCIe", "T4": "P4", "P4": "T4", "P100 PCIe": "P4",
}  # fmt: skip
"""The board whose sustained bandwidth a left-out board takes: that with the same memory (HBM, or
GDDR whose error correction shares the bus). The P100's relative is the one of its generation."""

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
        terms: [rows, keys] terms in seconds, without the launch.
        bound: [rows] least seconds that the power allows at a bound of 1; of products only.
        sizes: [rows, PRODUCT_SIZES] sizes as a matrix product; meaningless for other operations.
        seconds: [rows] measured.
        roofline: [rows] the longer of arithmetic and traffic.
        keys: coefficient keys.
    """

    terms: Floats
    bound: Floats
    sizes: Floats
    seconds: Floats
    roofline: Floats
    keys: list[Key]

    @property
    def launch(self) -> float:
        """Least time of the table, which is the host's launch."""
        return float(np.quantile(self.seconds, LEAST_QUANTILE))

    @property
    def rows(self) -> KernelRows:
        """The kernels as the fit takes them."""
        return KernelRows(
            terms=self.terms,
            bound=self.bound,
            sizes=self.sizes,
            seconds=self.seconds,
            launch=np.full(len(self.seconds), self.launch),
        )


def sustained_share(folder: Path, board: Board) -> float:
    """Return the share of the data sheet's bandwidth that a board reaches in long kernels."""
    shares: list[Floats] = []
    for operation in STREAMING:
        kernels = read_kernels(folder, operation, board, share=1.0, most_rows=None)
        is_long = kernels.roofline >= STREAMING_SECONDS
        shares.append(kernels.roofline[is_long] / kernels.seconds[is_long])
    return round(float(np.median(np.concatenate(shares))), 3)


def sustained_shares(folder: Path) -> dict[str, float]:
    """Return the sustained share of the bandwidth of each board."""
    return {name: sustained_share(folder, board) for name, board in BOARDS.items()}


def reference_share(shares: Mapping[str, float]) -> float:
    """Return the share that boards without error correction on the bus are taken to sustain."""
    return (shares["V100 PCIe"] + shares["A100 PCIe"]) / 2


def read_kernels(
    folder: Path,
    operation: str,
    board: Board,
    *,
    share: float,
    form: Form = PLAIN,
    most_rows: int | None = MOST_ROWS,
) -> Kernels:
    """Return the measured kernels of an operation on a board.

    Args:
        folder: folder of the tables.
        operation: a key of `OPERATIONS`.
        board: a board.
        share: bandwidth over that of the data sheet, for the terms.
        form: decides the clock and whether there is a term of rereading.
        most_rows: rows that are drawn; None for all.
    """
    (path,) = sorted(folder.glob(f"neusight_{operation}_*-{board.file}[-.]*gz"))
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    chosen = np.random.default_rng(0).permutation(len(rows))[:most_rows]
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
        rereads=board.rereads,
    )
    clock = 1.0 if form.power_bound else board.clock
    rates = {"single": board.flops * clock, "bytes": board.bandwidth * share}
    slots = [(i, slot) for i, slot in enumerate(slot_keys(name)) if slot.kernel_class]
    left_out = {"launch"} if form.rereads else {"launch", "reread"}
    slots = [(i, slot) for i, slot in slots if slot.term not in left_out]
    arithmetic = terms[:, 0] / board.flops
    return Kernels(
        terms=np.stack([terms[:, i] / rates[slot.rate.value] for i, slot in slots], axis=1),
        bound=arithmetic / board.power_share,
        sizes=_sizes(dims, board.blocks),
        seconds=np.array([float(row["Latency"]) / 1e3 for row in rows]),
        roofline=np.maximum(arithmetic, moved / board.bandwidth),
        keys=[(slot.kernel_class, slot.term) for _, slot in slots],
    )


def _sizes(dims: Floats, blocks: int) -> Floats:
    layout = np.full(len(dims), ProductLayout.PRODUCT.value)
    return product_sizes(*first_product(layout, dims), multiprocessors=blocks)


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


def errors_by_board(
    folder: Path, shares: Mapping[str, float]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return errors by operation and left-out board.

    Beside them median errors of the roofline; of the plain terms, for products; of a fit to the
    very board, which is what the terms leave; and of trees fitted to it, for linear layers.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for operation in OPERATIONS:
        form = FORMS.get(operation, PLAIN)
        for out in BOARDS:
            known, rest, kernels = _leave_out(folder, operation, out, shares, form=form)
            fitted = fit_kernels(rest, form)
            predicted = fitted.predict(kernels, launch=kernels.launch)
            mean = float(np.mean([each.launch for each in rest]))
            own = fit_kernels([known], form)
            others = {
                "launch_unknown": fitted.predict(kernels, launch=mean),
                "own": own.predict(known, launch=known.launch),
                "roofline": kernels.roofline,
            }
            if form != PLAIN:
                _, rest, plain = _leave_out(folder, operation, out, shares, form=PLAIN)
                others["plain"] = fit_kernels(rest, PLAIN).predict(plain, launch=plain.launch)
            if operation == "linear":
                others["own_trees"] = predict_by_trees(known)
            errors = errors_of(predicted, kernels.seconds)
            for name, values in others.items():
                errors[f"{name}_median_error"] = errors_of(values, kernels.seconds)["median_error"]
            is_long = kernels.seconds > LONG_OVER_LEAST * kernels.launch
            long = errors_of(predicted[is_long], kernels.seconds[is_long])
            errors |= {
                "long_rows": long["rows"],
                "long_median_error": long["median_error"],
                "long_bias": long["bias"],
            }
            found.setdefault(operation, {})[out] = errors
    return found


def _leave_out(
    folder: Path, operation: str, out: str, shares: Mapping[str, float], *, form: Form
) -> tuple[Kernels, list[Kernels], Kernels]:
    """Return the kernels of a board, those of the others, and the former by its relative."""
    known = _read_boards(folder, operation, shares, form=form)
    relative = shares[RELATIVES[out]] / reference_share(shares)
    kernels = read_kernels(folder, operation, BOARDS[out], share=relative, form=form)
    return known[out], [each for name, each in known.items() if name != out], kernels


def predict_by_trees(kernels: Kernels) -> Floats:
    """Return [rows] seconds by boosted trees over sizes and remainders, in five folds of the rows.

    They show how much of a board's times its sizes decide, whatever the rules of its library.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.model_selection import cross_val_predict

    sizes = kernels.sizes[:, 1:4]  # rows, columns, inner
    remainders = [sizes % tile for tile in (4.0, 64.0, 128.0)]
    features = np.concatenate([np.log(kernels.sizes), *remainders], axis=1)
    base = kernels.launch + kernels.roofline
    trees = HistGradientBoostingRegressor(loss="absolute_error", max_iter=400, random_state=0)
    ratios = cross_val_predict(trees, features, np.log(kernels.seconds / base), cv=5)
    found: Floats = base * np.exp(ratios)
    return found


def memory_bound_kernels(
    folder: Path, shares: Mapping[str, float]
) -> tuple[list[dict[Key, float]], Floats]:
    """Return terms and seconds of fp32 kernels, for the fit of training steps.

    The host's launch has a coefficient of its own by operation, relative to the table's least time.
    """
    runs: list[dict[Key, float]] = []
    seconds: list[float] = []
    for operation in MEMORY_BOUND:
        for kernels in _read_boards(folder, operation, shares, most_rows=DRAWN_ROWS).values():
            least = kernels.launch
            for terms, time in zip(kernels.terms, kernels.seconds, strict=True):
                if time >= LEAST_OVER_LAUNCH * least:
                    run = dict(zip(kernels.keys, map(float, terms), strict=True))
                    runs.append(run | {(f"{RECORDED} {operation}", "launch"): least})
                    seconds.append(float(time))
    return runs, np.array(seconds)


def _read_boards(
    folder: Path,
    operation: str,
    shares: Mapping[str, float],
    *,
    form: Form = PLAIN,
    most_rows: int | None = MOST_ROWS,
) -> dict[str, Kernels]:
    """Return the kernels of an operation on all boards, by the bandwidth that each sustains."""
    reference = reference_share(shares)
    return {
        name: read_kernels(
            folder,
            operation,
            board,
            share=shares[name] / reference,
            form=form,
            most_rows=most_rows,
        )
        for name, board in BOARDS.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFit:
    """The fit of an operation, and the keys of its coefficients."""

    keys: Sequence[Key]
    fitted: FittedKernels

    def predict(self, kernels: Kernels, *, launch: float) -> Floats:
        """Return [rows] seconds with the host's launch."""
        found: Floats = kernels.terms @ self.fitted.coefficients
        if self.fitted.curves is not None:
            found = found * SizeCurves(self.fitted.curves).factors(kernels.sizes)
        if self.fitted.bound is not None:
            found = found * power_bound_factor(found, self.fitted.bound * kernels.bound)
        return launch + found


def fit_kernels(known: Sequence[Kernels], form: Form) -> KernelFit:
    """Return the fit of an operation to the kernels of some boards."""
    keys = known[0].keys
    fitted = fit_rows(
        [kernels.rows for kernels in known],
        keys,
        has_bound=form.power_bound,
        has_curves=form.curves,
    )
    return KernelFit(keys=keys, fitted=fitted)


def fitted_products(
    folder: Path, shares: Mapping[str, float], *, without: str | None = None
) -> dict[str, KernelFit]:
    """Return the fits of ``FORMS`` to the fp32 kernels of all boards but one that is named."""
    found: dict[str, KernelFit] = {}
    for operation, form in FORMS.items():
        boards = _read_boards(folder, operation, shares, form=form)
        known = [kernels for name, kernels in boards.items() if name != without]
        found[operation] = fit_kernels(known, form)
    return found
