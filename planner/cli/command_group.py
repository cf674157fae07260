"""The group of all commands: one-line errors, exit codes and warnings."""

from __future__ import annotations

import contextlib
import difflib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from profiler.errors import BudgetplanError, BudgetplanWarning
from profiler.running.process_end import exit_code_of, termination_raises

EPILOG = (
    "Exit codes: 0 done, 2 usage, 3 nothing fits the budget, 4 bad input, 5 no such device here, "
    "6 a measurement failed, 130 interrupted (143 by SIGTERM, 129 by SIGHUP). With the environment "
    "variable BUDGETPLAN_DEBUG=1 an error shows its traceback."
)


class _OneLineError(click.ClickException):
    """An error of this program as click prints it: one line and its exit code."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(" ".join(message.split()))
        self.__dict__["exit_code"] = exit_code  # a class variable in click's type hints

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"budgetplan: {self.message}", err=True)


class CommandGroup(click.Group):
    """A group whose commands end every error with one line and an exit code of the contract."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        show_traceback = bool(os.environ.get("BUDGETPLAN_DEBUG"))
        try:
            with _warnings_in_one_line(), termination_raises():
                return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException, BrokenPipeError):
            raise
        except KeyboardInterrupt as interrupt:
            # a function that can continue later has added a note with the way to do it
            by = f" by {interrupt}" if str(interrupt) else ""
            notes = getattr(interrupt, "__notes__", ())
            with contextlib.suppress(OSError):  # after SIGHUP the terminal may be gone
                click.echo("; ".join([f"budgetplan: stopped{by}", *notes]), err=True)
            raise click.exceptions.Exit(exit_code_of(interrupt)) from None
        except BudgetplanError as error:
            if show_traceback:
                raise
            raise _OneLineError(str(error), exit_code=error.exit_code) from error
        except Exception as error:
            if show_traceback:
                raise
            text = f"internal error, please report it: {type(error).__name__}: {error}"
            raise _OneLineError(text, exit_code=1) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; suggest near names for an unknown one."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=2, cutoff=0.5)
            advice = f"did you mean {' or '.join(near)}?" if near else "see budgetplan --help"
            raise click.UsageError(f"unknown command {args[0]!r}; {advice}", ctx) from None


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
