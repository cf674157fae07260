"""Commands that take a plan file: show, validate, train."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click.core import ParameterSource

from planner import api
from planner.cli.options import (
    POLICY_WORDS,
    Checkpoint,
    data_option,
    device_option,
    json_option,
    own_device_option,
    plan_argument,
    positive,
    pretrained_option,
    progress_option,
    seed_option,
    size_option,
    storage_option,
    threshold_option,
    weights_option,
    worker_study_option,
    workers_option,
)
from planner.cli.output import console, print_json
from planner.cli.progress import ProgressDisplay, ProgressKind, progress_bar
from profiler.errors import UsageError

if TYPE_CHECKING:
    from planner.plan import Plan
    from planner.training.history import TrainProgress, TrainResult

plan_data_option = data_option(unless="the plan's")


@click.command()
@plan_argument
@json_option
def show(plan: Path, as_json: bool) -> None:
    """Print a plan file."""
    if api.is_without_tuning(plan):
        frozen = api.load_frozen_plan(plan)
        if as_json:
            print_json(frozen.to_json())
            return
        from planner.cli.frozen_tables import show_frozen_plan

        show_frozen_plan(frozen, console())
        return
    _show_plan(api.load_plan(plan), as_json=as_json)


@click.command()
@plan_argument
@plan_data_option
@device_option
@click.option("--steps", type=positive, help="Optimizer steps of the run. [default: a few]")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the plan with its measurement to this file.",
)
@workers_option
@worker_study_option
@storage_option
@seed_option
@weights_option
@pretrained_option
@progress_option
@json_option
def validate(
    *,
    plan: Path,
    as_json: bool,
    progress: ProgressKind | None,
    data: str | None,
    device: str,
    steps: int | None,
    out: Path | None,
    workers: bool,
    study: str | None,
    storage: str | None,
    seed: int,
    weights: Path | None,
    pretrained: bool,
) -> None:
    """Run a plan for a few steps under its budget.

    The peak is compared with its prediction.
    """
    with progress_bar(progress, as_json=as_json) as notify:
        checked = api.validate(
            plan,
            data=data,
            device=device,
            steps=steps,
            out=out,
            workers=workers,
            study=study,
            storage=storage,
            seed=seed,
            weights=weights,
            pretrained=pretrained,
            on_progress=notify,
        )
    _show_plan(checked, as_json=as_json)


def _show_plan(plan: Plan, *, as_json: bool) -> None:
    from planner.cli.plan_tables import show_plan

    if as_json:
        print_json(plan.to_json())
    else:
        show_plan(plan, console())


@click.command()
@plan_argument
@plan_data_option
@click.option(
    "--epochs", type=positive, help="Number of epochs in all. [default: the plan's recipe]"
)
@click.option("--steps", type=positive, help="Optimizer steps in all, in place of --epochs.")
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Duration after which the run ends with the current step; --resume continues it.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Continue from the last checkpoint in --out; the placement may differ from before.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the result. [default: trained/ and the plan's name]",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Device of the training; auto takes a GPU if there is one.",
)
@own_device_option
@click.option(
    "--recipe",
    type=click.Choice(["plan", "default", "paper"]),
    default="plan",
    show_default=True,
    help="Recipe: the plan's, the default for this data, or that of arXiv 2607.02158.",
)
@click.option("--learning-rate", type=float, help="Learning rate. [default: the recipe's]")
@click.option(
    "--balance/--no-balance",
    default=None,
    help="Draw each class equally often. [default: the recipe's choice]",
)
@click.option(
    "--checkpoint",
    type=Checkpoint(),
    help="Checkpoint policy that replaces the plan's placement; adaptive decides while training. "
    f"One of {POLICY_WORDS}.",
)
@click.option(
    "--log",
    multiple=True,
    type=click.Choice(["tensorboard", "mlflow", "wandb", "trackio"]),
    help="Logger that gets each accuracy reading beside run.csv; repeatable.",
)
@size_option("--vram", text="Budget of --checkpoint. [default: the plan's]")
@threshold_option
@seed_option
@weights_option
@pretrained_option
@progress_option
@json_option
def train(
    *,
    plan: Path,
    as_json: bool,
    progress: ProgressKind | None,
    data: str | None,
    out: Path | None,
    device: Literal["auto", "cpu", "cuda"],
    weights: Path | None,
    pretrained: bool,
    **options: Any,
) -> None:
    """Train as a plan says, and save the model.

    A plan without fine-tuning, of kind features, gets its linear probe fitted.
    """
    from planner.api.arguments import found_device
    from profiler.units import format_asked

    if api.is_without_tuning(plan):
        from planner.cli.training_free_commands import fit_probe

        refuse_options_of_tuning()
        fit_probe(
            plan,
            data=data,
            out=out,
            weights=weights,
            pretrained=pretrained,
            device=device,
            progress=progress,
            as_json=as_json,
        )
        return
    planned = api.load_plan(plan)
    with progress_bar(progress, as_json=as_json) as notify:
        notify("train", "building the model", 0.0)
        if found_device(device) == "cpu":
            notify.message(
                f"the plan's budget of {format_asked(planned.budget_bytes)} is not enforced on a "
                "CPU, only on a GPU; `budgetplan validate` runs a few steps under it"
            )
        # the other options are arguments of the same names
        result = api.train(
            plan,
            out=out,
            data=data,
            device=device,
            weights=weights,
            pretrained=pretrained,
            on_progress=lambda step: _show_step(step, notify, planned),
            on_interrupt=_announce_stop,
            **options,
        )
    if as_json:
        print_json(result.to_json() | {"output": str(result.output)})
    else:
        _show_result(result)


def _show_result(result: TrainResult) -> None:
    """Print the test accuracy of a training, the weights it began with, its data and folder."""
    from planner.scoring.counted_accuracy import counted_text
    from planner.training.images.image_set import DataSource

    kind, images = result.weights.kind, result.readings[-1].images
    by_class = result.readings[-1].mean_class_accuracy
    click.echo(
        f"{counted_text(result.accuracy, images=images)} of the {images:,} "
        f"{result.data['name']} test images right, "
        f"{'weights from a file' if kind == 'file' else f'{kind} weights'}"
    )
    if by_class is not None and abs(by_class - result.accuracy) >= SHOWN_CLASS_DIFFERENCE:
        click.echo(
            f"mean over the classes: {100 * by_class:.0f} %; `budgetplan evaluate` shows each, and "
            "--balance draws each equally often"
        )
    for note in result.weights.notes:
        click.echo(note)
    if result.recipe is not None and len(result.epochs) < result.recipe.epochs:
        click.echo(f"ended after {len(result.epochs)} of {result.recipe.epochs} epochs")
    click.echo(f"data: {DataSource.from_json(result.data, part='training.data')}")
    click.echo(f"saved in {result.output}/")


SHOWN_CLASS_DIFFERENCE = 0.02
"""Difference between the accuracy and its mean over the classes from which both are shown."""

OPTIONS_OF_A_PROBE = frozenset(
    ("plan", "data", "device", "out", "weights", "pretrained", "progress", "as_json")
)
"""Parameters of ``train`` that the fit of a linear probe has too."""


def refuse_options_of_tuning() -> None:
    """Refuse options of ``train`` that a linear probe does not have.

    Raises:
        UsageError: there is one on the command line.
    """
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        is_given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if is_given and name not in OPTIONS_OF_A_PROBE:
            raise UsageError(
                f"{parameter.opts[0]} is for plans that fine-tune; a linear probe has no such "
                "option"
            )


def _announce_stop() -> None:
    """Announce the stop, past Python's buffers: the signal may arrive in the middle of a write."""
    line = "\nbudgetplan: stopping after this step; Ctrl-C again stops at once\n"
    os.write(2, line.encode())


