"""The notes of an answer: each says one thing, once, and for the candidates that it holds for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from planner.recommendation.build_request import build_request
from planner.recommendation.notes import answer_notes
from profiler.devices.table import LARGEST_REPORTED_CONTEXT_BYTES, cuda_context, device_spec
from profiler.prediction.convolution_workspaces import comfortable_workspace_bytes
from profiler.prediction.report import predict
from profiler.replay.step_replay import replay_step
from profiler.units import format_bytes_in
from profiler.workload import Candidate, Workload

FOUND: Any = SimpleNamespace(stopped=None, cost_unit="joules", failures=())
BUDGET = 2 * 10**9


def workload(method: str = "full", micro_batch: int = 4, **fields: Any) -> Workload:
    return Workload(
        model="resnet18",
        method=method,
        rank=8 if method in ("lora", "dora") else None,
        num_classes=10,
        micro_batch=micro_batch,
        image_size=64,
        **fields,
    )


def notes_of(workloads: list[Workload], device: str) -> list[str]:
    asked = build_request("resnet18", budget_bytes=BUDGET, device=device, validations=0)
    checked: list[Any] = [
        SimpleNamespace(
            candidate=candidate,
            prediction=predict(candidate, device=device_spec(device)),
            validation=None,
        )
        for candidate in (Candidate(workload=each) for each in workloads)
    ]
    return list(answer_notes(asked, FOUND, checked))


def test_workspaces_of_convolutions_are_said_once_with_the_largest_size() -> None:
    workloads = [workload(micro_batch=n) for n in (8, 64, 32)]
    notes = notes_of([*workloads, workload(precision="fp16")], "rtx-3090")
    logs = [replay_step(Candidate(workload=w), device=device_spec("rtx-3090")) for w in workloads]
    largest = max(comfortable_workspace_bytes(log) or 0 for log in logs)
    not_included, size = [note for note in notes if "cuDNN" in note]
    assert "not included" in not_included
    assert f"up to {format_bytes_in(largest, 'GB')} more" in size
    assert size.endswith("; in 16 bits that is not known")


def test_unknown_sizes_of_workspaces_are_no_number() -> None:
    notes = notes_of([workload(precision="fp16")], "rtx-3090")
    assert any("cuDNN" in note and note.endswith("not known in 16 bits") for note in notes)
    assert not any("more (fitted" in note for note in notes)


@pytest.mark.parametrize("device", ["rtx-2060-super", "t4", "rtx-3090", "cpu"])
def test_notes_on_the_context_do_not_repeat_each_other(device: str) -> None:
    context = cuda_context(device_spec(device))
    notes = [note for note in notes_of([workload()], device) if "CUDA context" in note]
    origins = ["assumed", "measured"]
    if device == "cpu":
        assert notes == []
        return
    said = [[origin for origin in origins if origin in note] for note in notes]
    if not context.is_assumed:
        assert said == [["measured"]]
        return
    origin, room = notes
    assert "assumed" in origin and "assumed" not in room
    for size in (LARGEST_REPORTED_CONTEXT_BYTES, context.nbytes):
        assert format_bytes_in(size, "GB") in room


def test_a_note_names_the_candidates_that_it_holds_for() -> None:
    notes = notes_of([workload(m) for m in ("full", "lora", "dora", "bn_head")], "t4")
    (frozen,) = [note for note in notes if "residual branches stay zero" in note]
    assert frozen.startswith("lora, dora: with random weights")
