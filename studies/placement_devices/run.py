"""Does the best placement depend on the GPU? README.md has the answer.

    python studies/placement_devices/run.py [BACKBONE ...]   # rows.jsonl.gz; all backbones without names
    python studies/placement_devices/run.py --summary        # summary.json

For each workload and budget, the optimal placement of every GPU is computed with the recompute
prices of that GPU, and then priced with those of every other.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from harness import Rows, write_summary

from planner.cost.model import CostModel
from planner.placement.chain import Chain, option_indices
from planner.placement.chain_cost import peak_bytes, recompute_seconds
from planner.placement.chain_policies import place_chain
from planner.placement.policies import OPTIMAL
from profiler.devices.table import device_spec
from profiler.errors import InfeasibleError
from profiler.models import backbones
from profiler.placement import Placement
from profiler.store import Store
from profiler.workload import Workload

GPUS = ("t4", "rtx-2060-super", "rtx-3090", "a100-40gb")
BACKBONES = ("vit_s", "swin_t", "convnext_t", "resnet50", "mobilenetv3", "tiny_vit")
PRECISIONS = ("fp32", "fp16")
SHARES = (0.4, 0.6)
"""Budgets, as shares of the live bytes with every unit kept."""

ROWS = Rows(HERE)


def workloads(backbone: str) -> Iterator[Workload]:
    """Yield the workloads of a backbone."""
    name = backbones.resolve(backbone)
    size = backbones.native_image_size(name)
    for precision in PRECISIONS:
        yield Workload(
            model=name, method="full", micro_batch=32, image_size=size, precision=precision
        )


def rows_of(workload: Workload) -> Iterator[dict[str, Any]]:
    """Yield a row for each budget, with the prices of each placement on each GPU."""
    store = Store(Path(tempfile.gettempdir()) / "placement_devices")
    models = {gpu: CostModel(device_spec(gpu), store) for gpu in GPUS}
    chains = {gpu: model.chain(workload) for gpu, model in models.items()}
    steps = {gpu: model.costs(workload).step_seconds for gpu, model in models.items()}
    kept = {gpu: _peak(chain, Placement(decisions={})) for gpu, chain in chains.items()}
    for share in SHARES:
        try:
            placements = {
                gpu: place_chain(chain, OPTIMAL, round(share * kept[gpu]))
                for gpu, chain in chains.items()
            }
        except InfeasibleError:
            continue
        yield {
            "model": workload.model,
            "precision": workload.precision,
            "share": share,
            "step_seconds": steps,
            "seconds": {
                on: {of: _seconds(chains[on], placements[of]) for of in GPUS} for on in GPUS
            },
            "peak_shares": {
                on: {of: _peak(chains[on], placements[of]) / kept[on] for of in GPUS} for on in GPUS
            },
            "decisions": {
                gpu: {unit: str(d) for unit, d in sorted(found.decisions.items())}
                for gpu, found in placements.items()
            },
        }


def _seconds(chain: Chain, placement: Placement) -> float:
    return recompute_seconds(chain, option_indices(chain, placement))


def _peak(chain: Chain, placement: Placement) -> int:
    return peak_bytes(chain, option_indices(chain, placement))


def summary() -> dict[str, Any]:
    """Return how often GPUs place differently, and what another GPU's placement costs."""
    rows = ROWS.read()
    different, table = [], {}
    for row in rows:
        texts = [json.dumps(row["decisions"][gpu]) for gpu in GPUS]
        different.append(len(set(texts)) > 1)
    for on in GPUS:
        for of in GPUS:
            if on == of:
                continue
            fits = [r for r in rows if r["peak_shares"][on][of] <= r["share"] * 1.005]
            added = [r["seconds"][on][of] - r["seconds"][on][on] for r in fits]
            own = [r["seconds"][on][on] for r in fits]
            step = [r["step_seconds"][on] for r in fits]
            lost = np.array(added) / np.array(own)
            table[f"{of} on {on}"] = {
                "cells": len(fits),
                "median_more_recomputation": round(float(np.median(lost)), 4),
                "largest_more_recomputation": round(float(lost.max()), 4),
                "largest_share_of_step": round(float((np.array(added) / np.array(step)).max()), 4),
            }
    return {"cells": len(rows), "placed_differently": sum(different), "on": table}


def main() -> None:
    """Run the study or write its summary."""
    names = sys.argv[1:]
    if names != ["--summary"]:
        done = {row["model"] for row in ROWS.read()}
        for backbone in names or BACKBONES:
            if backbones.resolve(backbone) in done:
                continue
            for workload in workloads(backbone):
                for row in rows_of(workload):
                    ROWS.append(row)
                    print(row["model"], row["precision"], row["share"], flush=True)
        ROWS.pack()
    write_summary(HERE, ROWS.read(), **summary())


if __name__ == "__main__":
    main()
