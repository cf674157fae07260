"""The range of device bytes that cuDNN's workspaces may add."""

from __future__ import annotations

import pytest

from profiler.devices.table import CPU, lookup
from profiler.prediction.convolution_workspaces import largest_convolution_bytes, workspace_factor
from profiler.prediction.report import predict
from profiler.replay.step_replay import ReplayOptions, replay_step
from profiler.workload import Candidate, Workload

DEVICE = lookup("rtx-3060")


def candidate(model: str, **fields: object) -> Candidate:
    workload = Workload(model=model, num_classes=10, micro_batch=3, image_size=64)
    return Candidate(workload=workload.replace(**fields))


def test_the_largest_convolution_of_resnet18_is_its_first() -> None:
    """Its input is 3 x 64 x 64 and its output 64 x 32 x 32, in fp32."""
    options = ReplayOptions(optimizer=False)
    log = replay_step(candidate("resnet18"), device=DEVICE, options=options)
    assert largest_convolution_bytes(log) == 4 * 3 * (3 * 64 * 64 + 64 * 32 * 32)


@pytest.mark.parametrize(
    ("model", "fields", "is_known"),
    [("resnet18", {}, True), ("resnet18", {"precision": "fp16"}, False)],
)
def test_a_range_is_given_where_it_is_known(
    model: str, fields: dict[str, object], is_known: bool
) -> None:
    report = predict(candidate(model, **fields), device=DEVICE)
    memory = report.memory
    assert memory.needed_bytes == memory.device_bytes
    assert (memory.comfortable_bytes is not None) == is_known
    if is_known:
        assert memory.comfortable_bytes is not None and memory.needed_bytes is not None
        extra = memory.comfortable_bytes - memory.needed_bytes
        assert extra == round(workspace_factor() * 4 * 3 * (3 * 64 * 64 + 64 * 32 * 32))
    assert any("without memory for one" in note.lower() for note in report.notes)


def test_a_cpu_has_no_range() -> None:
    memory = predict(candidate("test_vit", image_size=32), device=CPU).memory
    assert memory.needed_bytes is None and memory.comfortable_bytes is None
