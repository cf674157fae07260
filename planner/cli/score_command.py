"""The command score: NetScore and its variants from numbers, a plan or a trained folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from planner.cli.options import json_option
from planner.cli.output import console, print_json


@click.command()
@click.argument("target", required=False, type=click.Path(path_type=Path))
@click.option("--accuracy", type=float, help="Top-1 accuracy in percent. [default: TARGET's]")
@click.option("--parameters", type=float, help="Number of parameters of the model.")
@click.option("--macs", type=float, help="Multiply-accumulates of one inference.")
@click.option("--flops", type=float, help="Floating-point operations of one inference.")
@click.option("--inference-seconds", type=float, help="Inference time of the whole test set.")
@click.option("--inference-watts", type=float, help="Average power during inference.")
@click.option("--inference-peak-mib", type=float, help="Peak memory of inference in MiB.")
@click.option("--energy-joules", type=float, help="Energy of the whole run in joules.")
@json_option
def score(
    target: Path | None, accuracy: float | None, as_json: bool, **numbers: float | None
) -> None:
    """Compute NetScore, its variants, SAM and PPT.

    The numbers are those of TARGET, a plan file or the folder of a training; an option replaces one
    of them. Without TARGET, --accuracy is needed.
    """
    from planner.scoring.netscore import compute_scores

    known = _known_numbers(target, {"accuracy_percent": accuracy, **numbers})
    if "accuracy_percent" not in known:
        raise click.UsageError(
            "Missing option '--accuracy'."
            if target is None
            else f"{target} has no accuracy that can rank models; give --accuracy"
        )
    result = compute_scores(**known)
    missing = _missing(known, result.to_json())
    if as_json:
        print_json(result.to_json() | {"missing": missing})
    elif all(value is None for value in result.to_json().values()):
        raise click.UsageError(
            "an accuracy alone gives no score: NetScore needs --parameters and --macs, NS-M"
            " --inference-seconds, --inference-watts and --inference-peak-mib, SAM --energy-joules"
        )
    else:
        from planner.cli.list_tables import score_columns
        from planner.cli.table_layout import show_table

        show_table(score_columns(result), console())
        if missing:
            lacking = "; ".join(f"{name}: {', '.join(of)}" for name, of in missing.items())
            click.echo(f"\nNot computed, for lack of: {lacking}")


def _known_numbers(target: Path | None, given: Mapping[str, float | None]) -> dict[str, float]:
    if target is None:
        numbers = {}
    else:
        from planner.recommendation.score_inputs import score_inputs

        numbers = score_inputs(target)
    return numbers | {name: value for name, value in given.items() if value is not None}


def _missing(
    known: Mapping[str, float], scores: Mapping[str, float | None]
) -> dict[str, list[str]]:
    """Return the numbers that each score lacks; SAM is named once."""
    from planner.scoring.netscore import FORMULAS

    found: dict[str, list[str]] = {}
    for name, (_, needs) in FORMULAS.items():
        lacking = [need for need in needs if need not in known]
        if scores[name] is None and lacking:
            found["sam" if name.startswith("sam_") else name] = lacking
    return found
