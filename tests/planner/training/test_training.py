from __future__ import annotations

import hashlib
import json
import signal
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from plans import make_plan
from torch import Tensor, nn

from planner.plan import Plan, read_plan
from planner.training.adaptive_rule import AdaptiveRule, live_bytes_reader
from planner.training.checkpoints import latest_checkpoint
from planner.training.evaluate import accuracy
from planner.training.history import AccuracyReading, TrainProgress, TrainResult
from planner.training.images.image_set import ImageData
from planner.training.learning_rate import LearningRate, choose_learning_rate
from planner.training.loop import train
from planner.training.plan_check import check_against_model, check_data, load_data_for
from planner.training.run_options import RunOptions
from planner.training.trained_model import HISTORY_FILE, MODEL_FOLDER, PLAN_FILE, load_trained
from profiler.errors import DeviceError, InputError, MeasurementError, UsageError
from profiler.models.backbones import WeightSource
from profiler.models.build import build_model
from profiler.placement import Placement, PolicyChoice
from profiler.workload import Workload

OF_RUN = {field.name for field in fields(RunOptions)}
VIT = "vit_tiny_patch16_224"
STATIC = Placement(decisions={f"blocks.{i}": "recompute" for i in range(12)})


def workload(**changes: Any) -> Workload:
    base = Workload(
        model=VIT, method="lora", rank=4, micro_batch=8, accumulation=2, image_size=32,
        num_classes=10,
    )  # fmt: skip
    return base.replace(**changes)


@cache
def digits(image_size: int, *, train_images: int = 1437, held_out: int = 360) -> ImageData:
    data = load_data_for(workload(image_size=image_size), "digits")
    return replace(
        data,
        train=data.train.sample(train_images, seed=0),
        held_out=data.held_out.sample(held_out, seed=0),
    )


def run(plan: Plan, output: Path, **changes: Any) -> TrainResult:
    size = plan.candidate.workload.image_size
    given: dict[str, Any] = {
        "images": digits(size, train_images=40, held_out=20),
        "epochs": 2,
        "output": output,
        "pretrained": False,
    }
    given |= changes
    of_run = {key: given.pop(key) for key in OF_RUN & given.keys()}
    return train(plan, RunOptions(data="digits", **of_run), **given)


