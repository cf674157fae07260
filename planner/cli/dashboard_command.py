"""The command that shows studies in a browser."""

from __future__ import annotations

import os
from pathlib import Path

import click

from planner.cli.options import json_option, token_file_option
from planner.cli.output import print_json
from planner.cli.serve_command import read_token
from profiler.errors import UsageError

OTHERS_NAMED = 5
"""Other studies that the command names, the newest first."""


@click.command()
@click.argument("study", required=False)
@click.option(
    "--storage",
    help="URL of the studies, in place of STUDY, as `recommend` takes it. Without STUDY, the "
    "environment variable BUDGETPLAN_STORAGE may hold it.",
)
@click.option("--host", default="localhost", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8080,
    show_default=True,
    help="Port to listen on.",
)
@click.option(
    "--allow-writes", is_flag=True, help="Let the pages change notes, names and trials of studies."
)
@token_file_option
@click.option("--allow-host", multiple=True, help="Name by which browsers may address this server.")
@json_option
def dashboard(
    *,
    study: str | None,
    storage: str | None,
    host: str,
    port: int,
    allow_writes: bool,
    token_file: Path | None,
    allow_host: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show a study in a browser, with its notes and plan files.

    STUDY is a name in studies/, the path of a database file or a URL; the newest file in studies/
    by default. The pages can be read only, and from this machine only, unless options say
    otherwise.
    """
    from planner.search.dashboard import dashboard_app, dashboard_storage, other_studies
    from planner.search.storage_url import mask_url
    from planner.service.access import allowed_hosts, check_address
    from planner.service.dashboard_server import GuardedDashboard, serve_app
    from planner.service.listening import host_and_port

    if study is not None and storage is not None:
        raise UsageError("give STUDY or --storage, not both")
    token = None if token_file is None else read_token(token_file)
    check_address(host, token)
    if study is None and storage is None:
        storage = os.environ.get("BUDGETPLAN_STORAGE") or None
    url = storage or dashboard_storage(study)
    app = GuardedDashboard(
        dashboard_app(url),
        hosts=allowed_hosts(host, allow_host),
        token=token,
        allow_writes=allow_writes,
    )
    shown, address = mask_url(url), f"http://{host_and_port(host, port)}/"

    def announce(_: int) -> None:
        if as_json:
            print_json(
                {
                    "schema": "budgetplan.dashboard/1",
                    "storage": shown,
                    "address": address,
                    "read_only": not allow_writes,
                    "needs_token": token is not None,
                }
            )
            return
        click.echo(f"{shown} at {address} (Ctrl-C ends it)")
        if token is not None:
            click.echo(f"open {address}?token=TOKEN once, with the token of {token_file}")
        others = list(other_studies(url)) if study is None and storage is None else []
        if others:
            click.echo(f"other studies, as STUDY: {', '.join(others[:OTHERS_NAMED])}")

    serve_app(app, host=host, port=port, on_ready=announce)
