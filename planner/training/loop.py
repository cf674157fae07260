"""Train the candidate of a plan: its model, method, placement, batch, precision and optimizer.

    train          epochs of steps with test accuracy in between; saves the result
    TrainingLoop   the loop itself: steps, evaluations, checkpoints and the end

One step is ``profiler.training_step.TrainingStep``, the code that was predicted and measured. The
learning rate is constant, as in the code of arXiv 2607.02158; with random weights it first rises
linearly. An epoch has whole steps only; the images left over, fewer than a step takes, differ from
epoch to epoch. After an epoch and at the end, the accuracy is over all test images. Once a
minute in between, it is over a small sample. Each reading records its number of images.

The output folder is described in planner/training/trained_model.py, and its checkpoints in
planner/training/checkpoints.py. A checkpoint is written after every epoch and once a minute. A
resumed training ends as an uninterrupted one would, on a CPU bit for bit.

Out of memory: if the allocator refuses memory in forward or backward, the session repeats the step
under a tighter placement and the training continues under it (planner/training/session.py). An
optimizer that runs out of memory during its update ends the training.

With an adaptive rule (planner/training/adaptive_rule.py), the rule decides at each unit in place of
the plan's placement. After an out-of-memory error a fixed placement replaces the rule.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from planner.json_files import write_json
from planner.plan import Plan, versions, write_plan
from planner.training.adaptive_rule import AdaptiveRule, live_bytes_reader
from planner.training.checkpoints import (
    TrainState,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from planner.training.evaluate import accuracy
from planner.training.history import AccuracyReading, TrainProgress, TrainResult, WeightsFile
from planner.training.images.batches import batch_loader
from planner.training.images.image_set import ImageData, ImageSet
from planner.training.interrupt import InterruptFlag
from planner.training.learning_rate import choose_learning_rate
from planner.training.plan_check import check_against_model, check_data, load_data_for
from planner.training.run_options import RunOptions
from planner.training.session import Session
from planner.training.trained_model import (
    HISTORY_FILE,
    MODEL_FOLDER,
    PLAN_FILE,
    save_model,
    weights_file_of,
)
from planner.training.training_device import cap_to_budget, device_type
from profiler.errors import InputError, MeasurementError, UnknownNameError, UsageError
from profiler.models.build import build_model
from profiler.training_step import Batch, gc_frozen
from profiler.workload import Candidate

if TYPE_CHECKING:
    from planner.cost.model import CostModel

INTERIM_SECONDS = 60.0
"""Seconds of training between two evaluations (and checkpoints) within an epoch."""

INTERIM_IMAGES = 64
"""Images of an evaluation within an epoch: a few seconds on a slow CPU, standard error <= 6 %."""


def train(
    plan: Plan,
    options: RunOptions,
    *,
    epochs: int,
    output: Path,
    images: ImageData | None = None,
    minutes: float | None = None,
    resume: bool = False,
    learning_rate: float | None = None,
    tighter: Sequence[Candidate] | None = None,
    rule: AdaptiveRule | None = None,
    on_progress: Callable[[TrainProgress], None] | None = None,
    on_interrupt: Callable[[], None] | None = None,
) -> TrainResult:
    """Train the candidate of a plan and save the result.

    Args:
        plan: plan to train.
        options: data, device, seed and weights; ``steps`` is the number of optimizer steps in all,
            in place of ``epochs``. On CUDA the allocator is capped at the plan's budget.
        epochs: number of epochs in all, those before a resume included.
        output: folder of the result.
        images: data set that is loaded already, in place of ``options.data``.
        minutes: time limit of this run; the training ends after the step that exceeds it.
        resume: whether to continue from the folder's checkpoint. The placement may differ from that
            of the interrupted run.
        learning_rate: learning rate; None to choose one.
        tighter: candidates to step down to when memory runs out; None to compute them.
        rule: the adaptive rule, followed in place of the plan's placement.
        on_progress: called after each step and each evaluation.
        on_interrupt: called in the signal handler when a first Ctrl-C waits for the step to end.

    Raises:
        InputError: the plan does not fit the model or the data, or there is nothing to resume.
        DeviceError: the device is not in this machine.
        MeasurementError: memory ran out under the tightest placement, or the loss is not finite.
        KeyboardInterrupt: Ctrl-C was pressed; a checkpoint of the last step is in the folder.
    """
    for name, given in (("epochs", epochs), ("minutes", minutes)):
        if given is not None and not given > 0:
            raise UsageError(f"{name} must be positive, got {given!r}")
    device_type(options.device)
    reference = check_against_model(plan)
    workload = plan.candidate.workload
    if images is None:
        images = load_data_for(workload, options.data, backbone=reference.backbone)
    check_data(images, workload)
    checkpoint = _check_output(output, resume=resume)

    torch.manual_seed(options.seed)
    steps_per_epoch = len(images.training_whole()) // workload.effective_batch
    last_step = options.steps or epochs * steps_per_epoch
    session = _open_session(
        plan, options, last_step=last_step, learning_rate=learning_rate, tighter=tighter, rule=rule
    )
    weights_file = weights_file_of(options.weights)
    identity = _resume_identity(plan, options, images, session, rule)
    state = TrainState() if checkpoint is None else load_checkpoint(checkpoint, session, identity)
    write_plan(plan, output / PLAN_FILE)
    TrainingLoop(
        session,
        images,
        state,
        last_step=last_step,
        limit_seconds=None if minutes is None else 60 * minutes,
        seed=options.seed,
        save=partial(save_checkpoint, output, session, state, identity),
        on_progress=on_progress,
        interrupt=InterruptFlag(on_interrupt),
    ).run()
    session.close()
    result = _result(session, images, state, options, weights_file=weights_file, output=output)
    save_model(session.built, output / MODEL_FOLDER)
    write_json(result.to_json(), output / HISTORY_FILE)
    return result


class TrainingLoop:
    """Runs steps, evaluations and checkpoints until the training ends.

    Args:
        session: the model in training.
        images: images to train and to evaluate on.
        state: progress of the training, kept up to date.
        last_step: optimizer step after which the training ends.
        limit_seconds: time limit of this run; None for no limit.
        seed: seed of the order of images.
        save: writes a checkpoint.
        on_progress: called after each step and each evaluation; None for no call.
        interrupt: flag that Ctrl-C sets.
    """

    def __init__(
        self,
        session: Session,
        images: ImageData,
        state: TrainState,
        *,
        last_step: int,
        limit_seconds: float | None,
        seed: int,
        save: Callable[[], None],
        on_progress: Callable[[TrainProgress], None] | None,
        interrupt: InterruptFlag,
    ) -> None:
        self._session, self._images, self._state = session, images, state
        self._last_step, self._seed = last_step, seed
        self._save, self._on_progress, self._interrupt = save, on_progress, interrupt
        self._interim_images = images.test.sample(INTERIM_IMAGES, seed=seed)
        self._training_images = images.training_whole()
        effective_batch = session.step.workload.effective_batch
        self._steps_per_epoch = len(self._training_images) // effective_batch
        self._clock = _Clock(state.seconds, limit_seconds)
        self._evaluated_at = state.seconds

    def run(self) -> None:
        """Train to the last step, the time limit or an interrupt.

        An interrupt lets the current step end and saves a checkpoint after it.

        Raises:
            KeyboardInterrupt: the training was interrupted.
        """
        with self._interrupt.installed(), gc_frozen():
            while not self._is_over:
                self._train_epoch()
            readings, step = self._state.readings, self._session.step.global_step
            if not self._interrupt.is_set and (not readings or readings[-1].step < step):
                self._evaluate(self._images.test)
                self._save()
        if self._interrupt.is_set:
            if self._state.steps:
                self._save()
            raise self._interrupt.interrupt()

    @property
    def _is_over(self) -> bool:
        if self._interrupt.is_set or self._session.step.global_step >= self._last_step:
            return True
        # The state's time moves with the steps, so that each run takes at least one step.
        return self._clock.is_up(self._state.seconds)

    def _train_epoch(self) -> None:
        """Train the remaining steps of the current epoch and evaluate."""
        state, workload = self._state, self._session.step.workload
        batches = iter(
            batch_loader(
                self._training_images,
                batch_size=workload.micro_batch,
                shuffle=True,
                seed=self._seed,
                drop_last=True,
                epoch=state.epoch,
                skip=state.steps * workload.effective_batch,
            )
        )
        while state.steps < self._steps_per_epoch and not self._is_over:
            self._train_step(batches)
            since = self._clock.seconds() - self._evaluated_at
            if state.steps < self._steps_per_epoch and since >= INTERIM_SECONDS:
                self._evaluate(self._interim_images)
                self._save()
        if state.steps == self._steps_per_epoch:
            state.end_epoch(self._evaluate(self._images.test))
            self._save()

    def _train_step(self, batches: Iterator[Batch]) -> None:
        session, state = self._session, self._state
        step_downs_before = len(session.step_downs)
        loss = session.run(batches)
        state.steps += 1
        state.loss += loss
        state.seconds = self._clock.seconds()
        if not math.isfinite(loss):
            raise MeasurementError(
                f"the loss is {loss} at step {state.steps} of epoch {state.epoch}; "
                "lower --learning-rate or use another precision"
            )
        self._report(message="; ".join(session.step_downs[step_downs_before:]))

    def _evaluate(self, images: ImageSet) -> AccuracyReading:
        """Evaluate on some images and record the reading."""
        session, state = self._session, self._state
        fraction = accuracy(
            session.model,
            images,
            batch_size=session.step.workload.micro_batch,
            device=session.device,
            precision=session.step.workload.precision,
        )
        state.seconds = self._evaluated_at = self._clock.seconds()
        reading = AccuracyReading(
            step=session.step.global_step,
            seconds=state.seconds,
            loss=state.mean_loss,
            accuracy=fraction,
            images=len(images),
        )
        state.readings.append(reading)
        self._report(reading=reading)
        return reading

    def _report(self, *, reading: AccuracyReading | None = None, message: str = "") -> None:
        if self._on_progress is None:
            return
        state = self._state
        done = self._session.step.global_step / self._last_step
        self._on_progress(
            TrainProgress(
                epoch=state.epoch,
                epochs=math.ceil(self._last_step / self._steps_per_epoch),
                step=state.steps,
                steps=self._steps_per_epoch,
                done=min(1.0, max(done, self._clock.share(state.seconds))),
                loss=state.mean_loss,
                reading=reading,
                message=message,
            )
        )


class _Clock:
    """Duration of a training, the time before a resume included.

    Args:
        before: seconds of the training before this run.
        limit: limit of this run in seconds; None for no limit.
    """

    def __init__(self, before: float, limit: float | None) -> None:
        self._before, self._limit, self._started = before, limit, time.perf_counter()

    def seconds(self) -> float:
        """Return the duration of the training so far."""
        return self._before + time.perf_counter() - self._started

    def share(self, seconds: float) -> float:
        """Return the share of this run's limit that a duration takes; 0 without a limit."""
        return 0.0 if self._limit is None else (seconds - self._before) / self._limit

    def is_up(self, seconds: float) -> bool:
        """Return whether a duration has reached this run's limit."""
        return self._limit is not None and seconds - self._before >= self._limit


