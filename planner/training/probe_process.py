"""The child process of a probe: choose the image size, load the images, run the schedule.

torch is imported by the functions, because the parent imports this module only for its address.

On a CPU a run at the plan's image size can be too slow. Smaller sizes are then tried, and the
largest is taken at which the longest runs have ``WANTED_STEPS`` steps, as predicted from the time
of two steps at the smallest size. Stored runs of the same data and weights keep their size, so that
they count.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from planner.training.probe_messages import ProbeRequest, ProbeResult
from planner.training.probe_records import Learner, ProbeRun, ProbeSetting
from profiler.errors import BudgetplanError
from profiler.running.sandbox import Progress

if TYPE_CHECKING:
    from planner.training.images.image_set import ImageData
    from planner.training.probe_run import ProbeRunner

SIZE_SHARES = (1.0, 0.75, 0.5, 0.375, 0.25)
"""Image sizes of a probe on a CPU, as shares of the plan's."""

SIZE_MULTIPLE, SMALLEST_SIZE = 32, 64
"""Sizes are multiples of the stride of most backbones, from two classes of features on."""

WANTED_STEPS = 100
"""Steps of the longest runs at the chosen image size."""


def run_probe(request: ProbeRequest, progress: Progress) -> ProbeResult:
    """Run a probe and store each run in the study."""
    from planner.search.probe_storage import append_probe_run, read_probe_runs
    from planner.training.probe import StepLadder, probe

    began = time.monotonic()
    progress("loading images", 0.0)
    known = readable_runs(read_probe_runs(request.storage, request.study))
    runner, step_seconds = _runner_of(request, known)
    setting = runner.setting
    known = [run for run in known if run.setting == setting]
    slow = sum(not runner.has_features(learner) for learner in request.learners)
    most = max(learner.recipe.epochs for learner in request.learners) * _steps_per_epoch(
        request.learners[0], setting
    )
    affordable = request.seconds / step_seconds
    ladder = StepLadder.of(learners=slow, affordable_steps=affordable, most=max(1, most))
    if known:
        ladder = replace(ladder, first=min(run.steps for run in known))
    runs = list(known)

    def save(run: ProbeRun) -> None:
        runs.append(run)
        append_probe_run(request.storage, request.study, run.key, run.to_json())

    end = probe(
        runner,
        request.learners,
        ladder=ladder,
        seconds=request.seconds,
        known=known,
        save=save,
        on_progress=progress,
    )
    return ProbeResult(
        runs=tuple(runs),
        earlier_runs=len(known),
        seconds=time.monotonic() - began,
        reason=end.reason,
        notes=end.failures,
    )


def readable_runs(stored: Sequence[object]) -> list[ProbeRun]:
    """Return the stored runs that can be read."""
    runs = []
    for each in stored:
        try:
            runs.append(ProbeRun.from_json(each))
        except BudgetplanError:
            continue
    return runs


def _runner_of(request: ProbeRequest, known: Sequence[ProbeRun]) -> tuple[ProbeRunner, float]:
    """Return the runner at the image size of the probe, and the seconds of a step."""
    plan_size = request.learners[0].candidate.workload.image_size
    if request.device != "cpu":
        runner = runner_at(request, plan_size)
        return runner, _timed_step(request, runner)
    weights = _weights_text(request)
    stored = {
        run.setting.image_size
        for run in known
        if run.setting.weights == weights and run.setting.image_size <= plan_size
    }
    sizes = _accepted_sizes(request, plan_size)
    smallest = runner_at(request, sizes[-1])
    seconds = _timed_step(request, smallest)
    rungs_of_steps = WANTED_STEPS * 3 * max(2, len(request.learners)) / 2
    chosen = sizes[-1]
    for size in sizes:
        expected = seconds * (size / sizes[-1]) ** 2
        if size in stored or rungs_of_steps * expected <= request.seconds:
            chosen = size
            break
    if stored & set(sizes):
        chosen = max(stored & set(sizes))
    runner = smallest if chosen == sizes[-1] else runner_at(request, chosen)
    return runner, seconds * (chosen / sizes[-1]) ** 2


def _accepted_sizes(request: ProbeRequest, plan_size: int) -> list[int]:
    """Return the image sizes that all learners accept, the largest first."""
    from profiler.models.forward_check import check_forward

    wanted = {plan_size}
    for share in SIZE_SHARES[1:]:
        size = round(share * plan_size / SIZE_MULTIPLE) * SIZE_MULTIPLE
        if SMALLEST_SIZE <= size < plan_size:
            wanted.add(size)
    accepted = []
    for size in sorted(wanted, reverse=True):
        try:
            for learner in request.learners:
                check_forward(learner.candidate.workload.replace(image_size=size))
        except BudgetplanError:
            continue
        accepted.append(size)
    return accepted or [plan_size]


def runner_at(request: ProbeRequest, image_size: int) -> ProbeRunner:
    """Return the runner for images of a size."""
    from planner.training.plan_check import load_data_for
    from planner.training.probe_images import ProbeImages
    from planner.training.probe_run import ProbeRunner

    workload = request.learners[0].candidate.workload.replace(image_size=image_size)
    images = load_data_for(workload, request.data)
    parts = ProbeImages.of(images, most_train=None, seed=request.seed)
    return ProbeRunner(
        setting=_setting(request, images, image_size, len(parts.train), len(parts.held_out)),
        images=parts,
        weights=None if request.weights is None else Path(request.weights),
        pretrained=request.pretrained,
        device=request.device,
    )


def _setting(
    request: ProbeRequest, images: ImageData, image_size: int, train: int, held_out: int
) -> ProbeSetting:
    return ProbeSetting(
        data=images.source.fingerprint,
        weights=_weights_text(request),
        model=request.learners[0].candidate.workload.model,
        image_size=image_size,
        train_images=train,
        held_out_images=held_out,
        device=request.device.partition(":")[0],
        seed=request.seed,
    )


def _weights_text(request: ProbeRequest) -> str:
    """Return the origin of the weights: the hash of a file, or a word."""
    from planner.training.trained_model import weights_file_of

    if request.weights is None:
        return "pretrained by timm" if request.pretrained else "random"
    file = weights_file_of(Path(request.weights))
    assert file is not None
    entry = hashlib.sha256(request.weights.rpartition("::")[2].encode()).hexdigest()[:8]
    return f"file {file.sha256}" + (f" {entry}" if "::" in request.weights else "")


def _steps_per_epoch(learner: Learner, setting: ProbeSetting) -> int:
    return max(1, setting.train_images // learner.candidate.workload.effective_batch)


def _timed_step(request: ProbeRequest, runner: ProbeRunner) -> float:
    """Return the seconds of a step of the first learner that takes one.

    Learners without cached features come first: their steps fill the time of a probe.

    Raises:
        Exception: that of the last learner, if none can take a step.
    """
    *others, last = sorted(request.learners, key=runner.has_features)
    for learner in others:
        try:
            return runner.seconds_per_step(learner)
        except Exception:  # an operation may fail for one method alone
            continue
    return runner.seconds_per_step(last)
