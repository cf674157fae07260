from __future__ import annotations

import json
import math
import time
from dataclasses import fields, replace
from itertools import islice
from typing import Any

import msgspec
import pytest
import torch

from planner.recipe import Recipe
from planner.training.evaluate import evaluate_images
from planner.training.inference import model_bytes, power_of
from planner.training.plan_check import load_data_for
from planner.training.run_options import RunOptions
from planner.training.short_training import SHORT_BATCH
from planner.training.validation import Validation, time_limit, validate
from planner.training.validation_messages import ValidationRequest, ValidationResult
from planner.training.validation_run import run_validation
from profiler.devices.table import CPU
from profiler.errors import InputError, OutOfMemoryError, UsageError
from profiler.models.build import build_model
from profiler.placement import Decision, Placement
from profiler.prediction.report import predict
from profiler.records import Rung
from profiler.training_step import TrainingStep, make_optimizer
from profiler.units import MIB
from profiler.workload import Candidate, Workload

VIT = Workload(
    model="test_vit", method="lora", rank=4, micro_batch=16, accumulation=4,
    image_size=160, num_classes=10,
)  # fmt: skip
STATIC = Placement(decisions={f"blocks.{i}": Decision.RECOMPUTE for i in range(6)})
RESNET = Workload(
    model="resnet18", method="full", micro_batch=8, accumulation=1, image_size=64, num_classes=10
)


def run(candidate: Candidate, **changes: Any) -> Validation:
    given: dict[str, Any] = {
        "runs_on": "cpu",
        "budget_bytes": 2**30,
        "data": "digits",
        "steps": 3,
        "test_seconds": 0.0,
        "pretrained": False,
    }
    given |= changes
    of_run = {
        field.name: given.pop(field.name) for field in fields(RunOptions) if field.name in given
    }
    return validate(candidate, RunOptions(**of_run), **given)


def in_this_process(candidate: Candidate, **changes: Any) -> ValidationResult:
    request = ValidationRequest(
        candidate=candidate, device="cpu", budget_bytes=None, data="digits", steps=4, seed=0,
        weights=None, pretrained=False, training_seconds=60, test_seconds=60,
    )  # fmt: skip
    request = msgspec.structs.replace(request, **changes)
    return run_validation(request, lambda text, done: None)


def test_a_measured_peak_is_the_predicted_one() -> None:
    said: list[tuple[str, float]] = []
    candidate = Candidate(workload=VIT.replace(micro_batch=4), placement=STATIC)
    seen = run(candidate, on_progress=lambda text, done: said.append((text, done)))
    prediction = predict(candidate, device=CPU)
    # the process has its own thread count, so kernels may differ a little
    assert seen.report.memory.peak_bytes == pytest.approx(prediction.memory.peak_bytes, rel=0.005)
    assert seen.findings(prediction, budget_bytes=2**30) == ()
    assert seen.report.rung == Rung.MEASURED
    assert seen.report.candidate == candidate
    assert seen.report.parameters == prediction.parameters
    assert seen.report.memory.reserved_bytes is None
    assert seen.report.energy_joules is None
    assert len(seen.losses) == 3
    assert len(seen.report.details["step_seconds"]) == 1
    assert any("2 times that of 2 micro-batches" in note for note in seen.notes)
    assert seen.weights.kind == "random"
    assert seen.accuracy.kind == "measured"
    assert seen.accuracy.source.endswith("of digits after 3 steps, random weights")
    assert 0 <= (seen.accuracy.value or 0) <= 1
    assert [done for _, done in said] == sorted(done for _, done in said)
    json.dumps(seen.to_json(), allow_nan=False)


def test_what_a_run_shows_is_what_training_would_show() -> None:
    """The same steps by hand, and the same held-out images."""
    from planner.training.images.batches import batch_loader

    workload = RESNET.replace(micro_batch=16)
    seen = in_this_process(Candidate(workload=workload))
    data = load_data_for(workload, "digits")
    torch.manual_seed(0)
    model = build_model(workload).model
    optimizer = make_optimizer(model, workload, learning_rate=1e-3)
    step, losses = TrainingStep(model, optimizer, workload), []
    batches = iter(batch_loader(data.train, batch_size=16, shuffle=True, seed=0, drop_last=True))
    first = next(batches)
    fed = [(first[0][:SHORT_BATCH], first[1][:SHORT_BATCH]), first, *islice(batches, 2)]
    for index in range(4):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (index + 1) / 11
        losses.append(float(step.run([lambda: fed.pop(0)])))
    assert seen.losses == pytest.approx(losses, rel=1e-4)
    held_out = data.selection
    assert seen.inference.images == len(held_out)
    # one image may fall on the other side: threads order sums differently
    assert seen.inference.accuracy == pytest.approx(
        evaluate_images(model, held_out, batch_size=16).accuracy, abs=1.5 / len(held_out)
    )


def test_a_run_trains_by_the_recipe_of_the_plan() -> None:
    """At a rate of almost zero, the loss of the same images stays what it was."""
    recipe = Recipe(
        learning_rate=1e-12, schedule="constant", epochs=1, weights="random", source="test",
        selects_epoch=False,
    )  # fmt: skip
    candidate = Candidate(workload=RESNET)
    at_rest = in_this_process(candidate, recipe=recipe, steps=3)
    trained = in_this_process(candidate, steps=3)
    assert at_rest.losses[0] == pytest.approx(trained.losses[0], rel=1e-4)
    assert at_rest.losses[2] != pytest.approx(trained.losses[2], rel=1e-3)


