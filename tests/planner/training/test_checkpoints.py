"""A resumed training ends as an uninterrupted one; what is not the same training is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from plans import make_plan
from trainings import STATIC, StopError, learned, other_data, run, same, workload

from planner.plan import PLAN_FILE
from planner.training.history import HISTORY_FILE, TrainProgress
from planner.training.trained_model import MODEL_FOLDER
from profiler.errors import BudgetplanWarning, InputError
from profiler.models.build import build_model


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


def saved_backbone(path: Path, *, seed: int) -> Path:
    """Write a file of weights for the test's model."""
    torch.manual_seed(seed)
    torch.save(build_model(workload(method="full", rank=None)).model.state_dict(), path)
    return path


def test_a_resume_compares_the_content_of_the_weights_file_not_its_path(tmp_path: Path) -> None:
    plan = make_plan(workload())
    file = saved_backbone(tmp_path / "weights.pt", seed=0)
    output = tmp_path / "out"
    run(plan, output, epochs=1, weights=file)
    moved = tmp_path / "elsewhere" / "same.pt"
    moved.parent.mkdir()
    shutil.copy(file, moved)
    assert len(run(plan, output, epochs=2, weights=moved, resume=True).epochs) == 2
    saved_backbone(moved, seed=1)
    with pytest.raises(InputError, match="weights file's sha256 was"):
        run(plan, output, epochs=3, weights=moved, resume=True)
    with pytest.raises(InputError, match="weights"):
        run(plan, output, epochs=3, resume=True)
    assert len(run(plan, output, epochs=3, weights=file, resume=True).epochs) == 3


def test_another_entry_of_the_same_weights_file_is_another_training(tmp_path: Path) -> None:
    state = build_model(workload(method="full", rank=None)).model.state_dict()
    file = tmp_path / "weights.pt"
    torch.save({"model": state, "ema": {k: v.clone() for k, v in state.items()}}, file)
    plan, output = make_plan(workload()), tmp_path / "out"
    run(plan, output, epochs=1, weights=Path(f"{file}::model"))
    with pytest.raises(InputError, match="weights file's entry was model, is now ema"):
        run(plan, output, epochs=2, weights=Path(f"{file}::ema"), resume=True)
    moved = file.rename(tmp_path / "moved.pt")
    resumed = run(plan, output, epochs=2, weights=Path(f"{moved}::model"), resume=True)
    assert len(resumed.epochs) == 2


def test_a_checkpoint_with_only_the_path_of_the_weights_is_resumed_by_it(tmp_path: Path) -> None:
    plan, output = make_plan(workload()), tmp_path / "out"
    file = saved_backbone(tmp_path / "weights.pt", seed=0)
    run(plan, output, epochs=1, weights=file)
    progress = output / "checkpoint-2" / "progress.json"
    data = json.loads(progress.read_text())
    data["identity"]["weights file"] = str(file)
    progress.write_text(json.dumps(data))
    moved = tmp_path / "moved.pt"
    shutil.copy(file, moved)
    with pytest.raises(InputError, match=r"resume it with the weights at .*weights\.pt"):
        run(plan, output, epochs=2, weights=moved, resume=True)
    with pytest.warns(BudgetplanWarning, match="not their content"):
        assert len(run(plan, output, epochs=2, weights=file, resume=True).epochs) == 2
    # its next checkpoint has the content
    assert len(run(plan, output, epochs=3, weights=moved, resume=True).epochs) == 3


@pytest.mark.parametrize(
    ("field", "changed", "message"),
    [
        ("schedule", {"start_factor": 7.0}, r"checkpoint\.schedule\.start_factor"),
        (
            "placement",
            {"decisions": {"blocks.1": "segment"}},
            r"the placement makes 'blocks\.1' a segment .* recompute both",
        ),
    ],
)
def test_a_rule_that_a_record_in_the_state_breaks_is_said_as_such(
    tmp_path: Path, field: str, changed: dict[str, object], message: str
) -> None:
    plan = make_plan(workload())
    run(plan, tmp_path, epochs=1)
    path = tmp_path / "checkpoint-2" / "state.pt"
    state = torch.load(path, weights_only=True)
    torch.save({**state, field: {**state[field], **changed}}, path)
    with pytest.raises(InputError, match=rf"state\.pt: {message}") as caught:
        run(plan, tmp_path, epochs=1, resume=True)
    assert "cannot be read" not in str(caught.value)
    assert "another folder" not in str(caught.value)


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
