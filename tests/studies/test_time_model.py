"""The study's meta steps against replays, and its fit against coefficients that are known."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from profiler.devices.table import lookup
from profiler.models.build import build_model
from profiler.replay.event_log import OperationRecord
from profiler.replay.step_replay import replay_built_model
from profiler.workload import Candidate, Workload

STUDY_FOLDERS = (".", "time_model")

SCALER = {"fill", "mul", "copy", "softmax", "copy half", "softmax half", "softmax_backward",
          "softmax_backward half"}  # fmt: skip
"""Kinds in which a replay differs: it has a gradient scaler and a loss on fp16 logits."""


def kernels(records: Any) -> Counter[tuple[Any, ...]]:
    def key(op: OperationRecord) -> tuple[Any, ...]:
        return op.kernel, op.dims, op.flops

    return Counter(key(op) for op in records if op.kernel not in SCALER)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_meta_step_has_the_kernels_of_a_replay(name: str) -> None:
    import timm
    from meta_steps import meta_step

    workload = Workload(
        model=name, method="full", micro_batch=8, image_size=160, num_classes=1000,
        precision="fp16", optimizer="sgd",
    )  # fmt: skip
    fused = timm.layers.use_fused_attn()
    timm.layers.set_fused_attn(False)
    try:
        with torch.device("meta"):
            model = timm.create_model(name).train()
        records = meta_step(model, batch=8, image_size=160, training=True)
        built = build_model(workload, device="meta")
        candidate = Candidate(workload=workload)
        log = replay_built_model(built, candidate, device=lookup("rtx-3090"), optimizer=False)
    finally:
        timm.layers.set_fused_attn(bool(fused))
    meta, replayed = kernels(records), kernels(log.operations)
    assert sum(meta.values()) > 30
    assert meta == replayed


def test_the_fit_finds_known_coefficients() -> None:
    from fit import fit, left_out

    rng = np.random.default_rng(0)
    keys = [("matmul half", "tile"), ("add half", "bytes"), ("copy half", "launch")]
    true = np.array([0.7, 1.4, 5e-6])
    sums = rng.random((60, 3)) * np.array([1.0, 1.0, 2e5])
    seconds = sums @ true
    np.testing.assert_allclose(fit(sums, seconds, keys), true, rtol=2e-2)
    families = [f"family{i % 7}" for i in range(60)]
    np.testing.assert_allclose(left_out(sums, seconds, keys, families), seconds, rtol=2e-2)
    # a copy that is faster than the memory is not believed
    assert fit(sums, sums @ np.array([0.7, 0.2, 5e-6]), keys)[1] == 1.0
