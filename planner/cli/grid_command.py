"""The command grid: backbones x methods x checkpointing x devices as one table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Unpack

import click

from planner import api
from planner.api.grid_function import PAPER_CHECKPOINTS, PAPER_GRID_METHODS, PAPER_MODELS
from planner.cli.options import (
    POLICY_WORDS,
    SIZES,
    Checkpoints,
    Names,
    grid_workload_options,
    json_option,
    progress_option,
    size_option,
)
from planner.cli.output import console, print_json
from planner.cli.progress import ProgressKind, progress_bar
from planner.training.images.registry import DATA_NAMES

if TYPE_CHECKING:
    from planner.cost.comparison_grid import Grid

GridFormat = Literal["table", "csv", "markdown", "latex"]


@click.command(epilog=SIZES)
@click.option(
    "--models",
    type=Names(),
    default=",".join(PAPER_MODELS),
    show_default=True,
    help="Backbones, separated by commas.",
)
@click.option(
    "--methods",
    type=Names(),
    default=",".join(PAPER_GRID_METHODS),
    show_default=True,
    help="Fine-tuning methods, separated by commas.",
)
@click.option(
    "--checkpoints",
    type=Checkpoints(),
    default=",".join(PAPER_CHECKPOINTS),
    show_default=True,
    help=f"Checkpoint policies, separated by commas: {POLICY_WORDS}.",
)
@click.option(
    "--devices",
    type=Names(),
    default="rtx-2060-super",
    show_default=True,
    help="Devices to plan for, separated by commas: names of `budgetplan devices`, cpu, or auto.",
)
@size_option(
    "--vram",
    default="2GiB",
    text="Budget of device memory, the CUDA context included; policies with a budget place by it.",
)
@click.option(
    "--data",
    default="cifar100",
    show_default=True,
    help=f"Data set whose published accuracies stand beside the cells: {DATA_NAMES}.",
)
@click.option(
    "--training-free",
    type=Names(),
    default="",
    metavar="NAMES|all",
    help="Models that classify without fine-tuning, in rows of their own: names of `budgetplan "
    "training-free`, separated by commas, or all. [default: none]",
)
@grid_workload_options
@click.option(
    "--format",
    "layout",
    type=click.Choice(["table", "csv", "markdown", "latex"]),
    default="table",
    show_default=True,
    help="Layout of the table on stdout.",
)
@progress_option
@json_option
def grid(
    *,
    as_json: bool,
    progress: ProgressKind | None,
    layout: GridFormat,
    models: tuple[str, ...],
    methods: tuple[str, ...],
    checkpoints: tuple[str, ...],
    devices: tuple[str, ...],
    vram: int,
    data: str,
    training_free: tuple[str, ...],
    **workload: Unpack[api.WorkloadOptions],
) -> None:
    """Compare backbones, methods and devices in one table.

    Every number is a composed prediction, of models without fine-tuning a replayed one; nothing is
    run. The defaults are the 60 cells of arXiv 2607.02158.
    """
    with progress_bar(progress, as_json=as_json) as notify:
        found = api.grid(
            models,
            methods,
            checkpoints=checkpoints,
            devices=devices,
            vram=vram,
            data=data,
            training_free=training_free,
            on_progress=notify,
            **workload,
        )
    if as_json:
        print_json(found.to_json())
    else:
        _show_grid(found, layout)


def _show_grid(found: Grid, layout: GridFormat) -> None:
    from planner.cli.grid_tables import csv_text, latex_text, markdown_text, show_grid

    if layout == "table":
        show_grid(found, console())
        return
    texts = {"csv": csv_text, "markdown": markdown_text, "latex": latex_text}
    click.echo(texts[layout](found), nl=False)
