"""The numbers that scores are computed from, as a plan or a trained folder records them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planner.plan import PLAN_FILE, Plan, read_plan
from planner.recommendation.ranking_accuracy import ranks_candidates
from planner.training.history import read_result
from profiler.errors import InputError
from profiler.units import MIB

_OF_RUN = {
    "inference_seconds": ("inference_seconds", 1.0),
    "inference_watts": ("inference_watts", 1.0),
    "inference_peak_mib": ("inference_peak_bytes", 1 / MIB),
}
"""Number, its name in the record of a plan's real run, and the factor to its unit."""


def score_inputs(path: Path) -> dict[str, float]:
    """Return the known arguments of ``compute_scores``, among them ``accuracy_percent``.

    A plan's accuracy counts only if it can rank candidates. A trained folder has the accuracy of
    its test images.

    Raises:
        InputError: the path is neither a plan nor the folder of a training.
    """
    if path.is_dir():
        accuracy_percent = 100 * read_result(path).accuracy
        return {**_of_plan(read_scored_plan(path)), "accuracy_percent": accuracy_percent}
    if not path.exists():
        raise InputError(f"{path} does not exist; give a plan file or the folder of a training")
    plan = read_plan(path)
    numbers = _of_plan(plan)
    if ranks_candidates(plan) and plan.accuracy.value is not None:
        numbers["accuracy_percent"] = 100 * plan.accuracy.value
    return numbers


def accuracy_images(path: Path) -> int | None:
    """Return the number of images that the accuracy was counted on; None where none is recorded."""
    return read_result(path).readings[-1].images if path.is_dir() else None


def read_scored_plan(path: Path) -> Plan:
    """Read a plan file, or the plan in the folder of a training.

    Raises:
        InputError: there is no plan.
    """
    return read_plan(path / PLAN_FILE if path.is_dir() else path)


def _of_plan(plan: Plan) -> dict[str, float]:
    counts, flops = plan.prediction.parameters, plan.prediction.flops
    numbers: dict[str, float] = {
        "parameters": counts.total,
        "trainable_parameters": counts.trainable,
    }
    if flops is not None:
        per_image = flops.forward / plan.candidate.workload.effective_batch
        numbers |= {"flops": per_image, "macs": per_image / 2}
    run: Any = plan.provenance.get("run")
    if isinstance(run, Mapping):
        for name, (key, factor) in _OF_RUN.items():
            value = run.get(key)
            if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
                numbers[name] = value * factor
    return numbers
