"""How much do cuDNN's workspaces add to the bytes per image that the replay reserves?

python studies/conv_workspaces/run.py rows CSV   # replays 45 models; CSV is GPUMemNet's file
python studies/conv_workspaces/run.py report     # the fit, each family left out in turn

The CSV has the columns timm_model, batch, max_gpu_memory_mib_nvidia_smi. Rows are appended to
rows.jsonl; a run continues where the last one stopped.
"""

from __future__ import annotations

import csv
import json
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from harness import Rows, write_summary

from profiler.device_rules.caching_allocator import AllocatorSettings, CachingAllocator
from profiler.devices.table import lookup, workspaces_of
from profiler.prediction.allocator_steps import run_steps
from profiler.prediction.convolution_workspaces import largest_convolution_bytes, workspace_factor
from profiler.prediction.parametric import at_micro_batch, family_of

DEVICE = "rtx-3060"
"""The GPU of the measurements is not stated; the reserved bytes hardly depend on it."""
BATCHES = (64, 128)
MODELS = [
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet26d", "resnet50d",
    "wide_resnet50_2", "resnext50_32x4d", "resnetv2_50", "resnetv2_50d_gn",
    "seresnext50_32x4d", "repvgg_a0", "repvgg_a2", "repvgg_b2", "repvgg_b1g4", "gernet_s",
    "gernet_l", "darknet53", "cspdarknet53", "vovnet39a", "hgnet_tiny", "efficientnet_es",
    "efficientnet_em", "mobilenet_edgetpu_100", "regnetx_016", "regnetx_064", "regnetv_040",
    "convmixer_768_32", "nf_resnet50", "dm_nfnet_f0", "poolformer_s12", "mobilevit_s",
    "coatnet_0_224", "nextvit_small", "fbnetc_100", "mobilenetv2_100",
    "mobilenetv3_large_100", "efficientnet_b0", "efficientnet_lite0", "ghostnet_100",
    "mnasnet_100", "convnext_tiny", "swin_tiny_patch4_window7_224", "vit_small_patch16_224",
    "deit_tiny_patch16_224",
]  # fmt: skip
MIB = 1 << 20
Row = dict[str, Any]


def run_rows(path: Path) -> None:
    """Replay every model that has no row yet."""
    import timm

    from profiler.replay.step_replay import KernelMemory, ReplayOptions, replay_step
    from profiler.workload import Candidate, Workload

    real: dict[str, dict[int, int]] = defaultdict(dict)
    with path.open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            real[row["timm_model"]][int(row["batch"])] = int(row["max_gpu_memory_mib_nvidia_smi"])
    device, book = lookup(DEVICE), Rows(HERE)
    known = {row["model"] for row in book.read()}
    options = ReplayOptions(
        optimizer=False, kernel_memory=KernelMemory.ANY_BATCH, repeated_units=True
    )
    for model in MODELS:
        if model in known:
            continue
        size = timm.create_model(model, num_classes=1).pretrained_cfg["input_size"][1]
        family = family_of(Workload(model=model, num_classes=1000, image_size=size))
        log = replay_step(Candidate(workload=family), device=device, options=options)
        reserved = {}
        for batch in BATCHES:
            allocator = CachingAllocator(AllocatorSettings.parse(""))
            resized = at_micro_batch(log, batch, device)
            run_steps(allocator, resized, steps=2, workspaces=workspaces_of(device))
            reserved[batch] = allocator.peak_reserved_bytes
        low, high = BATCHES
        book.append({
            "model": model,
            "image_size": size,
            "shown_bytes_per_image": (real[model][high] - real[model][low]) * MIB / (high - low),
            "reserved_bytes_per_image": (reserved[high] - reserved[low]) / (high - low),
            "convolution_bytes_per_image": (largest_convolution_bytes(log) or 0)
            / family.micro_batch,
        })  # fmt: skip
    book.pack()


def family(model: str) -> str:
    """Return the leading letters of a model's name, by which models are left out together."""
    found = re.match("[a-z]+", model)
    assert found is not None
    return "resnet" if "resnet" in model else found[0]


def report() -> Row:
    """Return how the range of each model, fitted on the other families, holds the shown bytes."""
    rows = [row for row in Rows(HERE).read() if row["shown_bytes_per_image"] > 0]
    for row in rows:
        row["excess"] = row["shown_bytes_per_image"] - row["reserved_bytes_per_image"]
        row["ratio"] = row["excess"] / row["convolution_bytes_per_image"]
        row["convolutional"] = row["excess"] > 0.1 * row["shown_bytes_per_image"]
    left_out = {}
    for name in sorted({family(row["model"]) for row in rows}):
        others = sorted(
            r["ratio"] for r in rows if family(r["model"]) != name and r["convolutional"]
        )
        left_out[name] = others[int(0.9 * (len(others) - 1))]
    return {
        "factor": workspace_factor(),
        "plain": _errors([row for row in rows if not row["convolutional"]]),
        "with_workspaces": _errors([row for row in rows if row["convolutional"]]),
        "range_with_the_factor": _range(rows, dict.fromkeys(left_out, workspace_factor())),
        "range_fitted_on_other_families": _range(rows, left_out),
        "factors_fitted_on_other_families": [min(left_out.values()), max(left_out.values())],
        "ratios": {row["model"]: round(row["ratio"], 2) for row in rows},
    }


def _errors(rows: list[Row]) -> Row:
    off = [r["reserved_bytes_per_image"] / r["shown_bytes_per_image"] - 1 for r in rows]
    return {"models": len(rows), "median": statistics.median(map(abs, off)), "lowest": min(off)}


def _range(rows: list[Row], factors: dict[str, float]) -> Row:
    found = {}
    for row in rows:
        extra = factors[family(row["model"])] * row["convolution_bytes_per_image"]
        reserved, shown = row["reserved_bytes_per_image"], row["shown_bytes_per_image"]
        found[row["model"]] = (reserved + extra) / shown - 1, extra / reserved
    return {
        "models": len(found),
        "held_above": sum(over >= 0 for over, _ in found.values()),
        "lowest": min(over for over, _ in found.values()),
        "width_median": statistics.median(width for _, width in found.values()),
        "width_largest": max(width for _, width in found.values()),
        "too_low": {name: round(over, 3) for name, (over, _) in found.items() if over < 0},
    }


def main() -> None:
    """Read the command line."""
    if sys.argv[1:2] == ["rows"] and len(sys.argv) == 3:
        run_rows(Path(sys.argv[2]))
    elif sys.argv[1:] == ["report"]:
        found = report()
        write_summary(HERE, Rows(HERE).read(), **found)
        print(json.dumps(found, indent=1))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
