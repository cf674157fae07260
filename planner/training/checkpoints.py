"""Checkpoints of a training, each written whole or not at all.

    checkpoint-N/          after optimizer step N
      learned.safetensors  trained tensors
      state.pt             optimizer, gradient scaler, random states, placement
      progress.json        progress of the training, and its identity
    best-epoch-N/          trained tensors after step N, the best selection accuracy so far

A resume is refused if the identity (workload, data, weights, seed, learning rate, ...) differs. A
weights file is the same if its content is, wherever it lies. Earlier checkpoints hold its path
only: they are resumed by the same path, and a warning says that its content was not compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from planner.disk.drafts import discard_folder, draft_folder
from planner.disk.json_files import read_json, write_json
from planner.training.history import (
    CHECKPOINT_PREFIX,
    AccuracyReading,
    EpochResult,
    WeightsFile,
)
from planner.training.session import Session
from profiler.errors import InputError, warn_caller
from profiler.json_records import NonNegativeFloat, NonNegativeInt, json_object, read_record
from profiler.models.backbones import split_entry
from profiler.models.methods.save_load import load_trained_tensors, save_trained_tensors

BEST_PREFIX = "best-epoch-"
_PROGRESS_FILE = "progress.json"

WEIGHTS_FILE = "weights file"
"""Key of the weights file in an identity."""


@dataclass(slots=True, kw_only=True)
class TrainState:
    """Progress of a training beside the state of its session; changes from step to step.

    Attributes:
        epochs: results of the whole epochs.
        readings: accuracy readings so far.
        seconds: duration of the training so far.
        steps: steps done in the current epoch.
        loss: sum of the losses of these steps.
        epoch_began: value of ``seconds`` at the beginning of the current epoch.
        best: selection reading of the epoch whose tensors are kept; None before the first.
    """

    epochs: list[EpochResult] = field(default_factory=list)
    readings: list[AccuracyReading] = field(default_factory=list)
    seconds: NonNegativeFloat = 0.0
    steps: NonNegativeInt = 0
    loss: float = 0.0
    epoch_began: NonNegativeFloat = 0.0
    best: AccuracyReading | None = None

    @property
    def epoch(self) -> int:
        """Number of the current epoch, from 1."""
        return len(self.epochs) + 1

    @property
    def mean_loss(self) -> float:
        """Mean loss over the steps of the current epoch."""
        return self.loss / self.steps

    def end_epoch(self, reading: AccuracyReading) -> None:
        """Record the current epoch, whose last reading is given, and begin the next one."""
        self.epochs.append(
            EpochResult(
                epoch=self.epoch,
                loss=reading.loss,
                accuracy=reading.accuracy,
                seconds=reading.seconds - self.epoch_began,
            )
        )
        self.steps, self.loss, self.epoch_began = 0, 0.0, reading.seconds

    def add_test(self, reading: AccuracyReading) -> None:
        """Record a reading on the test part at the end of a run.

        A run that takes no step evaluates the same tensors again, so it replaces the reading.
        """
        key = (reading.part, reading.step, reading.images)
        others = [r for r in self.readings if (r.part, r.step, r.images) != key]
        self.readings = [*others, reading]
        self.seconds = reading.seconds


def latest_checkpoint(output: Path) -> Path | None:
    """Return the folder of the latest checkpoint in a training's folder; None without one."""
    found = {
        int(path.name.removeprefix(CHECKPOINT_PREFIX)): path
        for path in output.glob(f"{CHECKPOINT_PREFIX}*")
        if path.name.removeprefix(CHECKPOINT_PREFIX).isdigit() and path.is_dir()
    }
    return found[max(found)] if found else None


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder holds a checkpoint that this program wrote."""
    try:
        progress = read_json(folder / _PROGRESS_FILE, kind="checkpoint")
    except InputError:
        return False
    return isinstance(progress, dict) and "identity" in progress


def save_checkpoint(
    output: Path, session: Session, state: TrainState, identity: Mapping[str, Any]
) -> None:
    """Write a checkpoint and remove the one before.

    Args:
        output: folder of the training.
        session: the model in training.
        state: progress of the training.
        identity: plain data that a resumed training must have in common with this one.
    """
    previous = latest_checkpoint(output)
    # A resumed training may end at the step it began at; the folder is then replaced.
    folder = output / f"{CHECKPOINT_PREFIX}{session.step.global_step}"
    remedy = "free some space" + ("" if previous is None else " and continue with --resume")
    values = session.state_dict()
    with draft_folder(folder, remedy=remedy) as draft:
        save_trained_tensors(session.model, draft, method=session.built.method.name)
        torch.save(values, draft / "state.pt")
        write_json({"identity": dict(identity), **asdict(state)}, draft / _PROGRESS_FILE)
    remove_old_checkpoints(output)
    remove_other_best_epochs(output, state.best)


def add_test_reading(output: Path, reading: AccuracyReading) -> None:
    """Add a reading at the end of a run to the latest checkpoint.

    The record of a resumed training then has every reading on the test part. The tensors in the
    checkpoint stay, because the reading may belong to an earlier epoch.

    Args:
        output: folder of the training.
        reading: reading on the test part.

    Raises:
        InputError: the checkpoint cannot be read or written.
    """
    checkpoint = latest_checkpoint(output)
    if checkpoint is None:
        return
    state, identity = _read_progress(checkpoint)
    state.add_test(reading)
    write_json({"identity": identity, **asdict(state)}, checkpoint / _PROGRESS_FILE)


def remove_old_checkpoints(output: Path) -> None:
    """Remove all checkpoints in a training's folder but the latest."""
    latest = latest_checkpoint(output)
    for folder in output.glob(f"{CHECKPOINT_PREFIX}*"):
        if folder != latest and is_checkpoint(folder):
            discard_folder(folder)