def _check_output(output: Path, *, resume: bool) -> Path | None:
    """Return the checkpoint to continue from; None for a new training."""
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; give a folder for the result")
    checkpoint = latest_checkpoint(output)
    if resume and checkpoint is None:
        raise InputError(f"there is nothing to resume in {output}; leave --resume out")
    if not resume and checkpoint is not None:
        raise InputError(
            f"{output} holds a training already; use --resume to continue it, or another folder"
        )
    return checkpoint if resume else None


def _open_session(
    plan: Plan,
    options: RunOptions,
    *,
    last_step: int,
    learning_rate: float | None,
    tighter: Sequence[Candidate] | None,
    rule: AdaptiveRule | None,
) -> Session:
    """Build the model of a plan on its device and return its session."""
    workload = plan.candidate.workload
    # On a CPU the reader counts from its own call on, so it comes before the model.
    live_bytes = None if rule is None else live_bytes_reader(options.device)
    built = build_model(workload, weights=options.weights, pretrained=options.pretrained)
    kind = device_type(options.device)
    if kind == "cuda":
        cap_to_budget(plan)
    built.model.to(options.device).train()
    return Session(
        candidate=plan.candidate,
        built=built,
        device=options.device,
        rate=choose_learning_rate(workload, built, given=learning_rate),
        total_steps=last_step,
        tighter=tighter,
        cost=_cost_model(plan, kind),
        rule=rule,
        live_bytes=live_bytes,
    )


