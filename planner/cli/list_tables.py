"""Tables of lists: methods, the method matrix, devices, aliases, scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from planner.cli.cell_text import probability_text
from planner.cli.table_layout import Column, Page, tables
from planner.scoring.counted_accuracy import counted_interval, counted_text, supported_digits
from planner.scoring.netscore import ACCURACY_EXPONENT, FORMULAS, Scores
from planner.scoring.training_scores import TRAINING_FORMULAS
from profiler.units import format_bytes, format_count, format_joules, format_seconds

if TYPE_CHECKING:
    from planner.methods.describe import MethodFacts
    from planner.methods.matrix import MethodMatrix
    from planner.recommendation.compare_scores import ScoreTarget
    from planner.training_free.options import TrainingFreeOption
    from profiler.devices.table import DeviceSpec
    from profiler.models.methods import MethodInfo


def score_columns(scores: Scores, accuracy: float, images: int | None) -> list[Column]:
    """Return the scores that could be computed, one in a row.

    Args:
        scores: the scores.
        accuracy: accuracy as a fraction.
        images: number of images that it was counted on; None if it is not known.
    """
    known = {name: value for name, value in scores.to_json().items() if value is not None}
    return [
        Column(header="score", cells=list(known), justify="left"),
        Column(
            header="value",
            cells=[
                f"{value:.{_score_digits(accuracy, images, is_ratio=name[:3] in ('sam', 'ppt'))}f}"
                for name, value in known.items()
            ],
        ),
        Column(header="formula", cells=[FORMULAS[name][0] for name in known], justify="left"),
    ]


def training_score_columns(
    scores: Mapping[str, float | None],
    exponents: tuple[float, float],
    accuracy: float,
    images: int | None,
) -> list[Column]:
    """Return the training scores that could be computed, with their exponents."""
    known = {name: value for name, value in scores.items() if value is not None}
    power, weight = (f"{value:.4g}" for value in exponents)
    formulas = [
        TRAINING_FORMULAS[name][0].replace("^2", f"^{power}").replace("(1/8)", weight)
        for name in known
    ]
    return [
        Column(header="score", cells=list(known), justify="left"),
        Column(
            header="value",
            cells=[
                f"{value:.{_score_digits(accuracy, images, exponent=exponents[0])}f}"
                for value in known.values()
            ],
        ),
        Column(header="formula", cells=formulas, justify="left"),
    ]


def compared_score_columns(
    targets: Sequence[ScoreTarget], scores: Sequence[Mapping[str, float | None]]
) -> list[Column]:
    """Return the training scores of several plans, one plan in a row."""
    columns = [
        Column(
            header="plan", cells=[str(each.path) for each in targets], justify="left", wraps=True
        ),
        Column(header="accuracy", cells=[_compared_accuracy(each) for each in targets]),
    ]
    digits = [_score_digits(each.accuracy_percent / 100, each.images) for each in targets]
    for name in TRAINING_FORMULAS:
        cells = [
            "-" if each[name] is None else f"{each[name]:.{places}f}"
            for each, places in zip(scores, digits, strict=True)
        ]
        columns.append(Column(header=name, cells=cells))
    return columns


def _compared_accuracy(target: ScoreTarget) -> str:
    fraction = target.accuracy_percent / 100
    if target.images is None:
        return f"{target.accuracy_percent:.1f} %"
    return counted_text(fraction, images=target.images)


def _score_digits(
    accuracy: float,
    images: int | None,
    *,
    exponent: float = ACCURACY_EXPONENT,
    is_ratio: bool = False,
) -> int:
    """Return the digits of a score that the interval of its accuracy supports."""
    if images is None:
        return 4
    low, high = counted_interval(accuracy, images=images)
    if is_ratio:  # SAM and PPT have values below 1, about as uncertain as the accuracy itself
        return 1 + supported_digits((high - low) / 2)
    least = max(low, 1e-3)
    return supported_digits(10 * exponent * math.log10(max(high, least) / least))


def alias_columns(aliases: Mapping[str, str]) -> list[Column]:
    """Return the aliases of backbones."""
    return [
        Column(header="alias", cells=list(aliases), justify="left"),
        Column(header="model", cells=list(aliases.values()), justify="left"),
    ]


def method_columns(infos: Sequence[MethodInfo], refused: Mapping[str, str]) -> list[Column]:
    """Return the list of methods, with the reasons of refusals if a backbone was given."""
    return [
        Column(header="method", cells=[info.name for info in infos], justify="left"),
        Column(header="family", cells=[info.family for info in infos], justify="left"),
        Column(
            header="default",
            cells=[
                "-" if info.default_rank is None else f"{info.default_rank} {info.rank_means}"
                for info in infos
            ],
            justify="left",
        ),
        Column(
            header="trained parts",
            cells=[info.summary for info in infos],
            justify="left",
            wraps=True,
        ),
        Column(
            header="works",
            cells=[
                f"no: {refused[info.name]}" if info.name in refused else "yes" if refused else "-"
                for info in infos
            ],
            justify="left",
            wraps=True,
        ),
    ]


def show_matrix(matrix: MethodMatrix, console: Console) -> None:
    """Print the table of methods and backbones, and the reasons of refusals."""
    page = Page(console)
    columns = [
        Column(header="method", cells=matrix.methods, justify="left"),
        *(
            Column(header=SHORT_NAMES.get(name, name), cells=matrix.column(name), justify="left")
            for name in matrix.backbones
        ),
    ]
    page.block(*tables(columns, keys=1, width=page.width))
    page.heading("Not possible (-)")
    page.sentences(str(reason) for reason in matrix.reasons())
    page.heading("Columns")
    page.block(Text(", ".join(_in_full(matrix))))


SHORT_NAMES = {
    "vit_s": "vit\ns",
    "tiny_vit": "tiny\nvit",
    "tiny_vit_5m": "t-vit\n5m",
    "resnet18": "res\n18",
    "mobilenetv2": "mob\nv2",
    "mobilenetv3": "mob\nv3",
    "dinov2_s": "dino\ns",
    "siglip_b": "sig\nlip",
    "vim_s": "vim\ns",
    "mambavision_t": "mam\nvis",
}
"""Two-line headers: with these all backbones fit into 80 columns."""


def _in_full(matrix: MethodMatrix) -> Iterator[str]:
    for name, model in matrix.backbones.items():
        yield f"{SHORT_NAMES.get(name, name).replace(chr(10), ' ')} is {model}"


def show_method(facts: MethodFacts, console: Console) -> None:
    """Print a method, and its trained layers if a backbone was given."""
    page = Page(console)
    info = facts.info
    page.heading(f"{info.name}: {info.summary}")
    page.facts(_method_facts(facts))
    if facts.notes:
        page.heading("Notes")
        page.sentences(facts.notes)


def _method_facts(facts: MethodFacts) -> Iterator[tuple[str, str]]:
    info = facts.info
    yield "family", info.family
    yield "source", info.source
    if info.default_rank is not None:
        yield "default", f"{info.default_rank} {info.rank_means}"
    if facts.model is None:
        return
    yield "on", facts.model
    yield "works", "yes" if facts.refused is None else f"no: {facts.refused}"
    yield "trained layers", ", ".join(f"{count} {name}" for name, count in facts.layers.items())
    if facts.trainable_parameters is not None:
        yield "parameters", f"{format_count(facts.trainable_parameters)} trainable"


FULL_NAME_COLUMNS = 110
"""Width of a terminal from which the table of devices has their full names."""


def device_columns(
    specs: Sequence[DeviceSpec], *, here: str | None, width: int = FULL_NAME_COLUMNS
) -> list[Column]:
    """Return the list of devices, in one table at every width from 60 columns."""
    full_names = Column(header="full name", cells=[s.full_name for s in specs], justify="left")
    return [
        Column(
            header="device",
            cells=[s.name + (" (here)" if s.name == here else "") for s in specs],
            justify="left",
        ),
        Column(header="memory", cells=[format_bytes(s.memory_bytes) for s in specs]),
        Column(
            header="memory\nGB/s",
            cells=[_rate(s.memory_bandwidth_bytes_per_second, 1e9) for s in specs],
        ),
        Column(header="fp32\nTFLOPS", cells=[_rate(s.fp32_flops, 1e12) for s in specs]),
        Column(
            header="half\nTFLOPS",
            cells=[_rate(s.bf16_tensor_flops or s.fp16_tensor_flops, 1e12) for s in specs],
        ),
        Column(header="power\nW", cells=[_watts(s) for s in specs]),
        *([full_names] if width >= FULL_NAME_COLUMNS else []),
    ]


def _rate(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:.4g}"


def _watts(spec: DeviceSpec) -> str:
    """Return the power limit, for a laptop's board with the range that its makers choose from."""
    if spec.tdp_watts is None:
        return "-"
    if spec.power_range_watts is None:
        return f"{spec.tdp_watts:g}"
    low, high = spec.power_range_watts
    return f"{spec.tdp_watts:g} ({low:g}-{high:g})"


