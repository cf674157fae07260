"""The loop of a training: steps, evaluations, checkpoints, the best epoch and the end.

    LoopImages     the images that a recipe trains on, and those that it evaluates on
    TrainingLoop   the loop

One step is ``profiler.training_step.TrainingStep``, the code that was predicted and measured. An
epoch drops the last, incomplete step; the dropped images differ from epoch to epoch. After each
epoch the model is evaluated on the whole selection part, and the tensors of the selected epoch are
saved: of the latest whose accuracy is not clearly below the highest. Training stops after
``patience_epochs`` epochs without a higher accuracy, counted anew from a resume with another
length on. Within an epoch the model is evaluated once a minute on a small sample. The test part is
evaluated at the end of a run, with the selected epoch's tensors. If the recipe selects no epoch,
the selection images that were taken out of the training images are trained on too, and all
evaluations use the test part.

A checkpoint is written after every epoch and once a minute. A resumed training has the same model
as an uninterrupted one; on a CPU the two are bitwise identical. When a time limit ends a run within
an epoch depends on the speed of the machine. The tensors at that moment can become the
model that this run saves, but a resumed training does not select by them.

Out of memory: if the allocator refuses memory in forward or backward, the session repeats the step
under a tighter placement and the training continues under it (planner/training/session.py). An
optimizer that runs out of memory during its update ends the training.

With an adaptive rule (planner/training/adaptive_rule.py), the rule decides at each unit in place of
the plan's placement. After an out-of-memory error a fixed placement replaces the rule.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from planner.scoring.standard_error import standard_error
from planner.training.checkpoints import (
    TrainState,
    add_test_reading,
    load_best_epoch,
    save_best_epoch,
)
from planner.training.evaluate import evaluate_images
from planner.training.history import AccuracyReading, Part, TrainProgress
from planner.training.images.batches import batch_loader
from planner.training.interrupt import InterruptFlag
from profiler.errors import MeasurementError
from profiler.training_step import Batch, gc_frozen

if TYPE_CHECKING:
    from planner.recipe import Recipe
    from planner.training.images.image_set import ImageData, ImageSet
    from planner.training.session import Session
    from profiler.workload import Workload

INTERIM_SECONDS = 60.0
"""Seconds of training between two evaluations (and checkpoints) within an epoch."""

INTERIM_IMAGES = 64
"""Images of an evaluation within an epoch: a few seconds on a slow CPU, standard error <= 6.3 %."""

NOT_LEARNING = (
    "the loss of the first epoch is not below that of guessing, so nothing was learned yet: "
    "{advice}"
)
OTHER_RATE = "try another --learning-rate, more epochs, or another method"
RANDOM_AND_FROZEN = (
    "the weights are random, and {method} keeps most of them frozen; train anew from pretrained "
    "weights (--weights FILE), or with the method full"
)

ENDED_BEFORE = (
    "nothing is left to train, because the training ended {when}; another number of --epochs, "
    "above those done, continues it"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopImages:
    """The images of a training.

    Attributes:
        train: images to train on.
        monitor: images that are evaluated after each epoch.
        monitor_part: part of the data set that ``monitor`` comes from.
        test: images that are evaluated at the end.
        num_classes: number of classes.
    """

    train: ImageSet
    monitor: ImageSet
    monitor_part: Part
    test: ImageSet
    num_classes: int

    @classmethod
    def of(cls, images: ImageData, recipe: Recipe) -> Self:
        """Return the images that a recipe uses."""
        selects = recipe.selects_epoch
        train = images.train if selects else images.training_whole()
        if not recipe.augment:
            train = train.without_augmentation(images.test)
        return cls(
            train=train,
            monitor=images.selection if selects else images.test,
            monitor_part="selection" if selects else "test",
            test=images.test,
            num_classes=images.num_classes,
        )

    def steps_per_epoch(self, workload: Workload) -> int:
        """Return the number of whole steps in an epoch."""
        return len(self.train) // workload.effective_batch


def is_below(reading: AccuracyReading, highest: AccuracyReading) -> bool:
    """Return whether an accuracy is lower than the highest by more than its standard error.

    A smaller difference says little about the tensors, and the later ones were trained for longer
    at a lower rate. In four epochs of EfficientNet-Lite0 at 96 px, the highest accuracy on 143
    selection images was the first epoch's, by a single image (studies/recipes).

    Args:
        reading: a reading of an epoch.
        highest: the highest reading of the same images so far.
    """
    error = standard_error(highest.accuracy, images=highest.images)
    return highest.accuracy - reading.accuracy > error


class TrainingLoop:
    """Runs steps, evaluations and checkpoints until the training ends.

    Args:
        session: the model in training.
        images: images to train and to evaluate on.
        state: progress of the training, kept up to date.
        limit_seconds: time limit of this run; None for no limit.
        seed: seed of the order of images.
        output: folder that keeps the best epoch's tensors.
        save: writes a checkpoint.
        on_progress: called after each step and each evaluation; None for no call.
        interrupt: flag that Ctrl-C sets.
    """

    def __init__(
        self,
        session: Session,
        images: LoopImages,
        state: TrainState,
        *,
        limit_seconds: float | None,
        seed: int,
        output: Path,
        save: Callable[[], None],
        on_progress: Callable[[TrainProgress], None] | None,
        interrupt: InterruptFlag,
    ) -> None:
        self._session, self._images, self._state = session, images, state
        self._recipe, self._last_step = session.recipe, session.schedule.total_steps
        self._seed, self._output = seed, output
        self._save, self._on_progress, self._interrupt = save, on_progress, interrupt
        self._interim_images = images.monitor.sample(INTERIM_IMAGES, seed=seed)
        self._steps_per_epoch = images.steps_per_epoch(session.step.workload)
        self._clock = _Clock(state.seconds, limit_seconds)
        self._evaluated_at = state.seconds

    def run(self) -> None:
        """Train to the last step, the time limit or an interrupt.

        An interrupt lets the current step end and saves a checkpoint after it. One that comes while
        the test part is read, after the last step, changes nothing: the result is complete.

        Raises:
            KeyboardInterrupt: the training was interrupted.
        """
        has_finished = False
        with self._interrupt.installed(), gc_frozen():
            self._report_end()
            while not self._is_over:
                self._train_epoch()
            if not self._interrupt.is_set:
                has_finished = self._finish()
            elif self._state.steps:
                self._save()
        if self._interrupt.is_set and not has_finished:
            raise self._interrupt.interrupt()

    def _report_end(self) -> None:
        """Report that a resumed training ended before, if it did."""
        if self._session.step.global_step >= self._last_step:
            self._report(message=ENDED_BEFORE.format(when="at its last step"))
        elif self._is_out_of_patience:
            self._report(message=ENDED_BEFORE.format(when="early, without a higher accuracy"))

    def _finish(self) -> bool:
        """Select the tensors that the run ends with, and evaluate them on the test part.

        Within an epoch the checkpoint is written first, because the tensors at that step can be
        selected for this run only.

        Returns:
            Whether the result is complete: False if an interrupt came before the last evaluation.
        """
        state, selects = self._state, self._recipe.selects_epoch
        if state.steps:
            self._save()
            if selects:
                reading = self._evaluate(self._images.monitor, self._images.monitor_part)
                if self._is_selected(reading):
                    state.best = reading
        if self._interrupt.is_set:
            return False
        if not (selects or state.steps):
            return True
        if state.best is not None and state.best.step != self._session.step.global_step:
            load_best_epoch(self._output, self._session, step=state.best.step)
        reading = self._evaluate(self._images.test, "test")
        state.add_test(reading)
        add_test_reading(self._output, reading)
        return True

    @property
    def _mean_loss(self) -> float:
        """Mean loss of the current epoch, or of the last one at its end."""
        state = self._state
        return state.mean_loss if state.steps else state.epochs[-1].loss

    @property
    def _images_per_second(self) -> float | None:
        steps = self._session.loaded_step_seconds
        seconds, images = sum(steps), len(steps) * self._session.step.workload.effective_batch
        return images / seconds if seconds else None

    @property
    def _is_over(self) -> bool:
        if self._interrupt.is_set or self._session.step.global_step >= self._last_step:
            return True
        if self._is_out_of_patience:
            return True
        # ``state.seconds`` changes only after a step, so each run takes at least one step.
        return self._clock.is_up(self._state.seconds)

    def _train_epoch(self) -> None:
        """Train the remaining steps of the current epoch and evaluate."""
        state, workload = self._state, self._session.step.workload
        batches = iter(
            batch_loader(
                self._images.train,
                batch_size=workload.micro_batch,
                shuffle=True,
                seed=self._seed,
                drop_last=True,
                epoch=state.epoch,
                balance=self._recipe.balance,
                skip=state.steps * workload.effective_batch,
            )
        )
        while state.steps < self._steps_per_epoch and not self._is_over:
            self._train_step(batches)
            since = self._clock.seconds() - self._evaluated_at
            if state.steps < self._steps_per_epoch and since >= INTERIM_SECONDS:
                self._evaluate(self._interim_images, self._images.monitor_part)
                self._save()
        if state.steps == self._steps_per_epoch:
            state.end_epoch(self._evaluate_epoch())
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

    def _evaluate_epoch(self) -> AccuracyReading:
        """Evaluate on the monitored part; keep the tensors unless an earlier epoch is better."""
        reading = self._evaluate(self._images.monitor, self._images.monitor_part)
        if self._recipe.selects_epoch and self._is_selected(reading):
            save_best_epoch(self._output, self._session)
            self._state.best = reading
        return reading

    def _is_selected(self, reading: AccuracyReading) -> bool:
        """Return whether the tensors of the newest reading are selected, among all so far."""
        highest = self._highest_reading()
        return highest is None or not is_below(reading, highest)

    def _highest_reading(self) -> AccuracyReading | None:
        """Return the first of the highest readings at the ends of epochs.

        Those between the ends depend on the speed of the machine, and they read all monitored
        images if these are few.
        """
        ends = (
            reading
            for reading in self._state.readings
            if reading.part == self._images.monitor_part
            and reading.step % self._steps_per_epoch == 0
        )
        return max(ends, key=lambda reading: reading.accuracy, default=None)

    @property
    def _is_out_of_patience(self) -> bool:
        return self._epochs_without_gain() >= (self._recipe.patience_epochs or math.inf)

    def _epochs_without_gain(self) -> int:
        """Return the number of whole epochs after that of the highest accuracy.

        Epochs before a resume with another length do not count: it requests further ones.
        """
        highest = self._highest_reading()
        if highest is None:
            return 0
        since = max(highest.step, self._session.schedule.start_step)
        return len(self._state.epochs) - since // self._steps_per_epoch

    def _evaluate(self, images: ImageSet, part: Part) -> AccuracyReading:
        """Evaluate on some images and record the reading."""
        session, state = self._session, self._state
        found = evaluate_images(
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
            loss=self._mean_loss,
            accuracy=found.accuracy,
            mean_class_accuracy=found.mean_class_accuracy,
            images=found.images,
            part=part,
        )
        state.readings.append(reading)
        is_first_epoch = state.epoch == 1 and state.steps == self._steps_per_epoch
        is_guessing = self._mean_loss >= math.log(self._images.num_classes)
        message = ""
        if is_first_epoch and is_guessing:
            message = NOT_LEARNING.format(advice=self._advice_if_guessing())
        self._report(reading=reading, message=message)
        return reading

    def _advice_if_guessing(self) -> str:
        """Return what to do if a model does not learn, by the weights that it began with."""
        built = self._session.built
        sizes = [(p.numel(), p.requires_grad) for p in self._session.model.parameters()]
        frozen = sum(size for size, learns in sizes if not learns)
        if built.weights.kind == "random" and 2 * frozen > sum(size for size, _ in sizes):
            return RANDOM_AND_FROZEN.format(method=built.method.name)
        return OTHER_RATE

    def _report(self, *, reading: AccuracyReading | None = None, message: str = "") -> None:
        if self._on_progress is None:
            return
        state = self._state
        done = self._session.step.global_step / self._last_step
        is_between = state.steps == 0  # after an epoch, as at the test and at a resume
        epoch = len(state.epochs) if is_between else state.epoch
        is_test = reading is not None and reading.part == "test"
        self._on_progress(
            TrainProgress(
                epoch=epoch,
                epochs=max(math.ceil(self._last_step / self._steps_per_epoch), epoch),
                step=self._steps_per_epoch if is_between else state.steps,
                steps=self._steps_per_epoch,
                done=min(1.0, max(done, self._clock.share(state.seconds))),
                loss=self._mean_loss,
                learning_rate=self._session.learning_rate,
                images_per_second=self._images_per_second,
                reserved_bytes=self._session.reserved_bytes,
                reading=reading,
                selected_step=state.best.step if is_test and state.best is not None else None,
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
