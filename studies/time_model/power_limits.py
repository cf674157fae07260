"""Time and energy of Zeus' traces under a power limit, relative to those without one.

Each cell is a network, a batch size and a limit below the card's own. The measured time is the
epoch's time over that at the card's limit. Two numbers are fitted (``profiler.timing.power``): the
factor on the memory's power that the clock does not change, and the exponent. Power is the fit's
own prediction, so that nothing measured under a limit is used to predict.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from power import CARDS, LEAST_BUSY, NETWORKS, Cell, model_of

from profiler.arrays import Floats
from profiler.timing.power import LEAST_LIMIT

START = np.array([1.0, 0.25])
LOWEST, HIGHEST = np.array([0.0, 0.05]), np.array([1.5, 1.0])


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitedCell:
    """A cell under a power limit.

    Attributes:
        cell: the cell.
        time: measured seconds over those at the card's own limit.
        energy: measured energy over that at the card's own limit.
    """

    cell: Cell
    time: float
    energy: float


def read_limited(folder: Path, cells: Sequence[Cell]) -> list[LimitedCell]:
    """Return the busy cells at ``LEAST_LIMIT`` of their card's limit or above it."""
    known = {(c.card, c.network, c.batch, c.limit): c for c in cells}
    ratios: dict[tuple[str, str, int, float], list[tuple[float, float]]] = {}
    for name, card in CARDS.items():
        runs: dict[tuple[str, ...], dict[float, tuple[float, float]]] = {}
        with (folder / f"zeus_power_{card.file}.csv").open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["network"] in NETWORKS:
                    key = row["network"], row["batch_size"], row["optimizer"], row["dataset"]
                    seconds, watts = float(row["time_per_epoch"]), float(row["average_power"])
                    runs.setdefault(key, {})[float(row["power_limit"])] = seconds, watts
        for (network, batch, *_), by_limit in runs.items():
            if card.watts not in by_limit:
                continue
            free_seconds, free_watts = by_limit[card.watts]
            for limit, (seconds, watts) in by_limit.items():
                time = seconds / free_seconds
                ratio = (time, time * watts / free_watts)
                ratios.setdefault((name, network, int(batch), limit), []).append(ratio)
    found = []
    for key, values in ratios.items():
        cell = known[key]
        share = cell.limit / CARDS[cell.card].watts
        if LEAST_LIMIT <= share < 1 and cell.busy >= LEAST_BUSY:
            time, energy = map(float, np.mean(values, axis=0))
            found.append(LimitedCell(cell=cell, time=time, energy=energy))
    return found


def predict_limited(
    rows: Sequence[LimitedCell], power_values: Floats, values: Floats
) -> tuple[Floats, Floats]:
    """Return [rows] predicted ratios of time and of energy."""
    times, energies = [], []
    for row in rows:
        card, cell = CARDS[row.cell.card], row.cell
        free = replace(
            model_of(card, card.watts, power_values),
            fixed_memory=float(values[0]),
            slowdown_exponent=float(values[1]),
        )
        load = {"product_share": cell.share, "busy": cell.busy}
        time = free.slowdown(cell.limit, **load)
        times.append(time)
        energies.append(time * free.limited(cell.limit).watts(**load) / free.watts(**load))
    return np.array(times), np.array(energies)


def fit_limited(rows: Sequence[LimitedCell], power_values: Floats) -> Floats:
    """Return the two fitted numbers."""
    from scipy.optimize import least_squares

    measured = np.log([row.time for row in rows])

    def residuals(values: Floats) -> Floats:
        return np.log(predict_limited(rows, power_values, values)[0]) - measured

    bounds = (LOWEST, HIGHEST)
    found = least_squares(residuals, START, bounds=bounds, loss="soft_l1", f_scale=0.03)
    return np.asarray(found.x, dtype=np.float64)
