"""The command ``check``: whether a plan holds under the installed versions."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from planner import api
from planner.cli.options import json_option, plan_argument, planned_device_option
from planner.cli.output import print_json
from profiler.units import format_bytes_as


@click.command()
@plan_argument
@planned_device_option
@json_option
def check(*, plan: Path, device: str, as_json: bool) -> None:
    """Check that a plan still fits under the installed versions.

    Exit codes: 0 the plan holds, 3 it no longer fits, 4 it cannot be read or its model has changed.
    """
    found = api.check(plan, device=device)
    error = found.excess()
    size = partial(format_bytes_as, asked=found.budget_bytes)
    if as_json:
        print_json(found.to_json() | ({} if error is None else {"error": error.to_json()}))
    else:
        click.echo(
            f"predicted {size(found.needed_bytes)} of {size(found.budget_bytes)}; "
            f"the plan says {size(found.planned_bytes)}"
        )
        for name, (before, now) in found.changed_versions.items():
            click.echo(f"note: {name} was {before} when the plan was made, and is {now} here")
        if error is None:
            from planner.cli.cell_text import probability_text

            known = probability_text(found.fits)
            click.echo("the plan holds" + (f" ({known})" if known else ""))
    if error is not None:
        raise error
