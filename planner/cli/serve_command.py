"""The command that serves questions over HTTP."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.cli.options import at_once_option, served_root_option, token_file_option
from profiler.errors import InputError
from profiler.json_records import shortened

if TYPE_CHECKING:
    from types import FrameType

PAGE_WRITER = "planner.cli.page.write:write_answer_page"
"""Address of the function that draws the page of an answer, for the process that answers."""

LARGEST_TOKEN_BYTES = 4096
"""Bytes of a token's file that are read."""

SHORTEST_TOKEN = 16
"""Characters of a token, at least."""

SECONDS_TO_END = 15
"""Time after Ctrl-C in which requests under way may end."""

_TOKEN = re.compile(r"[A-Za-z0-9._~-]+")
"""Characters that a header, a cookie and an address all take unchanged (RFC 3986, section 2.3)."""


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8321, show_default=True, help="Port."
)
@served_root_option
@token_file_option
@click.option("--allow-host", multiple=True, help="Name by which clients may address this service.")
@at_once_option
def serve(
    *,
    host: str,
    port: int,
    root: Path,
    token_file: Path | None,
    allow_host: tuple[str, ...],
    at_once: int,
) -> None:
    """Serve questions over HTTP, with a page at /. Only this machine can ask by default."""
    from planner.disk.free_space import check_folder
    from planner.service.access import allowed_hosts, check_address

    token = None if token_file is None else read_token(token_file)
    check_address(host, token)
    check_folder(root)
    try:
        import uvicorn

        from planner.service.app import create_app
    except ModuleNotFoundError as error:
        raise InputError(f"serve needs {error.name}: pip install 'budgetplan[service]'") from error
    from planner.service.jobs import Jobs
    from planner.service.listening import host_and_port, listening_sockets

    sockets = listening_sockets(host, port)
    jobs = Jobs(root, at_once=at_once, page_writer=PAGE_WRITER)
    app = create_app(jobs, hosts=allowed_hosts(host, allow_host), token=token)
    click.echo(f"http://{host_and_port(host, port)}/ (Ctrl-C ends it)", err=True)

    class Server(uvicorn.Server):
        """A server that ends its questions at a signal; a stream of events lasts as long."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            threading.Thread(target=jobs.close, daemon=True).start()
            super().handle_exit(sig, frame)

    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=SECONDS_TO_END)
    Server(config).run(sockets=sockets)  # it raises its signal again at the end


def read_token(path: Path) -> str:
    """Return the token in a file.

    Raises:
        InputError: the file cannot be read, or its token is short or has other characters.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise InputError(f"{path} is not a regular file; give a file with a token")
        with path.open("rb") as file:
            token = file.read(LARGEST_TOKEN_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InputError(f"cannot read {shortened(str(path))}: {reason}") from error
    if len(token) < SHORTEST_TOKEN:
        raise InputError(f"{path} must hold a token of at least {SHORTEST_TOKEN} characters")
    if not _TOKEN.fullmatch(token):
        raise InputError(
            f"the token in {shortened(str(path))} has a character that headers and addresses do "
            "not take unchanged; use letters, digits and - . _ ~"
        )
    return token
