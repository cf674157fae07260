"""The group of all commands: one-line errors, exit codes and warnings.

With ``--json`` a command that fails prints an object ``budgetplan.error/1`` on stdout. If it has
printed its own object before, that object has the key ``error`` instead.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

import click

from planner.cli.help_sections import write_commands
from planner.cli.output import has_printed_json, json_text
from profiler.device_rules.caching_allocator import configure
from profiler.errors import BudgetplanError, BudgetplanWarning, error_object, printable_line
from profiler.json_records import shortened
from profiler.running.process_end import exit_code_of, termination_raises

EPILOG = (
    "Exit codes: 0 done, 1 internal error, 2 usage, 3 nothing fits the budget, 4 bad input, 5 no "
    "such device here, 6 a measurement failed, 130 interrupted (143 SIGTERM, 129 SIGHUP). With the "
    "environment variable BUDGETPLAN_DEBUG=1 an error shows its traceback."
)

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Errors of a write without the name of a file: standard output is one on a full disk."""


class _OneLineError(click.ClickException):
    """An error of this program as click prints it: one line and its exit code.

    Attributes:
        data: object for stdout with ``--json``; None if the command printed its own object.
    """

    def __init__(
        self, message: str, *, kind: str, exit_code: int, error: BudgetplanError | None = None
    ) -> None:
        super().__init__(" ".join(message.split()))
        self.__dict__["exit_code"] = exit_code  # a class variable in click's type hints
        self.data: Mapping[str, Any] | None = None
        if not has_printed_json():
            plain = error_object(kind, self.message, exit_code=exit_code)
            self.data = plain if error is None else error.to_json()

    def show(self, file: IO[Any] | None = None) -> None:
        with contextlib.suppress(OSError):  # after SIGHUP the terminal may be gone
            click.echo(f"budgetplan: {self.message}", err=True)


class CommandGroup(click.Group):
    """A group whose commands end every error with one line and an exit code of the contract."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """Run the command line; with ``--json`` an error is also an object on stdout."""
        run: Callable[..., Any] = super().main
        given = list(sys.argv[1:] if args is None else args)
        if "--json" not in given or not options.get("standalone_mode", True):
            return run(args, *rest, **options)
        try:
            code = run(args, *rest, **options | {"standalone_mode": False})
        except click.ClickException as error:
            error.show()
            data = error.data if isinstance(error, _OneLineError) else None
            if data is not None:
                with contextlib.suppress(OSError):  # what cannot be written may be the output
                    click.echo(json_text(data))
            sys.exit(error.exit_code)
        except click.Abort:
            sys.exit(1)
        sys.exit(code if isinstance(code, int) else 0)

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Read the arguments before a command."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            raise _in_one_line(error, info_name or "") from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        configure(os.environ)  # PyTorch reads the options when it first uses CUDA
        show_traceback = bool(os.environ.get("BUDGETPLAN_DEBUG"))
        try:
            with _warnings_in_one_line(), termination_raises():
                return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException, BrokenPipeError) as error:
            if isinstance(error, click.UsageError):
                command = " ".join(filter(None, (ctx.command_path, ctx.invoked_subcommand)))
                raise _in_one_line(error, command) from error
            raise
        except KeyboardInterrupt as interrupt:
            # a function that can continue later has added a note with the way to do it
            by = f" by {interrupt}" if str(interrupt) else ""
            text = "; ".join([f"stopped{by}", *getattr(interrupt, "__notes__", ())])
            code = exit_code_of(interrupt)
            raise _OneLineError(text, kind="interrupted", exit_code=code) from None
        except BudgetplanError as error:
            if show_traceback:
                raise
            raise _OneLineError(
                str(error), kind=error.kind, exit_code=error.exit_code, error=error
            ) from error
        except Exception as error:
            if show_traceback:
                raise
            if isinstance(error, OSError) and error.filename is not None:
                # a file that no check expected: a name that is too long, a folder without rights
                raise _OneLineError(_cannot_use(error), kind="input", exit_code=4) from error
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                text = f"cannot write the output: {error.strerror}; free some space"
                raise _OneLineError(text, kind="input", exit_code=4) from error
            text = f"internal error, please report it: {type(error).__name__}: {error}"
            raise _OneLineError(text, kind="internal", exit_code=1) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, section by section."""
        write_commands(formatter, self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; suggest near names for an unknown one."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=2, cutoff=0.5)
            advice = f"; did you mean {' or '.join(near)}?" if near else ""
            raise click.UsageError(f"unknown command {args[0]!r}{advice}", ctx) from None


def _cannot_use(error: OSError) -> str:
    """Return the line for a file that the system refuses."""
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    reason = error.strerror or type(error).__name__
    return printable_line(
        f"cannot use {shortened(str(name))}: {reason}; give another file or folder"
    )


_SUGGESTION = re.compile(r"\. \(?Did you mean (?:one of: )?([^?]*)\?\)?")
"""How click proposes other names, in sentences that differ between its versions."""


def _in_one_line(error: click.UsageError, command: str) -> click.ClickException:
    """Return an error that click found in the arguments, with the command whose help explains them.

    The text may quote a file name, whose characters must not steer the terminal.

    Args:
        error: the error.
        command: command that was called; the error may know a better one.
    """
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error
    text = _SUGGESTION.sub(r"; did you mean \1?", error.format_message()).rstrip(".")
    text = text[:1].lower() + text[1:] + (" " if text.endswith("?") else "; ")
    path = command if error.ctx is None else error.ctx.command_path
    return _OneLineError(
        printable_line(f"{text}see {path} --help"), kind="usage", exit_code=error.exit_code
    )


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print this program's own warnings as one line; leave those of other packages alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", BudgetplanWarning)
        show_others = warnings.showwarning

        def show(  # noqa: PLR0917  # the signature of warnings.showwarning
            message: Warning | str, category: type[Warning], filename: str, lineno: int,
            file: Any = None, line: str | None = None,
        ) -> None:  # fmt: skip
            if issubclass(category, BudgetplanWarning):
                click.echo(f"budgetplan: {message}", err=True)
            else:
                show_others(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield
