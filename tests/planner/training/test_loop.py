"""The training loop: learning, its end, interrupts, and arguments that are refused."""

from __future__ import annotations

import json
import math
import shutil
import signal
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from plans import make_plan
from safetensors.torch import load_file
from trainings import StopError, digits, learned, run, same, workload

from planner.cli.plan_commands import _show_result, _show_step
from planner.cli.progress import progress_bar
from planner.plan import PLAN_FILE, read_plan
from planner.recipe import Recipe
from planner.training.checkpoints import latest_checkpoint
from planner.training.evaluate import evaluate_images
from planner.training.history import (
    HISTORY_FILE,
    AccuracyReading,
    TrainProgress,
    read_result,
)
from planner.training.images.image_set import ImageSet
from planner.training.loop import is_below
from planner.training.plan_check import load_data_for
from planner.training.trained_model import load_trained
from planner.training.zero_classifier import zero_classifier
from profiler.errors import DeviceError, InputError, MeasurementError, UsageError
from profiler.models.build import build_model
from profiler.models.methods.save_load import trained_tensors
from profiler.running.process_end import Terminated
from profiler.training_step import TrainingStep


def test_training_learns_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.training.loop.INTERIM_SECONDS", math.inf)
    small = workload(model="resnet10t", method="full", rank=None, micro_batch=16, accumulation=1)
    seen: list[TrainProgress] = []
    data = digits(32, train_images=480, test_images=100)
    result = run(make_plan(small), tmp_path, images=data, epochs=3, on_progress=seen.append)
    assert result.accuracy > 0.5  # chance is 0.1
    assert result.epochs[2].loss < 1 < result.epochs[0].loss
    assert result.weights.kind == "random"
    assert "random" in result.learning_rate.reason
    assert [p.reading is not None for p in seen] == 3 * [*([False] * 30), True]
    assert (seen[-1].epoch, seen[-1].step, seen[-1].reading) == (3, 30, result.readings[-1])
    assert all(p.learning_rate and p.images_per_second for p in seen)
    assert max(p.learning_rate or 0 for p in seen) == result.learning_rate.value
    assert {p.reserved_bytes for p in seen} == {None}  # on a CPU
    assert [p.done for p in seen[::31]] == pytest.approx([1 / 90, 31 / 90, 61 / 90])
    history = json.loads((tmp_path / HISTORY_FILE).read_text())
    assert history["accuracy"] == result.accuracy
    assert history["data"]["name"] == "digits"
    # what was saved is what was evaluated
    again = build_model(small).model
    again.load_state_dict(learned(tmp_path))
    assert evaluate_images(again, data.test, batch_size=7).accuracy == result.accuracy


def test_an_interrupt_keeps_the_step_under_way(tmp_path: Path) -> None:
    plan = make_plan(workload())
    straight = run(plan, tmp_path / "straight", epochs=2)

    def interrupt(progress: TrainProgress) -> None:
        if (progress.epoch, progress.step) == (1, 2) and progress.reading is None:
            signal.raise_signal(signal.SIGINT)

    told: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(
            plan,
            tmp_path / "stopped",
            epochs=2,
            on_progress=interrupt,
            on_interrupt=lambda: told.append("it stops"),
        )
    assert signal.getsignal(signal.SIGINT) is before
    assert told == ["it stops"]
    kept = latest_checkpoint(tmp_path / "stopped")
    assert kept is not None
    assert kept.name == "checkpoint-2"
    resumed = run(plan, tmp_path / "stopped", epochs=2, resume=True)
    assert resumed.accuracy == straight.accuracy
    assert same(learned(tmp_path / "stopped"), learned(tmp_path / "straight"))


def test_an_interrupt_before_the_test_part_is_read_keeps_the_steps(tmp_path: Path) -> None:
    plan = make_plan(workload())
    images = load_data_for(workload(), "digits")

    def interrupt(progress: TrainProgress) -> None:
        if progress.reading is not None:
            assert progress.reading.part == "selection"
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Terminated):
        run(plan, tmp_path, images=images, recipe="default", steps=3, on_progress=interrupt)
    kept = latest_checkpoint(tmp_path)
    assert kept is not None and kept.name == "checkpoint-3"
    resumed = run(plan, tmp_path, images=images, recipe="default", steps=3, resume=True)
    assert (resumed.readings[-1].step, resumed.readings[-1].part) == (3, "test")


