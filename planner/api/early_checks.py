"""Refuses wrong arguments before torch, timm and Optuna are imported, which takes seconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from profiler.errors import InputError, UnknownNameError, UsageError

AUTO_BACKBONES = "auto"
"""Name that stands for a shortlist of backbones."""


def check_names(
    *, models: Iterable[str] = (), methods: Iterable[str] = (), device: str = "auto"
) -> None:
    """Refuse names that no registry has.

    Raises:
        UnknownNameError: no such model, method or device.
    """
    from planner.target_device import find_target
    from profiler.devices.table import DEVICES
    from profiler.models import backbones
    from profiler.models.methods import check_method_name

    for model in models:
        backbones.resolve(model)
    for method in methods:
        check_method_name(method)
    if device != "auto" and device not in DEVICES:
        find_target(device)  # a GPU of this machine may be missing in the table


def check_input(*, data: str | None = None, weights: str | Path | None = None) -> None:
    """Refuse images and weights that do not exist; nothing is read.

    Raises:
        InputError: there is no such folder or file.
        UsageError: the variant of a named data set is malformed.
    """
    from planner.training.images.registry import check_data_name
    from profiler.models.backbones import split_entry

    if data is not None:
        check_data_name(data)
    if weights is not None and not (file := split_entry(Path(weights))[0]).exists():
        raise InputError(f"weights file {file} does not exist")


def check_words(kind: str, words: Iterable[str], known: Iterable[str]) -> None:
    """Refuse words that are not in a list.

    Raises:
        UnknownNameError: there is such a word; lists similar ones.
    """
    accepted = tuple(known)
    for word in words:
        if word not in accepted:
            hint = f"use one of {', '.join(accepted)}"
            raise UnknownNameError(kind=kind, name=word, known=accepted, hint=hint)


def check_plan_folder(folder: str | Path) -> None:
    """Refuse a folder that plan files cannot be written into.

    Raises:
        InputError: the folder cannot be created or written into.
    """
    from planner.disk.free_space import check_folder

    check_folder(Path(folder))


def backbone_names(model: str | Sequence[str], *, budget_bytes: int) -> list[str]:
    """Return the names of the backbones of a question, each once.

    Args:
        model: a name, names separated by commas, ``auto`` for a shortlist, or a sequence of names.
        budget_bytes: the budget, for the shortlist.

    Raises:
        UsageError: no name, the same backbone twice, or nothing of the shortlist fits.
    """
    from profiler.models.backbones import resolve

    parts = model.split(",") if isinstance(model, str) else model
    names = list(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if names == [AUTO_BACKBONES]:
        from planner.scoring.backbone_facts import shortlist

        return shortlist(budget_bytes)
    if not names:
        raise UsageError("--model names no backbone; `budgetplan models` lists them")
    canonical = [resolve(name) for name in names]
    for name, full_name in zip(names, canonical, strict=True):
        if canonical.count(full_name) > 1:
            raise UsageError(f"{name} is named twice, as {full_name}; leave one out")
    return names


def check_several(models: Sequence[str], *, weights: str | Path | None) -> None:
    """Refuse options that name the file of a single backbone.

    Raises:
        UsageError: weights for several backbones.
    """
    if len(models) > 1 and weights is not None:
        raise UsageError(
            f"--weights is a file of one backbone, got {len(models)} backbones; leave it out, or "
            "name one backbone"
        )
