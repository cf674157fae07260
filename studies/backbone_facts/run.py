"""Write ``planner/scoring/backbone_facts.csv``: cost of training well-known backbones, predicted.

python studies/backbone_facts/run.py [--models a,b]

The shortlist of ``recommend --model auto`` and the hint at another backbone read the file, so that
they replay nothing. All numbers are composed predictions for an RTX 2060 SUPER in fp16 with AdamW at
the backbone's own image size and 10 classes: time and memory of full training with 32 images, and
the least memory of full training and of an efficient method (2 images, every unit recomputed).
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from planner.api.workload_functions import predict
from planner.cost.budget import needed_bytes
from profiler.errors import UsageError
from profiler.models.backbones import native_image_size, resolve

TARGET = ROOT / "planner" / "scoring" / "backbone_facts.csv"
DEVICE = "rtx-2060-super"
MODELS = (
    "vit_t", "vit_s", "vit_b", "deit_small_patch16_224", "tiny_vit_5m", "tiny_vit_11m", "tiny_vit",
    "swin_t", "convnext_t", "levit_256", "resnet18", "resnet34", "resnet50", "mobilenetv2",
    "mobilenetv3", "efficientnet_b0", "vim_s", "mambavision_t",
)  # fmt: skip
EFFICIENT = ("lora", "bitfit", "bn_head", "head")
"""Efficient methods, the first that works on the backbone is taken."""
COLUMNS = (
    "model", "image_size", "parameters", "full_seconds_per_image", "full_device_bytes",
    "least_full_bytes", "efficient_method", "least_efficient_bytes", "date",
)  # fmt: skip


def row_of(model: str) -> dict[str, object]:
    """Return the row of a backbone."""
    full = predict(model, "full", device=DEVICE, rung="composed", batch_size=32, **common())
    assert full.step_seconds is not None
    least = predict(
        model, "full", device=DEVICE, rung="composed", batch_size=2, checkpoint="static", **common()
    )
    for method in EFFICIENT:
        try:
            small = predict(
                model,
                method,
                device=DEVICE,
                rung="composed",
                batch_size=2,
                checkpoint="static" if method != "head" else "none",
                **common(),
            )
            break
        except UsageError:
            continue
    return {
        "model": resolve(model),
        "image_size": native_image_size(model),
        "parameters": full.parameters.total,
        "full_seconds_per_image": f"{full.step_seconds / 32:.4g}",
        "full_device_bytes": needed_bytes(full),
        "least_full_bytes": needed_bytes(least),
        "efficient_method": method,
        "least_efficient_bytes": needed_bytes(small),
        "date": datetime.now(UTC).date().isoformat(),
    }


def common() -> dict[str, object]:
    """Return the options that all predictions share."""
    return {"precision": "fp16", "num_classes": 10}


def main(models: list[str]) -> None:
    """Replace the rows of the models."""
    rows: dict[str, dict[str, object]] = {}
    if TARGET.exists():
        with TARGET.open(newline="", encoding="utf-8") as file:
            rows = {row["model"]: dict(row) for row in csv.DictReader(file)}
    for model in models:
        row = row_of(model)
        rows[str(row["model"])] = row
        print(row, flush=True)
        with TARGET.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows[name] for name in sorted(rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    main(parser.parse_args().models.split(","))