def test_an_interrupt_while_the_test_part_is_read_loses_nothing(tmp_path: Path) -> None:
    plan = make_plan(workload())

    def interrupt(progress: TrainProgress) -> None:
        if progress.reading is not None and progress.reading.part == "test":
            signal.raise_signal(signal.SIGINT)

    images = load_data_for(workload(), "digits")
    result = run(plan, tmp_path, images=images, epochs=None, recipe="default", steps=2,
                 on_progress=interrupt)  # fmt: skip
    assert result.readings[-1].part == "test"
    assert read_result(tmp_path).accuracy == result.accuracy


@pytest.mark.parametrize(("by_class", "is_shown"), [(0.5, True), (0.89, False), (None, False)])
def test_an_accuracy_that_hides_classes_stands_beside_their_mean(by_class, is_shown, capsys):
    images = load_data_for(workload(), "digits")
    reading = AccuracyReading(
        step=1, seconds=1.0, loss=1.0, accuracy=0.9, mean_class_accuracy=by_class, images=50
    )
    _show_result(SimpleNamespace(
        weights=SimpleNamespace(kind="random", notes=()), readings=[reading], accuracy=0.9,
        data=images.source.to_json(), recipe=None, epochs=(), output="trained",
    ))  # fmt: skip
    assert ("mean over the classes: 50 %" in capsys.readouterr().out) == is_shown


def test_the_record_of_a_stopped_training_is_asked_for(tmp_path: Path) -> None:
    def interrupt(progress: TrainProgress) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(make_plan(workload()), tmp_path, epochs=1, on_progress=interrupt)
    with pytest.raises(InputError, match="stopped before its end"):
        read_result(tmp_path)


def test_a_recipe_that_chooses_no_epoch_records_the_images_that_it_trains_on(
    tmp_path: Path,
) -> None:
    images = load_data_for(workload(), "digits")
    plan = make_plan(workload())
    chosen = run(plan, tmp_path / "chosen", images=images, steps=1, recipe="default")
    last = run(plan, tmp_path / "last", images=images, steps=1, recipe="paper")
    parts = ("train_images", "selection_images", "held_out_images")
    counted = (len(images.train), len(images.selection), len(images.test))
    assert tuple(chosen.data[part] for part in parts) == counted
    whole = len(images.train) + len(images.selection)
    assert tuple(last.data[part] for part in parts) == (whole, None, len(images.test))
    own = replace(images, selection_positions=())  # as of a folder with train, val and test
    apart = run(plan, tmp_path / "apart", images=own, steps=1, recipe="paper")
    assert tuple(apart.data[part] for part in parts) == (len(own.train), None, len(own.test))


def test_within_an_epoch_there_are_readings_and_checkpoints_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planner.training.loop.INTERIM_SECONDS", 0.0)
    monkeypatch.setattr("planner.training.loop.INTERIM_IMAGES", 8)
    plan = make_plan(workload(micro_batch=4, dropout=0.3))  # five steps an epoch
    straight = run(plan, tmp_path / "straight")
    assert [(r.step, r.images) for r in straight.readings] == [
        (step, 20 if step in (5, 10) else 8) for step in range(1, 11)
    ]
    assert [r.seconds for r in straight.readings] == sorted(r.seconds for r in straight.readings)

    def interrupt(progress: TrainProgress) -> None:
        if (progress.epoch, progress.step, progress.reading) == (2, 4, None):
            raise StopError

    with pytest.raises(StopError):
        run(plan, tmp_path / "resumed", on_progress=interrupt)
    assert (tmp_path / "resumed" / "checkpoint-8").is_dir()
    seen: list[TrainProgress] = []
    resumed = run(plan, tmp_path / "resumed", resume=True, on_progress=seen.append)
    assert (seen[0].epoch, seen[0].step) == (2, 4)
    assert same(learned(tmp_path / "resumed"), learned(tmp_path / "straight"))
    assert [e.loss for e in resumed.epochs] == [e.loss for e in straight.epochs]
    assert [r.accuracy for r in resumed.readings] == [r.accuracy for r in straight.readings]


