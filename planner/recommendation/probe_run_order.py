"""A probe or a learning-rate test as an order in the queue of real runs.

Whoever runs it stores each training in the study. The result is put together from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from planner.recommendation.run_limits import most_needed_bytes
from planner.search.probe_storage import read_probe_runs
from planner.training.probe_messages import ProbeResult
from planner.training.probe_process import readable_runs
from planner.training.probe_records import Learner, ProbeRule
from planner.workers.orders import ProbeOrder
from planner.workers.outcomes import FinishedProbe
from profiler.errors import MeasurementError

if TYPE_CHECKING:
    from planner.recommendation.request import Request
    from planner.workers.run_pool import RunPool
    from profiler.running.sandbox import Progress


def weights_files(request: Request) -> dict[str, Path]:
    """Return the files of weights of a request's backbones, by their canonical name."""
    return {
        part.space.base.model: part.run.weights
        for part in request.backbones
        if part.run.weights is not None
    }


def run_probe_order(
    request: Request,
    learners: Sequence[Learner],
    *,
    purpose: Literal["compare", "rates"],
    rule: ProbeRule,
    seconds: float,
    limit_seconds: float,
    pool: RunPool,
    on_progress: Progress,
) -> ProbeResult:
    """Have learners trained briefly, here or by a worker, and return their trainings.

    Args:
        request: the request.
        learners: the learners.
        purpose: see ``ProbeOrder``.
        rule: rule for which candidates learn alike, with the type of device.
        seconds: time of the trainings.
        limit_seconds: time after which the run is stopped.
        pool: runs the order.
        on_progress: called with (activity, fraction done).

    Raises:
        InputError: the data, the weights or the study cannot be used.
        MeasurementError: the run failed in another way.
    """
    study = min(part.study for part in request.backbones)
    order = ProbeOrder.of(
        learners,
        purpose=purpose,
        device="cpu" if rule.device == "cpu" else "cuda",
        planned=request.device,
        needed_bytes=most_needed_bytes(request, learners, rule),
        run=request.run,
        weights=weights_files(request),
        study=study,
        seconds=seconds,
        limit_seconds=limit_seconds,
        pretrained_models=tuple(filter(None, (p.pretrained_model for p in request.backbones))),
    )
    found = pool.result_of(order, FinishedProbe, on_progress)
    stored = {run.key: run for run in readable_runs(read_probe_runs(pool.url, study))}
    if any(key not in stored for key in found.keys):
        raise MeasurementError("a training of the probe is not in the study any more")
    return ProbeResult(
        runs=tuple(stored[key] for key in found.keys),
        earlier_runs=found.earlier_runs,
        seconds=found.seconds,
        reason=found.reason,
        failures=found.failures,
        test_images=found.test_images,
    )
