"""A step that runs out of memory is repeated under a tighter placement."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from plans import make_plan
from torch import nn
from trainings import STATIC, learned, run, same, workload

from planner.recipe import Recipe
from planner.training.history import TrainProgress
from planner.training.session import Session
from profiler.errors import MeasurementError
from profiler.models.build import build_model
from profiler.training_step import Batch
from profiler.workload import Candidate


class _Refusing:
    """Refuses memory in chosen forwards of one unit, counting its calls."""

    def __init__(self, refuse: set[int]) -> None:
        self.refuse, self.calls = refuse, 0

    def __call__(self, module: nn.Module, args: Any) -> None:
        if torch.is_grad_enabled() and module.training:
            self.calls += 1
            if self.calls in self.refuse:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def _hook_into_build_model(monkeypatch: pytest.MonkeyPatch, hook: Any) -> None:
    def hooked(*args: Any, **kwargs: Any) -> Any:
        made = build_model(*args, **kwargs)
        if kwargs.get("device") != "meta":
            made.backbone.blocks[-1].attn.register_forward_pre_hook(hook)
        return made

    monkeypatch.setattr("planner.training.training_run.build_model", hooked)


def test_out_of_memory_steps_down_and_loses_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(workload(dropout=0.3))
    untroubled = run(plan, tmp_path / "untroubled")
    # the second micro-batch of the second step: gradients of the first are already there
    _hook_into_build_model(monkeypatch, _Refusing({4}))
    seen: list[TrainProgress] = []
    result = run(plan, tmp_path / "troubled", on_progress=seen.append)
    assert result.policy.name == "optimal"
    assert result.placement.decisions
    assert len(result.step_downs) == 1
    assert "step 2" in result.step_downs[0]
    assert [bool(p.message) for p in seen].index(True) == 1
    # recomputing changes nothing, and neither does a repeated step
    assert same(learned(tmp_path / "troubled"), learned(tmp_path / "untroubled"))
    assert [e.loss for e in result.epochs] == [e.loss for e in untroubled.epochs]
    # a resumed training stays where it had stepped down to
    monkeypatch.undo()
    longer = run(plan, tmp_path / "troubled", resume=True, epochs=3)
    assert (longer.placement, longer.policy) == (result.placement, result.policy)
    assert longer.step_downs == result.step_downs


@pytest.mark.parametrize(("device_type", "accumulation"), [("cpu", 2), ("cuda", 1), ("cuda", 2)])
def test_loading_counts_for_the_speed_and_not_for_the_step(
    device_type: str, accumulation: int
) -> None:
    """On CUDA with accumulation a GPU works while images are loaded: no step time is known."""
    load = workload(model="test_vit", method="head", rank=None, accumulation=accumulation)
    session = Session(
        candidate=Candidate(workload=load),
        built=build_model(load),
        device="cpu",
        recipe=Recipe(learning_rate=1e-3, epochs=1, source="test"),
        total_steps=1,
    )
    session.step.device_type = device_type

    def slow() -> Iterator[Batch]:
        for _ in range(accumulation):
            time.sleep(0.05)
            yield torch.zeros(8, 3, 32, 32), torch.zeros(8, dtype=torch.long)

    session.run(slow())
    (loaded,) = session.loaded_step_seconds
    if (device_type, accumulation) == ("cuda", 2):
        assert not session.step_seconds
    else:
        assert loaded - session.step_seconds[0] >= 0.05 * accumulation


def test_training_ends_in_one_line_when_nothing_is_tighter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = _Refusing(set(range(3, 100)))
    _hook_into_build_model(monkeypatch, refusing)
    only = make_plan(workload(), STATIC).candidate
    monkeypatch.setattr(
        "planner.training.active_placement.tighter_placements", lambda *_: iter([only])
    )
    with pytest.raises(MeasurementError, match="smaller micro-batch"):
        run(make_plan(workload()), tmp_path)
    assert refusing.calls == 4  # two of the first step; then as planned, all


def test_other_errors_are_not_taken_for_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(module: nn.Module, args: Any) -> None:
        if module.training:
            raise RuntimeError("shape mismatch")

    _hook_into_build_model(monkeypatch, fail)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        run(make_plan(workload()), tmp_path)
