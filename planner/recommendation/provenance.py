"""The provenance of a plan: versions, study, data, and the origin of each of its numbers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from planner.plan import versions
from planner.recommendation.checks import CheckedCandidate
from planner.recommendation.request import Request
from planner.scoring.accuracy_prior import AccuracyEstimate
from planner.search.problem import SearchResult
from profiler.records import Report

if TYPE_CHECKING:
    from planner.training.validation import Validation


def plan_provenance(
    request: Request, found: SearchResult, checked: CheckedCandidate, expected: AccuracyEstimate
) -> dict[str, Any]:
    """Return plain data for the ``provenance`` of a plan that ``recommend`` makes."""
    return {
        "versions": versions(),
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "study": request.of_backbone(checked.candidate.workload.model).study,
        "storage": found.storage,
        "seed": request.run.seed,
        "risk": request.risk,
        "data": request.run.data,
        "expected_accuracy": expected.to_json(),
        "composed": {
            "device_bytes": checked.result.device_bytes,
            "peak_bytes": checked.result.peak_bytes,
            "step_seconds": checked.result.step_seconds,
            "energy_joules": checked.result.energy_joules,
        },
        "levers": [effect.to_json() for effect in checked.effects],
        "origin": list(checked.prediction.notes),
        **run_provenance(checked.validation, checked.host_prediction, worker=checked.worker),
    }


def run_provenance(
    validation: Validation | None, host: Report | None, *, worker: str = ""
) -> dict[str, Any]:
    """Return plain data on the real run of a plan.

    Args:
        validation: the real run; None if there was none.
        host: replay for the CPU, if the run was on a CPU in place of the GPU.
        worker: worker that ran it, as text; empty if it ran in this process.
    """
    if validation is None:
        return {"weights": {"kind": "none", "detail": "nothing was run"}}
    return {
        "weights": {
            "kind": validation.weights.kind,
            "detail": validation.weights.detail,
            "notes": list(validation.weights.notes),
        },
        "run": {
            "images": dict(validation.data),
            "losses": list(validation.losses),
            "accuracy": validation.accuracy.value,
            "accuracy_images": validation.accuracy_images,
            "inference_seconds": validation.inference_seconds,
            "inference_peak_bytes": validation.inference_peak_bytes,
            "inference_watts": validation.inference_watts,
            "notes": list(validation.notes),
            **({"worker": worker} if worker else {}),
        },
        "host_prediction": None if host is None else {"peak_bytes": host.memory.peak_bytes},
    }
