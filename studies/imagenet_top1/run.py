"""Write ``planner/scoring/imagenet_top1.csv`` from timm's table of ImageNet results.

python studies/imagenet_top1/run.py RESULTS.csv

RESULTS.csv is ``results/results-imagenet.csv`` of github.com/huggingface/pytorch-image-models
(Apache-2.0). Of the rows of a model the one at its training size is kept. A row is the default if
``timm.create_model(ARCHITECTURE, pretrained=True)`` loads its weights.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import timm

TARGET = Path(__file__).parents[2] / "planner" / "scoring" / "imagenet_top1.csv"


def main(source: Path) -> None:
    """Read the table and write the compact one."""
    with source.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    by_model: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_model.setdefault(row["model"], []).append(row)
    lines = []
    for model, found in sorted(by_model.items()):
        architecture, _, tag = model.partition(".")
        if not timm.is_model(architecture):
            continue
        config = timm.get_pretrained_cfg(model, allow_unregistered=True)
        size = config.input_size[-1] if config is not None else 224
        row = min(found, key=lambda r: abs(int(r["img_size"]) - size))
        default = timm.get_pretrained_cfg(architecture).tag == tag
        millions = float(row["param_count"].replace(",", ""))
        fields = (model, int(default), row["img_size"], row["top1"], f"{millions:g}")
        lines.append(",".join(map(str, fields)))
    header = "model,is_default,image_size,top1_percent,million_parameters"
    TARGET.write_text("\n".join([header, *lines, ""]), encoding="utf-8")
    print(f"{len(lines)} models, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