def test_inference_needs_the_model_and_little_more() -> None:
    full = in_this_process(Candidate(workload=RESNET), test_seconds=0.0)
    held = model_bytes(build_model(RESNET).model)
    assert held == sum(t.nbytes for t in build_model(RESNET).model.state_dict().values())
    # stem of 64 channels at 32x32, and its input
    activations = RESNET.micro_batch * 4 * (64 * 32 * 32 + 3 * 64 * 64)
    assert held + activations <= full.inference.peak_bytes < full.training.peak_bytes / 2
    assert full.inference.images == RESNET.micro_batch
    assert full.inference.seconds > 0
    assert any("scaled from 8 selection images" in note for note in full.training.notes)


def test_steps_end_when_their_time_is_up() -> None:
    seen = in_this_process(Candidate(workload=RESNET), steps=50, training_seconds=0.0)
    assert len(seen.losses) == 2
    assert len(seen.training.step_seconds) == 1
    assert any("2 of 50 steps" in note for note in seen.training.notes)
    assert any("recorded" in note for note in seen.training.notes)


def test_a_run_above_its_budget_is_stopped() -> None:
    big = VIT.replace(method="full", rank=None, micro_batch=128, image_size=224)
    with pytest.raises(OutOfMemoryError) as caught:
        run(Candidate(workload=big), budget_bytes=64 * MIB)
    assert caught.value.cap_bytes == 64 * MIB


def test_a_run_within_its_predicted_peak_is_not_stopped() -> None:
    candidate = Candidate(workload=RESNET)
    prediction = predict(candidate, device=CPU)
    seen = run(candidate, budget_bytes=prediction.memory.peak_bytes, steps=2)
    peak = seen.report.memory.peak_bytes
    assert peak <= 1.005 * prediction.memory.peak_bytes
    # and what differs is said
    low = replace(prediction, memory=replace(prediction.memory, peak_bytes=peak * 10 // 11))
    (above,) = seen.findings(low, budget_bytes=peak)
    assert "10.0% above" in above
    (more,) = seen.findings(prediction, budget_bytes=peak - 1)
    assert "more than the budget" in more


def test_a_run_that_hangs_is_stopped_after_ten_times_its_expected_time() -> None:
    assert time_limit(60.0, steps=6) == 10 * (6 * 60 + 40 + 15)
    assert time_limit(60.0, steps=None) == time_limit(60.0, steps=6)
    assert time_limit(0.01, steps=6) == 900
    assert time_limit(None, steps=6) == 3600


def test_bad_requests_are_one_line() -> None:
    with pytest.raises(InputError, match="does not exist"):
        run(Candidate(workload=VIT), data="/no/such/folder")  # and the process tells it
    with pytest.raises(InputError, match="digits has 10"):
        in_this_process(Candidate(workload=VIT.replace(num_classes=3)))
    lacking = Placement(decisions={"blocks.77": Decision.RECOMPUTE})
    with pytest.raises(InputError, match=r"blocks\.77"):
        in_this_process(Candidate(workload=VIT, placement=lacking))
    with pytest.raises(UsageError, match="at least 2 steps"):
        run(Candidate(workload=VIT), steps=1)


@pytest.mark.gpu
def test_on_a_gpu_peak_and_energy_are_read() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    workload = VIT.replace(image_size=224)
    candidate = Candidate(workload=workload, placement=STATIC)
    seen = run(candidate, runs_on="cuda", budget_bytes=4 * 2**30)
    memory = seen.report.memory
    assert memory.reserved_bytes is not None
    assert memory.device_bytes is not None
    assert memory.peak_bytes <= memory.reserved_bytes < memory.device_bytes < 4 * 2**30
    assert all(math.isfinite(loss) for loss in seen.losses)
    assert seen.inference_peak_bytes < memory.peak_bytes


def test_power_is_energy_over_the_time_of_many_repetitions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("planner.training.inference.POWER_SECONDS", 0.05)
    calls: list[float] = []

    def hundred_watts(run: Any) -> tuple[float | None, str | None]:
        started = time.perf_counter()
        run()
        return 100 * (time.perf_counter() - started), None

    monkeypatch.setattr("planner.training.inference.energy_of", hundred_watts)

    def ten_milliseconds() -> None:
        time.sleep(0.01)
        calls.append(0.01)

    watts = power_of(ten_milliseconds)
    assert len(calls) > 1
    assert watts == pytest.approx(100, rel=0.1)
    monkeypatch.setattr(
        "planner.training.inference.energy_of", lambda run: (run(), (None, "no sensor"))[1]
    )
    assert power_of(lambda: None) is None


def test_the_update_is_counted_once_however_many_micro_batches_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    update = TrainingStep.update

    def slow_update(step: TrainingStep) -> None:
        update(step)
        time.sleep(1.0)

    monkeypatch.setattr(TrainingStep, "update", slow_update)
    workload = VIT.replace(micro_batch=2, accumulation=8, image_size=32)
    seen = in_this_process(Candidate(workload=workload), steps=3)
    (seconds,) = seen.training.step_seconds
    assert 1.0 < seconds < 2.0  # 4 if the update were scaled with the micro-batches


def test_recomputing_lowers_the_measured_peak() -> None:
    workload = VIT.replace(accumulation=1)
    kept = in_this_process(Candidate(workload=workload), steps=2)
    recomputed = in_this_process(Candidate(workload=workload, placement=STATIC), steps=2)
    assert recomputed.training.peak_bytes < 0.8 * kept.training.peak_bytes
    assert recomputed.losses == pytest.approx(kept.losses, rel=1e-4)
