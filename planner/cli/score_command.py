"""The command score: NetScore and its variants from numbers, plans or trained folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.cli.options import json_option
from planner.cli.output import console, print_json
from planner.scoring.netscore import ACCURACY_EXPONENT, DEPLOYMENT_WEIGHT

if TYPE_CHECKING:
    from planner.scoring.sensitivity import WinningRange


@click.command()
@click.argument("targets", nargs=-1, metavar="[TARGET]...", type=click.Path(path_type=Path))
@click.option("--accuracy", type=float, help="Top-1 accuracy in percent. [default: TARGET's]")
@click.option("--parameters", type=float, help="Number of parameters of the model.")
@click.option(
    "--trainable-parameters",
    type=float,
    help="Number of trainable parameters for PPT. [default: TARGET's, else --parameters]",
)
@click.option("--macs", type=float, help="Multiply-accumulates of one inference.")
@click.option("--flops", type=float, help="Floating-point operations of one inference.")
@click.option("--inference-seconds", type=float, help="Inference time of the whole test set.")
@click.option("--inference-watts", type=float, help="Average power during inference.")
@click.option("--inference-peak-mib", type=float, help="Peak memory of inference in MiB.")
@click.option("--energy-joules", type=float, help="Energy of the whole run in joules.")
@click.option(
    "--accuracy-exponent",
    type=click.FloatRange(min=0),
    help=f"Exponent of the accuracy in the training scores. [default: {ACCURACY_EXPONENT}]",
)
@click.option(
    "--cost-exponent",
    type=click.FloatRange(min=0),
    help=f"Exponent of each cost in the training scores. [default: {DEPLOYMENT_WEIGHT}]",
)
@json_option
def score(
    targets: tuple[Path, ...],
    accuracy: float | None,
    accuracy_exponent: float | None,
    cost_exponent: float | None,
    as_json: bool,
    **numbers: float | None,
) -> None:
    """Compute NetScore, SAM, PPT and the training scores.

    The numbers are those of TARGET, a plan file or the folder of a training; an option replaces one
    of them. Without TARGET, --accuracy is needed. Of several TARGETs, the training scores are
    compared: the output names the winner for each weight of the costs.
    """
    if not targets and (accuracy_exponent is not None or cost_exponent is not None):
        raise click.UsageError(
            "the exponents are those of the training scores, which need a TARGET; the published "
            "scores keep theirs"
        )
    exponents = (
        ACCURACY_EXPONENT if accuracy_exponent is None else accuracy_exponent,
        DEPLOYMENT_WEIGHT if cost_exponent is None else cost_exponent,
    )
    if len(targets) > 1:
        if accuracy is not None or any(value is not None for value in numbers.values()):
            raise click.UsageError(
                "several plans are compared by their own numbers; give one TARGET with options"
            )
        _show_comparison(targets, *exponents, as_json=as_json)
        return
    target = targets[0] if targets else None
    known = _known_numbers(target, {"accuracy_percent": accuracy, **numbers})
    if "accuracy_percent" not in known:
        raise click.UsageError(
            "Missing option '--accuracy'."
            if target is None
            else f"{target} has no accuracy that can rank models; give --accuracy"
        )
    images = None if target is None or accuracy is not None else _images_of(target)
    _show_one(target, known, exponents, images=images, as_json=as_json)


def _images_of(target: Path) -> int | None:
    from planner.recommendation.score_inputs import accuracy_images

    return accuracy_images(target)


def _show_one(
    target: Path | None,
    known: Mapping[str, float],
    exponents: tuple[float, float],
    *,
    images: int | None,
    as_json: bool,
) -> None:
    from planner.scoring.counted_accuracy import counted_interval, counted_text
    from planner.scoring.netscore import compute_scores

    result = compute_scores(**known)
    missing = _missing(known, result.to_json())
    training = _training_scores(target, known["accuracy_percent"], exponents)
    fraction = known["accuracy_percent"] / 100
    if as_json:
        ends = None if images is None else counted_interval(fraction, images=images)
        counted = {
            "accuracy_percent": known["accuracy_percent"],
            "test_images": images,
            "accuracy_interval_percent": None if ends is None else [100 * end for end in ends],
        }
        print_json(result.to_json() | {"missing": missing, "training": training} | counted)
        return
    values = [*result.to_json().values(), *(training or {}).values()]
    if all(value is None for value in values):
        raise click.UsageError(
            "an accuracy alone gives no score: NetScore needs --parameters and --macs, NS-E"
            " --inference-seconds and --inference-watts, NS-M --inference-peak-mib, NS# these"
            " three, SAM --energy-joules"
        )
    from planner.cli.list_tables import score_columns, training_score_columns
    from planner.cli.table_layout import show_table

    if images is not None:
        text = counted_text(fraction, images=images)
        click.echo(f"accuracy: {text} of {images:,} test images\n")
    show_table(score_columns(result, fraction, images), console())
    if training is not None:
        click.echo("\nOf this project, by the predicted cost of training:")
        show_table(training_score_columns(training, exponents, fraction, images), console())
    if missing:
        lacking = "; ".join(f"{name}: {', '.join(of)}" for name, of in missing.items())
        click.echo(f"\nNot computed, for lack of: {lacking}")


def _training_scores(
    target: Path | None, accuracy_percent: float, exponents: tuple[float, float]
) -> dict[str, float | None] | None:
    """Return the training scores of a plan; None without one."""
    if target is None:
        return None
    from planner.recommendation.compare_scores import training_costs
    from planner.recommendation.score_inputs import read_scored_plan
    from planner.scoring.training_scores import training_scores

    plan = read_scored_plan(target)
    return training_scores(
        training_costs(plan),
        accuracy_percent=accuracy_percent,
        accuracy_exponent=exponents[0],
        cost_exponent=exponents[1],
    ).to_json()


def _show_comparison(
    targets: tuple[Path, ...], accuracy_exponent: float, cost_exponent: float, *, as_json: bool
) -> None:
    """Print the training scores of several plans, and the winners by the weight of the costs."""
    from planner.recommendation.compare_scores import compare_plans, differences, read_score_target
    from planner.scoring.training_scores import training_scores

    read = [read_score_target(path) for path in targets]
    scores = [
        training_scores(
            each.costs,
            accuracy_percent=each.accuracy_percent,
            accuracy_exponent=accuracy_exponent,
            cost_exponent=cost_exponent,
        ).to_json()
        for each in read
    ]
    unlike = differences(read)
    winners = compare_plans(read, accuracy_exponent=accuracy_exponent) if unlike.is_ranked else {}
    if as_json:
        from dataclasses import asdict

        print_json(
            {
                "accuracy_exponent": accuracy_exponent,
                "cost_exponent": cost_exponent,
                "targets": [
                    each.to_json() | found for each, found in zip(read, scores, strict=True)
                ],
                "is_ranked": unlike.is_ranked,
                "differences": list(unlike.lines),
                "winners": {name: [asdict(r) for r in found] for name, found in winners.items()},
            }
        )
        return
    from planner.cli.list_tables import compared_score_columns
    from planner.cli.table_layout import show_table

    show_table(compared_score_columns(read, scores), console())
    click.echo("")
    for line in unlike.lines:
        click.echo(line)
    for name, ranges in winners.items():
        click.echo(f"{name}: {'; '.join(map(_range_words, ranges))}")


def _range_words(each: WinningRange) -> str:
    if each.high is None:
        return f"{each.name} wins from exponent {each.low:.3g} of the costs on"
    return f"{each.name} wins from {each.low:.3g} to {each.high:.3g}"


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
