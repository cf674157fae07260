"""The command report: one HTML page of plan files."""

from __future__ import annotations

from pathlib import Path

import click

from planner import api
from planner.cli.options import json_option
from planner.cli.output import print_json


@click.command()
@click.argument("plans", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
    help="File of the page.",
)
@json_option
def report(plans: tuple[Path, ...], html: Path, as_json: bool) -> None:
    """Write one HTML page that compares plan files.

    It shows memory, time and energy of each plan, the memory over one step of the first, and
    predicted against measured values. Plans without fine-tuning have a table of their own. It
    opens without a network.
    """
    from planner.cli.page.write import check_page_file, plans_view, write_page

    is_tuned = {path: api.plan_kind(path) == "tuned" for path in plans}
    tuned = [(path, api.load_plan(path)) for path in plans if is_tuned[path]]
    frozen = [api.load_frozen_plan(path) for path in plans if not is_tuned[path]]
    check_page_file(html)
    write_page(plans_view(tuned, frozen), html)
    if as_json:
        print_json({"schema": "budgetplan.report/1", "page": str(html), "plans": len(plans)})
    else:
        click.echo(f"written to {html}")
