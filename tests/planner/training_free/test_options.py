from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from planner.training_free.option_cost import probe_cost
from planner.training_free.options import BATCHES, CLASSES, Inferences, option_of
from profiler.devices.table import CPU, device_spec
from profiler.models.frozen.catalogue import FrozenModel, frozen_model, frozen_models
from profiler.models.frozen.run import NAMES_AT_ONCE, TOKEN_FACTOR
from profiler.prediction.inference import InferencePrediction, PartCost, data_set_cost
from profiler.store import Store

GPU = device_spec("rtx-2060-super")


class _GivenInferences:
    """1 GB of weights (a quarter in 4 bits) and 100 MB for each image."""

    dtype, device = "float16", GPU

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
        sizes = {budget: option(model, budget) for budget in (5, 2.2, 1.3, 1, 0.5)}
        largest = BATCHES[model.kind][0]
        assert (sizes[5].batch, sizes[5].fits, sizes[5].is_four_bit) == (largest, True, False)
        assert (sizes[1.3].batch, sizes[1.3].fits, sizes[1.3].is_four_bit) == (1, True, False)
        assert sizes[2.2].batch == (8 if largest > 8 else 1)
        is_prompted = model.kind == "prompted"
        assert (sizes[1].fits, sizes[1].is_four_bit) == (is_prompted, is_prompted)
        assert (sizes[0.5].fits, sizes[0.5].is_four_bit) == (False, is_prompted)


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
    assert found.missing(models, budget_bytes=large) == []
    assert found.missing(models, budget_bytes=large - 1) == models  # batch 8 is needed too
    found.of(models[0], 8, False)
    assert found.missing(models, budget_bytes=large - 1) == []
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
    assert Inferences(CPU, store).of(model, 1, False).parts == {}


def test_a_device_with_other_numbers_has_predictions_of_its_own(tmp_path: Any) -> None:
    model = frozen_model("dinov2_s")
    edited = replace(GPU, fp16_tensor_flops=GPU.fp16_tensor_flops / 2)
    kept, other = (
        Inferences(device, Store(tmp_path))._key(model, 8, False) for device in (GPU, edited)
    )
    assert kept != other
