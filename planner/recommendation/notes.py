"""The notes of an answer: what the reader must know beside the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from planner.cost.place_within_budget import needed_bytes
from planner.recommendation.answer import CheckedCandidate, describe
from planner.recommendation.choose import TELLING_STEPS
from planner.recommendation.request import Request
from planner.search.problem import SearchResult
from profiler.records import Report
from profiler.units import format_bytes

if TYPE_CHECKING:
    from planner.training.validation import Validation


def images_seen(validation: Validation | None, host: Report | None) -> dict[str, Any]:
    """Return where the numbers of a real run come from."""
    if validation is None:
        return {"weights": {"kind": "none", "detail": "nothing was run"}}
    peak = None if host is None else {"peak_bytes": host.memory.peak_bytes}
    return {
        "weights": {"kind": validation.weights.kind, "detail": validation.weights.detail},
        "run": {
            "images": dict(validation.data),
            "losses": list(validation.losses),
            "accuracy_images": validation.accuracy_images,
            "inference_seconds": validation.inference_seconds,
            "inference_peak_bytes": validation.inference_peak_bytes,
            "inference_watts": validation.inference_watts,
            "notes": list(validation.notes),
        },
        "host_prediction": peak,
    }


def notes_of(
    request: Request, found: SearchResult, rows: Sequence[CheckedCandidate]
) -> tuple[str, ...]:
    notes = []
    if request.device.note:
        notes.append(request.device.note)
    device, room = request.device, request.device.memory_bytes
    if room is not None and request.budget_bytes > room:
        notes.append(
            f"the budget is more than the {format_bytes(room)} that {device.full_name} has"
        )
    if found.stopped is not None:
        notes.append(f"the search ended early: {found.stopped}")
    if found.cost_unit == "seconds":
        notes.append("the power of this device is not known: time stands for energy")
    notes += _left_out(request.left_out)
    ran = [row for row in rows if row.validation is not None]
    if any(row.host_prediction is not None for row in ran):
        notes.append(
            "the runs were on the CPU, as there is no such GPU here: memory, time and energy on "
            "the GPU are predicted"
        )
    if ran and not request.has_weights:
        notes.append(
            "the runs began with random weights"
            + (", as no pretrained ones can be loaded here" if request.run.pretrained else "")
            + ": no accuracy is that of a pretrained model"
            + (
                "; the order of methods is for pretrained ones, --no-pretrained asks for the other"
                if request.run.pretrained
                else ""
            )
        )
    steps = [len(row.validation.losses) for row in ran if row.validation is not None]
    if steps and max(steps) < TELLING_STEPS:
        notes.append(
            f"an accuracy after {_span(steps)} steps, and the NetScores made of it, "
            "say that training works, not how good a model gets"
        )
    for row in ran:
        notes += _findings(request, row)
    seen = [note for row in rows for note in row.prediction.notes]
    return (*notes, *dict.fromkeys(seen))


def _left_out(reasons: Mapping[str, str]) -> list[str]:
    """Return a line for every reason."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return [
        f"{', '.join(each)} {'was' if len(each) == 1 else 'were'} left out: {reason}"
        for reason, each in names.items()
    ]


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _findings(request: Request, row: CheckedCandidate) -> list[str]:
    assert row.validation is not None
    compared = row.host_prediction or row.prediction
    # a run on the CPU in a GPU's stead is not held against the GPU's budget
    needed = needed_bytes(row.validation.report)
    budget = request.budget_bytes if row.host_prediction is None else needed
    found = row.validation.findings(compared, budget_bytes=budget)
    return [f"{describe(row.candidate)}: {text}" for text in found]
