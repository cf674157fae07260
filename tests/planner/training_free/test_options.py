from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from planner.cost.fit_probability import FitRule
from planner.training_free.option_cost import probe_cost
from planner.training_free.options import (
    BATCHES,
    CLASSES,
    Inferences,
    TrainingFreeOption,
    option_of,
)
from planner.training_free.plan_file import FrozenPlan, plan_of_option
from profiler.devices.table import CPU, device_label, device_spec
from profiler.models.frozen.catalogue import FrozenModel, frozen_model, frozen_models
from profiler.models.frozen.run import NAMES_AT_ONCE, TOKEN_FACTOR, InferenceLoad
from profiler.prediction.inference import (
    TIMED_IMAGES,
    InferencePrediction,
    PartCost,
    _built,
    _replayed_inference,
    data_set_cost,
    predict_inference,
)
from profiler.store import Store
from profiler.timing import cpu_rates
from profiler.timing.roofline import Rates

GPU = device_spec("rtx-2060-super")


class _GivenInferences:
    """1 GB of weights (a quarter in 4 bits) and 100 MB for each image."""

    dtype, device = "float16", GPU
    rule = FitRule.for_precision("fp16", GPU)

    def of(self, model: FrozenModel, batch: int, is_four_bit: bool) -> InferencePrediction:
        peak = 10**9 // (4 if is_four_bit else 1) + batch * 10**8
        parts = {"images": PartCost(seconds=0.5, host_seconds=0.0, watts=100.0)}
        features = 64 if model.kind == "features" else 0
        return InferencePrediction(
            peak_bytes=peak, device_bytes=peak + 2 * 10**8, parts=parts, features=features
        )


def option(model: FrozenModel, gigabytes: float, data: str = "dtd") -> Any:
    return option_of(
        model, _GivenInferences(), budget_bytes=int(gigabytes * 1e9), data=data, num_classes=47,
        train_images=1880,
    )  # fmt: skip


def test_the_largest_form_that_fits_is_taken() -> None:
    for model in frozen_models().values():
        sizes = {budget: option(model, budget) for budget in (5, 2.2, 1.5, 1, 0.5)}
        largest = BATCHES[model.kind][0]
        assert (sizes[5].batch, sizes[5].fits, sizes[5].is_four_bit) == (largest, True, False)
        assert (sizes[1.5].batch, sizes[1.5].fits, sizes[1.5].is_four_bit) == (1, True, False)
        assert sizes[2.2].batch == (8 if largest > 8 else 1)
        is_prompted = model.kind == "prompted"
        assert (sizes[1].fits, sizes[1].is_four_bit) == (is_prompted, is_prompted)
        assert (sizes[0.5].fits, sizes[0.5].is_four_bit) == (False, is_prompted)


@pytest.mark.parametrize("risk", [0.01, 0.2])
def test_an_option_fits_with_the_margin_of_the_risk(risk: float) -> None:
    def at(budget_bytes: int) -> TrainingFreeOption:
        return option_of(
            model, _GivenInferences(), budget_bytes=budget_bytes, data="dtd", num_classes=47,
            train_images=1880, risk=risk,
        )  # fmt: skip

    model, rule = frozen_model("dinov2_s"), _GivenInferences.rule
    need = _GivenInferences().of(model, 1, False).device_bytes
    enough = need
    while rule.largest_prediction(enough, risk=risk) < need:
        enough += 1_000
    assert enough > need
    inside, outside = at(enough), at(enough - 1_000)
    assert inside.fits and not outside.fits
    fit = inside.fit_probability
    assert fit is not None
    assert fit.probability >= 1 - risk
    assert (fit.kind, fit.compared) == ("GPU", len(rule.known.errors))
    assert any("training steps" in note for note in fit.notes)
    assert any("largest reported CUDA context" in note for note in fit.notes)
    assert inside.to_json()["fits"] is True
    assert inside.to_json()["fit_probability"] == fit.to_json()
    plan = plan_of_option(
        inside, device=device_label(GPU.name), budget_bytes=enough, data="dtd", risk=risk
    )
    written = plan.to_json()
    assert (written["fits"], written["provenance"]["risk"]) == (fit.to_json(), risk)
    assert FrozenPlan.from_json(written) == plan


