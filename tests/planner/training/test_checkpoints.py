"""A resumed training ends as an uninterrupted one; what is not the same training is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plans import make_plan
from trainings import STATIC, StopError, learned, other_data, run, same, workload

from planner.training.history import TrainProgress
from planner.training.trained_model import HISTORY_FILE, MODEL_FOLDER, PLAN_FILE
from profiler.errors import InputError


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "lora", "dropout": 0.3},
        {"method": "adalora"},
        {"method": "full", "rank": None, "optimizer": "sgd", "model": "resnet18"},
        {"method": "bitfit", "rank": None, "optimizer": "adamw8bit", "precision": "bf16"},
        {"method": "galore", "drop_path": 0.2},
    ],
    ids=lambda changes: str(changes["method"]),
)
def test_a_resumed_training_ends_as_an_uninterrupted_one(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    plan = make_plan(workload(**changes))
    straight = run(plan, tmp_path / "straight", epochs=3)

    def interrupt(progress: TrainProgress) -> None:
        if (progress.epoch, progress.step) == (2, 2):
            raise StopError

    with pytest.raises(StopError):
        run(plan, tmp_path / "resumed", epochs=3, on_progress=interrupt)
    resumed = run(plan, tmp_path / "resumed", epochs=3, resume=True)
    assert same(learned(tmp_path / "resumed"), learned(tmp_path / "straight"))
    pairs = zip(straight.epochs, resumed.epochs, strict=True)
    assert all((a.loss, a.accuracy) == (b.loss, b.accuracy) for a, b in pairs)
    names = sorted(p.name for p in (tmp_path / "resumed").iterdir())
    assert names == sorted(
        ["checkpoint-6", MODEL_FOLDER, PLAN_FILE, HISTORY_FILE, "run.csv", "run.svg"]
    )


def test_a_resume_that_is_not_the_same_training_is_refused(tmp_path: Path) -> None:
    plan = make_plan(workload())
    with pytest.raises(InputError, match="nothing to resume"):
        run(plan, tmp_path, resume=True)
    run(plan, tmp_path, epochs=1)
    with pytest.raises(InputError, match="holds a training already"):
        run(plan, tmp_path)
    with pytest.raises(InputError, match="seed was 0, is now 1"):
        run(plan, tmp_path, resume=True, seed=1)
    with pytest.raises(InputError, match="learning_rate"):
        run(plan, tmp_path, resume=True, learning_rate=1.0)
    with pytest.raises(InputError, match=r"workload.s dropout was 0\.0, is now 0\.1"):
        run(make_plan(workload(dropout=0.1)), tmp_path, resume=True)
    with pytest.raises(InputError, match="data"):
        run(plan, tmp_path, resume=True, images=other_data())
    longer = run(plan, tmp_path, resume=True, epochs=2)
    assert len(longer.epochs) == 2


def test_a_training_is_resumed_under_another_placement(tmp_path: Path) -> None:
    kept = make_plan(workload())
    recomputed = replace(kept, candidate=replace(kept.candidate, placement=STATIC))
    run(kept, tmp_path / "whole", epochs=2)
    run(kept, tmp_path / "parts", epochs=1)
    resumed = run(recomputed, tmp_path / "parts", epochs=2, resume=True)
    assert resumed.placement == STATIC
    assert same(learned(tmp_path / "parts"), learned(tmp_path / "whole"))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    plan = make_plan(workload())
    run(plan, tmp_path, epochs=1)
    folder = tmp_path / "checkpoint-2"
    progress = json.loads((folder / "progress.json").read_text())
    damages = [(name, b"\x80\x04damaged", name) for name in ("state.pt", "learned.safetensors")]
    damages += [
        ("progress.json", json.dumps(progress | changed).encode(), words)
        for changed, words in (
            ({"seconds": float("nan")}, "NaN"),
            ({"steps": "two"}, "steps"),
            ({"banana": 1}, "banana"),
            ({"identity": None}, "identity"),
        )
    ]
    for name, content, words in damages:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        with pytest.raises(InputError, match=words) as caught:
            run(plan, tmp_path, resume=True)
        assert "\n" not in str(caught.value)
        (folder / name).write_bytes(whole)
    assert len(run(plan, tmp_path, resume=True).epochs) == 2
