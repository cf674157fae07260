"""The errors of committed predictions, and how often a stated probability of fitting held.

``compared`` reads the rows of studies/hollow_gpu, of the cells of this study and of
studies/memory_truth. Nothing here needs torch.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "studies")]

from harness import Rows

from planner.cost.fit_probability import SLOW_BF16, KnownErrors
from profiler.devices.table import lookup
from profiler.units import GIB

HERE = Path(__file__).resolve().parent
HOLLOW_GPU = ROOT / "studies" / "hollow_gpu" / "results"
DEVICES = ("rtx-2060-super", "rtx-3060", "h200")
CAP_BYTES = 2 * GIB
RISK = 0.01
ROOMS = (-0.02, -0.005, 0.0, 0.0005, 0.002, 0.005, 0.01, 0.03)
"""Budgets of the evaluation, relative to the prediction."""
BANDS = ((0.0, 0.05), (0.05, 0.5), (0.5, 0.9), (0.9, 0.99), (0.99, 1.0))
KINDS = {
    **dict.fromkeys(("vit_t", "vit_s", "vit_b", "dinov2_s", "swin_t", "tiny_vit"), "attention"),
    **dict.fromkeys(("resnet18", "mobilenetv2", "mobilenetv3", "convnext_t"), "convolution"),
    **dict.fromkeys(("vim_t", "mambavision_t"), "scan"),
}
"""Kind of each backbone of studies/hollow_gpu (``planner.cost.backbone_kinds.backbone_kind``)."""
PARTS = ("convolution", "scan")
"""Parts of the rows of this study."""
Row = dict[str, Any]


def compared() -> Iterator[tuple[str, str, float]]:
    """Yield (kind, model, real / predicted - 1) of every committed step that ran."""
    for device in DEVICES:  # not the native rows: plans train with expandable segments
        for row in Rows(HOLLOW_GPU, device).read():
            yield from _compared_row(row, device)
    for part in PARTS:
        for row in Rows(HERE, part).read():
            yield from _compared_row(row, row["device"], kind=part)
    for row in Rows(ROOT / "studies" / "memory_truth").latest("cell").values():
        if "real_bytes" in row:
            yield "cpu", row["workload"]["model"], row["real_bytes"] / row["replayed_bytes"] - 1


def _compared_row(
    row: Row, device: str, *, kind: str | None = None
) -> Iterator[tuple[str, str, float]]:
    if "reserved" not in row:
        return
    model, _, _, precision, *_ = row["cell"].split()
    is_slow = precision == "bf16" and (lookup(device).compute_capability or (8, 0)) < (8, 0)
    found = SLOW_BF16 if is_slow else kind or KINDS[model]
    yield found, model, row["reserved"] / row["predicted"]["reserved"] - 1


def write_errors(path: Path) -> None:
    """Write the errors that the planner reads; an error is rounded up at its sixth digit."""
    by_kind: dict[str, Counter[float]] = {}
    for kind, _, error in compared():
        by_kind.setdefault(kind, Counter())[math.ceil(error * 1e6) / 1e6] += 1
    content = {
        "schema": "budgetplan.fit_errors/1",
        "source": "studies/fits_probability: real / predicted - 1 and its number of steps",
        "errors": {kind: sorted(by_kind[kind].items()) for kind in sorted(by_kind)},
    }
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


# -- judging ---------------------------------------------------------------------------------------


def judged() -> list[Row]:
    """Return (P, whether it fitted) of every step and room, its model's errors left out."""
    steps = list(compared())
    rows = []
    for kind, model in sorted({(kind, model) for kind, model, _ in steps}):
        others = sorted(e for k, m, e in steps if k == kind and m != model)
        if not others:
            continue
        known = KnownErrors(kind=kind, errors=tuple(others))
        for error in (e for k, m, e in steps if (k, m) == (kind, model)):
            for room in ROOMS:
                said = known.probability(room)
                rows.append({"kind": kind, "room": room, "said": said, "fits": error <= room})
    return rows


def bands(rows: Sequence[Row]) -> list[Row]:
    """Return each band of stated probabilities with the share that fitted and its interval."""
    from scipy.stats import binomtest

    found = []
    for low, high in BANDS:
        some = [r for r in rows if low <= r["said"] < high or (high == 1.0 and r["said"] == 1.0)]
        if not some:
            continue
        fitted = sum(r["fits"] for r in some)
        interval = binomtest(fitted, len(some)).proportion_ci(0.95, method="exact")
        stated = sum(r["said"] for r in some) / len(some)
        found.append(
            {
                "from": low,
                "to": high,
                "steps": len(some),
                "stated_mean": stated,
                "fitted": fitted / len(some),
                "low": interval.low,
                "high": interval.high,
                "stated_is_inside_or_below": bool(stated <= interval.high),
            }
        )
    return found


def brim_of_hollow_gpu() -> Row:
    """Return how often the steps of studies/hollow_gpu near 2 GiB ran out where P was >= 99 %."""
    steps = list(compared())
    ran = out = 0
    for device in DEVICES:
        for row in Rows(HOLLOW_GPU, device).read():
            if "capped" not in row or "reserved" not in row:
                continue
            ((kind, model, _),) = _compared_row(row, device)
            known = KnownErrors(
                kind=kind, errors=tuple(sorted(e for k, m, e in steps if k == kind and m != model))
            )
            if known.probability(CAP_BYTES / row["predicted"]["reserved"] - 1) >= 1 - RISK:
                ran += 1
                out += bool(row["capped"].get("out_of_memory"))
    return {"said_99_percent": ran, "ran_out": out}
