"""The command that examines this machine."""

from __future__ import annotations

import click

from planner.cli.options import json_option
from planner.cli.output import console, print_json
from profiler.errors import DeviceError


@click.command()
@json_option
def doctor(*, as_json: bool) -> None:
    """Examine this machine: packages, GPU, disk, cache, hub.

    The exit code is 5 if a fault is found.
    """
    from planner.cli.table_layout import Column, show_table
    from planner.doctor import examine, findings_to_json

    findings = examine()
    faults = [finding.name for finding in findings if finding.state == "fault"]
    error = DeviceError(f"this machine has a fault: {', '.join(faults)}") if faults else None
    if as_json:
        failed = {} if error is None else {"error": error.to_json()}
        print_json(findings_to_json(findings) | failed)
    else:
        columns = [
            Column(header="part", cells=[f.name for f in findings], justify="left"),
            Column(header="state", cells=[f.state for f in findings], justify="left"),
            Column(
                header="found",
                cells=[f"{f.found}; {f.advice}" if f.advice else f.found for f in findings],
                justify="left",
                wraps=True,
            ),
        ]
        show_table(columns, console())
    if error is not None:
        raise error
