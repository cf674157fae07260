"""Levers: equal results, their memory and their predicted effects."""

from __future__ import annotations

import copy
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from profiler.devices.table import CPU, device_spec
from profiler.errors import InputError, UsageError
from profiler.models.build import build_model
from profiler.models.methods import get_method
from profiler.placement import Decision, Placement
from profiler.prediction.lever_effects import lever_effects
from profiler.prediction.report import predict
from profiler.replay.kernel_shapes import kernel_shape
from profiler.replay.step_replay import replay_step
from profiler.timing.kernel_terms import SLOTS, kernel_class
from profiler.timing.lever_factors import (
    UNALIGNED,
    UNFITTED,
    LeverFactors,
    layout_class,
    layout_fit,
    lever_factors,
)
from profiler.training_step import TrainingStep, backend_settings, make_optimizer
from profiler.workload import LEVERS, Candidate, Lever, Workload

RTX = device_spec("rtx-3060")

SMALL = Workload(model="test_resnet", micro_batch=4, image_size=64, num_classes=5)

BLOCK_BYTES = 512


def losses_of(workload: Workload, steps: int = 4) -> list[float]:
    """Return the losses of steps on the CPU, from the same weights on the same images."""
    torch.manual_seed(0)
    built = build_model(workload)
    optimizer = make_optimizer(built.model, workload, method=built.method, learning_rate=1e-2)
    step = TrainingStep(built.model, optimizer, workload, method=built.method)
    images = torch.rand(4, 3, workload.image_size, workload.image_size)
    labels = torch.tensor([0, 1, 2, 3])
    batches = [lambda: (images, labels)] * workload.accumulation
    return [float(step.run(batches)) for _ in range(steps)]


@pytest.mark.parametrize("model", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_step_with_levers_learns_the_same(model: str, optimizer: str) -> None:
    size = build_model(SMALL.replace(model=model), device="meta").backbone
    image_size = 160 if "vit" in type(size).__name__.lower() else 64
    plain = SMALL.replace(model=model, optimizer=optimizer, image_size=image_size)
    before = losses_of(plain)
    after = losses_of(plain.replace(levers=("channels_last", "fused")))
    assert before[-1] != before[0]
    np.testing.assert_allclose(after, before, rtol=2e-3)


@pytest.mark.parametrize(
    "method", ["lora", "dora", "adalora", "galore", "ssf", "side", "partial_2"]
)
def test_every_method_learns_the_same_with_channels_last(method: str) -> None:
    plain = get_method(method).resolve(
        SMALL.replace(model="test_efficientnet", method=method, image_size=64)
    )
    before = losses_of(plain)
    after = losses_of(plain.replace(levers=("channels_last",)))
    np.testing.assert_allclose(after, before, rtol=2e-3, atol=1e-3)


def test_channels_last_reaches_images_and_weights_and_plain_steps_stay() -> None:
    seen: list[bool] = []

    def watch(module: object, args: tuple[torch.Tensor, ...]) -> None:
        seen.append(args[0].is_contiguous(memory_format=torch.channels_last))

    for levers in ((), ("channels_last",)):
        workload = SMALL.replace(levers=levers)
        built = build_model(workload)
        built.model.register_forward_pre_hook(watch)
        step = TrainingStep(built.model, make_optimizer(built.model, workload), workload)
        step.run([lambda: (torch.rand(4, 3, 64, 64), torch.zeros(4, dtype=torch.long))])
        kernels = [p for p in built.model.parameters() if p.dim() == 4 and p.shape[-1] > 1]
        order = torch.channels_last if levers else torch.contiguous_format
        assert all(p.is_contiguous(memory_format=order) for p in kernels)
    assert seen == [False, True]


def test_the_optimizer_is_fused_only_on_request() -> None:
    model = build_model(SMALL).model
    assert make_optimizer(model, SMALL).defaults["fused"] is None
    fused = make_optimizer(model, SMALL.replace(levers=("fused",)), foreach=True)
    assert (fused.defaults["fused"], fused.defaults["foreach"]) == (True, None)


def test_global_settings_hold_inside_the_step_alone() -> None:
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.fp32_precision, cudnn.benchmark
    with backend_settings(SMALL.replace(levers=("tf32", "cudnn_benchmark"))):
        assert (products.fp32_precision, cudnn.benchmark) == ("tf32", True)
    assert (products.fp32_precision, cudnn.benchmark) == before
    with backend_settings(SMALL):
        assert (products.fp32_precision, cudnn.benchmark) == before


# ---- the field -----------------------------------------------------------------------------------


def test_levers_are_sorted_and_absent_from_the_json_of_plain_workloads() -> None:
    assert "levers" not in SMALL.to_json()
    both = SMALL.replace(levers=("fused", "channels_last", "fused"))
    assert both.levers == ("channels_last", "fused")
    assert Workload.from_json(both.to_json()) == both
    assert Workload.from_json(SMALL.to_json()) == SMALL


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levers": ("warp",)}, "levers must be one of"),
        ({"levers": ("tf32",), "precision": "bf16"}, "tf32 is for products of fp32"),
        ({"levers": ("fused",), "optimizer": "adamw8bit"}, "leave fused out"),
    ],
)
def test_levers_that_a_workload_cannot_have_are_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        SMALL.replace(**changes)


