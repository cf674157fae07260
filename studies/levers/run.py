"""What the levers channels-last and fused do to time and memory (see README.md).

    python studies/levers/run.py time FOLDER CACHE   # fit, channels_last.json, summary.json
    python studies/levers/run.py memory              # predicted against PyTorch's CUDA code
    python studies/levers/run.py report              # summary.json of the kept rows

FOLDER holds timm's tables, CACHE the replays that studies/time_model made of them.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

STUDY = Path(__file__).parent
sys.path[:0] = [str(STUDY.parent), str(STUDY.parents[1]), str(STUDY)]

import layout
import memory
from harness import Rows, provenance, write_summary

from profiler.prediction.report import LARGEST_UNFITTED_SHARE
from profiler.timing import lever_factors

SEEDS = 3
"""Partitions of the families into folds; the errors are of all predictions together."""

EXAMPLES = ("resnet18", "resnet50", "mobilenetv3_large_100", "efficientnet_b0", "convnext_tiny",
            "vit_small_patch16_224", "regnetx_064")  # fmt: skip

CONVOLUTIONAL_SHARE = 0.2
"""Share of the time in kernels with a factor from which a model counts as convolutional."""


def time(folder: Path, cache: Path) -> dict[str, Any]:
    """Fit the factors, write them for the product, and return the errors."""
    ratios = layout.measured_ratios(folder)
    with gzip.open(cache / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if "operations" in row]
    rows = [row for row in rows if row["key"] in ratios]
    shares = np.array([layout.shares_of(row) for row in rows])
    measured = np.array([ratios[row["key"]] for row in rows])
    models = [row["key"].split()[1] for row in rows]
    fitted = shares[:, layout.CLASSES.index(layout.UNFITTED)] < LARGEST_UNFITTED_SHARE
    shares, inside = shares[fitted], measured[fitted]
    names = [model for model, kept in zip(models, fitted, strict=True) if kept]
    families = [layout.family_of(name) for name in names]
    folds = [layout.left_out(shares, inside, families, seed=seed) for seed in range(SEEDS)]
    predicted, again = np.concatenate(folds), np.tile(inside, SEEDS)
    low, high = np.quantile(again / predicted, (0.05, 0.95))
    factors = layout.fit(shares, inside)
    _write_product(factors, low=float(low), high=float(high), rows=len(inside), families=families)
    convolutional = np.tile(1.0 - shares[:, -1], SEEDS) > CONVOLUTIONAL_SHARE
    taken = predicted * high < 1.0
    error = np.abs(again / predicted - 1.0)
    return {
        "rows": len(inside),
        "families": len(set(families)),
        "left_out_of_scope": int((~fitted).sum()),
        "ratios_out_of_scope": _quantiles(measured[~fitted]),
        "factors": dict(zip(layout.CLASSES[:-1], map(_rounded, factors), strict=False)),
        "spread": [_rounded(low), _rounded(high)],
        "median_error": _rounded(np.median(error)),
        "median_error_convolutional": _rounded(np.median(error[convolutional])),
        "convolutional": int(convolutional.sum() // SEEDS),
        "taken_share": _rounded(taken.mean()),
        "slower_among_taken": _rounded((again[taken] > 1.0).mean()),
        "mean_ratio_taken": _rounded(again[taken].mean()),
        "examples": {
            model: {
                "measured": _rounded(measured[models.index(model)]),
                "predicted": _rounded(folds[0][names.index(model)]) if model in names else None,
            }
            for model in EXAMPLES
            if model in models
        },
    }


def _write_product(
    factors: Any, *, low: float, high: float, rows: int, families: list[str]
) -> None:
    data = {
        "schema": "budgetplan.channels_last/1",
        "source": "timm results/benchmark-train-amp-{nchw,nhwc}, RTX 3090, torch 1.12, fp16 "
        "(studies/levers)",
        "factors": dict(zip(layout.CLASSES[:-1], map(_rounded, factors), strict=False)),
        "spread": {
            "low": _rounded(low),
            "high": _rounded(high),
            "coverage": layout.COVERAGE,
            "measured_on": f"{rows} models, their {len(set(families))} families left out",
        },
    }
    lever_factors.LAYOUT_FILE.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _quantiles(values: Any) -> list[float]:
    return [_rounded(q) for q in np.quantile(values, (0.05, 0.5, 0.95))]


def _rounded(value: Any) -> float:
    return round(float(value), 3)


def main() -> None:
    """Run the part that the command line names."""
    part = sys.argv[1]
    summary = STUDY / "summary.json"
    known = json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else {}
    values = {key: known[key] for key in ("time", "memory") if key in known}
    book = Rows(STUDY, "memory")
    if part == "time":
        values["time"] = time(Path(sys.argv[2]), Path(sys.argv[3]))
    elif part == "memory":
        book.clear()
        book.append(*memory.compare_all())
        book.pack()
    values["memory"] = memory.summary_of(book.read())
    write_summary(STUDY, [*book.read(), provenance(STUDY.name)], **values)


if __name__ == "__main__":
    main()
