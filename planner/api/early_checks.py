"""Refuses wrong arguments before torch, timm and Optuna are imported, which takes seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


def check_workers(workers: bool, *, study: str | None, storage: str | None) -> None:
    """Refuse a run by workers without the study and the storage that they take it from.

    Raises:
        UsageError: one is missing, or is given without workers.
        InputError: the storage cannot be used.
    """
    if not workers:
        if study is not None:
            raise UsageError("--study names the study that --workers take their runs from; add it")
        return
    if study is None or storage is None:
        raise UsageError("--workers needs --study and --storage, which the workers were given too")
    from planner.search.study_lock import check_storage

    check_storage(storage)


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
        from planner.recommendation.shortlist import shortlist

        return shortlist(budget_bytes)
    if not names:
        raise UsageError("--model names no backbone; `budgetplan models` lists them")
    canonical = [resolve(name) for name in names]
    for name, full_name in zip(names, canonical, strict=True):
        if canonical.count(full_name) > 1:
            raise UsageError(f"{name} is named twice, as {full_name}; leave one out")
    return names


def weights_by_backbone(
    models: Sequence[str], weights: str | Path | Sequence[str] | Mapping[str, str | Path] | None
) -> dict[str, Path]:
    """Return the file of weights of each backbone that has one, by the name in ``models``.

    Args:
        models: names of the backbones of a question.
        weights: a file, if there is one backbone; else texts ``MODEL=FILE``, or files by the name
            of their backbone.

    Raises:
        UsageError: a file without a backbone, or a backbone that is not asked for or named twice.
    """
    from profiler.models.backbones import resolve

    if weights is None:
        return {}
    if isinstance(weights, Mapping):
        pairs = [(name, Path(file)) for name, file in weights.items()]
    else:
        texts = [str(weights)] if isinstance(weights, str | Path) else [*weights]
        pairs = [_weights_pair(text, models) for text in texts]
    asked = {resolve(name): name for name in models}
    found: dict[str, Path] = {}
    for given, file in pairs:
        name = asked.get(given) or asked.get(resolve(given))
        if name is None:
            raise UsageError(
                f"--weights names {given}, and the question is about {', '.join(models)}; name one "
                "of these"
            )
        if name in found:
            raise UsageError(f"--weights names two files for {name}; leave one out")
        found[name] = file
    return found


def _weights_pair(text: str, models: Sequence[str]) -> tuple[str, Path]:
    """Parse a ``--weights`` into (backbone, file); a file alone belongs to the only backbone."""
    name, equals, file = text.partition("=")
    if len(models) > 1 and not (equals and file):
        raise UsageError(
            f"--weights {text} must name its backbone, because the question has {len(models)}; use "
            f"--weights {models[0]}={text}"
        )
    # The name of a file may contain "=".
    if len(models) == 1 and not (equals and name == models[0]):
        return models[0], Path(text)
    return name, Path(file)
