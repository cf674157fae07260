"""A covering sample of studies/questions: recommended plans against rules that an expert checks."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from planner.cost.model import CostModel
from profiler.devices.table import device_spec
from profiler.store import Store
from profiler.units import GIB, MIB

STUDY_FOLDERS = (".", "questions")


@pytest.mark.parametrize(
    ("model", "device", "expected"),
    [("test_vit", "rtx-3060", "lora"), ("test_efficientnet", "rtx-2060-super", "full")],
)
def test_no_recommended_plan_breaks_a_rule(
    model: str, device: str, expected: str, tmp_path: Path
) -> None:
    from expert_rules import broken_rules, worse
    from run import answer

    cost = CostModel(device_spec(device), Store(tmp_path))
    found = []
    for budget in (420 * MIB, 700 * MIB, 2 * GIB):
        plan, results, _ = answer(model, device, budget, cost, ("full", "head", "lora"))
        assert plan is not None
        broken = broken_rules(plan, results, budget_bytes=budget, images="few")
        assert list(broken) == []
        found.append((plan, results, budget))
    assert [worse(b[0], a[0]) for a, b in pairwise(found)] == [None, None]
    plan, results, budget = found[-1]
    assert plan.candidate.workload.method == expected
    slow = replace(plan, step_seconds=10.0, device_bytes=budget + 1)
    assert list(broken_rules(slow, results, budget_bytes=budget, images="few"))  # rules can fail