def test_a_training_of_some_steps_ends_within_an_epoch_and_can_go_on(tmp_path: Path) -> None:
    plan = make_plan(workload(micro_batch=4))
    short = run(plan, tmp_path / "short", steps=7)
    assert [e.epoch for e in short.epochs] == [1]
    assert [(r.step, r.images) for r in short.readings] == [(5, 20), (7, 20)]
    assert short.accuracy == short.readings[-1].accuracy
    longer = run(plan, tmp_path / "short", steps=10, resume=True)
    straight = run(plan, tmp_path / "straight", steps=10)
    assert same(learned(tmp_path / "short"), learned(tmp_path / "straight"))
    assert [e.loss for e in longer.epochs] == [e.loss for e in straight.epochs]


RECIPE = Recipe(
    learning_rate=2e-3, warm_up_steps=2, epochs=3, weights="random", source="the test's"
)


@pytest.mark.parametrize(
    ("highest", "later", "images", "expected"),
    [
        (141, 140, 143, False),  # one image: 0.7 points, and a standard error of 1.4
        (141, 138, 143, True),
        (143, 142, 143, False),
        (1000, 997, 1000, True),  # 0.3 points, and a standard error of 0.1
        (75, 71, 100, False),  # 4 points, and a standard error of 4.3
        (75, 70, 100, True),
        (5, 5, 20, False),
        (10, 9, 10, True),  # 10 points, and a standard error of 9.4
    ],
)
def test_a_lower_accuracy_counts_if_it_is_more_than_chance(
    highest: int, later: int, images: int, expected: bool
) -> None:
    def reading(right: int) -> AccuracyReading:
        return AccuracyReading(
            step=1, seconds=1.0, loss=1.0, accuracy=right / images, mean_class_accuracy=None,
            images=images, part="selection",
        )  # fmt: skip

    assert is_below(reading(later), reading(highest)) is expected


def test_the_selected_epoch_is_saved_and_tested_once(tmp_path: Path) -> None:
    plan = replace(make_plan(workload(micro_batch=4)), recipe=RECIPE)
    data = digits(32, train_images=40, test_images=20)
    seen: list[TrainProgress] = []
    result = run(plan, tmp_path, epochs=None, on_progress=seen.append)
    assert {(p.epoch, p.epochs) for p in seen} == {(1, 3), (2, 3), (3, 3)}
    on_selection = [r for r in result.readings if r.part == "selection"]
    assert [(r.step, r.images) for r in on_selection] == [
        (step, len(data.selection)) for step in (5, 10, 15)
    ]
    assert [r.part for r in result.readings] == ["selection"] * 3 + ["test"]
    highest = max(on_selection, key=lambda r: r.accuracy)
    best = [r for r in on_selection if r is highest or not is_below(r, highest)][-1]
    assert result.selected_step == best.step
    assert [e.accuracy for e in result.epochs] == [r.accuracy for r in on_selection]
    # the saved model is that of the selected epoch: its accuracies come out again
    model = load_trained(tmp_path)
    assert evaluate_images(model, data.selection, batch_size=7).accuracy == best.accuracy
    assert evaluate_images(model, data.test, batch_size=7).accuracy == result.accuracy
    saved = read_plan(tmp_path / PLAN_FILE)
    assert saved.recipe == result.recipe == RECIPE
    assert {path.name for path in tmp_path.iterdir()} >= {"model", "plan.json", "training.json"}
    assert [path.name for path in tmp_path.glob("*best*")] == [f"best-epoch-{best.step}"]


def test_a_resumed_training_by_a_recipe_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    plan = replace(make_plan(workload(micro_batch=4, dropout=0.3)), recipe=RECIPE)
    straight = run(plan, tmp_path / "straight", epochs=None)

    def interrupt(progress: TrainProgress) -> None:
        if (progress.epoch, progress.step, progress.reading) == (2, 4, None):
            raise StopError

    with pytest.raises(StopError):
        run(plan, tmp_path / "resumed", epochs=None, on_progress=interrupt)
    resumed = run(plan, tmp_path / "resumed", epochs=None, resume=True)
    assert same(learned(tmp_path / "resumed"), learned(tmp_path / "straight"))
    assert [r.accuracy for r in resumed.readings] == [r.accuracy for r in straight.readings]
    assert resumed.selected_step == straight.selected_step


