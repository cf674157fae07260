"""Workloads that a backbone or a library refuses, and what the refusal names as working."""

from __future__ import annotations

import re

import pytest
import torch

from planner import predict
from planner.recommendation.build_request import build_request
from profiler.device_rules.cpu_kernels import MAX_RUN_BYTES, can_run_on_zeros
from profiler.errors import InputError, UsageError
from profiler.models import backbones
from profiler.models.build import build_model
from profiler.models.forward_check import _message_of, refusal_of_forward
from profiler.models.method_notes import method_notes
from profiler.workload import Workload


def load(model: str, method: str = "full", **fields: object) -> Workload:
    return Workload(model=model, method=method, num_classes=4).replace(**fields)


def one_step(workload: Workload) -> torch.nn.Module:
    """Run one real forward and backward, and return the model."""
    torch.manual_seed(0)
    model = build_model(workload).model
    size = workload.image_size
    model(torch.rand(workload.micro_batch, 3, size, size)).square().sum().backward()
    return model


@pytest.mark.parametrize(
    ("workload", "works"),
    [
        (load("levit_128s", micro_batch=1), False),
        (load("levit_128s", micro_batch=2), True),
        (load("levit_128s", "head", micro_batch=1), False),  # its classifier has a BatchNorm
        (load("mobilenetv3_small_050", "head", micro_batch=1, image_size=32), True),
        (load("mobilenetv3_small_050", micro_batch=1, image_size=32), False),
        (load("mobilenetv3_small_050", micro_batch=2, image_size=32), True),
        (load("mobilenetv3_small_050", micro_batch=1, image_size=64), True),
        (load("test_vit", micro_batch=1, image_size=160), True),
        (load("skresnet18", "lora", rank=4, micro_batch=2, image_size=32), True),
    ],
    ids=str,
)
def test_shapes_decide_as_a_real_step_does(workload: Workload, works: bool) -> None:
    reason = refusal_of_forward(workload)
    assert (reason is None) == works
    if works:
        one_step(workload)
    else:
        assert reason is not None
        assert "one image is too few" in reason
        assert "a micro-batch of 2 works" in reason
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            one_step(workload)


@pytest.mark.parametrize("model", ["coat_lite_tiny", "test_vit"])
def test_no_tensor_of_a_real_model_stays_on_meta(model: str) -> None:
    """CoaT keeps modules under several names; the search for units runs its forward on shapes."""
    built = build_model(load(model, image_size=224 if model != "test_vit" else 160))
    tensors = [*built.model.parameters(), *built.model.buffers()]
    assert not any(tensor.is_meta for tensor in tensors)


@pytest.mark.parametrize("rung", ["composed", "replayed"])
def test_a_prediction_of_one_image_is_refused(rung: str) -> None:
    with pytest.raises(UsageError, match="one image is too few"):
        predict("levit_128s", batch_size=1, device="rtx-3060", rung=rung)


def test_a_refused_image_size_names_sizes_that_run() -> None:
    message = refusal_of_forward(load("maxvit_tiny_rw_224", "head", image_size=250))
    assert message is not None
    assert "use 224 or 256 px" in message
    for size in (224, 256):
        assert refusal_of_forward(load("maxvit_tiny_rw_224", "head", image_size=size)) is None


def test_a_size_at_which_a_method_cannot_learn_the_shapes_of_the_units_is_refused() -> None:
    with pytest.raises(UsageError, match=r"gcvit_xxtiny does not run at 33 px .*use 32 or 64"):
        predict("gcvit_xxtiny", "side", batch_size=2, image_size=33, device="rtx-3060")


def test_a_method_that_the_backbone_does_not_run_is_refused() -> None:
    with pytest.raises(UsageError, match="qlora does not run on eva02_tiny_patch14_224"):
        predict("eva02_tiny_patch14_224", "qlora", batch_size=2, image_size=56, device="rtx-3060")
    with pytest.raises(UsageError, match="side cannot be used on levit_128s"):
        predict("levit_128s", "side", batch_size=2, device="rtx-3060")


@pytest.mark.parametrize("model", ["tf_efficientnet_lite0", "tf_mobilenetv3_small_minimal_100"])
def test_adalora_is_refused_where_convolutions_pad_in_their_forward(model: str) -> None:
    reason = refusal_of_forward(load(model, "adalora", rank=8, micro_batch=2))
    assert reason is not None
    assert re.search(r"peft computes .* of the convolution conv_stem without .*padding", reason)
    assert "broadcast" not in reason
    for other in (load(model, "lora", rank=8), load("mobilenetv2_100", "adalora", rank=8)):
        assert refusal_of_forward(other.replace(micro_batch=2, image_size=32)) is None


def test_a_message_of_a_library_is_named_as_one_and_cut_between_words() -> None:
    reason = refusal_of_forward(load("maxvit_tiny_rw_224", "head", image_size=250))
    assert reason is not None
    found = re.search(r"\(message of timm or PyTorch: (.*)\); use", reason)
    assert found is not None
    for words in (2, 40):
        said = " ".join(["dimension"] * words)
        quoted = _message_of(ValueError(said))
        assert set(quoted.removesuffix(" ...").split()) == {"dimension"}
        assert (quoted == said) == (words == 2)
    assert _message_of(KeyError()) == "KeyError"


