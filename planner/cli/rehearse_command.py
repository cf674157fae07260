"""The command ``rehearse``: a plan's training on an emulated GPU."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from planner import api
from planner.cli.options import (
    json_option,
    plan_argument,
    planned_device_option,
    positive,
    progress_option,
)
from planner.cli.output import print_json
from planner.cli.progress import ProgressKind, progress_bar
from profiler.units import format_bytes_as


@click.command()
@plan_argument
@planned_device_option
@click.option("--steps", type=positive, help="Optimizer steps of the run. [default: a few]")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the plan with its rehearsal to this file.",
)
@progress_option
@json_option
def rehearse(
    *,
    plan: Path,
    device: str,
    steps: int | None,
    out: Path | None,
    as_json: bool,
    progress: ProgressKind | None,
) -> None:
    """Run a plan's training on an emulated GPU.

    PyTorch's CUDA code runs there, with kernels that do nothing. No GPU is needed, but gcc and a
    CUDA build of PyTorch. The run shows memory and failures on this GPU; it shows no time and no
    accuracy. Exit codes: 5 no compiler or no CUDA build, 6 the run fails.
    """
    with progress_bar(progress, as_json=as_json) as notify:
        rehearsed = api.rehearse(plan, device=device, steps=steps, out=out, on_progress=notify)
    if as_json:
        print_json(rehearsed.to_json())
        return
    report = rehearsed.rehearsal
    assert report is not None
    memory, budget = report.memory, rehearsed.budget_bytes
    size = partial(format_bytes_as, asked=budget)
    click.echo(f"it runs on an emulated {report.device.full_name}")
    for stage in report.details["stages"]:
        click.echo(f"  {stage['stage']}: {size(stage['reserved_bytes'])} reserved")
    click.echo(
        f"device memory {size(memory.device_bytes)} of {size(budget)}, "
        f"predicted {size(rehearsed.prediction.memory.device_bytes)}"
    )
    for note in report.notes:
        click.echo(f"note: {note}")
