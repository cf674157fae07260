"""The child process of a probe: choose the image size, load the images, run the schedule.

torch is imported by the functions, because the parent imports this module only for its address.

On a CPU a run at the plan's image size can be too slow. Smaller sizes are then tried, and the
largest is taken at which the longest runs have ``WANTED_STEPS`` steps, as predicted from the time
of two steps at the smallest size. Stored runs of a probe count if learner, recipe and setting are
the same; they keep their size and their numbers of steps. Those of a learning-rate test decide
neither.
"""

from __future__ import annotations

import hashlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from planner.training.probe_messages import ProbeRequest, ProbeResult
from planner.training.probe_records import (
    LONGEST_SETTING_TEXT,
    Learner,
    ProbeRun,
    ProbeSetting,
    planned_steps,
)
from profiler.errors import BudgetplanError
from profiler.running.memory_caps import use_planned_configuration
from profiler.running.sandbox import Progress

if TYPE_CHECKING:
    from planner.training.images.image_set import ImageData
    from planner.training.probe import StepLadder
    from planner.training.probe_run import ProbeRunner

SIZE_SHARES = (1.0, 0.75, 0.5, 0.375, 0.25)
"""Image sizes of a probe on a CPU, as shares of the plan's."""

SIZE_MULTIPLE, SMALLEST_SIZE = 32, 64
"""Sizes are multiples of the stride of most backbones. At the smallest, the last feature map has
2 x 2 positions."""

WANTED_STEPS = 100
"""Steps of the longest runs at the chosen image size."""


def run_probe(request: ProbeRequest, progress: Progress) -> ProbeResult:
    """Run a probe and store each run in the study."""
    from planner.search.probe_storage import append_probe_run, read_probe_runs
    from planner.training.probe import probe

    began = time.monotonic()
    progress("loading images", 0.0)
    if request.device != "cpu":
        use_planned_configuration()
    known = [
        run
        for run in readable_runs(read_probe_runs(request.storage, request.study))
        if any(run.is_of(learner) for learner in request.learners)
    ]
    runner, step_seconds = _runner_of(request, known)
    setting = runner.setting
    known = [run for run in known if run.setting == setting]
    ladder = _ladder_of(request, runner, affordable_steps=request.seconds / step_seconds)
    of_probes = [run.steps for run in known if not run.of_rate_test]
    if of_probes:
        ladder = replace(ladder, first=min(of_probes))
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
        failures=dict(end.failures),
        test_images=runner.test_images,
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


def _runner_of(request: ProbeRequest, known: Sequence[ProbeRun]) -> tuple[BackboneRunners, float]:
    """Return the runner at the image size of the probe, and the seconds of a step."""
    planned = {learner.candidate.workload.image_size for learner in request.learners}
    plan_size = min(planned)
    if request.device != "cpu":
        # runs at different image sizes do not compare
        size = plan_size if len(planned) == 1 else _accepted_sizes(request, plan_size)[0]
        runner = runner_at(request, size)
        return runner, _timed_step(request, runner)
    sizes = _accepted_sizes(request, plan_size)
    smallest = runner_at(request, sizes[-1])
    seconds = _timed_step(request, smallest)
    size = _size_of_stored_runs(smallest.setting, known, sizes) or _affordable_size(
        request, smallest, sizes=sizes, smallest_seconds=seconds
    )
    runner = smallest if size == sizes[-1] else runner_at(request, size)
    return runner, _expected_step_seconds(size, sizes, seconds)


def _ladder_of(
    request: ProbeRequest, runner: BackboneRunners, *, affordable_steps: float
) -> StepLadder:
    """Return the numbers of steps of a probe whose time allows some steps in all."""
    from planner.training.probe import StepLadder

    return StepLadder.of(
        learners=_slow_learners(request, runner),
        affordable_steps=affordable_steps,
        most=planned_steps(request.learners, runner.setting),
    )


def _slow_learners(request: ProbeRequest, runner: BackboneRunners) -> int:
    """Return the number of learners without cached features."""
    return sum(not runner.has_features(learner) for learner in request.learners)


def _size_of_stored_runs(
    setting: ProbeSetting, known: Sequence[ProbeRun], sizes: Sequence[int]
) -> int | None:
    """Return the largest of some image sizes that has runs of an earlier probe, so that they count.

    Args:
        setting: setting of the probe at any size.
        known: stored runs of its learners.
        sizes: image sizes.

    Returns:
        The size; None without a run whose setting is that of the probe but for the size.
    """
    stored = {
        run.setting.image_size
        for run in known
        if not run.of_rate_test and replace(run.setting, image_size=setting.image_size) == setting
    }
    return max(stored & set(sizes), default=None)


def _affordable_size(
    request: ProbeRequest,
    smallest: BackboneRunners,
    *,
    sizes: Sequence[int],
    smallest_seconds: float,
) -> int:
    """Return the largest size at which the longest runs have ``WANTED_STEPS`` steps, or the last.

    If the plans have fewer steps, the runs of the last rung need to be as long as these allow.

    Limitation: which learners have cached features is decided at the last size.

    Args:
        request: request of the probe.
        smallest: runners at the last size.
        sizes: image sizes, the largest first.
        smallest_seconds: seconds of a step at the last size.
    """
    slow = _slow_learners(request, smallest)
    without_limit = _ladder_of(request, smallest, affordable_steps=sys.maxsize)
    wanted = min(WANTED_STEPS, without_limit.last)
    for size in sizes:
        affordable = request.seconds / _expected_step_seconds(size, sizes, smallest_seconds)
        ladder = _ladder_of(request, smallest, affordable_steps=affordable)
        if ladder.last >= wanted and ladder.work(slow) <= affordable:
            return size
    return sizes[-1]