def _fits_of(option: TrainingFreeOption) -> str:
    """Return whether an option fits, and with which probability."""
    chance = probability_text(option.fit_probability)
    return " ".join(["yes" if option.fits else "no", *([chance] if chance else [])])


def training_free_columns(options: Sequence[TrainingFreeOption], data: str) -> list[Column]:
    """Return the frozen models under a budget."""
    accuracies = [option.accuracy for option in options]
    images = [None if option.cost is None else option.cost.image for option in options]
    probes = [option.probe for option in options]
    bits = {"float16": "fp16", "float32": "fp32"}
    return [
        Column(header="model", cells=[o.model.name for o in options], justify="left"),
        Column(
            header="how",
            cells=[o.model.kind.replace("_", "-") for o in options],
            justify="left",
        ),
        Column(header="params", cells=[f"{o.model.parameters_millions:.1f} M" for o in options]),
        Column(header="batch", cells=[str(o.batch) for o in options]),
        Column(
            header="weights", cells=["4 bits" if o.is_four_bit else bits[o.dtype] for o in options]
        ),
        Column(header="memory\nreplayed", cells=[format_bytes(o.device_bytes) for o in options]),
        Column(header="fits", cells=[_fits_of(o) for o in options], justify="left"),
        Column(
            header=f"{data}\npublished",
            cells=["-" if a is None else f"{100 * a.value:.1f} %" for a in accuracies],
        ),
        Column(header="px", cells=[str(o.model.image_size) for o in options]),
        Column(
            header="an image\npredicted",
            cells=["-" if i is None else format_seconds(i["step_seconds"]) for i in images],
        ),
        Column(
            header="energy\npredicted",
            cells=["-" if i is None else format_joules(i["energy_joules"]) for i in images],
        ),
        Column(
            header="features of all\ntraining images",
            cells=["-" if p is None else format_seconds(p.extraction_seconds) for p in probes],
        ),
    ]
