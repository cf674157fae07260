"""Checkpoints of a training: written beside their place and renamed, so that one is always whole."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from planner.json_files import read_json, write_json
from planner.training.history import EpochResult, Reading
from planner.training.session import Session
from profiler.errors import (
    InputError,
)
from profiler.models.methods.save_load import load_trained_tensors, save_trained_tensors

if TYPE_CHECKING:
    pass


# ---- checkpoints ---------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Progression:
    """How far a training has come, beside what the session knows.

    Attributes:
        epochs: whole ones.
        readings: all.
        seconds: in all.
        steps: done of the epoch under way.
        loss: sum over them.
        epoch_began: when, in these seconds.
    """

    epochs: list[EpochResult] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    seconds: float = 0.0
    steps: int = 0
    loss: float = 0.0
    epoch_began: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` wrote."""
        return cls(
            epochs=[EpochResult(**epoch) for epoch in data["epochs"]],
            readings=[Reading(**reading) for reading in data["readings"]],
            seconds=float(data["seconds"]),
            steps=int(data["steps"]),
            loss=float(data["loss"]),
            epoch_began=float(data["epoch_began"]),
        )


def latest_checkpoint(output: Path) -> Path | None:
    """Return the folder that a training in ``output`` can go on from."""
    found = [p for p in output.glob("checkpoint-*") if p.name[11:].isdigit() and p.is_dir()]
    return max(found, key=lambda folder: int(folder.name[11:]), default=None)


def save_checkpoint(
    output: Path, session: Session, course: Progression, identity: Mapping[str, Any]
) -> None:
    """Write beside the place, rename, and only then remove the one before."""
    folder, before = output / f"checkpoint-{session.step.global_step}", latest_checkpoint(output)
    draft = output / f".{folder.name}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_trained_tensors(session.model, draft, method=session.built.method.name)
    torch.save(session.state(), draft / "state.pt")
    write_json({"identity": dict(identity), **course.to_json()}, draft / "progress.json")
    shutil.rmtree(folder, ignore_errors=True)  # a resumed training may end where it began
    draft.replace(folder)
    if before is not None and before != folder:
        shutil.rmtree(before)


def load_checkpoint(folder: Path, session: Session, identity: Mapping[str, Any]) -> Progression:
    """Put a checkpoint into a session and return how far it had come."""
    progress = read_json(folder / "progress.json", kind="checkpoint")
    try:
        saved, course = progress["identity"], Progression.from_json(progress)
        differing = [key for key in identity if saved.get(key) != identity[key]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder} is no checkpoint of budgetplan: {error!r}") from error
    if differing:
        key, was, now = _difference(differing[0], saved.get(differing[0]), identity[differing[0]])
        raise InputError(
            f"cannot resume {folder.parent}: {key} was {_short(was)}, "
            f"is now {_short(now)}; train into another folder"
        )
    load_trained_tensors(session.model, folder, method=session.built.method.name)
    try:
        session.restore(torch.load(folder / "state.pt", map_location="cpu", weights_only=True))
    except Exception as error:  # pickle, zip and optimizers each have their own
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{folder / 'state.pt'} cannot be read ({reason})") from error
    return course


def _difference(key: str, was: object, now: object) -> tuple[str, object, object]:
    """Return the innermost key that differs, and its two values."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for inner in [*now, *was]:
            if was.get(inner) != now.get(inner):
                return _difference(f"{key}'s {inner}", was.get(inner), now.get(inner))
    return key, was, now


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