def _expected_step_seconds(size: int, sizes: Sequence[int], smallest_seconds: float) -> float:
    """Return the seconds of a step at a size from those at the last, by the number of pixels."""
    return smallest_seconds * (size / sizes[-1]) ** 2


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


def runner_at(request: ProbeRequest, image_size: int) -> BackboneRunners:
    """Return the runners for images of a size."""
    from planner.training.plan_check import load_data_for
    from planner.training.probe_images import ProbeImages
    from planner.training.probe_run import ProbeRunner

    runners, test_images = {}, 0
    for learner in request.learners:
        workload = learner.candidate.workload.replace(image_size=image_size)
        if workload.model in runners:
            continue
        # each backbone has its own normalisation; the parts are the same images
        images = load_data_for(workload, request.data)
        test_images = len(images.test)
        parts = ProbeImages.of(images, seed=request.seed)
        file = request.weights.get(workload.model)
        runners[workload.model] = ProbeRunner(
            setting=_setting(request, images, image_size, len(parts.train), len(parts.held_out)),
            images=parts,
            weights=None if file is None else Path(file),
            pretrained=request.pretrained,
            device=request.device,
        )
    return BackboneRunners(runners, test_images=test_images or None)


class BackboneRunners:
    """Runs the learners of a probe, each by the runner of its backbone.

    Args:
        runners: runner of each backbone by its name, with the same setting; at least one runner.
        test_images: images of the test part, which no runner reads; None without one.
    """

    def __init__(self, runners: Mapping[str, ProbeRunner], *, test_images: int | None) -> None:
        self._runners = dict(runners)
        self.test_images = test_images
        self.setting = next(iter(self._runners.values())).setting

    def _of(self, learner: Learner) -> ProbeRunner:
        """Return the runner of a learner; the others release their features."""
        chosen = self._runners[learner.candidate.workload.model]
        for each in self._runners.values():
            if each is not chosen:
                each.release_features()
        return chosen

    def has_features(self, learner: Learner) -> bool:
        """Return whether a learner trains on cached features."""
        return self._runners[learner.candidate.workload.model].has_features(learner)

    def key_of(self, learner: Learner, *, steps: int, seed: int, rate_factor: float) -> str:
        """Return the name in a study that a run would have."""
        runner = self._runners[learner.candidate.workload.model]
        return runner.key_of(learner, steps=steps, seed=seed, rate_factor=rate_factor)

    def seconds_per_step(self, learner: Learner) -> float:
        """Return the time of a step in seconds."""
        return self._of(learner).seconds_per_step(learner)

    def run(
        self,
        learner: Learner,
        *,
        steps: int,
        seed: int,
        rate_factor: float = 1.0,
        out_of_time: Callable[[], bool] = lambda: False,
    ) -> ProbeRun | None:
        """Train a learner and evaluate it; None if time runs out."""
        return self._of(learner).run(
            learner, steps=steps, seed=seed, rate_factor=rate_factor, out_of_time=out_of_time
        )


def _setting(
    request: ProbeRequest, images: ImageData, image_size: int, train: int, held_out: int
) -> ProbeSetting:
    return ProbeSetting(
        data=images.source.fingerprint,
        weights=_weights_text(request),
        model=_short_text(", ".join(request.models)),
        image_size=image_size,
        train_images=train,
        held_out_images=held_out,
        device=request.device.partition(":")[0],
        seed=request.seed,
    )


def _weights_text(request: ProbeRequest) -> str:
    """Return the origin of the weights of each backbone: the hash of a file, or a word."""
    origins = [_origin_of(request.weights.get(model), request) for model in request.models]
    return _short_text("; ".join(origins))


def _origin_of(weights: str | None, request: ProbeRequest) -> str:
    from planner.training.trained_model import weights_file_of

    if weights is None:
        return "pretrained by timm" if request.pretrained else "random"
    file = weights_file_of(Path(weights))
    assert file is not None
    entry = hashlib.sha256(weights.rpartition("::")[2].encode()).hexdigest()[:8]
    return f"file {file.sha256}" + (f" {entry}" if "::" in weights else "")


def _short_text(text: str) -> str:
    """Return a text, or its SHA-256 if it is too long for a setting."""
    return text if len(text) <= LONGEST_SETTING_TEXT else hashlib.sha256(text.encode()).hexdigest()


def _timed_step(request: ProbeRequest, runner: BackboneRunners) -> float:
    """Return the seconds of a step, the mean over the backbones.

    Raises:
        Exception: the last error of a backbone whose learners cannot take a step.
    """
    by_model: dict[str, list[Learner]] = {}
    for learner in request.learners:
        by_model.setdefault(learner.candidate.workload.model, []).append(learner)
    return statistics.fmean(_first_step(learners, runner) for learners in by_model.values())


def _first_step(learners: Sequence[Learner], runner: BackboneRunners) -> float:
    """Return the seconds of a step of the first learner that takes one.

    Learners without cached features come first: their steps fill the time of a probe.
    """
    *others, last = sorted(learners, key=runner.has_features)
    for learner in others:
        try:
            return runner.seconds_per_step(learner)
        except Exception:  # an operation may fail for one method alone
            continue
    return runner.seconds_per_step(last)
