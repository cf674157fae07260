"""Whole training steps in fp32 on GPUs of which no step is in a fit: ResNet-50 of Zeus' traces.

Zeus trains torchvision's ResNet-50 on ImageNet with Adadelta, one optimizer kernel at a time, and
reads the loss in every step, so that the host's launches overlap less than in a training that does
not. A cell is a batch size at the card's largest power limit, its measured step the time of an
epoch over the number of steps.

The optimizer is counted by the tensors that its kernels read and write. The coefficients are the
product's, but those of matrix products and convolutions, and the sustained bandwidth, which are
found without the kernels of the card (``kernels.py``). Memory-bound kernels of V100 and P100 are in
the fit of the others, sixty of each operation. The RTX 6000 has none.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import coefficients_file
import numpy as np
from fit import errors_of
from kernels import BOARDS, RELATIVES, Board, fitted_products, reference_share
from power import CARDS, Card, operations_of

from profiler.timing.kernel_rates import KernelRates, kernel_file
from profiler.timing.kernel_terms import FIRST_PRODUCT, SECOND_PRODUCT, kernel_terms
from profiler.timing.size_curves import SizeCurves

NETWORK, IMAGES = "resnet50", 1_281_167

PARAMETERS, OPTIMIZER_PASSES = 25_557_032, 27
"""Parameters of the network, and passes of Adadelta's ten kernels over them."""

LEAST_BATCH = 32
"""Smaller steps are given apart: they hold the host's launches and its reading of the loss."""

TURING = BOARDS["T4"].full
"""The RTX 6000 has the watts per FLOP/s at full clock of the T4's generation."""


def whole_step_errors(folder: Path, shares: Mapping[str, float]) -> dict[str, Any]:
    """Return errors of the steps of each card, and measured and predicted seconds by batch size.

    Args:
        folder: folder of the tables.
        shares: sustained share of the bandwidth of each board.
    """
    cards: dict[str, Any] = {}
    pairs: list[tuple[float, float]] = []
    least: list[tuple[float, float]] = []
    for name, card in CARDS.items():
        rates = _rates(folder, name, shares)
        cells = {
            batch: (measured, _predicted(rates, batch))
            for batch, measured in sorted(measured_steps(folder, name).items())
        }
        large = [pair for batch, pair in cells.items() if batch >= LEAST_BATCH]
        pairs += large
        least += [
            (measured, _roofline(card, batch))
            for batch, (measured, _) in cells.items()
            if batch >= LEAST_BATCH
        ]
        cards[name] = {
            "milliseconds": {
                str(batch): [round(1e3 * seconds, 1) for seconds in pair]
                for batch, pair in cells.items()
            },
            f"batch_{LEAST_BATCH}_and_more": _errors(large),
            "smaller": _errors([p for batch, p in cells.items() if batch < LEAST_BATCH]),
        }
    return {
        "cards": cards,
        f"batch_{LEAST_BATCH}_and_more": _errors(pairs),
        "roofline": _errors(least),
    }


def _errors(pairs: list[tuple[float, float]]) -> dict[str, float]:
    measured, predicted = np.array(pairs).T
    return errors_of(predicted, measured)


def measured_steps(folder: Path, name: str) -> dict[int, float]:
    """Return the seconds of a step by batch size at the card's largest power limit."""
    with (folder / f"zeus_power_{CARDS[name].file}.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["network"] == NETWORK]
    largest = max(float(row["power_limit"]) for row in rows)
    epochs: dict[int, list[float]] = {}
    for row in rows:
        if float(row["power_limit"]) == largest:
            epochs.setdefault(int(row["batch_size"]), []).append(float(row["time_per_epoch"]))
    return {
        batch: float(np.mean(seconds)) / math.ceil(IMAGES / batch)
        for batch, seconds in epochs.items()
    }


def _rates(folder: Path, name: str, shares: Mapping[str, float]) -> KernelRates:
    """Return the rates of a card, from coefficients without its kernels."""
    card = CARDS[name]
    board = BOARDS.get(name) or Board(
        file="", flops=card.flops, bandwidth=card.bandwidth, blocks=card.blocks,
        watts=card.watts, full=TURING,
    )  # fmt: skip
    relative = 1.0
    if name in BOARDS:
        relative = shares[RELATIVES[name]] / reference_share(shares)
    products = fitted_products(folder, shares, without=name)
    return KernelRates(
        half_flops=board.flops * board.clock,
        single_flops=board.flops * board.clock,
        boost_flops=board.flops,
        power_share=board.power_share,
        before_volta=board.rereads,
        bytes_per_second=board.bandwidth * relative,
        multiprocessors=board.blocks,
        coefficients=coefficients_file.with_single_products(kernel_file().coefficients, products),
        curves={
            name: SizeCurves(curves)
            for name, curves in coefficients_file.curves_of(products).items()
        },
    )


def _predicted(rates: KernelRates, batch: int) -> float:
    kernels, _, (dims, moved, launches) = operations_of(NETWORK, batch)
    names, index = np.unique(kernels, return_inverse=True)
    parts = rates.parts(names, index, dims=dims, moved_bytes=moved, launches=launches)
    optimizer = OPTIMIZER_PASSES * 4 * PARAMETERS / rates.bytes_per_second
    return float(parts.sum()) + optimizer


def _roofline(card: Card, batch: int) -> float:
    """Return the seconds of a step by the data sheet: of each kernel the longer of its two times."""
    kernels, _, (dims, moved, launches) = operations_of(NETWORK, batch)
    names, index = np.unique(kernels, return_inverse=True)
    terms = kernel_terms(
        list(map(str, names)),
        index,
        dims=dims,
        moved_bytes=moved,
        launches=launches,
        multiprocessors=card.blocks,
    )
    flops = terms[:, FIRST_PRODUCT.start] + terms[:, SECOND_PRODUCT.start]
    optimizer = OPTIMIZER_PASSES * 4 * PARAMETERS / card.bandwidth
    return float(np.maximum(flops / card.flops, moved / card.bandwidth).sum()) + optimizer
