"""Is a training that is said to fit with probability P really within its budget so often?

    export PYTHONPATH=.:studies/gpu_grid:studies/hollow_gpu
    python studies/fits_probability/run.py cells --kind convolution   run new cells at the brim
    python studies/fits_probability/run.py cells --kind scan          the same for scan backbones
    python studies/fits_probability/run.py errors    write planner/cost/fit_errors.json
    python studies/fits_probability/run.py report    write summary.json

``errors`` collects the errors of the committed rows: studies/hollow_gpu and the cells of this study
(bytes that PyTorch's allocator reserved on an emulated GPU), and studies/memory_truth (CPU).
``report`` judges them with each model left out.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [
    str(ROOT),
    *(str(ROOT / "studies" / part) for part in ("", "gpu_grid", "hollow_gpu")),
]

from cells import CAP_BYTES, PLACEMENTS, Cell, largest_fitting
from compare import predict_row
from harness import Rows, write_summary
from known_errors import (
    DEVICES,
    ON_CPU,
    PARTS,
    RISK,
    SLOW_BF16,
    bands,
    brim_of_hollow_gpu,
    compared,
    judged,
    known_of,
    left_out_families,
    one_step_of_a_model,
    planned,
)
from known_errors import write_errors as write_known
from run import units_of  # type: ignore[attr-defined]  # that of gpu_grid
from study import run_all

from planner.cost.fit_probability import ERRORS_FILE, GPU, KnownErrors
from profiler.device_rules.caching_allocator import DEFAULT_CONFIGURATION
from profiler.devices.table import lookup
from profiler.errors import UsageError
from profiler.workload import Workload

HERE = Path(__file__).resolve().parent
SEED = 20261130
MOST_IMAGES = 512
CONVOLUTIONS = (
    "resnet50", "resnet34", "resnet26d", "resnext50_32x4d", "seresnet50", "regnetx_008",
    "regnety_004", "efficientnet_b0", "efficientnet_lite0", "mobilenetv1_100", "mnasnet_100",
    "ghostnet_100", "densenet121", "dla34", "repvgg_a0", "hrnet_w18_small", "convnextv2_atto",
    "convnext_pico", "rexnet_100", "hardcorenas_a", "mixnet_s", "fbnetc_100", "spnasnet_100",
    "tinynet_c", "ese_vovnet19b_dw", "darknet53", "cspresnet50", "res2net50_26w_4s", "skresnet18",
    "wide_resnet50_2", "gernet_s", "efficientnetv2_rw_t", "lcnet_100", "semnasnet_100",
    "resnet10t", "resnet14t", "resnet18d", "resnet34d", "resnet26t", "resnet32ts", "resnet33ts",
    "resnet50d", "resnet50_gn", "resnetaa34d", "resnetblur18", "resnetv2_18", "resnetv2_34d",
    "resnetv2_50", "resnext26ts", "seresnet18", "seresnet34", "seresnet33ts",
    "seresnext26d_32x4d", "skresnet34", "ecaresnet26t", "ecaresnetlight", "gcresnet33ts",
    "gcresnext26ts", "nf_resnet26", "nf_regnet_b0", "eca_nfnet_l0", "regnetx_002", "regnetx_016",
    "regnety_002", "regnety_016", "regnetz_005", "regnetz_b16", "regnetv_040", "efficientnet_b1",
    "efficientnet_b0_gn", "efficientnet_lite1", "tf_efficientnet_b0", "fbnetv3_b",
    "mobilenetv2_050", "mobilenetv3_small_100", "mobilenetv4_conv_small",
    "mobilenet_edgetpu_v2_xs", "mobileone_s0", "repvit_m0_9", "repghostnet_100", "repvgg_a1",
    "ghostnet_050", "ghostnetv2_100", "lcnetv2_base", "hgnetv2_b0", "cs3darknet_focus_s",
    "cs3darknet_m", "cspdarknet53", "cspnext_tiny", "darknetaa53", "dla46_c", "dla60x", "dpn48b",
    "densenet169", "vovnet39a", "selecsls42b", "vgg11_bn", "convnextv2_femto", "convnext_atto",
    "convnext_femto", "mambaout_femto", "fasternet_t0", "starnet_s1", "xception41",
    "inception_v3",
)  # fmt: skip
SCANS = ("vim_t", "vim_s", "mambavision_t", "mambavision_t2", "mambavision_s")
MODELS = {*CONVOLUTIONS, *SCANS}
METHODS = ("full", "lora", "bitfit", "bn_head", "partial_2", "dora")
Row = dict[str, Any]


# -- new cells -------------------------------------------------------------------------------------


def drawn_cells(kind: str, count: int) -> Iterator[tuple[Cell, str]]:
    """Yield cells at batch 1, each with its device, in a fixed order."""
    rng = random.Random(f"{SEED} {kind}")
    models = CONVOLUTIONS if kind == "convolution" else SCANS
    for index in range(count):
        device = DEVICES[index % len(DEVICES)]
        halves = ("fp16",) if device == "rtx-2060-super" else ("bf16", "fp16")
        workload = Workload(
            model=models[index % len(models)],
            method=rng.choice(METHODS),
            micro_batch=1,
            precision=rng.choice(("fp32", *halves)),
            optimizer=rng.choice(("adamw", "sgd")),
            num_classes=100,
        )
        yield Cell(workload=workload, placement=rng.choice(PLACEMENTS), extra="brim"), device


def at_the_brim(family: Cell, device: str, known: KnownErrors) -> tuple[Cell, Row]:
    """Return the cell of the largest batch with P >= 99 % under the cap, and its prediction."""
    units = units_of(family.workload.model, family.workload.image_size)
    found: dict[int, Row] = {}

    def cell(batch: int) -> Cell:
        workload = family.workload.replace(micro_batch=batch)
        return Cell(workload=workload, placement=family.placement, extra="brim")

    def reserved(batch: int) -> int:
        data = cell(batch).candidate(units).to_json()
        found[batch] = predict_row(data, device=device, allocator=DEFAULT_CONFIGURATION)
        return int(found[batch]["reserved"])

    limit = known.largest_prediction(CAP_BYTES, risk=RISK)
    batch = largest_fitting(reserved, cap_bytes=limit, most=MOST_IMAGES)
    if batch == 0:
        raise UsageError("one image does not fit")
    row = {name: found[batch][name] for name in ("peak", "reserved", "fits_cap")}
    room = known.error_of(CAP_BYTES, row["reserved"])
    return cell(batch), row | {"probability": known.probability(room)}


def run_cells(kind: str, count: int, known: KnownErrors, *, minutes: float) -> None:
    """Run what is not yet among the rows; no cell is begun after some minutes."""
    ends = time.monotonic() + 60 * minutes
    book = Rows(HERE, kind)
    done = {row["family"] for row in book.read()}
    for family, device in drawn_cells(kind, count):
        name = f"{family.name} {device}"
        if name in done or time.monotonic() > ends:
            continue
        row: Row = {"family": name, "device": device}
        try:
            cell, predicted = at_the_brim(family, device, known)
        except (UsageError, RuntimeError, TypeError) as error:
            row["refused"] = f"{type(error).__name__}: {str(error)[:200]}"
        else:
            (ran,) = run_all([cell], lookup(device), DEFAULT_CONFIGURATION)
            ran.pop("data", None)
            row |= ran | {"predicted": predicted}
        book.append(row)
        print(row.get("refused") or row.get("failed") or row.get("reserved"), name, flush=True)
    book.pack()


# -- summary ---------------------------------------------------------------------------------------


def report() -> None:
    """Write the summary."""
    rows = judged()
    gpu = [r for r in rows if r["kind"] != ON_CPU]
    spare = [r for r in gpu if r["room"] == 0.03 and r["fits"]]
    new = {part: Rows(HERE, part).read() for part in PARTS}
    ran = {p: [r for r in found if "capped" in r] for p, found in new.items()}
    write_summary(
        HERE,
        [row for found in new.values() for row in found],
        known=Counter(step.kind for step in compared()),
        bands=bands(gpu),
        cpu_bands=bands([r for r in rows if r["kind"] == ON_CPU]),
        with_3_percent_to_spare={
            "steps": len(spare),
            "said_99_percent": sum(r["said"] >= 1 - RISK for r in spare),
            "bf16_before_ampere": sum(r["kind"] == SLOW_BF16 for r in spare),
        },
        left_out_families=left_out_families(),
        planned={left_out: planned(left_out) for left_out in ("model", "family")},
        one_step_of_a_model=one_step_of_a_model(),
        brim_of_hollow_gpu=brim_of_hollow_gpu(),
        new_cells={
            part: {
                "cells": len(found),
                "refused": sum("refused" in r for r in new[part]),
                "failed": sum("failed" in r for r in new[part]),
                "said_99_percent": sum(r["predicted"]["probability"] >= 1 - RISK for r in found),
                "ran_out": [
                    r["family"]
                    for r in found
                    if r["capped"].get("out_of_memory")
                    and r["predicted"]["probability"] >= 1 - RISK
                ],
            }
            for part, found in ran.items()
        },
    )
    print((HERE / "summary.json").read_text(encoding="utf-8"))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("cells", "errors", "report"))
    parser.add_argument("--kind", choices=PARTS, default="convolution")
    parser.add_argument("--count", type=int, default=102)
    parser.add_argument("--minutes", type=float, default=600, help="begin no cell after")
    given = parser.parse_args()
    if given.what == "errors":
        write_known(ERRORS_FILE)
        return
    if given.what == "report":
        report()
        return
    # bf16 before Ampere is not drawn; a cell is judged by models that it is not of
    known = known_of([s for s in compared() if s.kind == GPU and s.model not in MODELS], GPU)
    run_cells(given.kind, given.count, known, minutes=given.minutes)


if __name__ == "__main__":
    main()
