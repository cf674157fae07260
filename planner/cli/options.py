"""What the commands share: sizes, the options of a workload, devices, progress, one-line errors.

Only click is imported here; torch, timm and rich come in when a command runs, so that ``--help``
answers at once.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from planner.cost.place_by_policy import BUDGET_FREE, BUDGETED, POLICIES_WITHOUT_COUNT, place
from profiler.errors import BudgetplanError, InfeasibleError
from profiler.units import parse_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from planner.recommendation.request import Notify
    from profiler.workload import Candidate, Workload

Command = TypeVar("Command", bound=Callable[..., Any])

INTERRUPTED = 130  # 128 + SIGINT, as shells report it

SECONDS_BETWEEN_LINES = 20

SIZES = "Sizes: 2GB = 2*10^9 bytes, 2GiB = 2*2^30 bytes, 2048MiB; a plain number is bytes."


# ---- errors --------------------------------------------------------------------------------------


class _Refusal(click.ClickException):
    """One of our errors as click prints it: one line, and the exit code of the contract."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(" ".join(message.split()))
        self.__dict__["exit_code"] = exit_code  # a class variable in click's type hints

    def show(self, file: Any = None) -> None:
        click.echo(f"budgetplan: {self.message}", err=True)


class Commands(click.Group):
    """A group whose commands end with one line and the right exit code, whatever happens."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            click.echo("budgetplan: stopped", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None
        except BudgetplanError as error:
            if os.environ.get("BUDGETPLAN_DEBUG"):
                raise
            raise _Refusal(str(error), exit_code=error.exit_code) from error
        except Exception as error:
            if os.environ.get("BUDGETPLAN_DEBUG"):
                raise
            text = f"internal error, please report it: {type(error).__name__}: {error}"
            raise _Refusal(text, exit_code=1) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; an unknown one gets near names."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=2, cutoff=0.5)
            advice = f"did you mean {' or '.join(near)}?" if near else "see budgetplan --help"
            raise click.UsageError(f"unknown command {args[0]!r}; {advice}", ctx) from None


# ---- kinds of values -----------------------------------------------------------------------------

if TYPE_CHECKING:
    _IntType = click.ParamType[int]
    _TextType = click.ParamType[str]
else:  # generic in the newest click only
    _IntType = _TextType = click.ParamType


class Size(_IntType):
    """A number of bytes: 2GB, 2GiB, 2048MiB."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes."""
        if isinstance(value, int):
            return value
        try:
            return parse_bytes(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Checkpoint(_TextType):
    """A policy: one of ``BUDGET_FREE``, with a number for K, or of ``BUDGETED``."""

    name = "POLICY"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the policy as written, if there is such a one."""
        counted = re.fullmatch(r"(every|first|last)-(\d+)", value)
        if counted is None and value not in (*POLICIES_WITHOUT_COUNT, *BUDGETED):
            known = ", ".join((*BUDGET_FREE, *BUDGETED))
            self.fail(f"{value!r} is no policy; use one of {known}", param, ctx)
        return str(value)


def size_option(name: str, *, required: bool = False, text: str) -> Callable[[Command], Command]:
    """Return an option that takes a size."""
    return click.option(name, type=Size(), required=required, help=text)


device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="What to plan for, or to run on: auto (this machine's GPU, else the RTX 2060 SUPER), cpu, "
    "or a name of `budgetplan devices`.",
)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object; all else goes to stderr."
)

weights_option = click.option(
    "--weights",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of weights: safetensors, or a torch state dict. [default: pretrained through timm]",
)

pretrained_option = click.option(
    "--pretrained/--no-pretrained",
    default=True,
    help="Whether to try timm's weights. [default: pretrained]",
)

data_option = click.option(
    "--data",
    default="digits",
    show_default=True,
    help="digits, cifar100, dtd, or a folder of class folders.",
)

seed_option = click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of everything random.",
)

threshold_option = click.option(
    "--threshold",
    type=click.FloatRange(min=0, min_open=True),
    default=0.5,
    show_default=True,
    help="Of adaptive: the share of the budget at which it starts to recompute.",
)

_WORKLOAD_OPTIONS = (
    click.option("--model", required=True, help="A timm name or an alias of `budgetplan models`."),
    click.option("--method", required=True, help="One of `budgetplan methods`."),
    click.option("--rank", type=click.IntRange(min=1), help="[default: the method's own]"),
    click.option("--alpha", type=float, help="LoRA's scaling numerator. [default: 2 x rank]"),
    click.option("--dropout", type=float, default=0.0, help="On the adapter's input."),
    click.option("--targets", help="Module-name suffixes to adapt, separated by commas."),
    click.option(
        "--batch-size", type=click.IntRange(min=1), required=True, help="Images in a micro-batch."
    ),
    click.option(
        "--accumulate",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Micro-batches in an optimizer step.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "bf16", "fp16"]),
        default="fp32",
        show_default=True,
        help="bf16 and fp16 are autocast.",
    ),
    click.option(
        "--optimizer",
        type=click.Choice(["adamw", "sgd", "adamw8bit"]),
        default="adamw",
        show_default=True,
    ),
    click.option("--image-size", type=click.IntRange(min=1), help="[default: the model's own]"),
    click.option("--num-classes", type=click.IntRange(min=1), default=1000, show_default=True),
    click.option(
        "--checkpoint",
        type=Checkpoint(),
        default="none",
        show_default=True,
        help=f"{', '.join(BUDGET_FREE)}; with --vram also {', '.join(BUDGETED)}.",
    ),
    threshold_option,
    size_option("--vram", text="The budget, the CUDA context included."),
    device_option,
    json_option,
)


def workload_options(command: Command) -> Command:
    """Add every option that says what is run, where, and how it is printed."""
    for option in reversed(_WORKLOAD_OPTIONS):
        command = option(command)
    return command


def workload_of(options: Mapping[str, Any]) -> Workload:
    """Return the workload that the options of a command spell.

    Raises:
        UsageError: a name or a value that makes no sense.
    """
    from profiler.models import backbones
    from profiler.models.methods import get_method
    from profiler.workload import Workload

    model = backbones.resolve(options["model"])
    targets = options.get("targets")
    load = Workload(
        model=model,
        method=options["method"],
        rank=options.get("rank"),
        alpha=options.get("alpha"),
        dropout=options.get("dropout", 0.0),
        targets=None if targets is None else tuple(t.strip() for t in targets.split(",") if t),
        micro_batch=options["batch_size"],
        accumulation=options["accumulate"],
        precision=options["precision"],
        optimizer=options["optimizer"],
        image_size=options.get("image_size") or backbones.native_image_size(model),
        num_classes=options["num_classes"],
    )
    return get_method(load.method).resolve(load)


def candidate_of(options: Mapping[str, Any], *, device: str) -> Candidate:
    """Return the workload with the placement that ``--checkpoint`` asks for.

    Raises:
        UsageError: a policy that needs a budget and has none.
        InfeasibleError: an exact policy, and nothing fits.
    """
    return place(
        workload_of(options),
        options["checkpoint"],
        device=device,
        budget=options["vram"],
        threshold=options["threshold"],
    )


# ---- output --------------------------------------------------------------------------------------


def print_json(data: Mapping[str, Any]) -> None:
    """Print the one object on stdout."""
    click.echo(json.dumps(dict(data), indent=1, allow_nan=False))


def console() -> Console:
    """Return stdout for tables."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


@contextmanager
def progress_bar(*, silent: bool) -> Iterator[Notify]:
    """Show what is being done on stderr: a bar, or now and then a line where it is no terminal.

    Args:
        silent: show nothing.
    """
    if silent:
        yield lambda stage, text, fraction: None
        return
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.fields[stage]:>8}"),
        BarColumn(bar_width=20),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        tasks: dict[str, TaskID] = {}

        def notify(stage: str, text: str, fraction: float) -> None:
            if stage not in tasks:
                for done in tasks.values():
                    bar.update(done, completed=1.0, visible=False)
                tasks[stage] = bar.add_task(text, total=1.0, stage=stage)
            bar.update(tasks[stage], description=text, completed=fraction)

        yield notify


class _Lines:
    """Writes what is being done, once in ``SECONDS_BETWEEN_LINES``."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def __call__(self, stage: str, text: str, fraction: float) -> None:
        now = time.monotonic()
        if now - self._told >= SECONDS_BETWEEN_LINES:
            click.echo(f"budgetplan: {stage}: {text}, {fraction:.0%}", err=True)
            self._told = now


def does_not_fit(need_bytes: int, *, budget_bytes: int, advice: str) -> InfeasibleError:
    """Return the error for one candidate that exceeds a budget."""
    return InfeasibleError(
        budget_bytes=budget_bytes,
        smallest_bytes=need_bytes,
        advice=advice,
        subject="it does not fit",
    )
