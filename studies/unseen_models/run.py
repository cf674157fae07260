"""Do replay and composed prediction hold on timm models that no other study uses?

    python studies/unseen_models/run.py cpu --count 60
    python studies/unseen_models/run.py composed --count 150
    python studies/unseen_models/run.py report

``cpu``: a model of ``MODELS`` with a method drawn at random is replayed for the CPU and really
trained for a step; the peaks are compared. ``composed``: the ``device_bytes`` that the search
composes are compared with those of the replay, on three GPUs. All draws have fixed seeds; rows that
are there already are not made again.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from harness import Rows, write_summary

from profiler.devices.table import CPU, lookup
from profiler.placement import Decision, Placement, PolicyChoice
from profiler.workload import Candidate, Workload

SEED = 20261201
DEVICES = ("rtx-2060-super", "rtx-3060", "rtx-4090")
METHODS = (
    "full", "lora", "head", "bitfit", "dora", "bn_head", "adaptformer", "ln_tune", "partial_2",
    "ssf", "side", "qlora", "adalora",
)  # fmt: skip
PLACEMENTS = ("none", "static", "alternate", "cheap")
MODELS = (
    "beit_base_patch16_224", "bat_resnext26ts", "botnet26t_256", "caformer_s18", "cait_xxs24_224",
    "coat_lite_mini", "coatnet_0_rw_224", "convit_tiny", "convformer_s18", "convmixer_768_32",
    "crossvit_9_240", "cs3darknet_m", "davit_tiny", "deit3_small_patch16_224", "densenet169",
    "dla60", "dpn68", "eca_nfnet_l0", "edgenext_small", "efficientformer_l1", "efficientvit_b1",
    "eva02_tiny_patch14_224", "fastvit_t8", "fbnetv3_b", "flexivit_small", "focalnet_tiny_srf",
    "gcvit_xxtiny", "ghostnetv2_100", "gmixer_24_224", "gmlp_s16_224", "halonet26t", "hgnetv2_b0",
    "inception_next_tiny", "inception_v4", "lambda_resnet26t", "levit_128s", "maxvit_tiny_tf_224",
    "mixer_s16_224", "mobilenetv4_conv_small", "mobileone_s0", "mobilevit_xs", "mobilevitv2_050",
    "mvitv2_tiny", "nest_tiny", "nextvit_small", "nf_regnet_b0", "pit_ti_224", "poolformerv2_s12",
    "pvt_v2_b1", "regnetz_c16", "repghostnet_100", "repvit_m0_9", "resmlp_12_224", "resnest14d",
    "rexnetr_200", "sehalonet33ts", "selecsls42b", "sequencer2d_s", "shvit_s1", "starnet_s1",
    "swin_s3_tiny_224", "swinv2_tiny_window8_256", "tinynet_d", "tnt_s_legacy_patch16_224",
    "twins_svt_small", "vgg11_bn", "visformer_tiny", "vitamin_small_224", "volo_d1_224", "xception41",
    "xcit_nano_12_p16_224",
)  # fmt: skip
Row = dict[str, Any]


def drawn(part: str, count: int) -> Iterator[tuple[str, str, Workload, str]]:
    """Yield (name, device, workload, placement) of the cells of a part."""
    rng = random.Random(f"{SEED} {part}")
    for index in range(count):
        device = "cpu" if part == "cpu" else DEVICES[index % len(DEVICES)]
        precisions = ("fp32", "fp16") if device == "rtx-2060-super" else ("fp32", "bf16")
        batches = (1, 2, 3, 4) if part == "cpu" else (8, 16, 24, 32, 48, 64, 96)
        workload = Workload(
            model=MODELS[index % len(MODELS)],
            method=rng.choice(METHODS),
            micro_batch=rng.choice(batches),
            precision=rng.choice(precisions),
            optimizer=rng.choice(("adamw", "sgd")),
            num_classes=100,
        )
        placement = rng.choice(PLACEMENTS)
        name = (
            f"{device} {workload.model} {workload.method} {placement} {workload.precision} "
            f"{workload.optimizer} b{workload.micro_batch}"
        )
        yield name, device, workload, placement


def candidate_of_cell(workload: Workload, placement: str) -> Candidate:
    """Return the candidate of a cell.

    Raises:
        UsageError: the method refuses the model.
    """
    from profiler.models import backbones
    from profiler.models.build import build_model
    from profiler.models.methods import get_method

    name = backbones.resolve(workload.model)
    named = workload.replace(model=name, image_size=backbones.native_image_size(name))
    full = get_method(workload.method).resolve(named)
    units = build_model(full, device="meta").units
    chosen = {"none": (), "alternate": units[::2]}.get(placement, units)
    decision = Decision.DROP_CHEAP if placement == "cheap" else Decision.RECOMPUTE
    policy = PolicyChoice("keep" if placement == "none" else placement)
    return Candidate(
        workload=full,
        placement=Placement(decisions=dict.fromkeys(chosen, decision)),
        policy=policy,
    )


def cpu_row(candidate: Candidate, _: str) -> Row:
    """Replay a candidate for the CPU and run it."""
    sys.path.insert(0, str(HERE.parent / "memory_truth"))
    from run import real_peak  # type: ignore[attr-defined]  # that of memory_truth

    from profiler.replay.step_replay import replay_step

    replayed, real = replay_step(candidate, device=CPU).peak_bytes, real_peak(candidate)
    return {"replayed_bytes": replayed, "real_bytes": real, "relative": replayed / real - 1}


def composed_row(candidate: Candidate, device: str) -> Row:
    """Compose a candidate's device bytes and replay them."""
    from planner.cost.model import CostModel
    from profiler.prediction.report import predict
    from profiler.store import Store

    spec = lookup(device)
    composed = CostModel(spec, Store.in_memory()).estimate(candidate)
    memory = predict(candidate, device=spec).memory
    assert memory.device_bytes is not None
    return {
        "composed_bytes": composed.device_bytes,
        "replayed_bytes": memory.device_bytes,
        "relative": composed.device_bytes / memory.device_bytes - 1,
        "peak_relative": composed.peak_bytes / memory.peak_bytes - 1,
    }


