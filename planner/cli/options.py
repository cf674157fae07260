"""Options that several commands share, and the types of their values.

torch, timm and rich are imported when a command runs, so that ``--help`` stays fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from planner.placement.policies import parse_policy, policy_words
from planner.training.images.registry import DATA_NAMES
from profiler.errors import UsageError
from profiler.units import parse_bytes
from profiler.workload import LEVERS, OPTIMIZERS, PRECISIONS

Command = TypeVar("Command", bound=Callable[..., Any])

SIZES = "Sizes: 2GB = 2*10^9 bytes, 2GiB = 2*2^30 bytes, 2048MiB; a plain number is bytes."
"""Last line of the help of commands that take sizes."""


# ---- types of values -----------------------------------------------------------------------------

if TYPE_CHECKING:
    _IntType = click.ParamType[int]
    _TextType = click.ParamType[str]
    _NamesType = click.ParamType[tuple[str, ...]]
    _FloatType = click.ParamType[float]
else:  # generic in the newest click only
    _IntType = _TextType = _NamesType = _FloatType = click.ParamType


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


class Names(_NamesType):
    """Names separated by commas, each once, in the given order."""

    name = "NAMES"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Return the names."""
        if isinstance(value, tuple):
            return value
        return tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))


class PercentNumber(_FloatType):
    """A number of percent above 0, at most 100, such as ``90`` or ``90%``, as that number."""

    name = "PERCENT"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the percent."""
        try:
            number = float(str(value).strip().removesuffix("%"))
        except ValueError:
            number = math.nan
        if not 0 < number <= 100:
            self.fail(f"{value!r} is not above 0 and at most 100; write 90 or 90%", param, ctx)
        return number


class Percent(_FloatType):
    """A share such as ``1%`` or ``0.01``, as a fraction."""

    name = "PERCENT"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the fraction."""
        if isinstance(value, float):
            return value
        text = str(value).strip()
        try:
            return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            self.fail(f"{value!r} is no share; write it as 1% or 0.01", param, ctx)


class Checkpoint(_TextType):
    """A checkpoint policy of the registry (``planner.placement.policies``)."""

    name = "POLICY"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the policy as written, if it is registered."""
        try:
            parse_policy(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)
        return str(value)


class Checkpoints(Names):
    """Checkpoint policies of the registry, separated by commas."""

    name = "POLICIES"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Return the policies as written, if all are registered."""
        words = super().convert(value, param, ctx)
        return tuple(Checkpoint().convert(word, param, ctx) for word in words)


POLICY_WORDS = (
    f"{', '.join(policy_words(needs_budget=False))}; "
    f"with a memory budget also {', '.join(policy_words(needs_budget=True))}"
)
"""Every checkpoint policy, for help texts; K stands for a number of units."""


# ---- shared options ------------------------------------------------------------------------------

positive = click.IntRange(min=1)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object; all else goes to stderr."
)

progress_option = click.option(
    "--progress",
    "progress",
    type=click.Choice(["bar", "events", "none"]),
    help="Progress on stderr: a bar (lines if it is no terminal), JSON events, or none. "
    "[default: bar, with --json none]",
)

model_option = click.option(
    "--model", required=True, help="Backbone: a timm name or an alias of `budgetplan models`."
)

_OWN_DEVICE = "budgetplan.device"
"""Key in click's context: name of the device of ``--device-spec``."""


