"""Output of the commands: one JSON object, tables on a console.

rich is imported when a command prints, so that ``--help`` stays fast.
"""

from __future__ import annotations

import codecs
import io
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console


_PRINTED = "budgetplan.json"
"""Key in click's context: whether the command has printed its object."""


_BLOCKS = dict.fromkeys("▌▋▊▉█", "#") | dict.fromkeys("░▏▎▍", ".")
"""Characters of bars, each with its substitute in an encoding that lacks it."""


def print_in_any_encoding() -> None:
    """Let standard output replace characters that its encoding lacks, instead of failing.

    A container without a locale has ASCII, and a file name that is no valid UTF-8 has characters
    that no encoding has. The answer of a long search must not be lost to either.
    """
    codecs.register_error("budgetplan.replace", _in_ascii)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="budgetplan.replace")


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Return ASCII for the characters of an encoding error; a handler of `codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    bad = error.object[error.start : error.end]
    text = (_BLOCKS.get(c) or c.encode("ascii", "backslashreplace").decode() for c in bad)
    return "".join(text), error.end


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
