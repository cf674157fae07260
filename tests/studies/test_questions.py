"""The choice against an expert's rules, on many questions with costs in closed form.

studies/questions asks the same of profiled backbones.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import pytest

from planner.recommendation.ranking import Question
from planner.search.problem import SearchProblem
from planner.search.space import SearchedMethod, Space
from profiler.devices.table import lookup
from profiler.units import GIB, DeviceBytes
from profiler.workload import Workload

STUDY_FOLDERS = (".", "questions")
MODELS = ("vit_small_patch16_224", "resnet18", "tiny_vit_21m_224", "vim_small_patch16_224")
METHODS = (
    SearchedMethod(name="full"),
    SearchedMethod(name="head"),
    SearchedMethod(name="bitfit"),
    SearchedMethod(name="lora", ranks=(2, 8), default_rank=8),
    SearchedMethod(name="adaptformer", ranks=(4, 8), default_rank=8),
)
BUDGETS_MB = (210, 260, 330, 420, 600, 1000, 3000)


@pytest.fixture(autouse=True)
def toy_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(__file__).parents[1] / "planner" / "search"
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])


@pytest.mark.parametrize(("model", "train_images"), list(product(MODELS, (1_000, 50_000))), ids=str)
def test_no_recommended_plan_breaks_a_rule(model: str, train_images: int) -> None:
    from expert_rules import broken_rules, worse
    from run import answer_problem
    from toy_costs import MB, ToyCosts

    space = Space(
        base=Workload(model=model, num_classes=10, image_size=32),
        methods=METHODS,
        micro_batches=(1, 4, 16),
        effective_batch=16,
        precisions=("fp32", "fp16"),
    )
    plans = []
    images = "few" if train_images == 1_000 else "many"
    for megabytes in BUDGETS_MB:
        budget = DeviceBytes(megabytes * MB)
        problem = SearchProblem(
            space=space,
            device=lookup("rtx-2060-super"),
            limit_bytes=budget,
            data="folder",
            train_images=train_images,
        )
        question = Question(budget_bytes=budget, train_images=train_images)
        plan, results = answer_problem(problem, ToyCosts(), question)
        if plan is None:
            continue
        broken = broken_rules(plan, results, budget_bytes=budget, images=images)
        assert list(broken) == [], megabytes
        plans.append(plan)
    assert len(plans) > 3
    assert [worse(larger, smaller) for smaller, larger in pairwise(plans)] == [None] * (
        len(plans) - 1
    )
    bad = replace(plans[-1], step_seconds=1e3, device_bytes=DeviceBytes(10**12))
    assert len(list(broken_rules(bad, results, budget_bytes=budget, images=images))) >= 2


def test_the_studys_table_holds_the_rules() -> None:
    """The rules that need no other plan are checked on the stored rows, not read from them."""
    from harness import Rows

    rows = Rows(Path(__file__).parents[2] / "studies" / "questions").read()
    assert len(rows) >= 40
    assert len({row["model"] for row in rows}) >= 10
    assert all(row["broken"] == [] for row in rows)
    answered = [row for row in rows if row["plan"] is not None]
    assert len(answered) > 0.9 * len(rows)
    half = {"rtx-2060-super": "fp16", "rtx-3060": "bf16"}
    for row in answered:
        load = row["plan"]["workload"]
        assert row["device_bytes"] <= row["budget_gib"] * GIB
        assert load["precision"] == half[row["device"]]
        assert load["optimizer"] == "adamw"
        assert load["method"] in ("full", "head") or row["evidence"] != "none"
    for smaller, larger in pairwise(answered):
        if any(smaller[name] != larger[name] for name in ("model", "device")):
            continue
        assert smaller["budget_gib"] < larger["budget_gib"]
        methods = {row["plan"]["workload"]["method"] for row in (smaller, larger)}
        seconds = [row["milliseconds_per_image"] for row in (smaller, larger)]
        assert len(methods) == 2 or seconds[1] <= 1.03 * seconds[0]