def _adopt_own_device(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Make a user's own device known before ``--device`` is read."""
    if path is None:
        return
    from profiler.devices.device_file import read_device
    from profiler.devices.table import adopt

    spec = read_device(path)
    adopt(spec)
    ctx.meta[_OWN_DEVICE] = spec.name


def _device_or_own(ctx: click.Context, _: click.Parameter, name: str) -> str:
    own = ctx.meta.get(_OWN_DEVICE)
    if own is None:
        return name
    if name not in {"auto", own}:
        raise click.UsageError(f"--device {name} and --device-spec name two devices; leave one out")
    return str(own)


_DATA_OF_CLASSES = "budgetplan.data"
"""Key in click's context: data set whose classes are counted."""


def _keep_data(ctx: click.Context, _: click.Parameter, data: str | None) -> None:
    """Keep ``--data`` until ``--num-classes`` is read; ``--help`` must not read the data."""
    ctx.meta[_DATA_OF_CLASSES] = data


def _classes_of_data(ctx: click.Context, param: click.Parameter, number: int) -> int:
    """Return the number of classes of ``--data``, or the given one without it."""
    data: str | None = ctx.meta.get(_DATA_OF_CLASSES)
    if data is None or ctx.resilient_parsing:
        return number
    from planner.api.arguments import classes_of

    classes = classes_of(data)
    is_given = param.name and ctx.get_parameter_source(param.name) is not ParameterSource.DEFAULT
    if is_given and number != classes:
        raise click.UsageError(
            f"--num-classes {number} and --data {data} with {classes} classes differ; leave one out"
        )
    return classes


plan_argument = click.argument("plan", type=click.Path(path_type=Path))


def data_option(*, default: str | None = None, unless: str = "") -> Callable[[Command], Command]:
    """Return the option of a data set or folder.

    Args:
        default: data set without the option; None for none.
        unless: the default in words, if ``default`` is None.
    """
    end = f" [default: {unless}]" if unless else ""
    return click.option(
        "--data",
        default=default,
        show_default=True,
        help=f"Data set: {DATA_NAMES}, or a folder with one subfolder for each class.{end}",
    )


part_option = click.option(
    "--part",
    type=click.Choice(["test", "selection"]),
    default="test",
    show_default=True,
    help="Part of the data set.",
)

own_device_option = click.option(
    "--device-spec",
    type=click.Path(path_type=Path, dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=_adopt_own_device,
    help="File of a GPU that the table lacks; `budgetplan devices NAME --json` prints rows to "
    "start from.",
)


def device_option(command: Command) -> Command:
    """Add the options that name a device: ``--device`` and ``--device-spec``."""
    named = click.option(
        "--device",
        default="auto",
        show_default=True,
        callback=_device_or_own,
        help="Device to plan for or to run on: auto (this machine's GPU, else the RTX 2060 SUPER), "
        "cpu, or a name of `budgetplan devices`.",
    )
    return named(own_device_option(command))


def planned_device_option(command: Command) -> Command:
    """Add the same options to a command whose default is the device of a plan file."""
    named = click.option(
        "--device",
        default="auto",
        show_default=True,
        callback=_device_or_own,
        help="Device to predict for, a name of `budgetplan devices`; auto takes the plan's.",
    )
    return named(own_device_option(command))


def replay_file_options(command: Command) -> Command:
    """Add the options that write a replay to files for other viewers."""
    file = click.Path(path_type=Path, dir_okay=False)
    snapshot = click.option(
        "--snapshot",
        type=file,
        help="Write the replay as a memory snapshot that PyTorch's memory_viz opens.",
    )
    perfetto = click.option(
        "--perfetto", type=file, help="Write the replay as a JSON trace that Perfetto opens."
    )
    return snapshot(perfetto(command))


storage_option = click.option(
    "--storage",
    envvar="BUDGETPLAN_STORAGE",
    help="URL of the study's storage: SQLAlchemy's, journal:///FILE or grpc://HOST:PORT. The "
    "environment variable BUDGETPLAN_STORAGE keeps a password out of the list of processes. "
    "[default: sqlite:///studies/NAME.db]",
)

at_once_option = click.option(
    "--at-once",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Questions that run at once, each in a process of its own.",
)

workers_option = click.option(
    "--workers",
    is_flag=True,
    help="Leave the run to a worker (`budgetplan worker`) of --study on --storage, and wait.",
)

worker_study_option = click.option(
    "--study", help="Name of the study whose workers make the run, with --workers."
)

image_size_option = click.option(
    "--image-size",
    type=positive,
    help="Height and width of the input in pixels. [default: the model's own]",
)

weights_option = click.option(
    "--weights",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of weights: safetensors, a torch state dict or a checkpoint; FILE::model_ema takes "
    "an entry of a checkpoint, such as averaged weights. [default: timm's pretrained weights]",
)

this_device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="Device of this machine: auto (its GPU, else the CPU), cpu, or the GPU's name.",
)

run_device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Device of the forward; auto takes a GPU if there is one.",
)

pretrained_option = click.option(
    "--pretrained/--no-pretrained",
    default=True,
    help="Load timm's pretrained weights if they can be reached, or use random weights. "
    "[default: pretrained]",
)

seed_option = click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Seed for weights, data order and the search.",
)

threshold_option = click.option(
    "--threshold",
    type=click.FloatRange(min=0, min_open=True),
    default=0.5,
    show_default=True,
    help="Share of the budget at which the policy adaptive starts to recompute.",
)


