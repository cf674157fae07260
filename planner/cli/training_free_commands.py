"""Commands for classification without fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from planner import api
from planner.cli.options import (
    device_option,
    json_option,
    positive,
    pretrained_option,
    progress_option,
    seed_option,
    size_option,
    weights_option,
)
from planner.cli.output import console, print_json
from planner.cli.progress import ProgressKind, progress_bar
from planner.cli.trained_commands import run_device_option
from planner.training.images.registry import DATA_NAMES


@click.command(name="training-free")
@size_option("--vram", text="Memory budget of the device.", required=True)
@device_option
@click.option(
    "--data",
    default="cifar100",
    show_default=True,
    help="Data set whose published accuracies are shown.",
)
@progress_option
@json_option
def training_free(
    *, vram: int, device: str, data: str, progress: ProgressKind | None, as_json: bool
) -> None:
    """List frozen models that classify without fine-tuning, with memory and accuracy."""
    from planner.cli.list_tables import training_free_columns
    from planner.cli.table_layout import show_table

    with progress_bar(progress, as_json=as_json) as notify:
        options = api.training_free(vram, device=device, data=data, on_progress=notify)
    if as_json:
        entries = [option.to_json() for option in options]
        print_json(
            {"schema": "budgetplan.training_free/1", "budget_bytes": vram, "options": entries}
        )
        return
    show_table(training_free_columns(options, data), console())


@click.command()
@click.option("--model", required=True, help="Backbone: a timm name or an alias.")
@click.option(
    "--data",
    default="digits",
    show_default=True,
    help="Data set, or a folder with one subfolder for each class.",
)
@click.option("--image-size", type=positive, help="Pixels. [default: the backbone's own]")
@weights_option
@pretrained_option
@progress_option
@json_option
def features(
    *,
    model: str,
    data: str,
    image_size: int | None,
    weights: Path | None,
    pretrained: bool,
    progress: ProgressKind | None,
    as_json: bool,
) -> None:
    """Test k-NN and a linear probe on the features of a frozen backbone."""
    with progress_bar(progress, as_json=as_json) as notify:
        found = api.features(
            model,
            data=data,
            image_size=image_size,
            weights=weights,
            pretrained=pretrained,
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
@click.option(
    "--data",
    default="digits",
    show_default=True,
    help=f"Data set: {DATA_NAMES}, or a folder with one subfolder for each class.",
)
@click.option(
    "--part",
    type=click.Choice(["test", "selection"]),
    default="test",
    show_default=True,
    help="Part of the data set.",
)
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
            seed=seed,
            on_progress=notify,
        )
    if as_json:
        print_json(found.to_json())
        return
    from planner.cli.trained_tables import show_zero_shot

    show_zero_shot(found, console())