def test_plans_of_older_minor_versions_have_no_probability() -> None:
    plan = plan_of_option(
        option(frozen_model("dinov2_s"), 5),
        device=device_label(GPU.name),
        budget_bytes=5 * 10**9,
        data="dtd",
    )
    old = plan.to_json() | {"schema_minor": 9, "fits": None}
    assert FrozenPlan.from_json(old).fits is None


def test_an_option_shows_what_is_published_of_it() -> None:
    known = option(frozen_model("dinov2_l"), 10, "cifar100").to_json()
    assert known["accuracy"]["value"] == 0.9171
    assert known["accuracy"]["kind"] == "published"
    assert known["rung"] == "replayed"
    assert option(frozen_model("dinov2_s"), 10, "cifar100").to_json()["accuracy"] is None


def test_the_cost_of_an_image_and_of_a_probe() -> None:
    found = option(frozen_model("dinov2_s"), 10)
    image = found.cost.image
    assert image["step_seconds"] == pytest.approx(0.5 / 32)
    assert image["energy_joules"] == pytest.approx(100 * 0.5 / 32)
    assert image["step_seconds_interval"].low < 0.5 / 32 < image["step_seconds_interval"].high
    assert found.probe.extraction_seconds == pytest.approx(1880 * 0.5 / 32)
    assert found.probe.extraction_joules == pytest.approx(1880 * 100 * 0.5 / 32)
    assert found.probe.fit_flops_at_most == 4 * 64 * 47 * 1880 * 300 * 5
    assert option(frozen_model("openclip_b32"), 10).probe is None
    assert probe_cost(None, 64, 47, 1880).extraction_seconds is None