def _show_step(at: TrainProgress, display: ProgressDisplay, plan: Plan) -> None:
    """Show a step on the progress bar and print each accuracy reading above it."""
    running = _step_against_plan(at, plan)
    display("train", f"epoch {at.epoch} of {at.epochs}, loss {at.loss:.3f}{running}", at.done)
    if at.message:
        display.message(at.message)
    if at.reading is not None:
        seen = at.reading
        is_earlier = at.selected_step not in (None, seen.step)
        tensors = f", with the tensors of step {at.selected_step}" if is_earlier else ""
        display.message(
            f"{seen.seconds / 60:.1f} min, step {seen.step} ({at.step} of {at.steps} in epoch "
            f"{at.epoch}): loss {seen.loss:.3f}{running}, {100 * seen.accuracy:.1f} % of "
            f"{seen.images} {seen.part} images right{tensors}"
        )


def _step_against_plan(at: TrainProgress, plan: Plan) -> str:
    """Return rate, speed and memory of the last steps.

    They stand against the plan's where the training runs on a device of the planned kind.
    """
    from profiler.units import format_bytes_in, unit_as_asked

    parts, planned = [], plan.prediction
    is_as_planned = (at.reserved_bytes is not None) == (planned.device.kind == "cuda")
    if at.learning_rate is not None:
        parts.append(f"lr {at.learning_rate:.2g}")
    if at.images_per_second is not None:
        parts.append(f"{at.images_per_second:,.0f} images/s")
        if is_as_planned and planned.step_seconds:
            rate = plan.candidate.workload.effective_batch / planned.step_seconds
            parts[-1] += f" (plan {rate:,.0f})"
    if at.reserved_bytes is not None:
        unit = unit_as_asked(plan.budget_bytes)
        parts.append(format_bytes_in(at.reserved_bytes, unit))
        if planned.memory.reserved_bytes is not None:
            parts[-1] += f" (plan {format_bytes_in(planned.memory.reserved_bytes, unit)})"
    return "".join(f", {part}" for part in parts)