def _resume_identity(
    plan: Plan,
    options: RunOptions,
    images: ImageData,
    session: Session,
    rule: AdaptiveRule | None,
) -> dict[str, Any]:
    """Return the data that a resumed training must have in common with the interrupted one."""
    return {
        "workload": plan.candidate.workload.to_json(),
        "data": images.source.fingerprint,
        "weights": session.built.weights.kind,
        "weights file": str(options.weights) if options.weights is not None else None,
        "seed": options.seed,
        "learning rate": session.rate.value,
        "adaptive rule": None if rule is None else asdict(rule),
    }


def _cost_model(plan: Plan, kind: str) -> CostModel | None:
    """Return the cost model that computes tighter placements, or None.

    On CUDA it is that of the device that was planned for; None if that is no GPU of the table.
    """
    from planner.cost.model import CostModel
    from profiler.devices.table import CPU, device_spec
    from profiler.store import Store

    planned = plan.prediction.device
    if kind == "cpu":
        return CostModel(CPU, Store.default())
    if planned.kind != "cuda":
        return None
    try:
        return CostModel(device_spec(planned.name), Store.default())
    except UnknownNameError:  # a GPU of another machine, measured there, that the table lacks
        return None


def _result(
    session: Session,
    images: ImageData,
    state: TrainState,
    options: RunOptions,
    *,
    weights_file: WeightsFile | None,
    output: Path,
) -> TrainResult:
    """Return the record of a training that has ended."""
    return TrainResult(
        epochs=tuple(state.epochs),
        readings=tuple(state.readings),
        learning_rate=session.rate,
        seed=options.seed,
        weights=session.built.weights,
        weights_file=weights_file,
        data=images.source.to_json(),
        placement=session.candidate.placement,
        policy=session.candidate.policy,
        step_downs=tuple(session.step_downs),
        versions=versions(),
        output=output,
    )
