"""The command that writes a plan in the form of another training program."""

from __future__ import annotations

from pathlib import Path

import click

from planner import api
from planner.cli.options import json_option, plan_argument
from planner.cli.output import print_json

TARGET_NAMES = ("script", "hf", "lightning", "timm", "peft")


@click.command()
@plan_argument
@click.option(
    "--to",
    "target",
    type=click.Choice(TARGET_NAMES),
    required=True,
    help="Training program: a PyTorch script, transformers' Trainer, Lightning, timm's train.py, "
    "or the adapter's configuration for peft.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the files. [default: exported/ and the target]",
)
@json_option
def export(*, plan: Path, target: str, out: Path | None, as_json: bool) -> None:
    """Write a plan as another training program takes it."""
    folder = Path("exported") / target if out is None else out
    made = api.export_plan(plan, target, folder)
    if as_json:
        print_json(made.to_json(folder))
        return
    for name in made.files:
        click.echo(folder / name)
    click.echo(f"\nstart: {made.command}\n\nunlike `budgetplan train`:")
    for text in made.differences:
        click.echo(f"- {text}")
