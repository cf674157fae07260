"""NetScore and its relatives: one number for accuracy against cost.

    netscore        20 log10( a² / (√p √m) )           Wong 2018, arXiv:1806.05512
    netscore_flops  the same with GFLOPs for m         as Toktassyn & Park's group computes it
    ns_e            20 log10( a² / (t P)^(1/8) )       arXiv:2607.02158, inference time and power
    ns_m            20 log10( a² / r^(1/8) )           arXiv:2607.02158, inference peak memory
    ns_sharp        20 log10( a² / (r t P)^(1/8) )     arXiv:2607.02158, all three
    sam_k           A^k / (log10 E)^k                  the group's cifar100_vits16_repro, src/
    ppt             A exp(-log10(P/10⁷ + 1))           V-PEFT Bench, arXiv:2402.02242
    train_score     20 log10( a² / (r_t e_t)^(1/8) )   ours, see below

Legend: a top-1 accuracy in percent, A the same as a fraction, p parameters in millions, m MACs in
billions, t seconds for the whole test set, P average watts (in ppt: trainable parameters), r peak
MiB, E joules of the run. The costs of ns_e, ns_m and ns_sharp are of *inference*. ``train_score``
is budgetplan's own extension to the costs of *training* (r_t peak MiB of a training step, e_t
joules of a step) with the same weight of 1/8. It ranks a front and compares with no published
number. SAM is not defined at one joule or less, and its entries are None there.

A factor of ten in one cost is worth 2.5 dB with weight 1/8 and 10 dB in Wong's NetScore; a factor
of ten in accuracy is worth 40 dB. Everything here is O(1) and needs no numeric package.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from profiler.errors import UsageError
from profiler.units import MIB

# arXiv:2607.02158, weight of each deployment cost; reproduces its Table V row for ViT-S
DEPLOYMENT_WEIGHT = 1 / 8

# arXiv:1806.05512: alpha = 2, beta = gamma = 1/2
ACCURACY_EXPONENT = 2.0

COMPLEXITY_WEIGHT = 0.5

# V-PEFT Bench README: parameters are counted in units of ten million
PPT_PARAMETERS = 1e7


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Every score the given numbers allow; None for the others."""

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
        """Return plain data, keys as in the command-line contract."""
        return asdict(self)


def scores(
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
    """Compute what the given numbers allow.

    Args:
        accuracy_percent: top-1 accuracy in percent, above 1.
        parameters: parameters of the model.
        macs: multiply-accumulates of one inference.
        flops: floating-point operations of one inference.
        inference_seconds: seconds for the whole test set.
        inference_watts: average power over that time.
        inference_peak_mib: peak memory of inference in MiB.
        energy_joules: energy of the whole run.
        trainable_parameters: for ``ppt``; ``parameters`` when not given.

    Raises:
        UsageError: an accuracy outside its range or a cost that is not a positive number.
    """
    check_accuracy(accuracy_percent)
    accuracy, seconds, watts = accuracy_percent, inference_seconds, inference_watts
    weight = DEPLOYMENT_WEIGHT
    p = _positive("parameters", parameters, unit=1e6)
    m = _positive("macs", macs, unit=1e9)
    f = _positive("flops", flops, unit=1e9)
    t = _positive("inference_seconds", seconds)
    w = _positive("inference_watts", watts)
    r = _positive("inference_peak_mib", inference_peak_mib)
    tuned = parameters if trainable_parameters is None else trainable_parameters
    e = _positive("energy_joules", energy_joules)
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
    """SAM as the group's ``src`` scripts log it: A^k / (log10 E)^k with A a fraction, E in joules.

    Raises:
        UsageError: energy of one joule or less, where the logarithm is not positive.
    """
    check_accuracy(accuracy_percent)
    energy = _required("energy_joules", energy_joules)
    if energy <= 1:
        raise UsageError(
            f"energy_joules must be above 1 for SAM (it divides by log10), got {energy_joules!r}; "
            "give the energy of the whole run in joules"
        )
    return float((accuracy_percent / 100 / math.log10(energy)) ** exponent)


def ppt(*, accuracy_percent: float, trainable_parameters: float) -> float:
    """Performance-parameter trade-off of V-PEFT Bench: A exp(-log10(P/10^7 + 1)).

    Zero trainable parameters are allowed: the benchmark does not count the classifier.
    """
    check_accuracy(accuracy_percent)
    if not (math.isfinite(trainable_parameters) and trainable_parameters >= 0):
        raise UsageError(
            f"trainable_parameters must be a number from 0 up, got {trainable_parameters!r}"
        )
    size = math.log10(trainable_parameters / PPT_PARAMETERS + 1)
    return accuracy_percent / 100 * math.exp(-size)


def train_score(
    *, accuracy_percent: float, train_peak_bytes: float, step_joules: float | None = None
) -> float:
    """Accuracy against the cost of training: our own extension, not a published NetScore.

    Ranks the candidates of one search; without ``step_joules`` only memory counts, and then it
    compares only with scores that also lack it.
    """
    check_accuracy(accuracy_percent)
    mib = _required("train_peak_bytes", train_peak_bytes) / MIB
    costs = (mib,) if step_joules is None else (mib, _required("step_joules", step_joules))
    return _score(accuracy_percent, costs, DEPLOYMENT_WEIGHT)


def check_accuracy(accuracy_percent: float) -> None:
    """Refuse what is no accuracy in percent, a fraction above all.

    Raises:
        UsageError: outside (0, 100], or 1 and below, which is a fraction by mistake.
    """
    if not 0 < accuracy_percent <= 100:  # also refuses nan
        raise UsageError(f"accuracy_percent must lie in (0, 100], got {accuracy_percent!r}")
    if accuracy_percent <= 1:
        raise UsageError(
            f"accuracy_percent is a percentage, got {accuracy_percent!r}; "
            f"for the fraction {accuracy_percent!r} write {accuracy_percent * 100:g}"
        )


def _required(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{name} must be a positive number, got {value!r}")
    return float(value)


def _positive(name: str, value: float | None, *, unit: float = 1.0) -> float | None:
    return None if value is None else _required(name, value) / unit


def _decibel(accuracy: float, costs: tuple[float | None, ...], weight: float) -> float | None:
    known = tuple(cost for cost in costs if cost is not None)
    return _score(accuracy, known, weight) if len(known) == len(costs) else None


def _score(accuracy: float, costs: tuple[float, ...], weight: float) -> float:
    # a sum of logarithms, so that no product of costs can overflow
    spent = weight * sum(math.log10(cost) for cost in costs)
    return 20 * (ACCURACY_EXPONENT * math.log10(accuracy) - spent)
