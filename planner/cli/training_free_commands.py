"""Commands for classification without fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from planner import api
from planner.cli.options import (
    Percent,
    data_option,
    device_option,
    image_size_option,
    json_option,
    model_option,
    part_option,
    positive,
    pretrained_option,
    progress_option,
    run_device_option,
    seed_option,
    size_option,
    weights_option,
)
from planner.cli.output import console, print_json
from planner.cli.progress import ProgressKind, progress_bar
from planner.training.images.registry import DATA_NAMES

if TYPE_CHECKING:
    from planner.training.use_trained import TrainedEvaluation
    from planner.training_free.zero_shot import ZeroShotEvaluation


@click.command(name="training-free")
@size_option("--vram", text="Memory budget of the device.", required=True)
@device_option
@click.option(
    "--data",
    default="cifar100",
    show_default=True,
    help=f"Data set ({DATA_NAMES}) or folder; named ones have published accuracies.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write a plan file for each model that fits into this folder.",
)
@click.option(
    "--risk",
    type=Percent(),
    default="1%",
    show_default=True,
    help="Largest accepted probability that a model needs more than the budget, such as 1%.",
)
@progress_option
@json_option
def training_free(
    *,
    vram: int,
    device: str,
    data: str,
    out: Path | None,
    risk: float,
    progress: ProgressKind | None,
    as_json: bool,
) -> None:
    """List frozen models that classify without fine-tuning.

    Memory, time and energy are predicted; the accuracy is a published one.
    """
    from planner.cli.list_tables import training_free_columns
    from planner.cli.table_layout import show_table
    from planner.cost.fit_probability import evidence_notes

    with progress_bar(progress, as_json=as_json) as notify:
        options = api.training_free(
            vram, device=device, data=data, out=out, risk=risk, on_progress=notify
        )
    if as_json:
        entries = [option.to_json() for option in options]
        print_json(
            {
                "schema": "budgetplan.training_free/1",
                "budget_bytes": vram,
                "risk": risk,
                "options": entries,
            }
        )
        return
    show_table(training_free_columns(options, data), console())
    for note in evidence_notes(option.fit_probability for option in options):
        click.echo(note)
    if out is not None:
        click.echo(f"{sum(o.plan_file is not None for o in options)} plan files in {out}/")


@click.command()
@model_option
@data_option(default="digits")
@image_size_option
@weights_option
@pretrained_option
@run_device_option
@progress_option
@json_option
def features(
    *,
    model: str,
    data: str,
    image_size: int | None,
    weights: Path | None,
    pretrained: bool,
    device: Literal["auto", "cpu", "cuda"],
    progress: ProgressKind | None,
    as_json: bool,
) -> None:
    """Test k-NN and a linear probe on a frozen backbone."""
    with progress_bar(progress, as_json=as_json) as notify:
        found = api.features(
            model,
            data=data,
            image_size=image_size,
            weights=weights,
            pretrained=pretrained,
            device=device,
            on_progress=notify,
        )
    if as_json:
        print_json(found.to_json())
        return
    click.echo(
        f"{found.model}, {found.weights} weights, {found.features} features of "
        f"{found.train_images} training images; {found.test_images} test images right:"
    )
    click.echo(f"  linear probe  {100 * found.linear_probe:.2f} %")
    click.echo(f"  20-NN         {100 * found.knn:.2f} %")


@click.command(name="zero-shot")
@click.option("--model", required=True, help="Model of `budgetplan training-free`.")
@click.option(
    "--weights",
    required=True,
    type=click.Path(path_type=Path),
    help="File or folder of the published weights on this machine.",
)
@data_option(default="digits")
@part_option
@click.option(
    "--class-names",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Text file with one name on each line. [default: the data set's own names]",
)
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    help="Prompt with {} for the class name, repeatable; for a prompted model, the question. "
    "[default: the published ensemble for the data set]",
)
@click.option("--images", type=positive, help="Most images, drawn at random. [default: all]")
@run_device_option
@click.option(
    "--four-bit", is_flag=True, help="Store the linear layers of a prompted model in 4 bits."
)
@click.option(
    "--batch",
    type=positive,
    default=32,
    show_default=True,
    help="Images at once; a prompted model reads one after the other.",
)
@seed_option
@progress_option
@json_option
def zero_shot(
    *,
    model: str,
    weights: Path,
    data: str,
    part: Literal["test", "selection"],
    class_names: Path | None,
    prompts: tuple[str, ...],
    images: int | None,
    device: Literal["auto", "cpu", "cuda"],
    four_bit: bool,
    batch: int,
    seed: int,
    progress: ProgressKind | None,
    as_json: bool,
) -> None:
    """Classify images by class names, without any training."""
    with progress_bar(progress, as_json=as_json) as notify:
        found = api.zero_shot(
            model,
            weights=weights,
            data=data,
            part=part,
            class_names=class_names,
            prompts=prompts,
            images=images,
            device=device,
            four_bit=four_bit,
            batch=batch,
            seed=seed,
            on_progress=notify,
        )
    _show_evaluation(found, as_json=as_json)


def fit_probe(
    plan: Path,
    *,
    data: str | None,
    out: Path | None,
    weights: Path | None,
    pretrained: bool,
    device: Literal["auto", "cpu", "cuda"],
    progress: ProgressKind | None,
    as_json: bool,
) -> None:
    """Fit and save the linear probe of a plan, and print its accuracy.

    Args:
        plan: file of a plan without fine-tuning.
        data: data set or folder; None for the plan's.
        out: folder of the result; None for ``trained/`` and the plan's name.
        weights: file of the backbone's weights.
        pretrained: try to load timm's pretrained weights.
        device: ``auto``, ``cpu`` or ``cuda``.
        progress: kind of the progress display.
        as_json: print the record.
    """
    with progress_bar(progress, as_json=as_json) as notify:
        found = api.train_probe(
            plan,
            out=out,
            data=data,
            weights=weights,
            pretrained=pretrained,
            device=device,
            on_progress=notify,
        )
    if as_json:
        print_json(found.to_json())
        return
    kind = found.weights.get("kind")
    click.echo(
        f"{100 * found.accuracy:.2f} % of {found.test_images} test images of {found.data} right, "
        f"{'weights from a file' if kind == 'file' else f'{kind} weights'}"
    )
    click.echo(
        f"linear probe on {found.features} features of {found.train_images} training images; "
        f"saved in {found.output}/"
    )


def evaluate_without_tuning(
    plan: Path,
    *,
    data: str | None,
    part: Literal["test", "selection"],
    weights: Path | None,
    class_names: Path | None,
    images: int | None,
    device: Literal["auto", "cpu", "cuda"],
    progress: ProgressKind | None,
    as_json: bool,
) -> None:
    """Evaluate a plan without fine-tuning, or a fitted probe, and print the accuracy.

    Args:
        plan: file of the plan, or the folder of a probe.
        data: data set or folder; None for the plan's.
        part: part of the data set.
        weights: weights on this machine.
        class_names: file of class names.
        images: most images.
        device: ``auto``, ``cpu`` or ``cuda``.
        progress: kind of the progress display.
        as_json: print the record.
    """
    with progress_bar(progress, as_json=as_json) as notify:
        found = api.evaluate_frozen(
            plan,
            data=data,
            part=part,
            weights=weights,
            class_names=class_names,
            images=images,
            device=device,
            on_progress=notify,
        )
    _show_evaluation(found, as_json=as_json)


def _show_evaluation(found: ZeroShotEvaluation | TrainedEvaluation, *, as_json: bool) -> None:
    from planner.cli.trained_tables import show_evaluation, show_zero_shot
    from planner.training.use_trained import TrainedEvaluation

    if as_json:
        print_json(found.to_json())
    elif isinstance(found, TrainedEvaluation):
        show_evaluation(found, console())
    else:
        show_zero_shot(found, console())