def test_a_file_with_bad_levers_is_refused() -> None:
    for levers in (["warp"], "fused", [["fused"]], ["tf32"] * 9):
        data = SMALL.replace(precision="bf16").to_json() | {"levers": levers}
        with pytest.raises(InputError, match=r"workload"):
            Workload.from_json(data)


def test_compile_takes_no_placement() -> None:
    placement = Placement({"layer1.0": Decision.RECOMPUTE})
    with pytest.raises(UsageError, match="leave compile out"):
        Candidate(workload=SMALL.replace(levers=("compile",)), placement=placement)
    data = Candidate(workload=SMALL, placement=placement).to_json()
    data["workload"] = SMALL.replace(levers=("compile",)).to_json()
    with pytest.raises(InputError, match="candidate"):
        Candidate.from_json(data)


def test_a_compiled_step_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The traced graph runs as PyTorch's operations; nightly, as the kernels of TorchInductor."""
    backend = os.environ.get("BUDGETPLAN_TEST_COMPILER", "eager")
    compiled: list[object] = []

    def traced(model: torch.nn.Module) -> object:
        compiled.append(model)
        return compile_model(model, backend=backend)

    compile_model = torch.compile
    monkeypatch.setattr(torch, "compile", traced)
    torch._dynamo.reset()
    plain = SMALL.replace(accumulation=2)
    before = losses_of(plain)
    after = losses_of(plain.replace(levers=("compile",)))
    assert len(compiled) == 1
    np.testing.assert_allclose(after, before, rtol=1e-5)


# ---- memory --------------------------------------------------------------------------------------


def test_a_fused_update_has_no_temporaries_and_its_counters_on_the_device() -> None:
    candidate = Candidate(workload=SMALL.replace(precision="bf16"))
    fused = replace(candidate, workload=candidate.workload.replace(levers=("fused",)))
    plain, changed = (predict(each, device=RTX).memory for each in (candidate, fused))
    tensors = len([*build_model(SMALL, device="meta").model.parameters()])
    assert plain.max_by_group is not None
    assert changed.max_by_group is not None
    added = changed.max_by_group.optimizer - plain.max_by_group.optimizer
    assert added == tensors * BLOCK_BYTES
    assert changed.max_by_group.temporary <= plain.max_by_group.temporary


def test_channels_last_on_a_cpu_is_replayed_exactly() -> None:
    """The replay's peak is that of the CPU allocator in a real step."""
    from profiler.running.measurement import build_step, measure_on_host

    workload = SMALL.replace(model="test_efficientnet", levers=("channels_last", "fused"))
    candidate = Candidate(workload=workload)
    measured = measure_on_host(
        lambda: build_step(candidate, device="cpu"),
        steps=1,
        warmup=2,
        progress=lambda text, done: None,
    )
    expected = predict(candidate, device=CPU).memory.peak_bytes
    assert measured.peak_bytes == pytest.approx(expected, rel=0.01)


# ---- time ----------------------------------------------------------------------------------------