def test_a_finished_training_can_go_on_for_more_epochs(tmp_path: Path) -> None:
    plan = replace(make_plan(workload(micro_batch=4)), recipe=RECIPE)
    first = run(plan, tmp_path, epochs=1)
    again = run(plan, tmp_path, epochs=1, resume=True)
    assert (again.accuracy, again.selected_step) == (first.accuracy, first.selected_step)
    longer = run(plan, tmp_path, epochs=2, resume=True)
    assert len(longer.epochs) == 2
    (best,) = tmp_path.glob("best-epoch-*")
    assert best.name == f"best-epoch-{longer.selected_step}"
    assert same(load_file(best / "learned.safetensors"), trained_tensors(load_trained(tmp_path)))


def test_readings_between_the_epochs_select_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They depend on the machine's speed, and a small selection part is read whole by them."""
    plan = replace(make_plan(workload(micro_batch=4)), recipe=replace(RECIPE, patience_epochs=1))
    steps, calls = 5, count(1)  # steps of an epoch; each is followed by one evaluation

    def evaluated(model: object, images: ImageSet, **_: object) -> SimpleNamespace:
        accuracy = 0.5 if next(calls) % steps == 0 else 0.9
        return SimpleNamespace(accuracy=accuracy, mean_class_accuracy=accuracy, images=len(images))

    monkeypatch.setattr("planner.training.loop.INTERIM_SECONDS", 0.0)
    monkeypatch.setattr("planner.training.loop.evaluate_images", evaluated)
    data = digits(32, train_images=40, test_images=20)
    few = replace(data, selection=data.selection.sample(20, seed=0), selection_positions=())
    result = run(plan, tmp_path, images=few, epochs=4)
    # no epoch is higher than the first: the latest of the equal ones, and then no patience left
    assert [r.step for r in result.readings[:-1]] == list(range(1, 2 * steps + 1))
    assert result.selected_step == 2 * steps


def test_a_time_limit_within_an_epoch_selects_and_tests_whatever_was_read_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reading within the epoch covers a small selection part, and selects nothing."""
    monkeypatch.setattr("planner.training.loop.INTERIM_SECONDS", 0.0)
    plan = replace(make_plan(workload(micro_batch=4)), recipe=RECIPE)
    data = digits(32, train_images=40, test_images=30)
    few = replace(data, selection=data.selection.sample(20, seed=0), selection_positions=())
    result = run(plan, tmp_path, images=few, minutes=1e-6)
    assert [(r.step, r.images, r.part) for r in result.readings] == [
        (1, 20, "selection"),  # within the epoch
        (1, 20, "selection"),
        (1, 30, "test"),
    ]
    assert result.selected_step == 1
    (kept,) = tmp_path.glob("checkpoint-1")
    saved = json.loads((kept / "progress.json").read_text())
    assert saved["best"] is None
    kept_readings = [(r["images"], r["part"]) for r in saved["readings"]]
    assert kept_readings == [(20, "selection"), (30, "test")]
    assert saved["seconds"] == result.readings[-1].seconds


def test_a_training_in_pieces_selects_as_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tensors at a time limit are the model of that run; later runs do not select by them."""
    plan = replace(make_plan(workload(micro_batch=4)), recipe=replace(RECIPE, patience_epochs=1))
    accuracy = {5: 0.5, 7: 0.9, 8: 0.1, 10: 0.5}  # the epochs end at steps 5 and 10
    now = 0
    train_step = TrainingStep.run

    def run_step(step: TrainingStep, *fetches: object) -> object:
        nonlocal now
        now = step.global_step + 1
        return train_step(step, *fetches)

    def evaluated(model: object, images: ImageSet, **_: object) -> SimpleNamespace:
        found = accuracy.get(now, 0.2)
        return SimpleNamespace(accuracy=found, mean_class_accuracy=found, images=len(images))

    monkeypatch.setattr(TrainingStep, "run", run_step)
    monkeypatch.setattr("planner.training.loop.evaluate_images", evaluated)
    straight = run(plan, tmp_path / "straight", epochs=None)
    assert straight.selected_step == 10, "no epoch is higher than the first, so patience ends here"
    pieces = [
        run(plan, tmp_path / "pieces", epochs=None, minutes=1e-6, resume=step > 1)
        for step in range(1, 9)
    ]
    assert [piece.selected_step for piece in pieces] == [1, 2, 3, 4, 5, 5, 7, 5]
    assert [piece.accuracy for piece in pieces] == [0.2] * 4 + [0.5, 0.2, 0.9, 0.1]
    whole = run(plan, tmp_path / "pieces", epochs=None, resume=True)
    assert whole.selected_step == 10
    assert same(learned(tmp_path / "pieces"), learned(tmp_path / "straight"))
    assert [e.loss for e in whole.epochs] == [e.loss for e in straight.epochs]
    # the record has each reading of the test part, and of the selection part those that select
    assert [r.step for r in whole.readings if r.part == "test"] == [*range(1, 9), 10]
    assert [r.step for r in whole.readings if r.part == "selection"] == [5, 10]
    seconds = [r.seconds for r in whole.readings]
    assert seconds == sorted(seconds)
    # a run without a step reads the same tensors again, which is no further reading
    (kept,) = (tmp_path / "pieces").glob("checkpoint-*/progress.json")
    earlier = json.loads(kept.read_text()) | {"evaluated_step": 10}  # of an earlier version
    kept.write_text(json.dumps(earlier))
    again = run(plan, tmp_path / "pieces", epochs=None, resume=True)
    assert [(r.step, r.part) for r in again.readings] == [(r.step, r.part) for r in whole.readings]
    (best,) = (tmp_path / "pieces").glob("best-epoch-*")
    assert best.name == "best-epoch-10"


