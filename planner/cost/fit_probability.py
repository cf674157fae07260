"""The probability that a training fits its budget, from the errors of earlier predictions.

``fit_errors.json`` holds, for each kind of prediction, the errors of steps that were predicted and
then run: on a GPU's device the bytes that PyTorch's own allocator reserved on an emulated GPU, on a
CPU the peak of its allocator (studies/fits_probability). The error of a prediction of b bytes is

    (real - b) / max(b, small bytes)

On a GPU, ``small bytes`` are 400 MiB: the allocator maps pages of 2 MiB, and an error of one page
would otherwise seem larger the smaller a training is. A budget of a bytes has room for the error
e = (a - b) / max(b, small bytes). If a new error is exchangeable with the n known ones, it is at
most e with a probability of at least

    k / (n + 1),    k = number of known errors of at most e

(split conformal prediction; Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World",
2005). ``largest_prediction`` inverts it: the largest prediction whose probability is 1 - risk.

All backbones on GPUs are one kind, because errors of attention, convolution and scan backbones
do not differ: the study states probabilities for each of these from the errors of the others. Apart
from them, bf16 before Ampere is a kind of its own, because it runs by kernels with other buffers.

Limitations. The errors contain what PyTorch requests. They do not contain the workspaces of cuDNN,
without which a convolution runs, only slower. The CUDA context is not part of an error: where it is
assumed, the largest reported one has to fit, and the record says so. The steps of one model
resemble each other, so n steps are less evidence than n models would be. An inference without
training is judged by the errors of training steps, because none was compared; its record says so.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from planner.cost.budget import needed_bytes, round_up_to_printed
from planner.plan import FitProbability, Plan
from profiler.device_rules.caching_allocator.sizes import SMALL_SEGMENT_BYTES
from profiler.devices.table import DeviceSpec, cuda_context, device_spec, largest_context_bytes
from profiler.errors import UsageError
from profiler.records import Report, Rung
from profiler.units import DeviceBytes, format_bytes_as
from profiler.workload import Workload

ERRORS_FILE = Path(__file__).with_name("fit_errors.json")

DEFAULT_RISK = 0.01

LARGEST_RISK = 0.5

GPU = "GPU"
"""Kind of all other predictions for GPUs."""

ON_CPU = "cpu"
"""Kind of predictions for CPUs."""

SLOW_BF16 = "bf16 before Ampere"
"""Kind of predictions in bf16 for GPUs that compute it by other kernels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownErrors:
    """Relative errors of one kind of prediction.

    Attributes:
        kind: kind of prediction.
        errors: errors in ascending order, at least one.
        small_bytes: errors of predictions below this are relative to it (bytes, at least 0).
        least_room_bytes: least room that a plan leaves at any risk. Most errors are 0 and
            the others whole pages of the allocator, so less than a page is as good as none.
    """

    kind: str
    errors: tuple[float, ...]
    small_bytes: int = 0
    least_room_bytes: int = 0

    def error_of(self, real_bytes: int, predicted_bytes: int) -> float:
        """Return the error of a prediction; of an available size, the error that it has room for.

        Args:
            real_bytes: real or available bytes.
            predicted_bytes: predicted bytes (at least 1).
        """
        return (real_bytes - predicted_bytes) / max(predicted_bytes, self.small_bytes)

    def largest_prediction(self, available_bytes: int, *, risk: float) -> int:
        """Return the largest prediction that exceeds the available bytes with at most ``risk``."""
        error = self.error_at(risk)
        predicted = math.floor(available_bytes / (1 + error))
        if predicted < self.small_bytes:
            predicted = math.floor(available_bytes - error * self.small_bytes)
        return min(predicted, available_bytes - self.least_room_bytes)

    def smallest_available(self, predicted_bytes: int, *, risk: float) -> int:
        """Return the bytes that a prediction exceeds with at most ``risk``, rounded up."""
        error = self.error_at(risk)
        room_bytes = math.ceil(error * max(predicted_bytes, self.small_bytes))
        return predicted_bytes + max(room_bytes, self.least_room_bytes)

    def probability(self, room: float) -> float:
        """Return the least probability of an error of at most ``room``."""
        return bisect_right(self.errors, room) / (len(self.errors) + 1)

    def error_at(self, risk: float) -> float:
        """Return the error that a new one exceeds with a probability of at most ``risk``.

        With too few errors for the risk this is the largest known one. It is never below 0.
        """
        count = len(self.errors)
        rank = min(count, math.ceil((1 - risk) * (count + 1)))
        return max(0.0, self.errors[rank - 1])

    def is_enough_for(self, risk: float) -> bool:
        """Return whether the errors are enough for a probability of 1 - risk."""
        return 1 / (len(self.errors) + 1) <= risk


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetMargin:
    """Bytes of a budget beside a predicted need, without which it does not count as fitting.

    Attributes:
        context_bytes: bytes for a CUDA context larger than the assumed one; 0 if it was measured.
        error_bytes: bytes for errors of the prediction, at the accepted risk.
    """

    context_bytes: int
    error_bytes: int

    @property
    def total_bytes(self) -> int:
        """All bytes of the margin."""
        return self.context_bytes + self.error_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRule:
    """Converts between predictions and budgets for one kind of prediction on one device.

    Attributes:
        known: errors of that kind.
        context_bytes: CUDA context in a prediction; 0 on a CPU.
        largest_context_bytes: CUDA context that has to fit.
    """

    known: KnownErrors
    context_bytes: int
    largest_context_bytes: int

    @classmethod
    def of(cls, workload: Workload, device: DeviceSpec) -> FitRule:
        """Return the rule for a workload on a device."""
        return cls.for_precision(workload.precision, device)

    @classmethod
    def for_precision(cls, precision: str, device: DeviceSpec) -> FitRule:
        """Return the rule for computations in a precision on a device."""
        if not device.is_cuda:
            return cls(known=_known_errors()[ON_CPU], context_bytes=0, largest_context_bytes=0)
        is_slow = precision == "bf16" and not device.has_bf16
        return cls(
            known=_known_errors()[SLOW_BF16 if is_slow else GPU],
            context_bytes=cuda_context(device).nbytes,
            largest_context_bytes=largest_context_bytes(device),
        )

    def probability(self, need_bytes: int, budget_bytes: int) -> float:
        """Return the probability that a prediction of ``need_bytes`` fits a budget."""
        predicted = need_bytes - self.context_bytes
        available = budget_bytes - self.largest_context_bytes
        if predicted <= 0:
            return 0.0
        return self.known.probability(self.known.error_of(available, predicted))

    def largest_prediction(self, budget_bytes: int, *, risk: float) -> DeviceBytes:
        """Return the largest prediction that exceeds a budget with at most ``risk``; at least 1."""
        available = budget_bytes - self.largest_context_bytes
        predicted = self.known.largest_prediction(available, risk=risk)
        return DeviceBytes(max(1, self.context_bytes + predicted))

    def margin(self, need_bytes: int, *, risk: float) -> BudgetMargin:
        """Return the bytes that a prediction of ``need_bytes`` leaves unused in its budget."""
        predicted = need_bytes - self.context_bytes
        return BudgetMargin(
            context_bytes=self.largest_context_bytes - self.context_bytes,
            error_bytes=self.known.smallest_available(predicted, risk=risk) - predicted,
        )

    def smallest_budget(self, need_bytes: int, *, risk: float) -> DeviceBytes:
        """Return the smallest budget, in printed digits, for a prediction of ``need_bytes``."""
        predicted = need_bytes - self.context_bytes
        needed = self.known.smallest_available(predicted, risk=risk)
        exact = needed + self.largest_context_bytes
        # floor and ceil may lose a byte between them
        while self.largest_prediction(exact, risk=risk) < need_bytes:
            exact += 1
        return round_up_to_printed(exact)


