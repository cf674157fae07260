"""Output of the commands: one JSON object, tables on a console.

rich is imported when a command prints, so that ``--help`` stays fast.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console


_PRINTED = "budgetplan.json"
"""Key in click's context: whether the command has printed its object."""


def json_text(data: Mapping[str, Any]) -> str:
    """Return a JSON object as text of several lines."""
    return json.dumps(dict(data), indent=1, allow_nan=False)


def print_json(data: Mapping[str, Any]) -> None:
    """Print the one JSON object of a command on stdout."""
    click.echo(json_text(data))
    context = click.get_current_context(silent=True)
    if context is not None:
        context.meta[_PRINTED] = True


def has_printed_json() -> bool:
    """Return whether the running command has printed its object."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_PRINTED))


def console() -> Console:
    """Return the console for tables, on stdout."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)
