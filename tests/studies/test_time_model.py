"""The study's meta steps against replays, and its fit against coefficients that are known."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from profiler.devices.table import lookup
from profiler.models.build import build_model
from profiler.replay.event_log import OperationRecord
from profiler.replay.step_replay import replay_built_model
from profiler.workload import Candidate, Workload

if TYPE_CHECKING:
    from kernel_fit import KernelRows

    from profiler.timing.size_curves import SizeCurves

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
    from replays import fused_attention

    workload = Workload(
        model=name, method="full", micro_batch=8, image_size=160, num_classes=1000,
        precision="fp16", optimizer="sgd",
    )  # fmt: skip
    with fused_attention(False):
        with torch.device("meta"):
            model = timm.create_model(name).train()
        records = meta_step(model, batch=8, image_size=160, training=True)
        built = build_model(workload, device="meta")
        candidate = Candidate(workload=workload)
        log = replay_built_model(built, candidate, device=lookup("rtx-3090"), optimizer=False)
    meta, replayed = kernels(records), kernels(log.operations)
    assert sum(meta.values()) > 30
    assert meta == replayed


def test_a_published_run_leaves_timms_setting_as_it_was() -> None:
    from replays import PublishedRun, operations_of
    from timm.layers import use_fused_attn

    before = use_fused_attn()
    for table in ("train", "infer"):
        run = PublishedRun(table=table, model="test_vit", batch=1, image_size=160, seconds=1.0)
        has_softmax = any(row[2] == "softmax half" for row in operations_of(run)["operations"])
        assert has_softmax == (table == "train")
        assert use_fused_attn() == before


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


def test_the_sustained_bandwidth_is_that_of_long_kernels(tmp_path: Path) -> None:
    """A board that reaches three quarters of its bandwidth after a launch of 20 microseconds."""
    from kernels import BOARDS, sustained_share

    bandwidth = 0.75 * BOARDS["T4"].bandwidth
    for operation in ("add", "mul"):
        lines = ["B,H,Latency"]
        for rows in (1_000, 10_000, 4_000_000, 8_000_000):
            milliseconds = 1e3 * (3 * 4 * rows * 128 / bandwidth + 20e-6)
            lines.append(f"{rows},128,{milliseconds}")
        with gzip.open(tmp_path / f"neusight_{operation}_Tesla-T4.csv.gz", "wt") as file:
            file.write("\n".join(lines) + "\n")
    assert sustained_share(tmp_path, BOARDS["T4"]) == pytest.approx(0.75, abs=0.002)


def test_single_kernels_are_in_every_fit() -> None:
    """Two terms of the known families are in one ratio, and in another in the family left out."""
    from fit import left_out

    rng = np.random.default_rng(0)
    keys = [("matmul half", "tile"), ("add", "bytes")]
    families = [f"family{i % 6}" for i in range(30)]
    ratio = np.array([[1.0, 3.0 if family == "family5" else 1.0] for family in families])
    steps = (rng.random((30, 1)) + 0.1) * ratio
    kernels = np.stack([np.zeros(30), rng.random(30) + 0.1], axis=1)
    true = np.array([0.3, 2.0])
    sums = np.concatenate([steps, kernels])
    found = left_out(sums, sums @ true, keys, families)
    np.testing.assert_allclose(found, steps @ true, rtol=2e-2)
    without = left_out(steps, steps @ true, keys, families)
    assert np.abs(without / (steps @ true) - 1).max() > 0.1


def test_a_measured_step_is_an_epoch_at_the_largest_power_limit(tmp_path: Path) -> None:
    from power import CARDS
    from whole_steps import IMAGES, measured_steps

    card = CARDS["P100 PCIe"]
    rows = [
        "network,batch_size,power_limit,time_per_epoch",
        "resnet50,1000,250,641", "resnet50,1000,250,641", "resnet50,1000,150,999",
        "shufflenetv2,1000,300,1",
    ]  # fmt: skip
    (tmp_path / f"zeus_power_{card.file}.csv").write_text("\n".join(rows))
    assert IMAGES == 1_281_167  # 1,282 steps, the last of 167 images
    assert measured_steps(tmp_path, "P100 PCIe") == {1000: 0.5}


def test_the_fit_finds_known_size_curves() -> None:
    from kernel_fit import fit_rows

    from profiler.timing.size_curves import SizeCurves

    true = _one_curve()
    boards = [_made_board(true, seed=0, launch=2e-5), _made_board(true, seed=1, launch=5e-5)]
    found = fit_rows(boards, [("convolution dense", "flops")], has_bound=False, has_curves=True)
    assert found.curves is not None
    assert found.bound is None
    sizes = boards[0].sizes[np.all((boards[0].sizes > 2) & (boards[0].sizes < 6e3), axis=1)]
    factors = found.coefficients[0] * SizeCurves(found.curves).factors(sizes)
    np.testing.assert_allclose(factors, 0.5 * true.factors(sizes), rtol=0.1)


def test_the_fit_finds_a_known_power_bound() -> None:
    from kernel_fit import fit_rows

    boards = [_made_board(None, seed=0, launch=2e-5), _made_board(None, seed=1, launch=5e-5)]
    found = fit_rows(boards, [("matmul", "flops")], has_bound=True, has_curves=False)
    assert found.coefficients[0] == pytest.approx(0.5, rel=0.02)
    assert found.bound == pytest.approx(0.8, rel=0.02)


def _one_curve() -> SizeCurves:
    from profiler.timing.size_curves import PRODUCT_SIZES, SizeCurves

    flat = {"sizes": [1.0, 1e4], "factors": [1.0, 1.0]}
    falling = {"sizes": [1.0, 1e4], "factors": [5.0, 0.5]}
    return SizeCurves(dict.fromkeys(PRODUCT_SIZES, flat) | {"inner": falling})


def _made_board(curves: SizeCurves | None, *, seed: int, launch: float) -> KernelRows:
    """Return kernels of 0.5 times their terms, by curves or a bound that holds for half of them."""
    from kernel_fit import KernelRows

    from profiler.timing.size_curves import PRODUCT_SIZES

    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.uniform(0.0, 9.2, (800, len(PRODUCT_SIZES))))
    terms = np.exp(rng.uniform(-9.0, -2.0, (800, 1)))
    bound = terms[:, 0] * np.where(np.arange(800) % 2, 0.1, 2.0)
    kernel = 0.5 * terms[:, 0]
    kernel = np.maximum(kernel, 0.8 * bound) if curves is None else kernel * curves.factors(sizes)
    return KernelRows(
        terms=terms, bound=bound, sizes=sizes, seconds=launch + kernel, launch=np.full(800, launch)
    )