def least_room_of(kind: str) -> int:
    """Return the ``least_room_bytes`` of a kind of predictions: a page of the allocator on GPUs."""
    return 0 if kind == ON_CPU else SMALL_SEGMENT_BYTES


def check_risk(risk: float) -> float:
    """Return a risk that is in its domain.

    Raises:
        UsageError: it is not above 0 and at most `LARGEST_RISK`.
    """
    if not 0 < risk <= LARGEST_RISK:
        raise UsageError(
            f"risk must be above 0 and at most {LARGEST_RISK:.0%}, got {100 * risk:g}%; "
            "write it as 1%"
        )
    return risk


def planned_risk(plan: Plan) -> float:
    """Return the risk that a plan was made with."""
    return float(plan.provenance.get("risk", DEFAULT_RISK))


def fits_within(report: Report, budget_bytes: int, *, risk: float = DEFAULT_RISK) -> bool:
    """Return whether a training fits a budget; a predicted one must keep the margin of ``risk``.

    Args:
        report: prediction, or a measurement, which is compared as it is.
        budget_bytes: budget in device bytes.
        risk: largest accepted probability that a predicted training does not fit.
    """
    if report.rung is Rung.MEASURED:
        return needed_bytes(report) <= budget_bytes
    limit_bytes = _rule_of(report).largest_prediction(budget_bytes, risk=risk)
    return needed_bytes(report) <= limit_bytes


