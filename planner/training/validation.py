"""Validation: run a candidate for a few training steps on real images, then evaluate it.

    validate     runs a candidate in a process of its own under a hard memory cap
    Validation   peak, time and energy of a step, accuracy, and the cost of inference

The run trains as ``planner.training.loop`` does and reads peak, time and energy as
``profiler.running.measurement`` does. The child process is in planner/training/validation_run.py,
its training steps in planner/training/short_training.py and its evaluation in
planner/training/inference.py.

The accuracy after a few steps shows that training works; it does not predict the accuracy after a
whole training. It is always shown with the number of steps and the origin of the weights.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from planner.plan import Accuracy
from planner.recipe import Recipe
from planner.training.run_options import LEAST_STEPS, RunOptions
from planner.training.validation_messages import ValidationRequest, ValidationResult
from planner.training.validation_run import run_validation
from profiler.errors import UsageError
from profiler.models.backbones import WeightSource
from profiler.records import Report
from profiler.running.measurement import report_measurement
from profiler.running.sandbox import Progress, run_in_process
from profiler.running.time_limit import LOAD_SECONDS, UNKNOWN_LIMIT_SECONDS, limit_seconds
from profiler.timing.measured_runs import record_report
from profiler.units import format_asked, format_bytes_as
from profiler.workload import Candidate

VALIDATION_STEPS = 6
"""Training steps of a validation."""

TRAINING_SECONDS = 40.0
"""Time limit of the training steps on a CPU. Two steps are done in any case."""

TEST_SECONDS = 15.0
"""Time limit of the evaluation, from which the number of images follows."""

STAND_IN_TRAINING_SECONDS, STAND_IN_TEST_SECONDS = 25.0, 5.0
"""The same limits for a CPU in place of the planned GPU. Neither its times nor its accuracy after a
few steps say anything about the plan: it shows the memory, and that the loss stays finite."""

PEAK_TOLERANCE = 0.02
"""Relative excess of a measured peak above which it is reported; the replay aims at 0.005."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Result of a validation.

    Attributes:
        report: peak, time and energy of a step, of rung ``measured``.
        accuracy: accuracy on selection images after the few steps.
        accuracy_images: number of these images.
        weights: origin of the backbone's weights.
        data: data source as plain data.
        losses: loss of each step done.
        inference_seconds: seconds for the whole test set, scaled from ``accuracy_images``.
        inference_peak_bytes: peak of an evaluated batch, with the model and without an optimizer.
        inference_watts: average power of the evaluation; None where it cannot be read.
        notes: sentences about the parts of the run that were cut short.
    """

    report: Report
    accuracy: Accuracy
    accuracy_images: int
    weights: WeightSource
    data: Mapping[str, Any]
    losses: tuple[float, ...]
    inference_seconds: float
    inference_peak_bytes: int
    inference_watts: float | None = None
    notes: tuple[str, ...] = ()

    def findings(self, prediction: Report, *, budget_bytes: int) -> tuple[str, ...]:
        """Return one sentence for each measurement above its prediction or the budget.

        Args:
            prediction: report of the same candidate, predicted for the device of the run.
            budget_bytes: device bytes of the budget.
        """
        found = []
        peak, expected = self.report.memory.peak_bytes, prediction.memory.peak_bytes
        if peak > (1 + PEAK_TOLERANCE) * expected:
            found.append(
                f"measured peak of {format_bytes_as(peak, budget_bytes)} is "
                f"{peak / expected - 1:.1%} above the predicted "
                f"{format_bytes_as(expected, budget_bytes)}"
            )
        used = self.report.memory.device_bytes or peak
        if used > budget_bytes:
            found.append(
                f"the run used {format_bytes_as(used, budget_bytes)}, more than the budget of "
                f"{format_asked(budget_bytes)}"
            )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "report": self.report.to_json(),
            "accuracy": self.accuracy.to_json(),
            "accuracy_images": self.accuracy_images,
            "weights": asdict(self.weights),
            "data": dict(self.data),
            "losses": list(self.losses),
            "inference_seconds": self.inference_seconds,
            "inference_peak_bytes": self.inference_peak_bytes,
            "inference_watts": self.inference_watts,
            "notes": list(self.notes),
        }


def time_limit(step_seconds: float | None, *, steps: int | None) -> float:
    """Return the seconds after which a validation hangs for certain and is stopped.

    Args:
        step_seconds: predicted seconds of a step on the device of the run; None if not known.
        steps: number of training steps; None for the default.
    """
    expected = None
    if step_seconds is not None:
        expected = (steps or VALIDATION_STEPS) * step_seconds + TRAINING_SECONDS + TEST_SECONDS
    return limit_seconds(expected, least_seconds=LOAD_SECONDS)


def validate(
    candidate: Candidate,
    options: RunOptions,
    *,
    runs_on: str,
    budget_bytes: int | None,
    recipe: Recipe | None = None,
    training_seconds: float = TRAINING_SECONDS,
    test_seconds: float = TEST_SECONDS,
    timeout_seconds: float = UNKNOWN_LIMIT_SECONDS,
    on_progress: Progress | None = None,
    cancelled: threading.Event | None = None,
) -> Validation:
    """Run a candidate for a few steps in a process of its own and evaluate it.

    Args:
        candidate: workload and placement to run.
        options: data, seed and weights; ``steps`` is the number of training steps. On a CPU fewer
            are done if ``training_seconds`` are over.
        runs_on: ``cpu``, or the name of this machine's GPU in the device table.
        budget_bytes: hard memory limit in device bytes; None for no limit.
        recipe: recipe of the plan, whose first steps are trained; None for the default one, which
            also stands in for a recipe of other weights than those at hand.
        training_seconds: time limit of the training steps on a CPU.
        test_seconds: time limit of the evaluation.
        timeout_seconds: time after which the process is killed (``time_limit``).
        on_progress: called with (activity, fraction done).
        cancelled: event by which another thread ends the run; None for none.

    Raises:
        UsageError: fewer than two steps are requested.
        OutOfMemoryError: the run exceeded the budget.
        InputError: the data cannot be read, or does not fit the candidate.
        DeviceError: the device is not in this machine.
        MeasurementError: the run failed in another way.
    """
    steps = options.steps or VALIDATION_STEPS
    if steps < LEAST_STEPS:
        raise UsageError(f"a validation needs at least {LEAST_STEPS} steps, got {steps!r}")
    request = ValidationRequest(
        candidate=candidate,
        device="cpu" if runs_on == "cpu" else "cuda",
        budget_bytes=budget_bytes,
        data=options.data,
        steps=steps,
        seed=options.seed,
        weights=None if options.weights is None else str(options.weights),
        pretrained=options.pretrained,
        recipe=recipe,
        training_seconds=training_seconds,
        test_seconds=test_seconds,
    )
    result = run_in_process(
        run_validation,
        request,
        ValidationResult,
        cap_bytes=budget_bytes,
        timeout_seconds=timeout_seconds,
        on_progress=on_progress,
        cancelled=cancelled,
    )
    inference = result.inference
    report = report_measurement(candidate, result.training, device=runs_on)
    record_report(report, source="validate")
    return Validation(
        report=report,
        accuracy=Accuracy(
            value=inference.accuracy,
            source=f"measured on {inference.images} selection images of {result.data.name} "
            f"after {len(result.losses)} steps, {result.weights.kind} weights",
            kind="measured",
        ),
        accuracy_images=inference.images,
        weights=result.weights,
        data=result.data.to_json(),
        losses=result.losses,
        inference_seconds=inference.seconds,
        inference_peak_bytes=inference.peak_bytes,
        inference_watts=inference.watts,
        notes=result.training.notes,
    )
