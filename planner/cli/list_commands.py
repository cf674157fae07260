"""Commands that list names: models, methods, devices."""

from __future__ import annotations

from dataclasses import asdict

import click

from planner.cli.options import json_option
from planner.cli.output import console, print_json


@click.command()
@click.argument("pattern", default="")
@json_option
def models(pattern: str, as_json: bool) -> None:
    """List backbones whose name contains PATTERN.

    Without PATTERN the aliases are listed.
    """
    from planner.cli.list_tables import alias_columns
    from planner.cli.table_layout import show_table
    from profiler.models.backbones import ALIASES, model_names

    aliases = {a: m for a, m in sorted(ALIASES.items()) if pattern in a or pattern in m}
    names = model_names(pattern) if pattern or as_json else []
    if pattern and not names and not aliases:
        raise click.UsageError(f"no backbone's name contains {pattern!r}")
    if as_json:
        print_json({"schema": "budgetplan.models/1", "models": names, "aliases": aliases})
        return
    if names:
        for name in names:
            click.echo(name)
        return
    show_table(alias_columns(aliases), console())
    if pattern:
        return
    click.echo(f"\n  and {len(model_names())} names; `budgetplan models PATTERN` lists them")


@click.command()
@click.argument("name", required=False)
@click.option("--model", help="Backbone: show for each method whether it works on it.")
@click.option("--matrix", is_flag=True, help="Show every method on every backbone of the tests.")
@json_option
def methods(name: str | None, model: str | None, matrix: bool, as_json: bool) -> None:
    """List the fine-tuning methods, or describe the method NAME."""
    from profiler.errors import UsageError

    if matrix and (name or model):
        raise UsageError("--matrix shows every method and backbone; leave NAME and --model out")
    if matrix:
        _show_matrix(as_json=as_json)
    elif name is not None:
        _show_method(name, model, as_json=as_json)
    else:
        _list_methods(model, as_json=as_json)


def _show_matrix(*, as_json: bool) -> None:
    from planner.cli.list_tables import show_matrix
    from planner.methods.matrix import load_matrix

    known = load_matrix()
    if as_json:
        print_json(known.to_json())
    else:
        show_matrix(known, console())


def _show_method(name: str, model: str | None, *, as_json: bool) -> None:
    from planner.cli.list_tables import show_method
    from planner.methods.describe import method_facts

    facts = method_facts(name, model=model)
    if as_json:
        print_json(facts.to_json())
    else:
        show_method(facts, console())


def _list_methods(model: str | None, *, as_json: bool) -> None:
    from planner.cli.list_tables import method_columns
    from planner.cli.table_layout import show_table
    from profiler.models.methods import method_infos

    infos = method_infos()
    refused = {} if model is None else _refused(model, [info.name for info in infos])
    if as_json:
        rows = [asdict(info) | {"refused": refused.get(info.name)} for info in infos]
        print_json({"schema": "budgetplan.methods/1", "methods": rows})
    else:
        show_table(method_columns(infos, refused), console())


def _refused(model: str, names: list[str]) -> dict[str, str]:
    from planner.search.space import working_methods
    from profiler.models import backbones
    from profiler.workload import Workload

    canonical = backbones.resolve(model)
    size = backbones.native_image_size(canonical)
    return working_methods(Workload(model=canonical, image_size=size), names)[1]


@click.command()
@click.argument("pattern", default="")
@json_option
def devices(pattern: str, as_json: bool) -> None:
    """List the known devices, and the GPU of this machine.

    With PATTERN only those whose name contains it are listed.
    """
    from profiler.devices.nvml import detect_gpu
    from profiler.devices.table import DEVICES

    gpu = detect_gpu()
    here = None if gpu is None else gpu.spec.name
    found = [spec for spec in DEVICES.values() if pattern.lower() in spec.name]
    if not found:
        raise click.UsageError(f"no device's name contains {pattern!r}")
    if as_json:
        rows = [asdict(spec) for spec in found]
        print_json({"schema": "budgetplan.devices/1", "devices": rows, "here": here})
        return
    from planner.cli.list_tables import device_columns
    from planner.cli.table_layout import show_table

    screen = console()
    show_table(device_columns(found, here=here, width=screen.width), screen)
