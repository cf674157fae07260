"""Predicted parameters, memory, time and energy of the paper's foundation models, beside theirs.

python studies/paper_table/run.py    # a few minutes of CPU; writes rows.jsonl.gz and summary.json

No weights, no data and no GPU: an inference of each model is replayed on fake tensors.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from scipy.stats import spearmanr

from profiler.devices.table import device_spec
from profiler.models.frozen.build import build_frozen
from profiler.models.frozen.catalogue import frozen_model
from profiler.models.frozen.run import TOKEN_FACTOR, InferenceLoad
from profiler.prediction.inference import predict_inference
from studies.harness import Rows, write_summary

SOURCE = "github.com/JokerOneK/cifar100_vits16_repro @165ba922, vlm_contrastive_results_summary.md"
DEVICE = "rtx-2060-super"

IMAGES = {
    ("cifar100", "features"): 60_000, ("cifar100", "other"): 10_000,
    ("dtd", "features"): 5_640, ("dtd", "other"): 1_880,
}  # fmt: skip
"""Images that pass the model: test images, and for features the training images too."""

CLASSES = {"cifar100": 100, "dtd": 47}

PUBLISHED = [
    # model, data, method, parameters in millions, accuracy, seconds, watts, joules
    ("dinov2_l", "cifar100", "linear", 304.4, 0.9171, 865.8, 147.6, 127_792),
    ("dinov2_l", "dtd", "linear", 304.4, 0.7282, 76.5, 97.9, 7_490),
    ("openclip_l14", "cifar100", "zero-shot", 427.6, 0.8726, 78.2, 167.8, 11_500),
    ("openclip_l14", "dtd", "zero-shot", 427.6, 0.6777, 25.8, 122.1, 1_571),
    ("siglip_l16_384", "cifar100", "zero-shot", 652.5, 0.8077, 219.1, 164.2, 35_698),
    ("siglip_l16_384", "dtd", "zero-shot", 652.5, 0.7096, 52.7, 130.2, 5_709),
    ("mobilevlm_v2_1.7b", "cifar100", "free answer", 1674.1, 0.2740, 2741.1, 73.7, 200_623),
    ("mobilevlm_v2_1.7b", "dtd", "free answer", 1674.1, 0.0399, 874.3, 66.5, 57_910),
    ("paligemma_3b", "cifar100", "free answer", 2923.5, 0.2285, 1952.1, 83.8, 162_130),
    ("paligemma_3b", "dtd", "free answer", 2923.5, 0.2154, 331.8, 83.6, 27_403),
    ("smolvlm_256m", "cifar100", "free answer", 256.5, 0.1352, 5908.6, None, None),
    ("smolvlm_256m", "dtd", "free answer", 256.5, 0.0782, 1172.8, None, None),
]


def predicted(name: str, data: str) -> dict[str, Any]:
    """Return what is predicted for a data set: fp16, batch 32, or 1 for a prompted model."""
    model = frozen_model(name)
    batch = 1 if model.kind == "prompted" else 32
    load = InferenceLoad(batch=batch, num_classes=CLASSES[data], dtype="float16")
    found = predict_inference(model, load, device=device_spec(DEVICE))
    images = IMAGES[data, "features" if model.kind == "features" else "other"]
    factors = {
        "prompts": 1.0,
        "images": images / batch,
        "token": images * TOKEN_FACTOR,
    }  # the published runs scored no class names
    parts = {n: part for n, part in found.parts.items() if n in factors}
    seconds = sum(part.seconds * factors[n] for n, part in parts.items())
    joules = sum(part.seconds * factors[n] * (part.watts or 0.0) for n, part in parts.items())
    return {
        "parameters_millions": sum(p.numel() for p in build_frozen(model).parameters()) / 1e6,
        "peak_bytes": found.peak_bytes,
        "device_bytes": found.device_bytes,
        "images": images,
        "seconds": seconds,
        "watts": joules / seconds,
        "joules": joules,
    }


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the table, and the rank correlations of time and energy."""
    table = []
    for row in rows:
        known, ours = row["published"], row["predicted"]
        table.append(
            {
                "model": row["model"],
                "data": row["data"],
                "parameters_millions": [known["parameters_millions"],
                                        round(ours["parameters_millions"], 1)],
                "device_gb": round(ours["device_bytes"] / 1e9, 2),
                "seconds": [known["seconds"], round(ours["seconds"], 1)],
                "watts": [known["watts"], round(ours["watts"], 1)],
                "joules": [known["joules"], round(ours["joules"])],
                "joules_ratio": None if known["joules"] is None
                else round(ours["joules"] / known["joules"], 2),
            }
        )  # fmt: skip
    orders = {}
    for data in CLASSES:
        part = [row for row in rows if row["data"] == data]
        for name in ("seconds", "joules"):
            both = [
                (row["published"][name], row["predicted"][name])
                for row in part
                if row["published"][name] is not None
            ]
            orders[f"{data}_{name}"] = round(float(spearmanr(*zip(*both, strict=True))[0]), 2)
    return {"table": table, "rank_correlation": orders}


def main() -> None:
    kept = Rows(HERE)
    kept.clear()
    for name, data, method, parameters, accuracy, seconds, watts, joules in PUBLISHED:
        known = {
            "method": method, "parameters_millions": parameters, "accuracy": accuracy,
            "seconds": seconds, "watts": watts, "joules": joules, "source": SOURCE,
        }  # fmt: skip
        kept.append(
            {
                "model": name,
                "data": data,
                "device": DEVICE,
                "published": known,
                "predicted": predicted(name, data),
            }
        )
        print(name, data, flush=True)
    kept.pack()
    rows = kept.read()
    write_summary(HERE, rows, **summarise(rows))


if __name__ == "__main__":
    main()