def test_a_resume_without_steps_removes_an_epoch_that_was_given_up(tmp_path: Path) -> None:
    """A kill between the last checkpoint and this removal leaves nothing to train."""
    plan = replace(make_plan(workload(micro_batch=4)), recipe=RECIPE)
    run(plan, tmp_path, epochs=1)
    (best,) = tmp_path.glob("best-epoch-*")
    shutil.copytree(best, tmp_path / "best-epoch-1")
    run(plan, tmp_path, epochs=1, resume=True)
    assert list(tmp_path.glob("best-epoch-*")) == [best]


@pytest.mark.parametrize(
    ("recipe", "is_set_apart", "message"),
    [
        ("default", True, "takes 32 images, and 30 of digits are left to train on beside the"),
        ("default", False, "takes 32 images, digits has 30 to train on; make"),
        ("paper", False, "takes 32 images, digits has 30 to train on; make"),
        ("paper", True, None),
    ],
)
def test_too_few_images_are_refused_and_those_set_apart_are_said(
    tmp_path: Path, recipe: str, is_set_apart: bool, message: str | None
) -> None:
    """Ten of 40 images are for selection: taken out of the training images, or a part apart."""
    plan = make_plan(workload(micro_batch=16))
    data = digits(32, train_images=40, test_images=20)
    few = replace(
        data,
        train=data.train.select(range(30)),
        selection=data.train.select(range(30, 40)),
        selection_positions=tuple(range(30, 40)) if is_set_apart else (),
    )
    if message is None:
        assert len(run(plan, tmp_path, images=few, recipe=recipe, epochs=1).epochs) == 1
        return
    with pytest.raises(InputError, match=message):
        run(plan, tmp_path, images=few, recipe=recipe)


def test_a_training_without_gain_stops_early(tmp_path: Path) -> None:
    still = replace(RECIPE, learning_rate=1e-12, epochs=9, patience_epochs=2)
    plan = replace(make_plan(workload(micro_batch=4)), recipe=still)
    seen: list[TrainProgress] = []
    result = run(plan, tmp_path, epochs=None, on_progress=seen.append)
    assert len(result.epochs) == 3
    assert result.selected_step == 15  # of equal epochs the latest
    assert any("nothing was learned" in at.message for at in seen)


def test_a_training_that_had_stopped_early_goes_on_if_its_length_changes(tmp_path: Path) -> None:
    still = replace(RECIPE, learning_rate=1e-12, epochs=9, patience_epochs=2)
    plan = replace(make_plan(workload(micro_batch=4)), recipe=still)
    assert len(run(plan, tmp_path, epochs=None).epochs) == 3
    seen: list[TrainProgress] = []
    same_length = run(plan, tmp_path, epochs=None, resume=True, on_progress=seen.append)
    assert len(same_length.epochs) == 3
    assert "ended early" in seen[0].message
    assert "--epochs" in seen[0].message

    def interrupt(progress: TrainProgress) -> None:
        if (progress.epoch, progress.step, progress.reading) == (5, 1, None):
            raise StopError

    with pytest.raises(StopError):
        run(plan, tmp_path, epochs=30, resume=True, on_progress=interrupt)
    # patience counts from the fourth epoch on, also after a second resume
    assert len(run(plan, tmp_path, epochs=30, resume=True).epochs) == 5
    seen.clear()
    run(plan, tmp_path, epochs=4, resume=True, on_progress=seen.append)
    assert "ended at its last step" in seen[0].message


