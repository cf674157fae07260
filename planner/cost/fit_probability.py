"""The probability that a training fits its budget, from the errors of earlier predictions.

``fit_errors.json`` holds, for each kind of prediction, the relative errors ``real / predicted - 1``
of steps that were predicted and then run: on a GPU's device the bytes that PyTorch's own allocator
reserved on an emulated GPU, on a CPU the peak of its allocator (studies/fits_probability).

A training whose prediction is b bytes has room for the error e = available / b - 1. If a new error
is exchangeable with the n known ones, it is at most e with a probability of at least

    k / (n + 1),    k = number of known errors of at most e

(split conformal prediction; Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World",
2005). ``largest_prediction`` inverts it: the largest prediction whose probability is 1 - risk.

Limitations. The errors contain what PyTorch requests. They do not contain the workspaces of cuDNN,
without which a convolution runs, only slower. The CUDA context is not part of an error: where it is
assumed, the largest reported one has to fit, and the record says so.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from planner.cost.backbone_kinds import backbone_kind
from planner.cost.budget import round_up_to_printed
from planner.plan import FitProbability
from profiler.devices.table import DeviceSpec, cuda_context, device_spec, largest_context_bytes
from profiler.errors import UsageError
from profiler.records import Report, Rung
from profiler.units import DeviceBytes, format_bytes
from profiler.workload import Workload

ERRORS_FILE = Path(__file__).with_name("fit_errors.json")

DEFAULT_RISK = 0.01

LARGEST_RISK = 0.5

SLOW_BF16 = "bf16 before Ampere"
"""Kind of predictions in bf16 for GPUs that compute it by other kernels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownErrors:
    """Relative errors of one kind of prediction.

    Attributes:
        kind: kind of prediction.
        errors: errors in ascending order, at least one.
    """

    kind: str
    errors: tuple[float, ...]

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
        if not device.is_cuda:
            return cls(known=_known_errors()["cpu"], context_bytes=0, largest_context_bytes=0)
        kind = _kind_of_model(workload.model)
        before_ampere = (device.compute_capability or (8, 0)) < (8, 0)
        if workload.precision == "bf16" and before_ampere:
            kind = SLOW_BF16
        return cls(
            known=_known_errors()[kind],
            context_bytes=cuda_context(device).nbytes,
            largest_context_bytes=largest_context_bytes(device),
        )

    def probability(self, need_bytes: int, budget_bytes: int) -> float:
        """Return the probability that a prediction of ``need_bytes`` fits a budget."""
        predicted = need_bytes - self.context_bytes
        available = budget_bytes - self.largest_context_bytes
        return self.known.probability(available / predicted - 1) if predicted > 0 else 0.0

    def largest_prediction(self, budget_bytes: int, *, risk: float) -> DeviceBytes:
        """Return the largest prediction that exceeds a budget with at most ``risk``; at least 1."""
        available = budget_bytes - self.largest_context_bytes
        predicted = math.floor(available / (1 + self.known.error_at(risk)))
        return DeviceBytes(max(1, self.context_bytes + predicted))

    def smallest_budget(self, need_bytes: int, *, risk: float) -> DeviceBytes:
        """Return the smallest budget, in printed digits, for a prediction of ``need_bytes``."""
        predicted = need_bytes - self.context_bytes
        exact = math.ceil(predicted * (1 + self.known.error_at(risk))) + self.largest_context_bytes
        # floor and ceil may lose a byte between them
        while self.largest_prediction(exact, risk=risk) < need_bytes:
            exact += 1
        return round_up_to_printed(exact)


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
    rule = FitRule.of(report.candidate.workload, device_spec(report.device.name))
    need_bytes = report.memory.device_bytes or report.memory.peak_bytes
    notes = []
    if not rule.known.is_enough_for(risk):
        compared = len(rule.known.errors)
        notes.append(
            f"thin evidence: only {compared} runs of this kind were compared, enough for a risk of "
            f"{100 / (compared + 1):.2g} % and not of {100 * risk:.2g} %"
        )
    if rule.largest_context_bytes > rule.context_bytes:
        notes.append(
            "the CUDA context of this GPU is assumed: room is left for the largest reported one "
            f"({format_bytes(rule.largest_context_bytes)})"
        )
    return FitProbability(
        probability=rule.probability(need_bytes, budget_bytes),
        compared=len(rule.known.errors),
        kind=rule.known.kind,
        context_bytes=rule.largest_context_bytes,
        notes=tuple(notes),
    )


@cache
def _kind_of_model(model: str) -> str:
    return backbone_kind(model)


@cache
def _known_errors() -> dict[str, KnownErrors]:
    content: dict[str, Any] = json.loads(ERRORS_FILE.read_text(encoding="utf-8"))
    return {
        kind: KnownErrors(kind=kind, errors=tuple(e for e, n in found for _ in range(n)))
        for kind, found in content["errors"].items()
    }
