"""A plan against its model and its data, before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plans import make_plan
from trainings import digits, run, workload

from planner.plan import Plan
from planner.training.plan_check import check_against_model, check_data, load_data_for
from profiler.errors import InputError
from profiler.placement import Decision, Placement


def test_a_plan_is_held_against_the_model_it_names() -> None:
    plan = make_plan(workload())
    assert check_against_model(plan).units[0] == "blocks.0"

    def with_workload(**changes: Any) -> Plan:
        candidate = replace(plan.candidate, workload=plan.candidate.workload.replace(**changes))
        return replace(plan, candidate=candidate)

    for changes, complaint in (
        ({"model": "vit_tiny_patch16_225"}, "vit_tiny_patch16_224"),
        ({"method": "loar"}, "lora"),
        ({"method": "bn_head", "rank": None}, "BatchNorm"),
        ({"rank": 5}, "parameters"),
        ({"model": "vit_small_patch16_224"}, "has changed"),
    ):
        with pytest.raises(InputError, match=complaint):
            check_against_model(with_workload(**changes))
    lacking = Placement(decisions={"blocks.99": Decision.RECOMPUTE})
    with pytest.raises(InputError, match=r"blocks\.99"):
        check_against_model(replace(plan, candidate=replace(plan.candidate, placement=lacking)))


def test_a_plan_that_its_model_refuses_is_refused_before_anything_runs(tmp_path: Path) -> None:
    plan = make_plan(workload(model="test_vit", image_size=33))
    with pytest.raises(InputError, match=r"cannot run: .* at 33 px .*; use 32 or 48"):
        run(plan, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_data_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="7 classes, digits has 10"):
        load_data_for(workload(num_classes=7), "digits")
    with pytest.raises(InputError, match="takes 4096 images"):
        load_data_for(workload(accumulation=512), "digits")
    with pytest.raises(InputError, match="images of 32 px"):
        check_data(digits(64), workload())
    with pytest.raises(InputError, match="7 classes"):
        run(make_plan(workload(num_classes=7)), tmp_path / "new")
    assert not (tmp_path / "new").exists()
