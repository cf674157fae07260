"""How far is the predicted time of an inference on a CPU from the measured one? README.md.

    python studies/cpu_inference/run.py             # cells that are missing
    python studies/cpu_inference/run.py --summary   # rows.jsonl.gz, summary.json

One thread; the clock is the processor time of the process, since other programs share the machine.
Weights are random: the time of these operations does not depend on values.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["BUDGETPLAN_CACHE"] = tempfile.mkdtemp(prefix="cpu_inference-")
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import numpy as np
import torch
from harness import Rows, write_cpu_spread, write_summary

from planner.training_free.options import CLASSES
from profiler.devices.table import CPU
from profiler.models.frozen.build import build_frozen
from profiler.models.frozen.catalogue import frozen_model
from profiler.models.frozen.run import InferenceLoad, run_inference
from profiler.prediction.inference import predict_inference
from profiler.store import Store

ROWS = Rows(HERE)
CELLS = (
    ("dinov2_s", 1), ("dinov2_s", 8), ("dinov2_s", 32), ("dinov2_b", 8), ("openclip_b32", 8),
    ("openclip_b32", 32), ("openclip_b16", 8), ("siglip_b16", 8), ("smolvlm_256m", 1),
)  # fmt: skip
READINGS = 3


def measured(name: str, batch: int) -> dict[str, float]:
    """Return the processor seconds of each part of an inference: the least of a few."""
    model = frozen_model(name)
    built = build_frozen(model, device="cpu")
    least: dict[str, float] = {}
    for _ in range(1 + READINGS):
        seconds: dict[str, float] = {}
        marks: list[tuple[str, float]] = []
        run_inference(
            built,
            model,
            InferenceLoad(batch=batch, num_classes=CLASSES),
            lambda part, marks=marks: marks.append((part, time.process_time())),
        )
        marks.append(("end", time.process_time()))
        for (part, begin), (_, end) in itertools.pairwise(marks):
            seconds[part] = end - begin
        least = {part: min(s, least.get(part, s)) for part, s in seconds.items()}
    return least


def run() -> None:
    """Predict and run each cell that is not there."""
    torch.set_num_threads(1)
    done = {(row["model"], row["batch"]) for row in ROWS.read()}
    for name, batch in CELLS:
        if (name, batch) in done:
            continue
        began = time.process_time()
        load = InferenceLoad(batch=batch, num_classes=CLASSES)
        found = predict_inference(frozen_model(name), load, device=CPU, store=Store.default())
        prediction_seconds = time.process_time() - began
        real = measured(name, batch)
        for part, seconds in real.items():
            ROWS.append(
                {
                    "model": name, "batch": batch, "part": part, "seconds": seconds,
                    "predicted_seconds": found.parts[part].seconds, "is_steady": found.is_steady,
                    "prediction_seconds": prediction_seconds,
                }
            )  # fmt: skip
            print(name, batch, part, f"{found.parts[part].seconds / seconds:.3f}", flush=True)


def summary() -> dict[str, Any]:
    """Return the errors of the parts."""
    rows = ROWS.read()
    ratios = np.array([row["predicted_seconds"] / row["seconds"] for row in rows])
    errors = np.abs(ratios - 1)
    return {
        "clock": "processor time of the process, one thread",
        "models": len({row["model"] for row in rows}),
        "parts": len(rows),
        "median_error": round(float(np.median(errors)), 4),
        "largest_error": round(float(errors.max()), 4),
        "median_ratio": round(float(np.median(ratios)), 4),
        "spread": [round(float(q), 3) for q in np.quantile(1 / ratios, (0.05, 0.95))],
        "longest_prediction_seconds": round(max(row["prediction_seconds"] for row in rows), 1),
        "ratios": {
            f"{row['model']} {row['batch']} {row['part']}": round(
                row["predicted_seconds"] / row["seconds"], 3
            )
            for row in rows
        },
    }


if __name__ == "__main__":
    if sys.argv[1:] == ["--summary"]:
        ROWS.pack()
        found = summary()
        write_summary(HERE, ROWS.read(), **found)
        processors = " and ".join(sorted({row["processor"] for row in ROWS.read()}))
        cells = f"{found['parts']} parts of {found['models']} models, {processors}"
        write_cpu_spread("inference", found["spread"], cells=cells, study="cpu_inference")
    elif not sys.argv[1:]:
        run()
    else:
        sys.exit(__doc__)
