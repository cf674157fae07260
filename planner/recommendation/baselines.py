"""The defaults of the paper (arXiv 2607.02158), predicted for the same device and budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planner.cost.budget import needed_bytes
from planner.placement.policies import parse_policy
from planner.search.space import Space
from profiler.records import Report
from profiler.units import DeviceBytes

if TYPE_CHECKING:
    from planner.cost.model import CostModel

PAPER_METHODS, PAPER_RANK = ("full", "lora"), 8
"""Methods of the paper's defaults, and the rank of LoRA in its published code."""

PAPER_BATCH = 32
"""Images of a step in the published code, in fp32 with AdamW."""

PAPER_POLICIES, PAPER_THRESHOLD = ("none", "static", "adaptive"), 0.5
"""Checkpoint policies of the paper, and the threshold of its adaptive rule in the same code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """One of the paper's defaults.

    Attributes:
        prediction: composed prediction of a training step.
        fits: whether the prediction is within the budget.
    """

    prediction: Report
    fits: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain data, without the table of units."""
        data = self.prediction.to_json()
        del data["units"]
        return data | {"fits": self.fits}


def paper_baselines(
    space: Space, cost: CostModel, budget_bytes: DeviceBytes
) -> Mapping[str, Baseline]:
    """Return the paper's defaults by name: the method, or the method and its policy.

    Methods that the space does not have are left out.
    """
    found = {}
    searched = {method.name for method in space.methods}
    for method in PAPER_METHODS:
        if method not in searched:
            continue
        workload = space.base.replace(
            method=method,
            rank=PAPER_RANK if method == "lora" else None,
            micro_batch=PAPER_BATCH,
            accumulation=1,
            precision="fp32",
            optimizer="adamw",
        )
        for policy in PAPER_POLICIES:
            choice = parse_policy(policy, threshold=PAPER_THRESHOLD)
            candidate = cost.place(workload, choice, budget_bytes)
            report = cost.predict(candidate, with_remarks=False)
            name = method if policy == "none" else f"{method}_{policy}"
            found[name] = Baseline(prediction=report, fits=needed_bytes(report) <= budget_bytes)
    return found
