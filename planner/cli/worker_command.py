"""The command that runs the queued runs of a study on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from planner.cli.options import json_option, positive, storage_option, this_device_option
from planner.cli.output import print_json
from profiler.errors import UsageError

WORKER_SCHEMA = "budgetplan.worker/1"
"""Schema of the object that ``worker --json`` prints."""


@click.command()
@storage_option
@click.option("--study", required=True, help="Name of the study, as `recommend --study` has it.")
@this_device_option
@click.option(
    "--until-empty",
    is_flag=True,
    help="End once no run is left that this device can run; else wait for more.",
)
@click.option(
    "--slurm",
    type=positive,
    help="Start this number of workers as SLURM jobs instead, and end.",
)
@click.option(
    "--slurm-folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("slurm"),
    show_default=True,
    help="Folder for the logs of SLURM jobs, on a disk that the nodes share.",
)
@click.option(
    "--slurm-option",
    multiple=True,
    metavar="NAME=VALUE",
    help="Parameter of the SLURM jobs, such as partition=gpu or timeout_min=60; repeatable.",
)
@json_option
def worker(
    *,
    storage: str | None,
    study: str,
    device: str,
    until_empty: bool,
    slurm: int | None,
    slurm_folder: Path,
    slurm_option: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run the real runs of `recommend --workers` here."""
    if storage is None:
        raise UsageError("a worker needs --storage: the database of the study")
    from planner.search.study_lock import check_storage

    check_storage(storage)
    if slurm is not None:
        from planner.workers.slurm import job_options, submit_workers

        ids = submit_workers(
            storage,
            study,
            slurm,
            folder=slurm_folder,
            options=job_options(slurm_option),
            device=device,
            until_empty=until_empty,
        )
        if as_json:
            print_json({"schema": WORKER_SCHEMA, "jobs": ids})
        else:
            click.echo(f"SLURM jobs {', '.join(ids)}, logs in {slurm_folder}/")
        return
    from planner.search.run_queue import opened_queue
    from planner.search.storage_url import mask_url
    from planner.workers.run_device import this_device
    from planner.workers.worker import work

    found = this_device(device)
    click.echo(
        f"{found.name} takes the runs of {study} in {mask_url(storage)} (Ctrl-C ends it)", err=True
    )
    with opened_queue(storage, study) as queue:
        summary = work(
            queue, found, until_empty=until_empty, on_event=lambda text: click.echo(text, err=True)
        )
    if as_json:
        print_json(
            {
                "schema": WORKER_SCHEMA,
                "device": found.name,
                "done": summary.done,
                "failed": summary.failed,
                "no_longer_wanted": summary.dropped,
            }
        )
    else:
        click.echo(f"{summary.done} done, {summary.failed} failed")
