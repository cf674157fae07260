"""Advice is given only if it was predicted to fit."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from planner import predict
from planner.api.workload_functions import check_fits
from planner.cost.fit_probability import smallest_budget_of
from planner.cost.place_by_policy import default_cost_model
from planner.recommendation.build_request import build_request
from planner.recommendation.infeasible import nothing_fits
from profiler.devices.table import device_spec
from profiler.errors import InfeasibleError
from profiler.units import GIB

SIZE = 32


def advice_of(vram: int, **workload: object) -> str:
    report = predict("test_vit", "full", device="cpu", **workload)
    with pytest.raises(InfeasibleError) as caught:
        check_fits(report, vram)
    return str(caught.value)


def test_the_advised_method_fits() -> None:
    vram = 5_000_000  # the optimizer's state of full fine-tuning alone takes 6 MB
    advice = advice_of(vram, batch_size=2, image_size=SIZE)
    found = re.search(r"--method head --batch-size (\d+) --accumulate (\d+) makes it fit", advice)
    assert found is not None, advice
    batch, accumulate = map(int, found.groups())
    probe = predict(
        "test_vit", "head", batch_size=batch, accumulate=accumulate, device="cpu", image_size=SIZE
    )
    check_fits(probe, vram)


def test_micro_batches_beyond_the_largest_accumulation_are_not_tried() -> None:
    """At micro-batch 1 the same effective batch needs 131,072 of them."""
    advice = advice_of(1_100_000, batch_size=2, accumulate=65_536, image_size=SIZE)
    assert advice.endswith("no smaller micro-batch fits either")


def test_no_method_is_advised_if_none_fits() -> None:
    """A head of 100,000 classes is most of the model, so that training less does not help."""
    advice = advice_of(8_000_000, batch_size=2, num_classes=100_000, image_size=SIZE)
    assert advice.endswith("no smaller micro-batch fits either")


def test_the_advised_use_of_host_memory_fits() -> None:
    """AdamW's state of ViT-Tiny takes 46 MB, so that 34 MB less suffice without it."""
    shape = {"device": "rtx-3060", "batch_size": 1}
    report = predict("vit_tiny_patch16_224", "full", **shape)
    vram = smallest_budget_of(report) - 34_000_000
    with pytest.raises(InfeasibleError, match="; --optimizer adamw_host makes it fit"):
        check_fits(report, vram)
    check_fits(predict("vit_tiny_patch16_224", "full", optimizer="adamw_host", **shape), vram)


def test_trials_that_missed_what_fits_are_not_said_to_be_all() -> None:
    """The budget is blamed only where the smallest candidate of the space exceeds it."""
    device = "rtx-3060"
    smallest = predict("test_vit", "head", batch_size=1, accumulate=32, device=device)
    cost = default_cost_model(device_spec(device))
    found: Any = SimpleNamespace(results=(), failures=(), trials=7)

    def message(budget_bytes: int) -> str:
        asked = build_request(
            "test_vit", budget_bytes=budget_bytes, device=device, methods=["head"], validations=0
        )
        return str(nothing_fits(asked, found, cost))

    assert message(2 * GIB).startswith("none of 7 trials fits a budget of 2.00 GiB; the smallest")
    assert message(2 * GIB).endswith("give more --trials")
    tight = smallest_budget_of(smallest) // 2
    assert message(tight).startswith("nothing fits a budget of")
