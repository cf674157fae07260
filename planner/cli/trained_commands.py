"""Commands that use a trained model: evaluate and classify."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from planner import api
from planner.cli.options import (
    data_option,
    json_option,
    part_option,
    positive,
    progress_option,
    run_device_option,
    weights_option,
)
from planner.cli.output import console, print_json
from planner.cli.progress import ProgressKind, progress_bar
from profiler.errors import InputError, UsageError

which_option = click.option(
    "--which",
    type=click.Choice(["best", "last"]),
    help="Tensors of the best epoch, or of the last step. [default: best]",
)


def _refuse_which(which: str | None) -> None:
    """Refuse a choice of tensors for a model without fine-tuning, which has no epochs."""
    if which is not None:
        raise UsageError("--which is for plans that fine-tune")


@click.command()
@click.argument("trained", type=click.Path(path_type=Path))
@data_option(unless="that of the training")
@part_option
@which_option
@run_device_option
@click.option(
    "--class-names",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Text file of class names for a plan of kind zero_shot, one on each line. "
    "[default: the data set's own names]",
)
@click.option(
    "--images",
    type=positive,
    help="Most images for a plan of kind zero_shot, drawn at random. [default: all]",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="File of the weights that the training began with; for a plan of kind zero_shot, file or "
    "folder of the model's weights. [default: the recorded file]",
)
@progress_option
@json_option
def evaluate(
    *,
    trained: Path,
    as_json: bool,
    class_names: Path | None,
    images: int | None,
    progress: ProgressKind | None,
    data: str | None,
    part: Literal["test", "selection"],
    which: Literal["best", "last"] | None,
    device: Literal["auto", "cpu", "cuda"],
    weights: Path | None,
) -> None:
    """Evaluate a trained model on images, in all and by class.

    TRAINED is the folder of a training, or the plan file that was trained. A plan of kind zero_shot
    needs no training, but --weights.
    """
    if api.is_without_tuning(trained):
        from planner.cli.training_free_commands import evaluate_without_tuning

        _refuse_which(which)
        evaluate_without_tuning(
            trained,
            data=data,
            part=part,
            weights=weights,
            class_names=class_names,
            images=images,
            device=device,
            progress=progress,
            as_json=as_json,
        )
        return
    if class_names is not None or images is not None:
        raise UsageError("--class-names and --images are for plans of kind 'zero_shot'")
    with progress_bar(progress, as_json=as_json) as notify:
        found = api.evaluate(
            trained,
            data=data,
            part=part,
            which=which or "best",
            device=device,
            weights=weights,
            on_progress=notify,
        )
    if as_json:
        print_json(found.to_json())
        return
    from planner.cli.trained_tables import show_evaluation

    show_evaluation(found, console())


@click.command()
@click.argument("trained", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--top", type=positive, default=1, show_default=True, help="Number of classes for each image."
)
@which_option
@run_device_option
@weights_option
@json_option
def classify(
    *,
    trained: Path,
    images: tuple[Path, ...],
    as_json: bool,
    top: int,
    which: Literal["best", "last"] | None,
    device: Literal["auto", "cpu", "cuda"],
    weights: Path | None,
) -> None:
    """Classify image files with a trained model.

    TRAINED is the folder of a training or of a fitted probe, or its plan file. The exit code is 4
    if a file cannot be read; the others are classified.
    """
    if api.is_without_tuning(trained):
        _refuse_which(which)
    found = api.classify(
        trained, images, top=top, which=which or "best", device=device, weights=weights
    )
    failed = [each for each in found if each.error is not None]
    error = (
        None
        if not failed
        else InputError(f"{len(failed)} of {len(found)} files: {failed[0].error}")
    )
    if as_json:
        from planner.training.use_trained import CLASSIFICATION_SCHEMA

        print_json(
            {
                "schema": CLASSIFICATION_SCHEMA,
                "trained": str(trained),
                "images": [each.to_json() for each in found],
                **({} if error is None else {"error": error.to_json()}),
            }
        )
    else:
        from planner.cli.trained_tables import show_classes

        show_classes([each for each in found if each.error is None], console())
    if error is not None:
        raise error
