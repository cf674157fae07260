"""The command score: NetScore and its variants from given numbers."""

from __future__ import annotations

import click

from planner.cli.options import json_option
from planner.cli.output import console, print_json


@click.command()
@click.option("--accuracy", type=float, required=True, help="Top-1 accuracy in percent.")
@click.option("--parameters", type=float, help="Number of parameters of the model.")
@click.option("--macs", type=float, help="Multiply-accumulates of one inference.")
@click.option("--flops", type=float, help="Floating-point operations of one inference.")
@click.option("--inference-seconds", type=float, help="Inference time of the whole test set.")
@click.option("--inference-watts", type=float, help="Average power during inference.")
@click.option("--inference-peak-mib", type=float, help="Peak memory of inference in MiB.")
@click.option("--energy-joules", type=float, help="Energy of the whole run in joules.")
@json_option
def score(accuracy: float, as_json: bool, **numbers: float | None) -> None:
    """Compute NetScore, its variants, SAM and PPT from numbers."""
    from planner.cli.list_tables import score_columns
    from planner.cli.table_layout import show_table
    from planner.scoring.netscore import compute_scores

    result = compute_scores(accuracy_percent=accuracy, **numbers)
    if as_json:
        print_json(result.to_json())
    elif all(value is None for value in result.to_json().values()):
        raise click.UsageError(
            "an accuracy alone gives no score: NetScore needs --parameters and --macs, NS-M"
            " --inference-seconds, --inference-watts and --inference-peak-mib, SAM --energy-joules"
        )
    else:
        show_table(score_columns(result), console())