power_limit_option = click.option(
    "--power-limit",
    type=click.FloatRange(min=0, min_open=True),
    metavar="WATTS",
    help="Power limit of the GPU, 60 to 100 percent of the board's own, that time and energy are "
    "predicted for. [default: the board's own]",
)


served_root_option = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("served"),
    show_default=True,
    help="Folder of all questions and answers.",
)

token_file_option = click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the token that every request must carry; needed for other addresses.",
)


def size_option(
    name: str, *, text: str, required: bool = False, default: str | None = None
) -> Callable[[Command], Command]:
    """Return an option that takes a size."""
    # click takes an explicit default of None for a value, and asks for nothing then
    given: dict[str, Any] = {} if default is None else {"default": default}
    return click.option(name, type=Size(), required=required, show_default=True, help=text, **given)


_METHOD_OPTIONS = (
    click.option(
        "--rank",
        type=positive,
        help="Rank of a low-rank method, width of an adapter, or number of prompts. "
        "[default: the method's own]",
    ),
    click.option("--alpha", type=float, help="Scaling numerator of LoRA. [default: 2 x rank]"),
    click.option(
        "--dropout",
        type=float,
        default=0.0,
        show_default=True,
        help="Dropout rate on the adapter's input.",
    ),
    click.option(
        "--targets",
        type=Names(),
        help="Module-name suffixes to adapt, separated by commas. [default: the method's own]",
    ),
    click.option(
        "--frozen-batch-norm",
        is_flag=True,
        help="Keep BatchNorm's running statistics, also where its scale and shift learn.",
    ),
)

_STEP_OPTIONS = (
    click.option(
        "--accumulate",
        type=positive,
        default=1,
        show_default=True,
        help="Micro-batches in an optimizer step.",
    ),
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default="fp32",
        show_default=True,
        help="Precision of the computation; bf16 and fp16 use autocast.",
    ),
    click.option(
        "--optimizer",
        type=click.Choice(OPTIMIZERS),
        default="adamw",
        show_default=True,
        help="Optimizer; adamw8bit is that of bitsandbytes, adamw_host keeps its state in the "
        "host's memory.",
    ),
    click.option(
        "--levers",
        type=Names(),
        default="",
        metavar="LIST",
        help=f"Settings of speed: {', '.join(LEVERS)}. [default: none]",
    ),
)

_WORKLOAD_OPTIONS = (
    model_option,
    click.option("--method", required=True, help="Fine-tuning method of `budgetplan methods`."),
    *_METHOD_OPTIONS,
    click.option("--batch-size", type=positive, required=True, help="Images in a micro-batch."),
    *_STEP_OPTIONS,
    image_size_option,
    click.option(
        "--data",
        is_eager=True,
        expose_value=False,
        callback=_keep_data,
        help=f"Data set whose number of classes the classifier has, in place of --num-classes: "
        f"{DATA_NAMES}, or a folder with one subfolder for each class. Its images are not used: a "
        "step needs the same for any.",
    ),
    click.option(
        "--num-classes",
        type=positive,
        default=1000,
        show_default=True,
        callback=_classes_of_data,
        help="Number of classes of the classifier.",
    ),
    click.option(
        "--checkpoint",
        type=Checkpoint(),
        default="none",
        show_default=True,
        help=f"Checkpoint policy: {POLICY_WORDS}.",
    ),
    threshold_option,
)


def grid_workload_options(command: Command) -> Command:
    """Add the options of a workload that all cells of a grid share."""
    own = (
        click.option(
            "--batch-size",
            type=positive,
            default=32,
            show_default=True,
            help="Images in a micro-batch.",
        ),
        click.option(
            "--num-classes",
            type=positive,
            default=100,
            show_default=True,
            help="Number of classes of the classifier.",
        ),
    )
    shared = (*_METHOD_OPTIONS, *own, *_STEP_OPTIONS, image_size_option, threshold_option)
    for option in reversed(shared):
        command = option(command)
    return command


def workload_options(command: Command) -> Command:
    """Add the options that describe one workload, its device and its budget."""
    budget = size_option("--vram", text="Budget of device memory, the CUDA context included.")
    for option in reversed(
        (*_WORKLOAD_OPTIONS, budget, device_option, progress_option, json_option)
    ):
        command = option(command)
    return command