def file_identity(file: WeightsFile) -> dict[str, Any]:
    """Return a weights file as a part of an identity; its path is for people."""
    return {
        "sha256": file.sha256,
        "entry": split_entry(Path(file.path))[1],
        "path": file.path,
    }


def load_checkpoint(folder: Path, session: Session, identity: Mapping[str, Any]) -> TrainState:
    """Restore a session from a checkpoint and return the progress of the training.

    Args:
        folder: folder of the checkpoint.
        session: a new session of the same training.
        identity: identity of the training that is resumed.

    Raises:
        InputError: the checkpoint is damaged, or is of another training.
    """
    state, saved = _read_progress(folder)
    recorded, wanted = _comparable(saved, identity)
    differing = [key for key in wanted if recorded.get(key) != wanted[key]]
    if differing:
        key, was, now = _difference(differing[0], recorded.get(differing[0]), wanted[differing[0]])
        raise InputError(
            f"cannot resume {folder.parent}: {key} was {_shorten(was)}, "
            f"is now {_shorten(now)}; train into another folder"
        )
    load_trained_tensors(session.model, folder, method=session.built.method.name)
    _restore_session(folder / "state.pt", session)
    return state


def _read_progress(checkpoint: Path) -> tuple[TrainState, dict[str, Any]]:
    """Return the progress and the identity that a checkpoint holds.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = checkpoint / _PROGRESS_FILE
    progress = json_object(read_json(path, kind="checkpoint"), part=str(path))
    identity = json_object(progress.pop("identity", None), part=f"{path}: identity")
    progress.pop("evaluated_step", None)  # in checkpoints of earlier versions
    return read_record(TrainState, progress, part=str(path)), identity


def _restore_session(path: Path, session: Session) -> None:
    """Restore a session from the file of its state.

    Raises:
        InputError: the file is damaged, or a record in it breaks a rule, which the message names.
    """
    try:
        session.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except InputError as error:  # of the schedule or the placement
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # pickle, zip and the optimizers raise errors of many classes
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path} cannot be read ({reason}); train into another folder") from error


def _comparable(
    saved: Mapping[str, Any], identity: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return two identities with what is compared of the weights file: its content, not its path.

    An earlier checkpoint has the path only, as it was given; then the paths are compared.

    Raises:
        InputError: an earlier checkpoint has another path.
    """
    was, now = saved.get(WEIGHTS_FILE), identity.get(WEIGHTS_FILE)
    if isinstance(was, str) and isinstance(now, Mapping):
        if str(Path(was).absolute()) != now["path"]:
            raise InputError(
                "this training was begun by a version that recorded the path of its weights, not "
                f"their content; resume it with the weights at {was}"
            )
        warn_caller(
            "this training was begun by a version that recorded the path of its weights, not "
            f"their content: whether {was} has changed since then is not known",
        )
        was = now
    elif isinstance(was, Mapping) and isinstance(now, Mapping):
        was, now = (
            {key: value for key, value in each.items() if key != "path"} for each in (was, now)
        )
    return {**saved, WEIGHTS_FILE: was}, {**identity, WEIGHTS_FILE: now}


def _difference(key: str, was: object, now: object) -> tuple[str, object, object]:
    """Return the innermost key that differs, and its two values."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for inner in [*now, *was]:
            if was.get(inner) != now.get(inner):
                return _difference(f"{key}'s {inner}", was.get(inner), now.get(inner))
    return key, was, now


def _shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def save_best_epoch(output: Path, session: Session) -> None:
    """Write the trained tensors of the epoch that is selected so far.

    Those of the epoch before are removed when the next checkpoint is written, so that a killed
    training can go on from the checkpoint and the selected epoch that belong together.
    """
    folder = output / f"{BEST_PREFIX}{session.step.global_step}"
    with draft_folder(folder, remedy="free some space") as draft:
        save_trained_tensors(session.model, draft, method=session.built.method.name)


def load_best_epoch(output: Path, session: Session, *, step: int) -> None:
    """Restore the trained tensors of the selected epoch, which ended at a step.

    Raises:
        InputError: they are missing or damaged.
    """
    load_trained_tensors(
        session.model, output / f"{BEST_PREFIX}{step}", method=session.built.method.name
    )


def remove_other_best_epochs(output: Path, best: AccuracyReading | None) -> None:
    """Remove the tensors of every epoch but the selected one.

    Args:
        output: folder of the training.
        best: selection reading of the epoch whose tensors are kept; None to keep none.
    """
    kept = None if best is None else f"{BEST_PREFIX}{best.step}"
    for folder in output.glob(f"{BEST_PREFIX}*"):
        if folder.name != kept and folder.is_dir():
            discard_folder(folder)