def test_a_training_ends_when_its_time_is_up(tmp_path: Path) -> None:
    result = run(make_plan(workload(micro_batch=4)), tmp_path, minutes=1e-6)
    assert [r.step for r in result.readings] == [1]
    assert result.epochs == ()
    assert json.loads((tmp_path / HISTORY_FILE).read_text())["readings"][0]["images"] == 20


def test_arguments_out_of_their_domain_are_refused(tmp_path: Path) -> None:
    plan = make_plan(workload())
    for name in ("epochs", "steps", "minutes"):
        with pytest.raises(UsageError, match=name):
            run(plan, tmp_path, **{name: 0})
    with pytest.raises(UsageError, match="learning rate"):
        run(plan, tmp_path, learning_rate=float("nan"))
    with pytest.raises(UsageError, match="tpu"):
        run(plan, tmp_path, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="no CUDA device"):
            run(plan, tmp_path, device="cuda")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        run(plan, tmp_path / "file")


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    data = digits(32, train_images=40, test_images=20)
    bright = replace(data.train.input_format, std=(1e-38, 1e-38, 1e-38))
    images = replace(data, train=replace(data.train, input_format=bright))
    with pytest.raises(MeasurementError, match="learning-rate"):
        run(make_plan(workload(method="full", rank=None)), tmp_path, images=images)


@pytest.mark.parametrize("model", ["levit_128s", "resnet10t"])
def test_only_the_last_layer_of_a_classifier_starts_at_zero(model: str) -> None:
    built = build_model(workload(model=model, method="full", rank=None, image_size=224))
    zero_classifier(built.model)
    images = torch.rand(2, 3, 224, 224)
    logits = built.model(images)
    assert not logits.any()
    torch.nn.functional.cross_entropy(logits, torch.tensor([1, 2])).backward()
    last = [m for m in built.model.modules() if getattr(m, "out_features", 0) == 10]
    # the zero layer has a gradient, so the next step trains the layers before it too
    assert last and all(layer.weight.grad.any() for layer in last)


def test_every_reading_stands_at_its_step_also_the_test_after_a_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = replace(make_plan(workload(micro_batch=4)), recipe=RECIPE)
    seen: list[TrainProgress] = []
    run(plan, tmp_path, epochs=1, on_progress=seen.append)
    run(plan, tmp_path, epochs=2, resume=True, on_progress=seen.append)
    result = run(plan, tmp_path, epochs=2, resume=True, on_progress=seen.append)
    readings = [(at.reading.part, at.epoch, at.step, at.steps) for at in seen if at.reading]
    assert readings == [
        ("selection", 1, 5, 5),
        ("test", 1, 5, 5),
        ("selection", 2, 5, 5),
        ("test", 2, 5, 5),
        ("test", 2, 5, 5),
    ]
    assert seen[-1].selected_step == result.selected_step
    with progress_bar(None, as_json=False) as display:
        _show_step(replace(seen[-1], selected_step=5), display, plan)
        _show_step(replace(seen[-1], selected_step=10), display, plan)
    earlier, last = capsys.readouterr().err.splitlines()
    assert "step 10 (5 of 5 in epoch 2)" in earlier
    assert earlier.endswith(" 20 test images right, with the tensors of step 5")
    assert last.endswith(" 20 test images right")


@pytest.mark.parametrize(
    ("method", "advice"),
    [
        ("head", "head keeps most of them frozen; train anew from pretrained weights (--weights"),
        ("bitfit", "bitfit keeps most of them frozen"),
        ("full", "try another --learning-rate"),
    ],
)
def test_advice_on_a_model_that_does_not_learn_names_random_weights_that_stay_frozen(
    tmp_path: Path, method: str, advice: str
) -> None:
    model = workload(micro_batch=4, model="test_vit", method=method, rank=None)
    plan = replace(make_plan(model), recipe=replace(RECIPE, learning_rate=1e-12, epochs=1))
    seen: list[TrainProgress] = []
    run(plan, tmp_path, epochs=None, on_progress=seen.append)
    (message,) = {at.message for at in seen} - {""}
    assert "nothing was learned yet" in message
    assert advice in message
