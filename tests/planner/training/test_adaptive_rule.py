"""The adaptive rule while training, and the bytes in use that it reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from plans import make_plan
from trainings import STATIC, learned, run, same, workload

from planner.training.adaptive_rule import AdaptiveRule, live_bytes_reader
from profiler.errors import InputError
from profiler.placement import PolicyChoice


def test_the_adaptive_rule_decides_while_training_and_changes_nothing_else(tmp_path: Path) -> None:
    plan = make_plan(workload())
    as_planned = run(plan, tmp_path / "plan")
    never = AdaptiveRule(budget_bytes=10**15)
    at_once = AdaptiveRule(budget_bytes=1)
    kept = run(plan, tmp_path / "kept", rule=never)
    recomputed = run(plan, tmp_path / "recomputed", rule=at_once)
    assert kept.policy == recomputed.policy == PolicyChoice("adaptive", {"threshold": 0.5})
    assert not kept.placement.decisions
    assert recomputed.placement.decisions == STATIC.decisions
    for name in ("kept", "recomputed"):
        assert same(learned(tmp_path / name), learned(tmp_path / "plan"))
    assert [e.loss for e in recomputed.epochs] == [e.loss for e in as_planned.epochs]


def test_a_training_by_the_adaptive_rule_is_resumed_by_it(tmp_path: Path) -> None:
    plan, rule = make_plan(workload()), AdaptiveRule(budget_bytes=1)
    run(plan, tmp_path / "whole", rule=rule)
    run(plan, tmp_path / "parts", rule=rule, epochs=1)
    with pytest.raises(InputError, match="adaptive rule was"):
        run(plan, tmp_path / "parts", resume=True)
    resumed = run(plan, tmp_path / "parts", rule=rule, resume=True)
    assert resumed.policy.name == "adaptive"
    assert same(learned(tmp_path / "parts"), learned(tmp_path / "whole"))


def test_memory_in_use_is_what_is_allocated_and_not_what_malloc_keeps() -> None:
    in_use = live_bytes_reader("cpu")
    mib = 2**20
    small = [torch.ones(mib // 16, dtype=torch.uint8) for _ in range(512)]
    assert 32 * mib <= in_use() < 33 * mib
    large = torch.ones(64 * mib, dtype=torch.uint8)
    assert 96 * mib <= in_use() < 97 * mib
    del small, large
    assert in_use() < mib