def test_a_prompted_image_costs_its_reading_all_names_and_a_free_answer() -> None:
    def part(seconds: float) -> PartCost:
        return PartCost(seconds=seconds, host_seconds=0.0, watts=50.0)

    parts = {"images": part(1.0), "names": part(0.1), "token": part(0.01)}
    cost = data_set_cost(
        parts, batch=1, dtype="float16", device=GPU, num_classes=10, predicted_classes=CLASSES
    )
    groups = -(-10 // NAMES_AT_ONCE)
    assert cost.image["step_seconds"] == pytest.approx(1.0 + groups * 0.1 + TOKEN_FACTOR * 0.01)
    assert cost.setup["step_seconds"] == 0
    prompts = data_set_cost(
        {"prompts": part(2.0), "images": part(1.0)}, batch=4, dtype="float16", device=GPU,
        num_classes=25, predicted_classes=100,
    )  # fmt: skip
    assert prompts.setup["step_seconds"] == pytest.approx(0.5)
    assert prompts.image["step_seconds"] == pytest.approx(0.25)
    assert prompts.image["energy_joules"] == pytest.approx(0.25 * 50)


def test_a_list_is_prepared_if_every_form_up_to_the_fitting_one_is_kept(tmp_path: Any) -> None:
    found = Inferences(GPU, Store(tmp_path))
    models = [frozen_model("dinov2_s")]
    large = found.of(models[0], 32, False).device_bytes
    assert found.missing(models, limit_bytes=large) == []
    assert found.missing(models, limit_bytes=large - 1) == models  # batch 8 is needed too
    found.of(models[0], 8, False)
    assert found.missing(models, limit_bytes=large - 1) == []
    assert len(list(tmp_path.rglob("*.npz"))) == 2


def test_a_prediction_is_kept_and_read_again(tmp_path: Any) -> None:
    store = Store(tmp_path)
    model = frozen_model("dinov2_s")
    made = Inferences(GPU, store).of(model, 8, False)
    assert made.features == 384
    assert set(made.parts) == {"images"}
    # 4.6 GMACs an image at 224 px and patches of 14 pixels; the peak rate is 57 TFLOP/s
    assert 8 * 2 * 5.5e9 / 60e12 < made.parts["images"].seconds < 0.1
    assert Inferences(GPU, store).of(model, 8, False) == made


def test_a_device_with_other_numbers_has_predictions_of_its_own(tmp_path: Any) -> None:
    model = frozen_model("dinov2_s")
    edited = replace(GPU, fp16_tensor_flops=GPU.fp16_tensor_flops / 2)
    kept, other = (
        Inferences(device, Store(tmp_path))._key(model, 8, False) for device in (GPU, edited)
    )
    assert kept != other


# ---- a CPU ---------------------------------------------------------------------------------------


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Operations that were run: each takes a tenth of a second, on a machine of given plain rates.

    A kind's slowness is then known: measured over roofline seconds.
    """
    ran: list[str] = []

    def run(func: Any, *_: Any, **__: Any) -> float:
        ran.append(str(func))
        return 0.1

    monkeypatch.setattr(cpu_rates, "_run_on_zeros", run)
    monkeypatch.setattr(cpu_rates, "_SECONDS", {})
    monkeypatch.setattr(cpu_rates, "_INFERENCE_RATES", {})
    plain = Rates(flops_per_second=1e11, bytes_per_second=1e10, watts=None, source="a test")
    monkeypatch.setattr(cpu_rates, "plain_cpu_rates", lambda: plain)
    monkeypatch.setattr(cpu_rates, "time_product_and_copy", lambda: (1e11, 1e10))
    return ran


def test_an_image_on_a_cpu_takes_its_operations_at_their_timed_slowness(
    tmp_path: Any, timed: list[str]
) -> None:
    found = Inferences(CPU, Store(tmp_path))
    model = frozen_model("dinov2_s")
    few = found.of(model, TIMED_IMAGES, False)
    assert any("layer_norm" in name for name in timed)
    # At the timed batch each operation takes what was measured, on average over its kind. So the
    # image takes a tenth of a second for each operation that counts.
    load = InferenceLoad(batch=TIMED_IMAGES, num_classes=CLASSES)
    operations = _replayed_inference(_built(model, load), model, load, device=CPU).parts["images"]
    assert few.parts["images"].seconds == pytest.approx(0.1 * len(operations), rel=1e-6)
    # Twice the images have twice the traffic and FLOPs, but for the weights.
    twice = found.of(model, 2 * TIMED_IMAGES, False).parts["images"].seconds
    assert 1.8 < twice / few.parts["images"].seconds < 2
    option = option_of(
        model, found, budget_bytes=10**10, data="dtd", num_classes=47, train_images=1880
    )
    cost = option.to_json()["cost"]
    assert cost["image_seconds_origin"] == "measured here"
    assert cost["image_joules"] is None
    assert option.probe is not None
    assert option.probe.extraction_seconds == pytest.approx(1880 * cost["image_seconds"])


def test_a_time_of_a_busy_machine_is_not_kept(
    tmp_path: Any, timed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, model = Inferences(CPU, Store(tmp_path)), frozen_model("dinov2_s")
    monkeypatch.setattr(cpu_rates, "time_product_and_copy", lambda: (0.5e11, 1e10))
    busy = found.of(model, 1, False)
    assert not busy.is_steady
    assert not list(tmp_path.rglob("*.npz"))
    count = len(timed)
    assert found.of(model, 1, False) == busy
    assert len(timed) == count  # the process keeps what it has timed
    monkeypatch.setattr(cpu_rates, "_INFERENCE_RATES", {})
    monkeypatch.setattr(cpu_rates, "time_product_and_copy", lambda: (1e11, 1e10))
    assert found.of(model, 1, False).is_steady
    assert found.missing([model], limit_bytes=10**12)  # the form of 32 images
    assert len(list(tmp_path.rglob("*.npz"))) == 2  # the rates and the inference


def test_memory_alone_times_nothing(timed: list[str]) -> None:
    load = InferenceLoad(batch=1)
    assert predict_inference(frozen_model("dinov2_s"), load, device=CPU).parts == {}
    assert timed == []
