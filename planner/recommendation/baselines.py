"""The paper's tuned defaults on the same device, as baselines (arXiv 2607.02158)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planner.cost.place_within_budget import needed_bytes
from planner.search.space import Space
from profiler.records import Report

if TYPE_CHECKING:
    from planner.cost.model import CostModel

PAPER_BATCH = 32

PAPER_THRESHOLD = 0.5
"""arXiv 2607.02158's code: batch 32, fp32, AdamW, LoRA rank 8, adaptive threshold 0.5."""

PAPER_METHODS = ("full", "lora")

PAPER_RANK = 8

PAPER_POLICIES = ("none", "static", "adaptive")


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What one of the paper's defaults would need.

    Attributes:
        prediction: composed.
        fits: within the budget.
    """

    prediction: Report
    fits: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain data, without the table of units."""
        data = self.prediction.to_json()
        del data["units"]
        return data | {"fits": self.fits}


def baselines(space: Space, cost: CostModel, budget_bytes: int) -> Mapping[str, Baseline]:
    """Return what the paper's defaults need, by ``method`` and ``method_policy``."""
    found = {}
    searched = {method.name for method in space.methods}
    for method in PAPER_METHODS:
        if method not in searched:
            continue
        load = space.base.replace(
            method=method,
            rank=PAPER_RANK if method == "lora" else None,
            micro_batch=PAPER_BATCH,
            accumulation=1,
            precision="fp32",
            optimizer="adamw",
        )
        for policy in PAPER_POLICIES:
            candidate = cost.place(load, policy, budget_bytes, threshold=PAPER_THRESHOLD)
            report = cost.predict(candidate)
            name = method if policy == "none" else f"{method}_{policy}"
            found[name] = Baseline(prediction=report, fits=needed_bytes(report) <= budget_bytes)
    return found