def run_part(part: str, count: int, *, most_seconds: float) -> None:
    """Run what is left of a part, at most for some seconds."""
    import time

    import torch

    from profiler.errors import UsageError

    torch.set_num_threads(1)
    book, make = Rows(HERE, part), {"cpu": cpu_row, "composed": composed_row}[part]
    done = {row["cell"] for row in book.read() if "failed" not in row}
    ends = time.monotonic() + most_seconds
    for name, device, workload, placement in drawn(part, count):
        if name in done or time.monotonic() > ends:
            continue
        row: Row = {"cell": name}
        try:
            row |= make(candidate_of_cell(workload, placement), device)
        except UsageError as error:
            row["refused"] = str(error)[:300]
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {str(error)[:300]}"
        book.append(row)
        shown = f"{row['relative']:+.3%}" if "relative" in row else row.get("failed", "refused")
        print(shown, name, flush=True)
    book.pack()


def summary_of(rows: Sequence[Row]) -> Row:
    """Return the distribution of a part's errors."""
    ran = [row for row in rows if "relative" in row]
    errors = [row["relative"] for row in ran]
    sizes = list(map(abs, errors))
    worst = sorted(ran, key=lambda row: -abs(row["relative"]))[:8]
    return {
        "cells": len(ran),
        "refused": sum("refused" in row for row in rows),
        "failed": {row["cell"]: row["failed"] for row in rows if "failed" in row},
        "exact": sum(size == 0 for size in sizes),
        "within_0.1_percent": sum(size <= 0.001 for size in sizes),
        "within_1_percent": sum(size <= 0.01 for size in sizes),
        "median": statistics.median(sizes) if sizes else None,
        "lowest": min(errors, default=None),
        "highest": max(errors, default=None),
        "worst": {row["cell"]: round(row["relative"], 5) for row in worst},
    }


def report() -> None:
    """Write the summary."""
    parts = {part: list(Rows(HERE, part).latest("cell").values()) for part in ("cpu", "composed")}
    write_summary(
        HERE,
        [row for rows in parts.values() for row in rows],
        **{part: summary_of(rows) for part, rows in parts.items()},
    )
    print((HERE / "summary.json").read_text(encoding="utf-8"))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("cpu", "composed", "report"))
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--most-seconds", type=float, default=36_000)
    given = parser.parse_args()
    if given.what != "report":
        run_part(given.what, given.count, most_seconds=given.most_seconds)
    report()


if __name__ == "__main__":
    main()
