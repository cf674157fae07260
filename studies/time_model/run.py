"""Time and power of GPUs, fitted to published measurements (see README.md).

    python studies/time_model/run.py replay FOLDER CACHE   # operations of the timm tables' models
    python studies/time_model/run.py fit FOLDER CACHE      # summary.json, kernel_coefficients.json
    python studies/time_model/run.py kernels FOLDER        # fp32 products; steps of other GPUs
    python studies/time_model/run.py power FOLDER          # power part of summary.json
    python studies/time_model/run.py paper                 # paper_step.json, by the product

FOLDER holds the tables (README.md names their repositories), CACHE the replays.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

STUDY = Path(__file__).parent
sys.path[:0] = [str(STUDY.parent), str(STUDY.parents[1]), str(STUDY)]

import coefficients_file
import kernels
import paper_step
import power
import power_limits
import replays
import whole_steps
from fit import (
    Key,
    errors_of,
    family_of,
    fit,
    left_out,
    matrix_of,
    prior_of,
    tau_with_errors_of,
    terms_of,
)
from harness import provenance, write_summary

from profiler.arrays import Floats
from profiler.timing.kernel_rates import kernel_file

TRAINING = "timm_train_amp_nchw_rtx3090"
INFERENCE = ("timm_infer_amp_nchw_rtx3090", "timm_infer_amp_nchw_rtx5090")

RATES = {
    "rtx3090": ({"half": 71e12, "single": 35.6e12, "bytes": 936e9, "launches": 1.0}, 82),
    "rtx5090": ({"half": 209.5e12, "single": 104.8e12, "bytes": 1792e9, "launches": 1.0}, 170),
}
"""Data sheets: FLOP/s, bytes/s, multiprocessors."""

PARTS = ("steps", "inference", "kernels", "sustained_bandwidth", "whole_steps", "power")
"""Parts of the summary; a run makes one or some of them anew."""

SEEDS = 3
"""Partitions of the families into folds; the errors are of all predictions together."""

ERROR_SCALES = (1.0, 0.75, 0.5, 0.25)
"""Factors on the errors for which Kendall's tau is computed."""

Runs = tuple[list[Mapping[str, Any]], Floats, Floats, list[str]]

KernelRuns = tuple[list[dict[Key, float]], Floats]
"""Terms and seconds of single kernels."""


def read_runs(folder: Path, cache: Path, table: str) -> Runs:
    """Return cached replays of a table with measured seconds, batch sizes and families."""
    measured = {run.key: run for run in replays.read_table(folder / f"{table}.csv")}
    kind = "train" if "train" in table else "infer"
    rows = [
        row
        for row in replays.read_cache(cache / f"{kind}.jsonl.gz")
        if "operations" in row and row["key"] in measured
    ]
    runs = [measured[row["key"]] for row in rows]
    seconds = np.array([run.seconds for run in runs])
    batch = np.array([float(run.batch) for run in runs])
    return rows, seconds, batch, [family_of(run.model) for run in runs]


def training(
    folder: Path, cache: Path, single: KernelRuns
) -> tuple[dict[str, Any], Floats, list[Key]]:
    """Return errors with families left out, and the coefficients of all runs.

    Args:
        folder: folder of the tables.
        cache: folder of the replays.
        single: single kernels, which are in all fits.
    """
    rows, seconds, batch, families = read_runs(folder, cache, TRAINING)
    rates, blocks = RATES["rtx3090"]
    runs, times = single
    sums, keys = matrix_of([*(terms_of(row, rates, blocks) for row in rows), *runs])
    known = np.concatenate([seconds, times])
    folds = [left_out(sums, known, keys, families, seed=seed) for seed in range(SEEDS)]
    predicted = np.concatenate(folds)
    ratio = np.tile(seconds, SEEDS) / predicted
    found: dict[str, Any] = errors_of(predicted, np.tile(seconds, SEEDS), np.tile(batch, SEEDS))
    found |= {
        "rows": len(rows),
        "families": len(set(families)),
        "spread": [round(float(q), 3) for q in np.quantile(ratio, (0.05, 0.95))],
        "tau_by_size_of_errors": {
            scale: tau_with_errors_of(folds[0], seconds, batch, scale=scale)
            for scale in ERROR_SCALES
        },
        "not_replayed": len(replays.read_table(folder / f"{TRAINING}.csv")) - len(rows),
    }
    return found, fit(sums, known, keys), keys


def inference(folder: Path, cache: Path, single: KernelRuns) -> dict[str, Any]:
    """Return errors on the RTX 5090 by a fit to the RTX 3090, and within the RTX 3090."""
    rows, seconds, batch, families = read_runs(folder, cache, INFERENCE[0])
    rates, blocks = RATES["rtx3090"]
    runs, times = single
    sums, keys = matrix_of([*(terms_of(row, rates, blocks) for row in rows), *runs])
    measured_3090 = np.concatenate([seconds, times])
    within = left_out(sums, measured_3090, keys, families)
    known = dict(zip(keys, fit(sums, measured_3090, keys), strict=True))
    rows, measured, batch_5090, _ = read_runs(folder, cache, INFERENCE[1])
    rates, blocks = RATES["rtx5090"]
    predicted = np.array(
        [
            sum(value * known.get(key, prior_of(key)) for key, value in run.items())
            for run in (terms_of(row, rates, blocks) for row in rows)
        ]
    )
    return {
        "rtx3090_families_left_out": errors_of(within, seconds, batch),
        "rtx5090_from_rtx3090": errors_of(predicted, measured, batch_5090)
        | {"spread": [round(float(q), 3) for q in np.quantile(measured / predicted, (0.05, 0.95))]},
    }


