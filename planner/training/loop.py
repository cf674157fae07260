"""Train exactly what a plan says: same backbone, method, placement, batch, precision, optimizer.

    train                  epochs of steps, held-out accuracy in between, the result saved
    accuracy               share of held-out images classified right (validation uses it too)
    check_against_model    does the plan's model still exist, and is it still the same?
    choose_learning_rate   the paper's for loaded weights, a larger one for random weights

The step is that of ``profiler.training_step``, so what was predicted and measured is what runs. The rate is
constant, as in the code of arXiv 2607.02158; with random weights it rises linearly over the first
steps. An epoch has whole steps only: the images left over (fewer than a step takes) are others in
every epoch. Accuracy is that of all held-out images after an epoch and at the end, and of the same
few of them once a minute in between; each reading says of how many.

*Output*, all in one folder::

    plan.json         the plan
    training.json     accuracy by step and by epoch, learning rate, weights, data, placements used
    model/            what the method learned (peft's own format, or safetensors)
    checkpoint-N/     after step N: learned tensors, optimizer, random states; the last one stays

A checkpoint is written after every epoch and once a minute, beside its place and renamed, so an
interruption at any moment leaves a whole one. A resumed training ends as an uninterrupted one
does, bit for bit on a CPU.

*Out of memory.* A step that the allocator refuses in forward or backward is repeated, on the same
images and from the same random state, under a tighter placement of the same model
(``planner.training.oom_fallback``); the training stays there. Limitations: BatchNorm's running statistics see
the images of such a step twice, and an optimizer that runs out of memory while it updates cannot be
repeated and ends the training.

*The adaptive rule.* Given one (``planner.training.adaptive_rule``), units are not placed as the plan says: the
rule decides at every entry. Once memory has run out, a fixed placement takes its place.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from planner.json_files import write_json
from planner.plan import Plan, write_plan
from planner.training.adaptive_rule import AdaptiveRule, memory_in_use
from planner.training.checkpoints import (
    Progression,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from planner.training.evaluate import accuracy
from planner.training.history import EpochResult, Reading, TrainProgress, TrainResult
from planner.training.images.batches import batch_loader
from planner.training.images.image_set import ImageData, ImageSet
from planner.training.interrupt import Interrupt
from planner.training.learning_rate import choose_learning_rate
from planner.training.session import Session
from planner.training.trained_model import (
    HISTORY_FILE,
    MODEL_FOLDER,
    PLAN_FILE,
    check_against_model,
    check_data,
    data_for,
    save_model,
)
from planner.training.training_device import cap_to_budget, caught_by, device_type
from profiler.device_rules.caching_allocator import configure
from profiler.errors import (
    InputError,
    MeasurementError,
    UnknownNameError,
    UsageError,
)
from profiler.models.build import build_model
from profiler.training_step import (
    Batch,
    gc_frozen,
)
from profiler.workload import Candidate

if TYPE_CHECKING:
    from planner.cost.model import CostModel

INTERIM_SECONDS = 60.0
"""Of training, between two readings (and checkpoints) within an epoch."""

INTERIM_IMAGES = 64
"""Of a reading within an epoch: a few seconds on a slow CPU, a standard error of 6 % at most."""


# ---- training ------------------------------------------------------------------------------------


def train(
    plan: Plan,
    *,
    data: ImageData | str,
    epochs: int,
    output: Path,
    steps: int | None = None,
    minutes: float | None = None,
    resume: bool = False,
    device: str = "cpu",
    weights: Path | None = None,
    pretrained: bool = True,
    learning_rate: float | None = None,
    seed: int = 0,
    tighter: Sequence[Candidate] | None = None,
    rule: AdaptiveRule | None = None,
    on_progress: Callable[[TrainProgress], None] | None = None,
    on_interrupt: Callable[[], None] | None = None,
) -> TrainResult:
    """Train what a plan says and save the result.

    Args:
        plan: what to train.
        data: loaded images, or what ``planner.training.images.load`` loads.
        epochs: in all, those before a resume included.
        output: folder for everything that is written.
        steps: optimizer steps in all, in place of ``epochs``.
        minutes: end after the step under way when this run has taken so long.
        resume: go on from the folder's checkpoint; the placement may be another than before.
        device: ``cpu`` or ``cuda``; on CUDA the allocator is capped at the plan's budget.
        weights: a file of weights.
        pretrained: try timm's hub when no file is given.
        learning_rate: None for ``choose_learning_rate``.
        seed: of new weights, dropout and the order of images.
        tighter: candidates to step down to when memory runs out.
        rule: decides what is recomputed, in place of the plan.
        on_progress: called after each step and at each reading.
        on_interrupt: called, in the signal's handler, when a Ctrl-C has to wait for the step.

    Raises:
        InputError: the plan does not fit the model or the data, or there is nothing to resume.
        DeviceError: no such device.
        MeasurementError: memory ran out under the tightest placement, or the loss is not finite.
    """
    for name, given in (("epochs", epochs), ("steps", steps), ("minutes", minutes)):
        if given is not None and not given > 0:
            raise UsageError(f"{name} must be positive, got {given!r}")
    kind = device_type(device)
    shape = check_against_model(plan)
    workload = plan.candidate.workload
    images = data_for(workload, data, backbone=shape.backbone) if isinstance(data, str) else data
    check_data(images, workload)
    checkpoint = _check_output(output, resume=resume)

    torch.manual_seed(seed)
    in_use = None if rule is None else memory_in_use(device)
    built = build_model(workload, weights=weights, pretrained=pretrained)
    if kind == "cuda":
        configure(os.environ)
        cap_to_budget(plan)
    built.model.to(device).train()
    rate = choose_learning_rate(workload, built, given=learning_rate)
    last_step = steps or epochs * (len(images.train) // workload.effective_batch)
    session = Session(
        candidate=plan.candidate,
        built=built,
        device=device,
        rate=rate,
        total_steps=last_step,
        tighter=tighter,
        cost=_cost_model(plan, kind),
        rule=rule,
        in_use=in_use,
    )
    identity = {
        "workload": workload.to_json(),
        "data": images.source.fingerprint,
        "weights": built.weights.kind,
        "weights file": str(weights) if weights is not None else None,
        "seed": seed,
        "learning rate": rate.value,
        "adaptive rule": None if rule is None else asdict(rule),
    }
    course = Progression() if checkpoint is None else load_checkpoint(checkpoint, session, identity)
    write_plan(plan, output / PLAN_FILE)
    _Training(
        session,
        images,
        course,
        last_step=last_step,
        seconds=None if minutes is None else 60 * minutes,
        seed=seed,
        save=partial(save_checkpoint, output, session, course, identity),
        tell=on_progress if on_progress is not None else _say_nothing,
        interrupt=Interrupt(on_interrupt),
    ).run()
    session.close()

    result = TrainResult(
        epochs=tuple(course.epochs),
        readings=tuple(course.readings),
        learning_rate=rate,
        weights=built.weights,
        data=images.source.to_json(),
        candidate=session.candidate,
        step_downs=tuple(session.step_downs),
        output=output,
    )
    save_model(built, output / MODEL_FOLDER)
    write_json(result.to_json(), output / HISTORY_FILE)
    return result


class _Training:
    """Goes from step to step, with readings and checkpoints in between.

    Args:
        session: the model in training.
        images: to train and to evaluate on.
        course: how far it has come; kept up to date.
        last_step: where it ends.
        seconds: of this run; None for no limit.
        seed: of the order of images.
        save: writes a checkpoint.
        tell: called after each step and at each reading.
        interrupt: what remembers a Ctrl-C.
    """

    def __init__(
        self,
        session: Session,
        images: ImageData,
        course: Progression,
        *,
        last_step: int,
        seconds: float | None,
        seed: int,
        save: Callable[[], None],
        tell: Callable[[TrainProgress], None],
        interrupt: Interrupt,
    ) -> None:
        self._session, self._images, self._course = session, images, course
        self._last_step, self._limit, self._seed = last_step, seconds, seed
        self._save, self._tell = save, tell
        self._few = images.held_out.sample(INTERIM_IMAGES, seed=seed)
        self._steps = len(images.train) // session.step.workload.effective_batch
        self._before = course.seconds
        self._started = time.perf_counter()
        self._read_at = course.seconds
        self._interrupt = interrupt

    def run(self) -> None:
        """Train to the end, or until the time is up.

        An interrupt lets the step under way come to its end, which is then kept.

        Raises:
            KeyboardInterrupt: it was interrupted.
        """
        with caught_by(self._interrupt), gc_frozen():
            while not self._is_over:
                self._epoch()
        if self._interrupt.asked:
            if self._course.steps:
                self._save()
            raise KeyboardInterrupt
        seen = self._course.readings
        if not seen or seen[-1].step < self._session.step.global_step:
            self._read(self._images.held_out)
            self._save()

    @property
    def _is_over(self) -> bool:
        if self._interrupt.asked or self._session.step.global_step >= self._last_step:
            return True
        # no step of this run has been taken while the course stands where it stood
        return self._limit is not None and self._course.seconds - self._before >= self._limit

    def _seconds(self) -> float:
        """Return the seconds of the training so far."""
        return self._before + time.perf_counter() - self._started

    def _epoch(self) -> None:
        """Train an epoch, or what is left of it, and evaluate."""
        course, workload = self._course, self._session.step.workload
        batches = iter(
            batch_loader(
                self._images.train,
                batch_size=workload.micro_batch,
                shuffle=True,
                seed=self._seed,
                drop_last=True,
                epoch=len(course.epochs) + 1,
                skip=course.steps * workload.effective_batch,
            )
        )
        while course.steps < self._steps and not self._is_over:
            self._step(batches)
            if course.steps < self._steps and self._seconds() - self._read_at >= INTERIM_SECONDS:
                self._read(self._few)
                self._save()
        if course.steps < self._steps:
            return
        reading = self._read(self._images.held_out)
        course.epochs.append(
            EpochResult(
                epoch=len(course.epochs) + 1,
                loss=reading.loss,
                accuracy=reading.accuracy,
                seconds=reading.seconds - course.epoch_began,
            )
        )
        course.steps, course.loss, course.epoch_began = 0, 0.0, reading.seconds
        self._save()

    def _step(self, batches: Iterator[Batch]) -> None:
        session, course = self._session, self._course
        before = len(session.step_downs)
        loss = session.run(batches)
        course.steps += 1
        course.loss += loss
        course.seconds = self._seconds()
        if not math.isfinite(loss):
            raise MeasurementError(
                f"the loss is {loss} at step {course.steps} of epoch {len(course.epochs) + 1}; "
                "lower --learning-rate or use another precision"
            )
        self._say(message="; ".join(session.step_downs[before:]))

    def _read(self, images: ImageSet) -> Reading:
        """Evaluate on some images."""
        session, course = self._session, self._course
        share = accuracy(
            session.model,
            images,
            batch_size=session.step.workload.micro_batch,
            device=session.device,
            precision=session.step.workload.precision,
        )
        course.seconds = self._read_at = self._seconds()
        reading = Reading(
            step=session.step.global_step,
            seconds=course.seconds,
            loss=course.loss / course.steps,
            accuracy=share,
            images=len(images),
        )
        course.readings.append(reading)
        self._say(reading=reading)
        return reading

    def _say(self, *, reading: Reading | None = None, message: str = "") -> None:
        course, step = self._course, self._session.step.global_step
        done = step / self._last_step
        if self._limit is not None:
            done = max(done, (course.seconds - self._before) / self._limit)
        self._tell(
            TrainProgress(
                epoch=len(course.epochs) + 1,
                epochs=math.ceil(self._last_step / self._steps),
                step=course.steps,
                steps=self._steps,
                done=min(1.0, done),
                loss=course.loss / course.steps,
                reading=reading,
                message=message,
            )
        )


def _check_output(output: Path, *, resume: bool) -> Path | None:
    """Return the checkpoint to go on from."""
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; give a folder for the result")
    checkpoint = latest_checkpoint(output)
    if resume and checkpoint is None:
        raise InputError(f"there is nothing to resume in {output}; leave --resume out")
    if not resume and checkpoint is not None:
        raise InputError(
            f"{output} holds a training already; use --resume to go on, or another folder"
        )
    return checkpoint if resume else None


def _cost_model(plan: Plan, kind: str) -> CostModel | None:
    """Return what to ask for tighter placements: the planned device's cost model, if it is here."""
    from planner.cost.model import CostModel
    from profiler.store import Store

    planned = plan.prediction.device
    if kind == "cpu":
        return CostModel("cpu", Store.default())
    if planned.kind != "cuda":
        return None
    try:
        return CostModel(planned.name, Store.default())
    except UnknownNameError:  # another machine's GPU, that the table lacks
        return None


def _say_nothing(progress: TrainProgress) -> None:
    """Nobody listens."""
