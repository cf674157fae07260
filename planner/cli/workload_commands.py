"""Commands for one workload: predict, measure, profile."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

import click

from planner import api
from planner.cli.module_command import MODULE_HELP, PredictCommand
from planner.cli.options import (
    SIZES,
    positive,
    power_limit_option,
    replay_file_options,
    storage_option,
    worker_study_option,
    workers_option,
    workload_options,
)
from planner.cli.output import console, print_json
from planner.cli.progress import ProgressKind, progress_bar
from profiler.errors import InfeasibleError

if TYPE_CHECKING:
    from profiler.records import Report

FlopsCounting = Literal["correct", "as-published"]

flops_option = click.option(
    "--flops",
    type=click.Choice(["correct", "as-published"]),
    default="correct",
    show_default=True,
    help="Way to count FLOPs; as-published counts as arXiv 2507.23536 did, with groups left out "
    "of weight gradients.",
)


@click.command(cls=PredictCommand, epilog=SIZES)
@workload_options
@click.option("--module", metavar="PACKAGE:FACTORY", expose_value=False, help=MODULE_HELP)
@click.option(
    "--rung",
    type=click.Choice(["composed", "replayed"]),
    default="replayed",
    show_default=True,
    help="How far to check the prediction: composed is faster, replayed is exact.",
)
@flops_option
@power_limit_option
@replay_file_options
def predict(
    *,
    as_json: bool,
    progress: ProgressKind | None,
    flops: FlopsCounting,
    model: str,
    method: str,
    vram: int | None,
    device: str,
    rung: Literal["composed", "replayed"],
    power_limit: float | None,
    snapshot: Path | None,
    perfetto: Path | None,
    **workload: Unpack[api.WorkloadOptions],
) -> None:
    """Predict memory, time and energy of a training step.

    Nothing is run. The exit code is 3 when the training does not fit --vram at a risk of 1 %.
    """
    with progress_bar(progress, as_json=as_json) as notify:
        report = api.predict(
            model,
            method,
            device=device,
            vram=vram,
            rung=rung,
            published_flops=flops == "as-published",
            power_limit=power_limit,
            snapshot=snapshot,
            perfetto=perfetto,
            on_progress=notify,
            **workload,
        )
    if not as_json:
        _show(report, as_json=False, budget_bytes=vram)
    error = None if vram is None else _excess(report, vram)
    if as_json:
        fits = None if vram is None else api.fit_probability(report, vram)
        known = {} if fits is None else {"fits": fits.to_json()}
        print_json(report.to_json() | known | ({} if error is None else {"error": error.to_json()}))
    if error is not None:
        raise error


def _excess(report: Report, vram: int) -> InfeasibleError | None:
    """Return the error of a prediction that exceeds a budget."""
    try:
        api.check_fits(report, vram)
    except InfeasibleError as error:
        return error
    return None


@click.command(epilog=SIZES)
@workload_options
@click.option("--steps", type=positive, default=5, show_default=True, help="Number of timed steps.")
@click.option(
    "--warmup",
    type=positive,
    default=2,
    show_default=True,
    help="Number of steps before the first reading.",
)
@workers_option
@worker_study_option
@storage_option
def measure(
    *,
    as_json: bool,
    progress: ProgressKind | None,
    model: str,
    method: str,
    vram: int | None,
    device: str,
    steps: int,
    warmup: int,
    workers: bool,
    study: str | None,
    storage: str | None,
    **workload: Unpack[api.WorkloadOptions],
) -> None:
    """Run one workload and measure it.

    It has a process of its own, and --vram is a hard limit of its memory. Weights and images are
    random, because a step needs the same memory and time for any; `validate PLAN --weights FILE
    --data DATA` runs a plan on its own.
    """
    with progress_bar(progress, as_json=as_json) as notify:
        report = api.measure(
            model,
            method,
            device=device,
            vram=vram,
            steps=steps,
            warmup=warmup,
            workers=workers,
            study=study,
            storage=storage,
            on_progress=notify,
            **workload,
        )
    _show(report, as_json=as_json, budget_bytes=vram)


def _show(report: Report, *, as_json: bool, budget_bytes: int | None) -> None:
    from planner.cli.report_tables import show_report

    if as_json:
        print_json(report.to_json())
    else:
        show_report(report, console(), budget_bytes=budget_bytes)


@click.command(epilog=SIZES)
@workload_options
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw live bytes over the step to this .png or .html file.",
)
@click.option(
    "--placement",
    is_flag=True,
    help="Show for each unit the decision, the bytes that it frees and its recomputation time.",
)
@flops_option
def profile(
    *,
    as_json: bool,
    progress: ProgressKind | None,
    plot: Path | None,
    placement: bool,
    flops: FlopsCounting,
    model: str,
    method: str,
    vram: int | None,
    device: str,
    **workload: Unpack[api.WorkloadOptions],
) -> None:
    """Show one workload unit by unit: bytes, FLOPs, time.

    The bytes are those stored for the backward pass and at the boundary of the unit.
    """
    from profiler.prediction.save_timeline import check_plot_file

    if plot is not None:
        check_plot_file(plot)
    with progress_bar(progress, as_json=as_json) as notify:
        units = api.profile_units(
            model,
            method,
            device=device,
            vram=vram,
            published_flops=flops == "as-published",
            with_placement=placement,
            on_progress=notify,
            **workload,
        )
        if plot is not None:
            notify("profile", f"drawing {plot}", 0.95)
            api.draw_timeline(units, plot)
    if as_json:
        rows = units.placement_rows
        why = {} if rows is None else {"placement_rows": [asdict(row) for row in rows]}
        print_json(units.report.to_json() | why)
    else:
        from planner.cli.report_tables import show_profile

        show_profile(units.report, console(), placement_rows=units.placement_rows)