def test_the_layout_flag_changes_no_class_of_coefficients() -> None:
    image, weight = torch.empty(2, 8, 6, 6), torch.empty(4, 8, 3, 3)
    convolution = torch.ops.aten.convolution.default
    names = []
    for order in (torch.contiguous_format, torch.channels_last):
        args = (
            image.to(memory_format=order),
            weight,
            None,
            [1, 1],
            [1, 1],
            [1, 1],
            False,
            [0, 0],
            1,
        )
        names.append(kernel_shape(convolution, args, torch.empty(2, 4, 6, 6)).name)
    assert names[1] == f"{names[0]} nhwc"
    assert kernel_class(names[0]) == kernel_class(names[1])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("convolution half dense k3x3 s1", "dense"),
        ("convolution_backward half depthwise k5x5 s1 no_weight", "depthwise"),
        ("convolution half depthwise k9x9 s1", UNFITTED),
        ("convolution half grouped k3x3 s1", UNFITTED),
        ("convolution half dense k3x3 s1 nhwc", ""),
        ("convolution dense k3x3 s1", ""),
        ("group_norm", UNFITTED),
        ("batch_norm half", "batch_norm"),
        ("batch_norm half given", ""),
        ("matmul half", ""),
    ],
)
def test_classes_of_the_order(name: str, expected: str) -> None:
    assert layout_class(name) == expected


def test_factors_multiply_their_terms() -> None:
    dense = layout_fit()["factors"]["dense"]
    both = lever_factors(device_spec("a100-40gb"), ("channels_last", "tf32"))
    names = ["convolution half dense k3x3 s1", "matmul", "matmul half"]
    dims = np.array([[1.0, 9, 8, 16, 9, 9], [1, 9, 8, 3, 1, 9], [1, 9, 8, 3, 1, 9]])
    found = both.of_operations(names, np.array([0, 1, 2]), dims)
    assert found[0] == pytest.approx([dense] * SLOTS)
    # the A100 has 19.5 TFLOP/s in fp32 and 156 in TF32
    assert found[1] == pytest.approx([19.5 / 156] * 6 + [1.0] * (SLOTS - 6))
    assert found[2] == pytest.approx([1.0] * SLOTS)
    for odd in ([1.0, 9, 6, 16, 9, 9], [1.0, 9, 8, 3, 9, 9]):
        (row,) = both.of_operations(names, np.array([0]), np.array([odd]))
        assert row == pytest.approx([layout_fit()["factors"][UNALIGNED]] * SLOTS)
    assert LeverFactors().of_operations(names, np.array([0, 1, 2]), dims) == pytest.approx(1.0)
    # GeForce Ampere has the same rate in both
    assert lever_factors(device_spec("rtx-3090"), ("tf32",)).products == pytest.approx(
        1.0, rel=0.01
    )


def effects_of(workload: Workload, levers: tuple[Lever, ...] = LEVERS) -> dict[str, float]:
    candidate = Candidate(workload=workload)
    log = replay_step(candidate, device=RTX)
    found = lever_effects(candidate, log, device=RTX, levers=levers)
    for effect in found:
        assert effect.interval.low <= effect.seconds_ratio <= effect.interval.high
        changed = replace(candidate, workload=workload.replace(levers=(effect.lever,)))
        plain = predict(candidate, device=RTX).step_seconds
        assert plain is not None
        assert predict(changed, device=RTX).step_seconds == pytest.approx(
            effect.seconds_ratio * plain, rel=1e-3
        )
    return {effect.lever: effect.seconds_ratio for effect in found}


def test_effects_are_the_ratios_of_two_predictions() -> None:
    workload = Workload(model="resnet18", micro_batch=16, precision="bf16", num_classes=10)
    found = effects_of(workload)
    assert set(found) == {"channels_last", "fused"}
    assert found["channels_last"] < 0.9
    assert found["fused"] < 1.0


def test_nothing_is_predicted_of_what_was_not_fitted() -> None:
    grouped = Workload(model="resnext50_32x4d", micro_batch=8, precision="bf16", num_classes=10)
    assert "channels_last" not in effects_of(grouped, ("channels_last",))
    for workload in (grouped, SMALL):  # grouped convolutions, and fp32
        report = predict(
            Candidate(workload=workload.replace(levers=("channels_last",))), device=RTX
        )
        assert report.step_seconds is None
        assert report.energy_joules is None
    compiled = predict(Candidate(workload=SMALL.replace(levers=("compile",))), device=RTX)
    assert compiled.step_seconds is None
    assert any("torch.compile is not predicted" in note for note in compiled.notes)


def test_a_copy_of_a_workload_keeps_its_levers() -> None:
    workload = SMALL.replace(levers=("fused",))
    assert copy.deepcopy(workload).replace(micro_batch=8).levers == ("fused",)
