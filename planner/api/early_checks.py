"""Refuses wrong arguments before torch, timm and Optuna are imported, which takes seconds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from profiler.errors import InputError, UnknownNameError


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