def smallest_budget_of(report: Report, *, risk: float = DEFAULT_RISK) -> DeviceBytes:
    """Return the smallest budget, in printed digits, that a predicted training fits."""
    return _rule_of(report).smallest_budget(needed_bytes(report), risk=risk)


def margin_of(report: Report, *, risk: float = DEFAULT_RISK) -> BudgetMargin:
    """Return the bytes that a predicted training leaves unused in its budget."""
    return _rule_of(report).margin(needed_bytes(report), risk=risk)


def _rule_of(report: Report) -> FitRule:
    return FitRule.of(report.candidate.workload, device_spec(report.device.name))


def fit_of(
    report: Report, budget_bytes: int, *, risk: float = DEFAULT_RISK
) -> FitProbability | None:
    """Return the probability that a training fits a budget; None for a composed prediction.

    Args:
        report: prediction of its training step.
        budget_bytes: budget in device bytes.
        risk: largest accepted probability that it does not fit. A note says if the known errors are
            too few for it.
    """
    if report.rung is not Rung.REPLAYED:
        return None
    return fit_by_rule(_rule_of(report), needed_bytes(report), budget_bytes, risk=risk)


def fit_by_rule(
    rule: FitRule,
    need_bytes: int,
    budget_bytes: int,
    *,
    risk: float = DEFAULT_RISK,
    notes: Sequence[str] = (),
) -> FitProbability:
    """Return the probability that a replayed prediction fits a budget.

    Args:
        rule: rule for its kind and device.
        need_bytes: predicted device bytes.
        budget_bytes: budget in device bytes.
        risk: see ``fit_of``.
        notes: sentences on the evidence, to which those on its limits are added.
    """
    notes = list(notes)
    if not rule.known.is_enough_for(risk):
        compared = len(rule.known.errors)
        notes.append(
            f"thin evidence: only {compared} runs of this kind were compared, enough for a risk of "
            f"{100 / (compared + 1):.2g} % and not of {100 * risk:.2g} %"
        )
    if rule.largest_context_bytes > rule.context_bytes:
        notes.append(
            "P(fits) leaves room for the largest reported CUDA context, "
            f"{format_bytes_as(rule.largest_context_bytes, budget_bytes)}; the prediction has "
            f"{format_bytes_as(rule.context_bytes, budget_bytes)}"
        )
    return FitProbability(
        probability=rule.probability(need_bytes, budget_bytes),
        compared=len(rule.known.errors),
        kind=rule.known.kind,
        context_bytes=rule.largest_context_bytes,
        notes=tuple(notes),
    )


def context_clause(
    device: DeviceSpec, smallest_bytes: int, budget_bytes: int, *, at_risk: bool = True
) -> str:
    """Return the CUDA context's part of the smallest budget that would do, for ``InfeasibleError``.

    It is empty if the step would not fit the budget without any context either.

    Args:
        device: the device.
        smallest_bytes: smallest budget that would do, in device bytes.
        budget_bytes: budget that does not.
        at_risk: whether the smallest budget holds the largest context that the device may have, as
            a rule of fitting demands; else the predicted one.
    """
    context = cuda_context(device)
    nbytes = largest_context_bytes(device) if at_risk else context.nbytes
    if not nbytes or smallest_bytes - nbytes > budget_bytes:
        return ""
    part = f"{format_bytes_as(nbytes, budget_bytes)} of it for the CUDA context"
    if not context.is_assumed:
        return part
    return f"{part}, which is assumed (context_bytes of --device-spec takes a measured one)"


def evidence_notes(fits: Iterable[FitProbability | None]) -> Iterator[str]:
    """Yield where the probabilities of an answer come from, and their limits, each note once."""
    known = [fit for fit in fits if fit is not None]
    for kind, compared in dict.fromkeys((fit.kind, fit.compared) for fit in known):
        yield (
            f"P(fits) comes from {compared} steps ({kind}) whose predicted memory was compared "
            "with that of a run"
        )
    yield from dict.fromkeys(note for fit in known for note in fit.notes)


@cache
def _known_errors() -> dict[str, KnownErrors]:
    content: dict[str, Any] = json.loads(ERRORS_FILE.read_text(encoding="utf-8"))
    return {
        kind: KnownErrors(
            kind=kind,
            errors=tuple(error for error, steps in found["errors"] for _ in range(steps)),
            small_bytes=found["small_bytes"],
            least_room_bytes=least_room_of(kind),
        )
        for kind, found in content["kinds"].items()
    }
