"""Average power of Zeus' traces, fitted with one GPU left out.

Each cell is a network, a batch size and a power limit. The model is the product's
(``profiler.timing.power``). The share of matrix products and whether the GPU waits for its host
are predicted from the operations alone. Stand-ins for networks whose code is not at hand: ViT-B for
BERT base (the same encoder), torchvision's ShuffleNet-v2 at 128 pixels for the CIFAR variant, whose
first layers do not reduce its 32 pixels.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from meta_steps import meta_step

from profiler.arrays import Floats
from profiler.timing.kernel_rates import KernelFile, KernelRates
from profiler.timing.power import PowerModel
from profiler.timing.step_load import PRODUCTS, SECONDS, WAITING, added_up, loads_of_parts

HOST_SECONDS = 10e-6
"""Host seconds of a launch: the middle of the 5 to 25 microseconds that are published."""

OPTIMIZER_KERNELS = 8
"""Kernels that Adadelta and Adam launch for a parameter, one after the other as before torch 2."""

LEAST_BUSY = 0.5
"""Cells whose GPU is predicted to work less than this share of the time are dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A card of the traces: FP32 FLOP/s, bytes/s, multiprocessors, largest power limit, HBM or GDDR."""

    file: str
    flops: float
    bandwidth: float
    blocks: int
    watts: float
    hbm: bool = True


CARDS: Mapping[str, Card] = {
    "V100 PCIe": Card(file="v100", flops=14e12, bandwidth=900e9, blocks=80, watts=250.0),
    "RTX 6000": Card(
        file="rtx6000", flops=16.3e12, bandwidth=672e9, blocks=72, watts=260.0, hbm=False
    ),
    "P100 PCIe": Card(file="p100", flops=9.3e12, bandwidth=732e9, blocks=56, watts=250.0),
}
"""Data sheets; the RTX 6000 is the Quadro of Turing."""

NETWORKS = {
    "resnet50": ("resnet50", 224),
    "bert_base_uncased": ("vit_base_patch16_224", 224),
    "shufflenetv2": ("torchvision shufflenet_v2_x1_0", 128),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A cell of the traces.

    Attributes:
        card: name of the card.
        network: name of the network.
        batch: images or sequences in a step.
        limit: power limit in watts.
        watts: measured average.
        share: predicted share of matrix products.
        busy: predicted share of the time that the GPU works.
    """

    card: str
    network: str
    batch: int
    limit: float
    watts: float
    share: float
    busy: float


@cache
def operations_of(network: str, batch: int) -> tuple[list[str], int, tuple[Floats, ...]]:
    """Return kernels of a training step, the optimizer's launches, and sizes of the kernels.

    The sizes are [kernels, 6] dimensions, [kernels] bytes and [kernels] launches.
    """
    name, size = NETWORKS[network]
    with torch.device("meta"):
        if name.startswith("torchvision "):
            import torchvision

            model = getattr(torchvision.models, name.split()[1])()
        else:
            import timm

            model = timm.create_model(name)
    records = meta_step(model.train(), batch=batch, image_size=size, training=True, half=False)
    updates = OPTIMIZER_KERNELS * len(list(model.parameters()))
    return (
        [op.kernel for op in records],
        updates,
        (
            np.array([op.dims for op in records], dtype=float),
            np.array([op.moved_bytes for op in records], dtype=float),
            np.array([op.launches for op in records]),
        ),
    )


def _load(card: Card, network: str, batch: int, known: KernelFile) -> tuple[float, float]:
    """Return the predicted share of matrix products and the busy share."""
    kernels, updates, (dims, moved, launches) = operations_of(network, batch)
    names, index = np.unique(kernels, return_inverse=True)
    rates = KernelRates(
        half_flops=card.flops,
        single_flops=card.flops,
        boost_flops=card.flops,
        bytes_per_second=card.bandwidth,
        multiprocessors=card.blocks,
        coefficients=known.coefficients,
        curves=known.curves,
    )
    parts = rates.parts(names, index, dims=dims, moved_bytes=moved, launches=launches)
    host = (len(kernels) + updates) * HOST_SECONDS
    load = added_up(loads_of_parts(parts, launches))
    work = load[SECONDS] - load[WAITING]
    return float(load[PRODUCTS] / load[SECONDS]), float(work / max(load[SECONDS], host))


def read_cells(folder: Path, known: KernelFile) -> list[Cell]:
    """Return all cells of the three networks, averaged over optimizers and data sets."""
    found = []
    for name, card in CARDS.items():
        groups: dict[tuple[str, int, float], list[float]] = {}
        with (folder / f"zeus_power_{card.file}.csv").open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["network"] in NETWORKS:
                    key = row["network"], int(row["batch_size"]), float(row["power_limit"])
                    groups.setdefault(key, []).append(float(row["average_power"]))
        for (network, batch, limit), watts in groups.items():
            share, busy = _load(card, network, batch, known)
            found.append(
                Cell(
                    card=name,
                    network=network,
                    batch=batch,
                    limit=limit,
                    watts=float(np.mean(watts)),
                    share=share,
                    busy=busy,
                )
            )
    return found


NAMES = (
    "idle_hbm",
    "idle_gddr",
    "joules_per_flop",
    "joules_per_byte",
    "floor",
    "reached",
    "sharpness",
)

START = np.array([0.14, 0.14, 13e-12, 50e-12, 0.6, 0.99, 8.0])


def model_of(card: Card, limit: float, values: Floats) -> PowerModel:
    """Return the power model of a card at a power limit."""
    hbm, gddr, per_flop, per_byte, floor, reached, sharpness = map(float, values)
    return PowerModel(
        idle_watts=(hbm if card.hbm else gddr) * card.watts,
        product_watts=per_flop * card.flops,
        memory_watts=per_byte * card.bandwidth,
        floor=floor,
        limit_watts=limit,
        reached=reached,
        sharpness=sharpness,
        # watts do not depend on these two, which power_limits.py fits afterwards
        fixed_memory=math.nan,
        slowdown_exponent=math.nan,
    )


def predict(cells: Sequence[Cell], values: Floats) -> Floats:
    """Return [cells] predicted watts."""
    return np.array(
        [
            model_of(CARDS[cell.card], cell.limit, values).watts(
                product_share=cell.share, busy=cell.busy
            )
            for cell in cells
        ]
    )


def fit_power(cells: Sequence[Cell]) -> Floats:
    """Return the numbers of ``NAMES``, fitted in relative errors and drawn to ``START``."""
    from scipy.optimize import least_squares

    measured = np.array([cell.watts for cell in cells])

    def residuals(scaled: Floats) -> Floats:
        errors = np.log(predict(cells, START * np.exp(scaled)) / measured)
        return np.concatenate([errors, 0.5 * scaled])

    found = least_squares(residuals, np.zeros(len(START)), loss="soft_l1", f_scale=0.05)
    values = START * np.exp(found.x)
    values[4] = min(values[4], 1.0)
    return values


def busy_only(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells whose GPU is predicted to work most of the time."""
    return [cell for cell in cells if cell.busy >= LEAST_BUSY]