@pytest.mark.parametrize("tag", ["nosuchtag", "augreg_in21k_ft_in1"])
def test_an_unknown_tag_names_the_known_ones(tag: str) -> None:
    with pytest.raises(UsageError, match="augreg_in21k_ft_in1k"):
        backbones.resolve(f"vit_tiny_patch16_224.{tag}")
    known = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert backbones.resolve(known) == known


def test_lora_leaves_dilated_convolutions_out_and_the_report_says_so() -> None:
    report = predict("skresnet18", "lora", rank=2, batch_size=2, image_size=32, device="rtx-3060")
    assert any("8 dilated convolutions get no adapter" in note for note in report.notes)
    with pytest.raises(UsageError, match="only dilated convolutions"):
        predict("skresnet18", "lora", targets=("paths.1.conv",), batch_size=2, device="rtx-3060")


@pytest.mark.parametrize("method", ["lora", "bitfit"])
@pytest.mark.parametrize("model", ["resnet18", "regnety_002", "test_vit"])
def test_frozen_zero_scales_are_named_where_branches_do_not_learn(model: str, method: str) -> None:
    workload = load(model, method, micro_batch=2, image_size=64 if model != "test_vit" else 160)
    note = next((n for n in method_notes(workload) if "stay zero" in n), None)
    built = build_model(workload)
    assert (note,) == built.weights.notes or (note is None and built.weights.notes == ())
    trained = one_step(workload)
    still = [
        name
        for name, p in trained.named_parameters()
        if p.requires_grad and (p.grad is None or not bool(p.grad.any())) and "lora_A" not in name
    ]
    assert bool(still) == (note is not None)


@pytest.mark.parametrize(
    ("method", "pretrained"), [("full", False), ("full", True), ("lora", False)]
)
def test_a_search_leaves_micro_batch_1_out_where_batchnorm_refuses_it(
    method: str, pretrained: bool
) -> None:
    request = build_request(
        "mobilenetv3_small_050",
        budget_bytes=10**9,
        device="rtx-3060",
        methods=[method],
        image_size=32,
        effective_batch=4,
        pretrained=pretrained,
    )
    # BatchNorm keeps pretrained statistics, and LoRA's is frozen
    refused = method == "full" and not pretrained
    assert request.space.micro_batches == ((2, 4) if refused else (1, 2, 4))
    assert [item.name for item in request.left_out] == (["micro-batch 1"] if refused else [])


def test_a_search_leaves_out_the_methods_that_do_not_run() -> None:
    request = build_request(
        "eva02_tiny_patch14_224",
        budget_bytes=10**9,
        device="rtx-3060",
        methods=["qlora", "head"],
        image_size=56,
        effective_batch=4,
    )
    assert [method.name for method in request.space.methods] == ["head"]
    assert [item.name for item in request.left_out] == ["qlora"]
    with pytest.raises(UsageError, match="use 224 or 256 px"):
        build_request("maxvit_tiny_rw_224", budget_bytes=10**9, device="rtx-3060", image_size=250)


def test_a_prediction_runs_no_operation_that_is_too_large_or_recurrent() -> None:
    mm, small = torch.ops.aten.mm.default, torch.empty(8, 8, device="meta")
    edge = int((MAX_RUN_BYTES / 4) ** 0.5)
    large, row = (
        torch.empty(edge + 1, edge, device="meta"), torch.empty(1, 2 * edge, device="meta")
    )  # fmt: skip
    assert can_run_on_zeros(mm, (small, small), {})
    assert not can_run_on_zeros(mm, (large, large), {})
    assert not can_run_on_zeros(mm, (row.T, row), {})  # small arguments and a large result
    assert not can_run_on_zeros(torch.ops.aten.mkldnn_rnn_layer_backward.default, (), {})


def test_segments_of_chen_are_the_same_on_both_rungs() -> None:
    replayed, composed = (
        predict(
            "test_efficientnet",
            batch_size=16,
            image_size=96,
            device="rtx-3060",
            checkpoint="chen",
            rung=rung,
        )
        for rung in ("replayed", "composed")
    )
    assert replayed.candidate == composed.candidate
    assert composed.memory.peak_bytes == pytest.approx(replayed.memory.peak_bytes, rel=0.03)


def test_a_micro_batch_of_more_pixels_than_any_device_holds_is_refused() -> None:
    Workload(model="vit_s", micro_batch=2**16, image_size=2**9)
    with pytest.raises(UsageError, match="at most 17,179,869,184 pixels, got 65536 images"):
        Workload(model="vit_s", micro_batch=2**16, image_size=520)
    with pytest.raises(InputError, match="at most"):
        Workload.from_json({"model": "vit_s", "micro_batch": 2**16, "image_size": 8192})
