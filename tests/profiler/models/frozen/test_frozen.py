from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from profiler.device_rules.cpu_allocator import peak_during
from profiler.devices.table import CPU, device_spec
from profiler.errors import UnknownNameError
from profiler.models.frozen import run
from profiler.models.frozen.build import build_frozen
from profiler.models.frozen.catalogue import frozen_model, frozen_models
from profiler.models.frozen.run import NAME_TOKENS, TOKEN_FACTOR, InferenceLoad, run_inference
from profiler.prediction.inference import predict_inference
from profiler.replay.inference_replay import replay_inference
from tests.profiler.models.frozen.tiny import TINY


@pytest.mark.parametrize("name", frozen_models())
def test_the_number_of_parameters_is_the_published_one(name: str) -> None:
    model = frozen_model(name)
    counted = sum(p.numel() for p in build_frozen(model).parameters())
    digits = len(str(model.parameters_millions).partition(".")[2])
    assert round(counted / 1e6, digits) == model.parameters_millions


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", TINY)
def test_the_peak_is_that_of_the_cpu_allocator(name: str, dtype: str) -> None:
    model = TINY[name]
    load = InferenceLoad(batch=3, num_classes=70, prompt_tokens=5, dtype=dtype)
    built = build_frozen(model).to(load.torch_dtype)
    log = replay_inference(
        built, lambda m, begin: run_inference(m, model, load, begin), device=CPU, batch=load.batch
    ).log
    kept: list[object] = []

    def prepare() -> None:
        torch.manual_seed(0)
        real = build_frozen(model, device="cpu").to(load.torch_dtype)
        run_inference(real, model, load)  # libraries make their tables at the first call
        kept.append(real)

    measured = peak_during(prepare, lambda: run_inference(kept[0], model, load))
    assert log.peak_bytes == pytest.approx(measured, rel=0.005)


def test_a_free_answer_costs_that_of_all_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    def predicted() -> dict[str, float]:
        found = predict_inference(
            TINY["smolvlm"],
            InferenceLoad(batch=1, dtype="float16"),
            device=device_spec("rtx-2060-super"),
        )
        return {name: part.seconds for name, part in found.parts.items()}

    short = predicted()
    monkeypatch.setattr(run, "WRITTEN_TOKENS", NAME_TOKENS)
    whole = predicted()
    assert TOKEN_FACTOR * short["token"] == pytest.approx(whole["token"], rel=0.01)
    assert short["images"] == whole["images"]


def test_a_mask_of_all_patches_selects_what_it_would_without_being_read() -> None:
    mask, found = torch.ones(2, 3, dtype=torch.bool), torch.arange(6).view(2, 3)
    places = torch.zeros_like(found)
    expected = found[mask]
    with run._AllPatchesMask():
        assert torch.equal(found[mask], expected)
        places[mask] = found[mask]
        assert found[0, 1] == 1
    assert torch.equal(places, found)
    with FakeTensorMode(), run._AllPatchesMask():
        assert torch.zeros(2, 3)[torch.ones(2, 3, dtype=torch.bool)].shape == (6,)


def test_an_unknown_name_is_answered_with_near_ones() -> None:
    with pytest.raises(UnknownNameError, match="did you mean dinov2_s"):
        frozen_model("dinov2")
