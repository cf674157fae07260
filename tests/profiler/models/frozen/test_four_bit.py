"""Prompted models in 4 bits: predicted memory, and answers near those of whole weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from profiler.device_rules.cpu_allocator import peak_during
from profiler.devices.table import CPU
from profiler.models.frozen.build import build_frozen
from profiler.models.frozen.four_bit import quantise_frozen
from profiler.models.frozen.load import load_prompted
from profiler.models.frozen.prompted import PromptedModel
from profiler.models.frozen.run import InferenceLoad, run_inference
from profiler.prediction.inference import predict_inference
from tests.profiler.models.frozen.checkpoints import prompted_folder
from tests.profiler.models.frozen.tiny import TINY

FAMILIES = ("paligemma", "smolvlm", "mobilevlm")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_peak_is_that_of_the_cpu_allocator(name: str) -> None:
    load = InferenceLoad(batch=2, prompt_tokens=5, dtype="float32", is_four_bit=True)
    kept: list[object] = []

    def prepare() -> None:
        torch.manual_seed(0)
        real = build_frozen(TINY[name], device="cpu")
        quantise_frozen(real, compute_dtype=torch.float32)
        run_inference(real, TINY[name], load)
        kept.append(real)

    measured = peak_during(prepare, lambda: run_inference(kept[0], TINY[name], load))
    predicted = predict_inference(TINY[name], load, device=CPU).peak_bytes
    assert predicted == pytest.approx(measured, rel=0.005)


def test_a_published_model_takes_a_fraction_of_its_memory() -> None:
    from profiler.devices.table import device_spec
    from profiler.models.frozen.catalogue import frozen_model

    model, device = frozen_model("smolvlm_256m"), device_spec("rtx-2060-super")
    whole, small = (
        predict_inference(
            model, InferenceLoad(batch=1, dtype="float16", is_four_bit=is_small), device=device
        )
        for is_small in (False, True)
    )
    # 0.5 bytes in place of 2 for all but the embedding of 49,280 tokens of 576 values
    assert 0.35 < small.peak_bytes / whole.peak_bytes < 0.75


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_near_those_of_whole_weights(tmp_path: Path, name: str) -> None:
    prompted_folder(name, tmp_path)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    found = []
    for is_small in (False, True):
        built, tokenizer = load_prompted(TINY[name], tmp_path, dtype=torch.float32)
        if is_small:
            quantise_frozen(built, compute_dtype=torch.float32)
        prompted = PromptedModel(TINY[name], built, tokenizer)
        names = [prompted.name_tokens(text) for text in ("cat", "dog", "a horse", "zebra", "sea")]
        found.append(prompted.likelihoods(prompted.read(image, "?"), names))
    whole, small = found
    assert not torch.equal(whole, small)
    assert torch.corrcoef(torch.stack([whole, small]))[0, 1] > 0.9
