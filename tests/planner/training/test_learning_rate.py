"""The learning rate by method, weights and optimizer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from trainings import workload

from planner.training.learning_rate import choose_learning_rate
from profiler.models.backbones import WeightSource
from profiler.models.build import build_model


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