def power_errors(folder: Path) -> dict[str, Any]:
    """Return errors of power with each card left out, with and without waiting GPUs."""
    cells = power.read_cells(folder, kernel_file())
    found: dict[str, Any] = {"cards": {}}
    ratios = []
    for card in power.CARDS:
        values = power.fit_power([cell for cell in cells if cell.card != card])
        out = [cell for cell in cells if cell.card == card]
        busy = power.busy_only(out)
        found["cards"][card] = {
            "all": errors_of(power.predict(out, values), _watts(out)),
            "busy": errors_of(power.predict(busy, values), _watts(busy)),
        }
        ratios.append(_watts(busy) / power.predict(busy, values))
    spread = np.quantile(np.concatenate(ratios), (0.05, 0.95))
    values = power.fit_power(cells)
    found["limits"] = limit_errors(folder, cells)
    found["spread"] = [round(float(q), 3) for q in spread]
    found["fit"] = dict(zip(power.NAMES, map(float, values), strict=True))
    return found


def limit_errors(folder: Path, cells: Sequence[power.Cell]) -> dict[str, Any]:
    """Return errors of time and energy under power limits, with each card left out of both fits."""
    rows = power_limits.read_limited(folder, cells)
    found: dict[str, Any] = {"cards": {}}
    ratios = []
    for card in power.CARDS:
        watts = power.fit_power([cell for cell in cells if cell.card != card])
        values = power_limits.fit_limited([r for r in rows if r.cell.card != card], watts)
        out = [row for row in rows if row.cell.card == card]
        time, energy = power_limits.predict_limited(out, watts, values)
        measured = np.array([row.time for row in out])
        found["cards"][card] = {
            "time": errors_of(time, measured),
            "energy": errors_of(energy, np.array([row.energy for row in out])),
            "median_slowdown": round(float(np.median(measured)), 4),
        }
        ratios.append(measured / time)
    spread = np.quantile(np.concatenate(ratios), (0.05, 0.95))
    found["spread"] = [round(float(q), 3) for q in spread]
    fitted = power_limits.fit_limited(rows, power.fit_power(cells))
    found["fit"] = dict(zip(("fixed_memory", "slowdown_exponent"), map(float, fitted), strict=True))
    return found


def _single_kernels(folder: Path, shares: Mapping[str, float]) -> dict[str, Any]:
    """Return errors of single kernels and of whole steps on GPUs left out."""
    return {
        "kernels": kernels.errors_by_board(folder, shares),
        "whole_steps": whole_steps.whole_step_errors(folder, shares),
    }


def _watts(cells: Sequence[power.Cell]) -> Floats:
    return np.array([cell.watts for cell in cells])


def main() -> None:
    """Run the part that the command line names."""
    part, *arguments = sys.argv[1:]
    folder = Path(arguments[0]) if arguments else STUDY
    if part == "replay":
        for kind, tables in {"train": (TRAINING,), "infer": INFERENCE}.items():
            runs = [run for table in tables for run in replays.read_table(folder / f"{table}.csv")]
            random.Random(0).shuffle(runs)
            replays.replay_all(runs, Path(arguments[1]) / f"{kind}.jsonl.gz")
        return
    if part == "paper":
        found = {**provenance("time_model"), **paper_step.compare()}
        text = json.dumps(found, indent=1) + "\n"
        (STUDY / "paper_step.json").write_text(text, encoding="utf-8")
        return
    made = provenance("time_model")  # before the coefficients change, which would mark the commit
    summary = STUDY / "summary.json"
    known = json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else {}
    values = {key: known[key] for key in PARTS if key in known}
    if part == "fit":
        cache = Path(arguments[1])
        shares = kernels.sustained_shares(folder)
        memory_bound = kernels.memory_bound_kernels(folder, shares)
        values["steps"], coefficients, keys = training(folder, cache, memory_bound)
        values["inference"] = inference(folder, cache, memory_bound)
        values["sustained_bandwidth"] = shares
        products = kernels.fitted_products(folder, shares)
        coefficients_file.write(dict(zip(keys, coefficients, strict=True)), products, values)
        values |= _single_kernels(folder, shares)
    elif part == "kernels":
        shares = kernels.sustained_shares(folder)
        coefficients_file.write_products(kernels.fitted_products(folder, shares))
        values |= _single_kernels(folder, shares)
    else:
        values["power"] = power_errors(folder)
        coefficients_file.write_power(values["power"])
    write_summary(STUDY, (made,), **values)


if __name__ == "__main__":
    main()
