"""The command recommend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from planner import api
from planner.cli.help_sections import RecommendCommand
from planner.cli.options import (
    POLICY_WORDS,
    SIZES,
    Checkpoints,
    Names,
    Percent,
    PercentNumber,
    data_option,
    device_option,
    image_size_option,
    json_option,
    positive,
    power_limit_option,
    pretrained_option,
    progress_option,
    seed_option,
    size_option,
    storage_option,
)
from planner.cli.output import console, print_json
from planner.cli.progress import ProgressKind, progress_bar, recommend_stages
from planner.training.run_options import LEAST_STEPS


@click.command(cls=RecommendCommand, epilog=SIZES)
@size_option(
    "--vram",
    required=True,
    text="Budget of device memory, the CUDA context included, such as 2GB.",
)
@click.option(
    "--model",
    required=True,
    help="Backbone: a timm name or an alias of `budgetplan models`; several separated by commas "
    "share one front; auto takes a shortlist that can be trained within the budget.",
)
@data_option(default="digits")
@device_option
@click.option("--no-validate", is_flag=True, help="Skip the real runs; nothing is measured.")
@click.option(
    "--top",
    type=positive,
    help="Number of candidates that are really run. [default: the recommended one, and up to two "
    "more if they end within 60 s]",
)
@click.option(
    "--workers",
    is_flag=True,
    help="Leave the real runs to workers (`budgetplan worker`) on the same --storage, and wait.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=LEAST_STEPS),
    help="Optimizer steps of a real run. [default: a few]",
)
@click.option(
    "--trials",
    type=positive,
    help="Trials of the sampler, those of a continued study included. [default: every point if "
    "that is quick, else 200]",
)
@seed_option
@click.option("--study", help="Name of the study; an existing study is continued.")
@storage_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("plans"),
    show_default=True,
    help="Folder of the plan files.",
)
@click.option(
    "--methods",
    type=Names(),
    default="all",
    show_default=True,
    help="Methods to search, separated by commas; all means those that work on the backbone.",
)
@click.option(
    "--effective-batch",
    type=positive,
    default=32,
    show_default=True,
    help="Images in an optimizer step; micro-batches are its divisors.",
)
@click.option(
    "--precisions",
    type=Names(),
    help="Precisions to search, separated by commas. [default: fp32 and the device's half "
    "precision]",
)
@click.option(
    "--optimizers",
    type=Names(),
    default="adamw,sgd",
    show_default=True,
    help="Optimizers to search, separated by commas; also adamw8bit and adamw_host.",
)
@click.option(
    "--checkpoints",
    type=Checkpoints(),
    default="none,static,optimal",
    show_default=True,
    help=f"Checkpoint policies to search, separated by commas: {POLICY_WORDS}.",
)
@image_size_option
@click.option(
    "--probe-minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Train the candidates of the front briefly on the images for this long, beside the search "
    "and the checks, and recommend by the accuracy on held-out images. With the same --study, "
    "earlier trainings count. Loading and timing come on top.",
)
@click.option(
    "--find-lr/--no-find-lr",
    default=None,
    help="Try three learning rates for the recommended plan on the images. [default: if that costs "
    "less than a twentieth of the training, and not after --probe-minutes]",
)
@click.option(
    "--objective",
    type=click.Choice(["balanced", "accuracy", "time", "energy"]),
    default="balanced",
    show_default=True,
    help="Criterion among candidates of equal expected accuracy; accuracy trusts weak evidence.",
)
@click.option(
    "--levers",
    default="auto",
    show_default=True,
    metavar="auto|none|LIST",
    help="Settings that change a step's speed and not its result: auto takes those of "
    "channels_last, fused and tf32 that are predicted to gain; a list may also name "
    "cudnn_benchmark and compile.",
)
@click.option(
    "--min-accuracy",
    type=PercentNumber(),
    help="Least expected accuracy in percent, such as 90.",
)
@click.option(
    "--max-hours",
    type=click.FloatRange(min=0, min_open=True),
    help="Longest training in hours, all epochs of the recipe.",
)
@click.option(
    "--max-kwh",
    type=click.FloatRange(min=0, min_open=True),
    help="Largest energy of the training in kWh.",
)
@click.option(
    "--training-free/--no-training-free",
    default=None,
    help="List published models that classify without fine-tuning. [default: those that are "
    "replayed within seconds or known already]",
)
@click.option(
    "--allow-training-free",
    is_flag=True,
    help="Recommend one of them if it is published to be more accurate on the data than the best "
    "tuned plan is expected to be.",
)
@click.option(
    "--risk",
    type=Percent(),
    default="1%",
    show_default=True,
    help="Largest accepted probability that a plan needs more than the budget, such as 1%.",
)
@click.option(
    "--price-per-kwh",
    type=click.FloatRange(min=0),
    help="Price of a kWh, for the price of each training.",
)
@click.option(
    "--grams-per-kwh",
    type=click.FloatRange(min=0),
    help="Grams of CO2 for a kWh, for the emissions of each training.",
)
@click.option(
    "--stop-when-flat", is_flag=True, help="End the search when the Pareto front no longer grows."
)
@power_limit_option
@click.option(
    "--weights",
    multiple=True,
    metavar="[MODEL=]FILE",
    help="File of weights: safetensors, a torch state dict or a checkpoint; with several backbones "
    "MODEL=FILE, once for each. [default: timm's pretrained weights]",
)
@pretrained_option
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the answer as one self-contained page to this file.",
)
@click.option("--notes", is_flag=True, help="Print all remarks on the answer.")
@click.option(
    "--verbose", is_flag=True, help="Print all rows with every number, and the paper's defaults."
)
@progress_option
@json_option
def recommend(
    *,
    as_json: bool,
    progress: ProgressKind | None,
    html: Path | None,
    notes: bool,
    verbose: bool,
    model: str,
    vram: int,
    device: str,
    no_validate: bool,
    top: int | None,
    probe_minutes: float | None,
    find_lr: bool | None,
    weights: tuple[str, ...],
    **options: Any,
) -> None:
    """Recommend configurations that fit a budget.

    They are searched, checked, measured, and written as plan files.
    """
    if no_validate and top is not None:
        raise click.UsageError(
            "--top is the number of real runs, and --no-validate makes none; leave one out"
        )
    if html is not None:
        from planner.cli.page.write import check_page_file

        check_page_file(html)
    stages = recommend_stages(
        probes=probe_minutes is not None,
        validates=not no_validate,
        # A GPU of this machine is not rehearsed either; the stage then counts as done.
        rehearses=not no_validate and device != "cpu",
        finds_rate=bool(find_lr),
        lists_training_free=options.get("training_free") is not False,
    )
    with progress_bar(progress, as_json=as_json, stages=stages) as notify:
        # the other options are arguments of the same names
        answer = api.recommend(
            model,
            vram=vram,
            device=device,
            validations=0 if no_validate else top,
            weights=weights or None,
            probe_minutes=probe_minutes,
            find_lr=find_lr,
            on_progress=notify,
            **options,
        )
    if html is not None:
        from planner.cli.page.write import answer_view, write_page

        write_page(answer_view(answer), html)
    if as_json:
        print_json(answer.to_json())
    else:
        from planner.cli.first_screen import show_first_screen
        from planner.cli.recommendation_tables import show_all_rows, show_notes

        screen = console()
        show_first_screen(answer, screen)
        if verbose:
            show_all_rows(answer, screen)
        if notes:
            show_notes(answer, screen)
