"""``predict --module``: memory of a training step of a user's own module."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner import api
from planner.cli.options import SIZES, device_option, json_option, replay_file_options, size_option
from planner.cli.output import print_json
from profiler.errors import InfeasibleError, UsageError
from profiler.units import DeviceBytes, format_bytes

if TYPE_CHECKING:
    from profiler.prediction.module_estimate import ModuleEstimate

SHOWN_TENSORS = 12
"""Tensors at the peak that are printed; ``--json`` has all."""

MODULE_HELP = (
    "Module of your own in place of --model, as PACKAGE:FACTORY. The factory returns "
    "(module, batch), (module, batch, loss), or a mapping of arguments of planner.estimate; only "
    "--optimizer, --precision, --device and --vram apply."
)


class PredictCommand(click.Command):
    """The command ``predict``, which hands ``--module`` to a command of its own."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:  # fmt: skip
        """Return the context of the command that the arguments mean."""
        has_module = any(arg.partition("=")[0] == "--module" for arg in args)
        if has_module and not {"--help", "-h"} & set(args):
            return predict_module.make_context(info_name, args, parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command(epilog=SIZES)
@click.option("--module", required=True, metavar="PACKAGE:FACTORY", help=MODULE_HELP)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    help="Precision of the computation; bf16 and fp16 use autocast. "
    "[default: the factory's, or fp32]",
)
@click.option(
    "--optimizer",
    type=click.Choice(["adamw", "sgd", "none"]),
    help="Optimizer. [default: the factory's, or adamw]",
)
@size_option("--vram", text="Budget of device memory, the CUDA context included.")
@device_option
@replay_file_options
@json_option
def predict_module(
    *,
    module: str,
    precision: str | None,
    optimizer: str | None,
    vram: int | None,
    device: str,
    snapshot: Path | None,
    perfetto: Path | None,
    as_json: bool,
) -> None:
    """Predict the memory of a training step of a module of your own; nothing is run."""
    from planner.cost.fit_probability import context_clause

    arguments = made_by_factory(module)
    given = {"precision": precision, "optimizer": optimizer}
    arguments |= {name: value for name, value in given.items() if value is not None}
    found = api.estimate(**arguments, device=device, snapshot=snapshot, perfetto=perfetto)
    error = None
    if vram is not None and not found.fits(vram):
        need = found.needed_bytes
        error = InfeasibleError(
            budget_bytes=DeviceBytes(vram),
            smallest_bytes=DeviceBytes(need),
            context=context_clause(found.device, need, vram, at_risk=False),
        )
    if as_json:
        print_json(found.to_json() | ({} if error is None else {"error": error.to_json()}))
    else:
        _show_estimate(found)
    if error is not None:
        raise error


def made_by_factory(address: str) -> dict[str, Any]:
    """Import and call a factory; return the arguments of ``planner.estimate``.

    Raises:
        UsageError: there is no such factory, it fails, or it returns something else.
    """
    package, _, name = address.partition(":")
    if not package or not name:
        raise UsageError(f"--module must be PACKAGE:FACTORY, got {address!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")  # modules of the folder that the command runs in
    try:
        made = getattr(import_module(package), name)()
    except Exception as error:  # the code of a user
        raise UsageError(f"--module {address}: {type(error).__name__}: {error}") from error
    if isinstance(made, tuple | list) and len(made) in (2, 3):
        return dict(zip(("module", "batch", "loss"), made, strict=False))
    allowed = {"module", "batch", "loss", "optimizer", "precision"}
    if isinstance(made, dict) and {"module", "batch"} <= made.keys() <= allowed:
        return dict(made)
    raise UsageError(
        f"--module {address}: the factory must return (module, batch), (module, batch, loss), or a "
        f"mapping with module, batch and optionally loss, optimizer and precision; got "
        f"{type(made).__name__}"
    )


def _show_estimate(found: ModuleEstimate) -> None:
    memory = found.memory
    click.echo(f"replayed for {found.device.full_name}")
    click.echo(f"peak {format_bytes(memory.peak_bytes)}, in {found.phase}")
    if memory.reserved_bytes is not None:
        click.echo(
            f"reserved {format_bytes(memory.reserved_bytes)}, device memory "
            f"{format_bytes(memory.device_bytes)}"
        )
    click.echo("largest tensors at the peak")
    for tensor in found.tensors[:SHOWN_TENSORS]:
        made = tensor.name or " ".join(filter(None, [tensor.module, tensor.operation]))
        shape = f" {list(tensor.shape)}" if tensor.shape else ""
        click.echo(f"  {format_bytes(tensor.nbytes):>10}  {tensor.owner:<10}  {made}{shape}")
    for note in found.notes:
        click.echo(f"note: {note}")
