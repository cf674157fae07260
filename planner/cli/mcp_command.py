"""The command that serves questions of language models over MCP."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from planner.cli.options import at_once_option, served_root_option
from profiler.errors import InputError

if TYPE_CHECKING:
    from types import FrameType


@click.command()
@served_root_option
@at_once_option
def mcp(*, root: Path, at_once: int) -> None:
    """Serve questions of a language model over MCP.

    The messages are on standard input and output.
    """
    from planner.disk.free_space import check_folder

    check_folder(root)
    try:
        from planner.service.mcp_tools import create_mcp_server
    except ModuleNotFoundError as error:
        raise InputError(f"mcp needs {error.name}: pip install 'budgetplan[mcp]'") from error
    from planner.service.jobs import Jobs

    jobs = Jobs(root, at_once=at_once)
    before = signal.signal(signal.SIGINT, _interrupt_at_once)
    try:
        create_mcp_server(jobs).run()
    finally:
        signal.signal(signal.SIGINT, before)
        jobs.close()


def _interrupt_at_once(_: int, __: FrameType | None) -> NoReturn:
    """Raise ``KeyboardInterrupt``; a signal handler.

    Python's own handler would be replaced by asyncio, which cancels the tasks first. The task that
    reads the standard input ends only at the end of the input, and Ctrl-C would wait for it.
    """
    raise KeyboardInterrupt
