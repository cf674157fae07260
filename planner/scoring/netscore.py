"""NetScore and its relatives: one number that weighs accuracy against cost.

    netscore        20 log10( a^2 / (sqrt(p) sqrt(m)) )   arXiv 1806.05512 (Wong 2018), with its
                                                          alpha = 2 and beta = gamma = 1/2
    netscore_flops  20 log10( a^2 / (sqrt(p) sqrt(f)) )   arXiv 2607.02158
    ns_e            20 log10( a^2 / (t P)^(1/8) )         arXiv 2607.02158, NS-E
    ns_m            20 log10( a^2 / r^(1/8) )             arXiv 2607.02158, NS-M
    ns_sharp        20 log10( a^2 / (r t P)^(1/8) )       arXiv 2607.02158, NS#
    sam_k           A^k / (log10 E)^k                     arXiv 2511.23166, SAM
    ppt             A exp(-log10(n / 10^7 + 1))           arXiv 2402.02242, V-PEFT Bench

Symbols: a is the top-1 accuracy in percent and A the same as a fraction. p are parameters in
millions, m multiply-accumulates in billions, f FLOPs in billions, n trainable parameters. t are
seconds for the whole test set, P average watts over that time, r the peak memory in MiB. E are
joules of the run.

The formulas of arXiv 2607.02158 are those of its public code (github.com/DidarTito/
VideoClassificationTest, metrics.py) and reproduce the row of ViT-S in Table V. SAM is written as
the scripts in src/ of github.com/JokerOneK/cifar100_vits16_repro log it; at one joule or less it is
not defined and None.

ns_e, ns_m and ns_sharp count costs of inference. Scores of this project that count costs of
training are in ``training_scores.py``.

A cost that is ten times higher lowers a score by 2.5 dB with weight 1/8, and by 10 dB in Wong's
NetScore. An accuracy that is ten times higher raises it by 40 dB.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType

from profiler.errors import UsageError

DEPLOYMENT_WEIGHT = 1 / 8
"""Exponent of each deployment cost in arXiv 2607.02158."""

ACCURACY_EXPONENT = 2.0
"""alpha of arXiv 1806.05512."""

COMPLEXITY_WEIGHT = 0.5
"""beta and gamma of arXiv 1806.05512."""

PPT_PARAMETERS = 1e7
"""Unit of the trainable parameters in ``ppt``, from the README of V-PEFT Bench."""

LOWEST_ACCURACY = 0.01
"""Fraction that an accuracy must exceed to be scored. The formulas take percent, and 1 % or less is
almost always a fraction given by mistake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Every score that the given numbers allow; None for the others.

    The module docstring has the formulas.
    """

    netscore: float | None = None
    netscore_flops: float | None = None
    ns_e: float | None = None
    ns_m: float | None = None
    ns_sharp: float | None = None
    sam_1: float | None = None
    sam_2: float | None = None
    sam_3: float | None = None
    sam_4: float | None = None
    sam_5: float | None = None
    ppt: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """Return plain data for ``score --json`` and plan files."""
        return asdict(self)


FORMULAS: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "netscore": ("20 log10(a^2 / (sqrt(p) sqrt(m)))", ("parameters", "macs")),
        "netscore_flops": ("20 log10(a^2 / (sqrt(p) sqrt(f)))", ("parameters", "flops")),
        "ns_e": ("20 log10(a^2 / (t P)^(1/8))", ("inference_seconds", "inference_watts")),
        "ns_m": ("20 log10(a^2 / r^(1/8))", ("inference_peak_mib",)),
        "ns_sharp": (
            "20 log10(a^2 / (r t P)^(1/8))",
            ("inference_peak_mib", "inference_seconds", "inference_watts"),
        ),
        **{f"sam_{k}": (f"(A / log10 E)^{k}", ("energy_joules",)) for k in range(1, 6)},
        "ppt": ("A exp(-log10(n / 10^7 + 1))", ("parameters",)),
    }
)
"""Formula of each score, and the numbers that it needs beside the accuracy."""


def compute_scores(
    *,
    accuracy_percent: float,
    parameters: float | None = None,
    macs: float | None = None,
    flops: float | None = None,
    inference_seconds: float | None = None,
    inference_watts: float | None = None,
    inference_peak_mib: float | None = None,
    energy_joules: float | None = None,
    trainable_parameters: float | None = None,
) -> Scores:
    """Compute every score that the given numbers allow.

    Args:
        accuracy_percent: top-1 accuracy in percent, above 1.
        parameters: number of parameters of the model.
        macs: multiply-accumulates per image.
        flops: floating-point operations per image.
        inference_seconds: seconds for the whole test set.
        inference_watts: average power in watts over that time.
        inference_peak_mib: peak memory of inference in MiB.
        energy_joules: energy of the whole run in joules.
        trainable_parameters: number of trainable parameters for ``ppt``; None for ``parameters``.

    Raises:
        UsageError: the accuracy is outside (1, 100], or a cost is not a positive number.
    """
    check_accuracy(accuracy_percent)
    accuracy, seconds, watts = accuracy_percent, inference_seconds, inference_watts
    weight = DEPLOYMENT_WEIGHT
    p = _in_unit("parameters", parameters, unit=1e6)
    m = _in_unit("macs", macs, unit=1e9)
    f = _in_unit("flops", flops, unit=1e9)
    t = _in_unit("inference_seconds", seconds)
    w = _in_unit("inference_watts", watts)
    r = _in_unit("inference_peak_mib", inference_peak_mib)
    tuned = parameters if trainable_parameters is None else trainable_parameters
    e = _in_unit("energy_joules", energy_joules)
    sam = [
        sustainable_accuracy(accuracy_percent=accuracy, energy_joules=e, exponent=k)
        if e is not None and e > 1
        else None
        for k in range(1, 6)
    ]
    return Scores(
        netscore=_decibel(accuracy, (p, m), COMPLEXITY_WEIGHT),
        netscore_flops=_decibel(accuracy, (p, f), COMPLEXITY_WEIGHT),
        ns_e=_decibel(accuracy, (t, w), weight),
        ns_m=_decibel(accuracy, (r,), weight),
        ns_sharp=_decibel(accuracy, (r, t, w), weight),
        sam_1=sam[0],
        sam_2=sam[1],
        sam_3=sam[2],
        sam_4=sam[3],
        sam_5=sam[4],
        ppt=None if tuned is None else ppt(accuracy_percent=accuracy, trainable_parameters=tuned),
    )


def sustainable_accuracy(*, accuracy_percent: float, energy_joules: float, exponent: int) -> float:
    """Return SAM, A^k / (log10 E)^k, in the form that the authors' scripts log.

    Args:
        accuracy_percent: top-1 accuracy in percent, above 1.
        energy_joules: energy of the whole run in joules, above 1.
        exponent: k.

    Raises:
        UsageError: the energy is one joule or less, where the logarithm is not positive.
    """
    check_accuracy(accuracy_percent)
    energy = _positive_number("energy_joules", energy_joules)
    if energy <= 1:
        raise UsageError(
            f"energy_joules must be above 1 for SAM (it divides by log10), got {energy_joules!r}; "
            "give the energy of the whole run in joules"
        )
    return float((accuracy_percent / 100 / math.log10(energy)) ** exponent)


def ppt(*, accuracy_percent: float, trainable_parameters: float) -> float:
    """Return the performance-parameter trade-off of V-PEFT Bench, A exp(-log10(n / 10^7 + 1)).

    Zero trainable parameters are allowed, because the benchmark does not count the classifier.

    Raises:
        UsageError: the accuracy is outside (1, 100], or the number of parameters is negative.
    """
    check_accuracy(accuracy_percent)
    if not (math.isfinite(trainable_parameters) and trainable_parameters >= 0):
        raise UsageError(f"trainable_parameters must be 0 or more, got {trainable_parameters!r}")
    size = math.log10(trainable_parameters / PPT_PARAMETERS + 1)
    return accuracy_percent / 100 * math.exp(-size)


def check_accuracy(accuracy_percent: float) -> None:
    """Refuse a number that cannot be an accuracy in percent.

    Raises:
        UsageError: the number is outside (1, 100].
    """
    if not 0 < accuracy_percent <= 100:  # also true for NaN
        raise UsageError(f"accuracy_percent must lie in (0, 100], got {accuracy_percent!r}")
    if accuracy_percent <= 100 * LOWEST_ACCURACY:
        raise UsageError(
            f"accuracy_percent is a percentage, got {accuracy_percent!r}; "
            f"for the fraction {accuracy_percent!r} write {accuracy_percent * 100:g}"
        )


def _positive_number(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{name} must be a positive number, got {value!r}")
    return float(value)


def _in_unit(name: str, value: float | None, *, unit: float = 1.0) -> float | None:
    return None if value is None else _positive_number(name, value) / unit


def _decibel(accuracy: float, costs: tuple[float | None, ...], weight: float) -> float | None:
    known = tuple(cost for cost in costs if cost is not None)
    if len(known) < len(costs):
        return None
    return decibels(accuracy, known, accuracy_exponent=ACCURACY_EXPONENT, cost_exponent=weight)


def decibels(
    accuracy_percent: float,
    costs: Sequence[float],
    *,
    accuracy_exponent: float,
    cost_exponent: float,
) -> float:
    """Return 20 log10(a^alpha / (product of the costs)^w).

    Args:
        accuracy_percent: a, top-1 accuracy in percent, above 0.
        costs: the costs, each above 0.
        accuracy_exponent: alpha.
        cost_exponent: w.
    """
    # A sum of logarithms cannot overflow, the product of the costs can.
    spent = cost_exponent * sum(math.log10(cost) for cost in costs)
    return 20 * (accuracy_exponent * math.log10(accuracy_percent) - spent)