def learned(output: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    (file,) = (output / MODEL_FOLDER).glob("*.safetensors")
    return load_file(file)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("model", [VIT, "test_resnet"])
def test_full_weights_that_were_saved_load_back_through_weights(tmp_path: Path, model: str) -> None:
    load = workload(model=model, method="full", rank=None)
    run(make_plan(load), tmp_path, epochs=1)
    (file,) = (tmp_path / MODEL_FOLDER).glob("*.safetensors")
    loaded = build_model(load, weights=file)
    assert loaded.weights.kind == "file"
    assert same(learned(tmp_path), dict(loaded.model.state_dict()))


# ---- learning ------------------------------------------------------------------------------------


def test_training_learns_digits(tmp_path: Path) -> None:
    load = workload(model="resnet10t", method="full", rank=None, micro_batch=16, accumulation=1)
    seen: list[TrainProgress] = []
    data = digits(32, train_images=480, held_out=100)
    result = run(make_plan(load), tmp_path, images=data, epochs=3, on_progress=seen.append)
    assert result.accuracy > 0.5  # chance is 0.1
    assert result.epochs[2].loss < 1 < result.epochs[0].loss
    assert result.weights.kind == "random"
    assert "random" in result.learning_rate.reason
    assert [p.reading is not None for p in seen] == 3 * [*([False] * 30), True]
    assert (seen[-1].epoch, seen[-1].step, seen[-1].reading) == (3, 30, result.readings[-1])
    assert [p.done for p in seen[::31]] == pytest.approx([1 / 90, 31 / 90, 61 / 90])
    history = json.loads((tmp_path / HISTORY_FILE).read_text())
    assert history["accuracy"] == result.accuracy
    assert history["data"]["name"] == "digits"
    # what was saved is what was evaluated
    again = build_model(load).model
    again.load_state_dict(learned(tmp_path))
    assert accuracy(again, data.held_out, batch_size=7) == result.accuracy


def test_an_adapter_is_saved_in_pefts_own_format(tmp_path: Path) -> None:
    from peft import PeftModel

    from profiler.models.backbones import build

    plan = make_plan(workload(method="lora"))
    result = run(plan, tmp_path)
    torch.manual_seed(0)  # the frozen random weights of the training
    base = build(VIT, num_classes=10, image_size=32)
    again = PeftModel.from_pretrained(base, str(tmp_path / MODEL_FOLDER))
    held_out = digits(32, train_images=40, held_out=20).held_out
    assert accuracy(again, held_out, batch_size=8) == result.accuracy
    assert read_plan(tmp_path / PLAN_FILE) == plan


@pytest.mark.parametrize("method", ["full", "lora", "bitfit"])
def test_what_was_trained_is_loaded_from_its_folder(tmp_path: Path, method: str) -> None:
    plan = make_plan(workload(method=method, rank=4 if method == "lora" else None))
    result = run(plan, tmp_path)
    model = load_trained(tmp_path)
    assert not model.training
    held_out = digits(32, train_images=40, held_out=20).held_out
    assert accuracy(model, held_out, batch_size=8) == result.accuracy


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


def test_accuracy_is_the_share_of_right_answers_and_leaves_the_mode() -> None:
    held_out = digits(32, train_images=40, held_out=20).held_out

    class Three(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert not self.training
            assert not torch.is_grad_enabled()
            return nn.functional.one_hot(torch.full((len(images),), 3), 10).float()

    model = Three().train()
    share = sum(label == 3 for label in held_out.labels) / len(held_out)
    assert 0 < share < 1
    assert accuracy(model, held_out, batch_size=7) == share
    assert model.training


# ---- resuming ------------------------------------------------------------------------------------


class _StopError(Exception):
    pass


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
            raise _StopError

    with pytest.raises(_StopError):
        run(plan, tmp_path / "resumed", epochs=3, on_progress=interrupt)
    resumed = run(plan, tmp_path / "resumed", epochs=3, resume=True)
    assert same(learned(tmp_path / "resumed"), learned(tmp_path / "straight"))
    pairs = zip(straight.epochs, resumed.epochs, strict=True)
    assert all((a.loss, a.accuracy) == (b.loss, b.accuracy) for a, b in pairs)
    names = sorted(p.name for p in (tmp_path / "resumed").iterdir())
    assert names == ["checkpoint-6", MODEL_FOLDER, PLAN_FILE, HISTORY_FILE]


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
            raise _StopError

    with pytest.raises(_StopError):
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


def test_a_training_ends_when_its_time_is_up(tmp_path: Path) -> None:
    result = run(make_plan(workload(micro_batch=4)), tmp_path, minutes=1e-6)
    assert [r.step for r in result.readings] == [1]
    assert result.epochs == ()
    assert json.loads((tmp_path / HISTORY_FILE).read_text())["readings"][0]["images"] == 20


def test_a_resume_that_is_not_the_same_training_is_refused(tmp_path: Path) -> None:
    plan = make_plan(workload())
    with pytest.raises(InputError, match="nothing to resume"):
        run(plan, tmp_path, resume=True)
    run(plan, tmp_path, epochs=1)
    with pytest.raises(InputError, match="holds a training already"):
        run(plan, tmp_path)
    with pytest.raises(InputError, match="seed was 0, is now 1"):
        run(plan, tmp_path, resume=True, seed=1)
    with pytest.raises(InputError, match="learning rate"):
        run(plan, tmp_path, resume=True, learning_rate=1.0)
    with pytest.raises(InputError, match=r"workload.s dropout was 0\.0, is now 0\.1"):
        run(make_plan(workload(dropout=0.1)), tmp_path, resume=True)
    with pytest.raises(InputError, match="data"):
        run(plan, tmp_path, resume=True, images=_other_data())
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


def _other_data() -> ImageData:
    data = digits(32, train_images=40, held_out=20)
    return replace(data, source=replace(data.source, fingerprint="another"))


@pytest.mark.parametrize("name", ["state.pt", "learned.safetensors", "progress.json"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    plan = make_plan(workload())
    run(plan, tmp_path, epochs=1)
    (tmp_path / "checkpoint-2" / name).write_bytes(b"\x80\x04damaged")
    with pytest.raises(InputError) as caught:
        run(plan, tmp_path, resume=True)
    assert "\n" not in str(caught.value)


# ---- memory --------------------------------------------------------------------------------------


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

    monkeypatch.setattr("planner.training.loop.build_model", hooked)


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


def test_training_ends_in_one_line_when_nothing_is_tighter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = _Refusing(set(range(3, 100)))
    _hook_into_build_model(monkeypatch, refusing)
    with pytest.raises(MeasurementError, match="smaller micro-batch"):
        run(make_plan(workload()), tmp_path, tighter=[make_plan(workload(), STATIC).candidate])
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


# ---- refusals ------------------------------------------------------------------------------------


def test_a_plan_is_held_against_the_model_it_names() -> None:
    plan = make_plan(workload())
    assert check_against_model(plan).units[0] == "blocks.0"

    def with_load(**changes: Any) -> Plan:
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
            check_against_model(with_load(**changes))
    lacking = Placement(decisions={"blocks.99": "recompute"})
    with pytest.raises(InputError, match=r"blocks\.99"):
        check_against_model(replace(plan, candidate=replace(plan.candidate, placement=lacking)))


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


def test_the_learning_rate_depends_on_the_weights_and_on_what_learns() -> None:
    lora = build_model(workload(), device="meta")
    loaded = replace(lora, weights=WeightSource(kind="pretrained", detail=""))
    full = workload(method="full", rank=None, micro_batch=16)
    assert lora.weights.kind == "random"
    assert choose_learning_rate(full, loaded).value == 1e-5
    assert choose_learning_rate(workload(), loaded).value == 5e-4
    assert choose_learning_rate(workload(), lora).value == 5e-4
    beside = workload(method="prefix", rank=8)
    assert choose_learning_rate(beside, lora).value == 2e-3
    assert choose_learning_rate(beside, loaded).value == 5e-4
    # DeiT's 5e-4 for 512 images; a step of 32 has a sixteenth of them
    assert choose_learning_rate(full, lora).value == pytest.approx(5e-4 / 4)
    assert choose_learning_rate(full.replace(optimizer="sgd"), lora).value == pytest.approx(
        5e-3 / 4
    )
    assert choose_learning_rate(full, lora, given=0.1).at(0) == 0.1
    rate = choose_learning_rate(full, lora)
    assert rate.at(0) == pytest.approx(rate.value / 11)
    assert rate.at(10) == rate.at(10_000) == rate.value
    convnet = full.replace(model="resnet10t")
    assert choose_learning_rate(convnet, build_model(convnet, device="meta")).value == 1e-3


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="learning-rate"):
        run(make_plan(workload(method="full", rank=None)), tmp_path, learning_rate=1e30)


# ---- another placement than the plan's -----------------------------------------------------------


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


# ---- a trained folder knows its seed and weights -------------------------------------------------


def _same_answers(folder: Path, other: nn.Module, **given: Any) -> bool:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.equal(load_trained(folder, **given)(images), other(images))


def test_a_trained_folder_records_its_seed_and_its_weights_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    plan, file = make_plan(workload()), tmp_path / "weights.safetensors"
    torch.manual_seed(5)
    backbone = build_model(workload(method="full", rank=None)).model
    save_file(backbone.state_dict(), file)
    run(plan, tmp_path / "random", steps=1, seed=3)
    run(plan, tmp_path / "file", steps=1, weights=file)
    record = json.loads((tmp_path / "file" / HISTORY_FILE).read_text())
    assert record["weights_file"] == {
        "path": str(file),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    from_file = load_trained(tmp_path / "file")
    assert not _same_answers(tmp_path / "random", from_file)
    assert _same_answers(tmp_path / "random", load_trained(tmp_path / "random", seed=3))
    assert not _same_answers(tmp_path / "random", load_trained(tmp_path / "random", seed=4))

    moved = file.rename(tmp_path / "moved.safetensors")
    with pytest.raises(InputError, match=r"weights\.safetensors .* is missing"):
        load_trained(tmp_path / "file")
    assert _same_answers(tmp_path / "file", from_file, weights=moved)
    other = {name: tensor + 1 for name, tensor in backbone.state_dict().items()}
    save_file(other, moved)
    with pytest.raises(InputError, match="not the one"):
        load_trained(tmp_path / "file", weights=moved)


def test_a_folder_of_an_older_version_is_loaded_with_the_arguments(tmp_path: Path) -> None:
    run(make_plan(workload()), tmp_path, steps=1, seed=3)
    expected, path = load_trained(tmp_path), tmp_path / HISTORY_FILE
    record = json.loads(path.read_text())
    for name in ("schema_minor", "seed", "weights_file"):
        del record[name]
    path.write_text(json.dumps(record))
    assert _same_answers(tmp_path, expected, seed=3)
    assert not _same_answers(tmp_path, expected)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [("seed", "three", "seed"), ("banana", 1, "banana"), ("readings", [{"step": 1}], "readings")],
)
def test_a_record_that_was_changed_by_hand_is_refused(
    tmp_path: Path, key: str, value: object, words: str
) -> None:
    result = TrainResult(
        epochs=(),
        readings=(AccuracyReading(step=1, seconds=1.0, loss=1.0, accuracy=0.5, images=4),),
        learning_rate=LearningRate(value=0.1, warm_up_steps=0, reason="test"),
        seed=1,
        weights=WeightSource(kind="random", detail=""),
        data={},
        placement=STATIC,
        policy=PolicyChoice("every-k", {"k": 3}),
        step_downs=(),
        versions={},
        output=tmp_path,
    )
    assert TrainResult.from_json(result.to_json(), output=tmp_path) == result
    with pytest.raises(InputError, match=words) as caught:
        TrainResult.from_json({**result.to_json(), key: value}, output=tmp_path)
    assert "\n" not in str(caught.value)
