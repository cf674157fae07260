"""Functions for a trained folder: its accuracy on images, and the classes of image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from planner.api.arguments import found_device, no_progress
from planner.api.early_checks import check_input
from planner.api.plan_functions import default_folder
from planner.api.training_free_functions import fitted_probe_folder, is_without_tuning
from profiler.errors import InputError

if TYPE_CHECKING:
    from planner.recommendation.request import Notify
    from planner.training.use_trained import ClassifiedImage, TrainedEvaluation, TrainedFolder


def evaluate(
    trained: str | Path,
    *,
    data: str | None = None,
    part: Literal["test", "selection"] = "test",
    which: Literal["best", "last"] = "best",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    weights: str | Path | None = None,
    on_progress: Notify | None = None,
) -> TrainedEvaluation:
    """Return the accuracy of a trained model on a part of a data set.

    Args:
        trained: folder of a training, or the file of a plan that was trained into its own folder
            under ``trained/``.
        data: data set or folder of images; None for that of the training.
        part: part of the data set.
        which: tensors of the best epoch or of the last step.
        device: ``auto`` takes a GPU if there is one.
        weights: present place of the backbone's weights file; None for the recorded place.
        on_progress: called with (stage, description, fraction of the stage done).

    Raises:
        InputError: there is no training, its weights cannot be loaded any more, or the data has
            other classes.
    """
    folder = trained_folder_of(trained)
    check_input(data=data, weights=weights)
    from planner.training.use_trained import evaluate_trained

    opened = _open(folder, device=device, which=which, weights=weights)
    notify = on_progress or no_progress
    return evaluate_trained(
        opened,
        data=data,
        part=part,
        on_progress=lambda text, done: notify("evaluate", text, done),
    )


def classify(
    trained: str | Path,
    files: Sequence[str | Path],
    *,
    top: int = 1,
    which: Literal["best", "last"] = "best",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    weights: str | Path | None = None,
) -> list[ClassifiedImage]:
    """Return the most probable classes of image files; an unreadable file has an error.

    Args:
        trained: folder of a training or of a fitted probe, or the file of a plan that was trained
            into its own folder.
        files: image files.
        top: number of classes for each image.
        which: tensors of the best epoch or of the last step.
        device: ``auto`` takes a GPU if there is one.
        weights: present place of the backbone's weights file; None for the recorded place.

    Raises:
        InputError: there is no training, its weights cannot be loaded any more, or an earlier
            version trained it and recorded no classes.
    """
    if is_without_tuning(trained):
        return _classify_with_probe(trained, files, top=top, device=device, weights=weights)
    folder = trained_folder_of(trained)
    check_input(weights=weights)
    from planner.training.use_trained import classify_files

    opened = _open(folder, device=device, which=which, weights=weights)
    return classify_files(opened, [Path(file) for file in files], top=top)


def _classify_with_probe(
    plan: str | Path,
    files: Sequence[str | Path],
    *,
    top: int,
    device: Literal["auto", "cpu", "cuda"],
    weights: str | Path | None,
) -> list[ClassifiedImage]:
    """Return the classes of image files by the probe of a plan without fine-tuning."""
    folder = fitted_probe_folder(plan)
    check_input(weights=weights)
    from planner.training_free.probe_folder import classify_with_probe

    return classify_with_probe(
        folder,
        [Path(file) for file in files],
        top=top,
        device=found_device(device),
        weights=None if weights is None else Path(weights),
    )


def trained_folder_of(trained: str | Path) -> Path:
    """Return the folder of a training that is named by its folder or by its plan's file.

    Raises:
        InputError: there is no such folder, or the plan has not been trained into its own folder.
    """
    path = Path(trained)
    if path.is_file():
        from planner.training.history import HISTORY_FILE

        folder = default_folder(path)
        if not (folder / HISTORY_FILE).is_file():
            raise InputError(
                f"{path} has not been trained into {folder}; run `budgetplan train {path}`, or "
                "give the folder of its training"
            )
        return folder
    if not path.is_dir():
        raise InputError(f"{path} does not exist; give the folder of a training, or a plan file")
    return path


def _open(
    folder: Path,
    *,
    device: Literal["auto", "cpu", "cuda"],
    which: Literal["best", "last"],
    weights: str | Path | None,
) -> TrainedFolder:
    from planner.training.use_trained import open_trained

    place = None if weights is None else Path(weights)
    return open_trained(folder, device=found_device(device), which=which, weights=place)
