"""Time limits of a probe and of a learning-rate test, from the predicted time of a step.

Both train on the user's images in a child process. A child that hangs is killed at its limit.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.cost.budget import needed_bytes
from planner.recommendation.request import Request
from planner.training.find_rate import RATE_STEPS
from planner.training.probe_images import MOST_HELD_OUT
from planner.training.probe_records import RATE_FACTORS, Learner, ProbeRule
from profiler.errors import BudgetplanError
from profiler.records import Report
from profiler.running.time_limit import LOAD_SECONDS, limit_seconds

STEPS_OUTSIDE = 3
"""Steps of a probe outside of its time: two are timed, and the last one may exceed the time."""


def probe_limit(request: Request, learners: Sequence[Learner], rule: ProbeRule) -> float:
    """Return the seconds after which a probe is killed.

    Its trainings end after the requested time by themselves. Loading, timing, and the evaluation of
    the last training or the file of features that was begun come on top.
    """
    assert request.probe_seconds is not None
    each = [
        _expected_run_seconds(request, learner, rule, steps=STEPS_OUTSIDE, images=MOST_HELD_OUT)
        for learner in learners
    ]
    known = [seconds for seconds in each if seconds is not None]
    beside = max(known) if known and len(known) == len(each) else None
    return request.probe_seconds + limit_seconds(beside, least_seconds=LOAD_SECONDS)


def rate_limit(request: Request, learner: Learner, rule: ProbeRule) -> float:
    """Return the seconds after which a learning-rate test is killed.

    Its first training may compute the features of all images.
    """
    rates = len(RATE_FACTORS)
    steps, images = rates * RATE_STEPS, request.train_images + rates * MOST_HELD_OUT
    expected = _expected_run_seconds(request, learner, rule, steps=steps, images=images)
    return limit_seconds(expected, least_seconds=LOAD_SECONDS)


def _expected_run_seconds(
    request: Request,
    learner: Learner,
    rule: ProbeRule,
    *,
    steps: int,
    images: int,
) -> float | None:
    """Return the predicted time of steps and of forwards of images; None if not known.

    An image of an evaluation counts as much as one of a training step, which takes longer.
    """
    report = _expected_step(request, learner, rule)
    if report is None or report.step_seconds is None:
        return None
    return report.step_seconds * (steps + images / learner.candidate.workload.effective_batch)


def most_needed_bytes(request: Request, learners: Sequence[Learner], rule: ProbeRule) -> int:
    """Return the largest predicted device bytes of a learner's step; 0 if none is known."""
    reports = [_expected_step(request, learner, rule) for learner in learners]
    return max((needed_bytes(report) for report in reports if report is not None), default=0)


def _expected_step(request: Request, learner: Learner, rule: ProbeRule) -> Report | None:
    """Return the replayed step of a learner on the device of its trainings; None if it fails."""
    from profiler.devices.table import CPU, device_spec
    from profiler.prediction.report import predict

    device, power_limit_watts = CPU, None
    if rule.device != "cpu":
        device, power_limit_watts = device_spec(request.device.name), request.power_limit_watts
    try:
        return predict(learner.candidate, device=device, power_limit_watts=power_limit_watts)
    except BudgetplanError:  # the child has the message
        return None
