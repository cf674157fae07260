"""Limits of a recommendation beside memory: accuracy, duration and energy of the training.

    check_limits         refuses limits that cannot be met, before the search
    within_cost_limits   candidates of the search whose training is short and cheap enough
    exceeded_limit       the limit that a replayed candidate exceeds
    accurate_enough      candidates of the search whose expected accuracy is high enough

The length of a training is that of its recipe, without an early stop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from planner.recommendation.answer import candidate_summary
from planner.recommendation.levers import composed_with_levers
from planner.recommendation.recipes import plan_recipe
from planner.recommendation.request import Request
from planner.recommendation.run_totals import JOULES_PER_KWH, known_times
from planner.scoring.accuracy_prior import AccuracyEstimate
from planner.search.problem import TrialResult
from profiler.devices.table import device_spec
from profiler.errors import UnmetLimitError, UsageError
from profiler.records import Report
from profiler.workload import Workload

if TYPE_CHECKING:
    from planner.cost.model import CostModel

SECONDS_PER_HOUR = 3600.0
"""Seconds of an hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyCheck:
    """Candidates divided by the limit of the expected accuracy.

    Attributes:
        passed: candidates that are expected to be accurate enough.
        dropped: a sentence for each method of which no candidate is.
    """

    passed: tuple[TrialResult, ...]
    dropped: tuple[str, ...]


def check_limits(request: Request, expected_of: Callable[[Workload], AccuracyEstimate]) -> None:
    """Refuse limits that no candidate can meet, before the search.

    Args:
        request: the request.
        expected_of: returns the expected accuracy of a workload without a probe.

    Raises:
        UnmetLimitError: no candidate has a known accuracy, or none is expected to be high enough.
        UsageError: the power of the device is not known.
    """
    limits, device = request.limits, device_spec(request.device.name)
    if limits.max_kwh is not None and device.tdp_watts is None:
        raise _unknown_of_device("kWh")
    if limits.min_accuracy is None or request.probe_seconds is not None:
        return
    best: AccuracyEstimate | None = None
    method = ""
    for workload in chain.from_iterable(each.space.workloads() for each in request.backbones):
        expected = expected_of(workload)
        if expected.value is None or (best is not None and expected.value <= _value(best)):
            continue
        if expected.value >= limits.min_accuracy:
            return
        best, method = expected, workload.method
    if best is None:
        raise _no_known_accuracy(request, limits.min_accuracy)
    raise UnmetLimitError(
        f"no candidate is expected to reach {100 * limits.min_accuracy:g} % after its whole "
        f"training: the highest expected accuracy is {_shown(best)}, of {method}; lower "
        "--min-accuracy"
    )


def within_cost_limits(
    request: Request, front: Sequence[TrialResult], cost: CostModel
) -> list[TrialResult]:
    """Return the candidates whose training is within the limits of duration and energy.

    A candidate that exceeds a limit is counted with the levers that it would take, as the answer
    counts it. The replayed time of each row is checked again (``exceeded_limit``).

    Args:
        request: the request.
        front: candidates that fit the memory.
        cost: cost model that composed them.

    Raises:
        UnmetLimitError: none is; the message has the least that is needed.
        UsageError: the speed or the power of the device is not known.
    """
    kept, steps = list(front), _StepsOfRecipes(request)

    def hours(row: TrialResult) -> float | None:
        return known_times(row.step_seconds, steps.of(row.candidate.workload) / SECONDS_PER_HOUR)

    def kwh(row: TrialResult) -> float | None:
        return known_times(row.energy_joules, steps.of(row.candidate.workload) / JOULES_PER_KWH)

    def with_levers_of(value: float | None, limit: float, row: TrialResult) -> TrialResult:
        if value is None or value <= limit:
            return row
        return composed_with_levers(row, choice=request.levers, cost=cost)

    limits = request.limits
    for limit, total, unit in ((limits.max_hours, hours, "hours"), (limits.max_kwh, kwh, "kWh")):
        if limit is not None:
            values = [total(with_levers_of(total(row), limit, row)) for row in kept]
            kept = _within(kept, values, limit=limit, unit=unit)
    return kept


def exceeded_limit(request: Request, report: Report) -> str | None:
    """Return which limit of duration or energy a replayed candidate exceeds; None for none."""
    limits = request.limits
    if limits.max_hours is None and limits.max_kwh is None:
        return None
    steps = _StepsOfRecipes(request).of(report.candidate.workload)
    for limit, of_step, factor, unit in (
        (limits.max_hours, report.step_seconds, steps / SECONDS_PER_HOUR, "hours"),
        (limits.max_kwh, report.energy_joules, steps / JOULES_PER_KWH, "kWh"),
    ):
        if limit is not None and (of_step is None or of_step * factor > limit):
            most = f"{limit:g} {unit}"
            if of_step is None:
                what = "time" if unit == "hours" else "energy"
                return f"its replayed {what} is not known, and at most {most} are allowed"
            return f"its replayed training is {of_step * factor:.3g} {unit}, more than {most}"
    return None


class _StepsOfRecipes:
    """Optimizer steps of the whole training of each candidate, by its recipe.

    Args:
        request: the request.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._known: dict[tuple[str, str, int], int] = {}

    def of(self, workload: Workload) -> int:
        """Return the steps of a workload; they depend on its backbone, method and batch alone."""
        key = (workload.model, workload.method, workload.effective_batch)
        if key not in self._known:
            recipe = plan_recipe(self._request, workload)
            self._known[key] = recipe.steps(
                self._request.images_of(recipe), effective_batch=workload.effective_batch
            )
        return self._known[key]


def _within(
    results: Sequence[TrialResult],
    values: Sequence[float | None],
    *,
    limit: float,
    unit: str,
) -> list[TrialResult]:
    """Return the results with at most ``limit`` units.

    Args:
        results: candidates.
        values: units of the whole training of each.
        limit: largest number of units.
        unit: ``hours`` or ``kWh``, as in the option's name.
    """
    known = [value for value in values if value is not None]
    if results and not known:
        raise _unknown_of_device(unit)
    kept = [
        result
        for result, value in zip(results, values, strict=True)
        if value is not None and value <= limit
    ]
    if results and not kept:
        raise UnmetLimitError(
            f"no candidate that fits trains within {limit:g} {unit}: the least is "
            f"{min(known):.3g} {unit} in all epochs of its recipe; raise --max-{unit.lower()}, or "
            "train fewer images or smaller ones"
        )
    return kept


def accurate_enough(
    request: Request,
    results: Sequence[TrialResult],
    expected_of: Callable[[TrialResult], AccuracyEstimate],
) -> AccuracyCheck:
    """Divide candidates by the limit of the expected accuracy.

    The accuracy of a probe is carried on to the epochs of the whole training. Its interval does not
    decide; the sentences show it.

    Args:
        request: the request.
        results: candidates within the budget and the other limits.
        expected_of: returns the expected accuracy of a candidate.

    Raises:
        UnmetLimitError: no candidate is expected to be accurate enough.
    """
    least = request.limits.min_accuracy
    if least is None:
        return AccuracyCheck(passed=tuple(results), dropped=())
    found = [(result, expected_of(result)) for result in results]
    known = [(result, value) for result, each in found if (value := each.value) is not None]
    if found and not known:
        raise _no_known_accuracy(request, least)
    passed = tuple(result for result, value in known if value >= least)
    best = _most_accurate(found)
    if found and not passed:
        result, expected = max(best.values(), key=lambda pair: _value(pair[1]))
        limits = request.limits
        others = limits.max_hours is not None or limits.max_kwh is not None
        raise UnmetLimitError(
            f"no candidate that fits{' and is within the other limits' if others else ''} is "
            f"expected to reach {100 * least:g} % after its whole training: the highest expected "
            f"accuracy is {_shown(expected)}, of {candidate_summary(result.candidate)}; lower "
            "--min-accuracy, or raise --vram"
        )
    dropped = tuple(
        f"{method}{f' of {model}' if request.others else ''}: its expected accuracy is "
        f"{_shown(expected)}, and {100 * least:g} % was requested"
        for (model, method), (_, expected) in best.items()
        if _value(expected) < least
    )
    return AccuracyCheck(passed=passed, dropped=dropped)


def _unknown_of_device(unit: str) -> UsageError:
    """Return the error of a limit in ``hours`` or ``kWh`` that cannot be checked."""
    what = "speed" if unit == "hours" else "power"
    return UsageError(
        f"the {what} of this device is not known, so --max-{unit.lower()} cannot be checked; "
        "leave it out"
    )


def _no_known_accuracy(request: Request, least: float) -> UnmetLimitError:
    advice = "measure it with --probe-minutes"
    if request.probe_seconds is not None:
        advice = "the probe measured none; give it weights (--weights FILE) or more minutes"
    return UnmetLimitError(
        f"no accuracy on {request.run.data} is known for any candidate, so --min-accuracy "
        f"{100 * least:g} cannot be checked; {advice}"
    )


def _most_accurate(
    found: Sequence[tuple[TrialResult, AccuracyEstimate]],
) -> dict[tuple[str, str], tuple[TrialResult, AccuracyEstimate]]:
    """Return the candidate of the highest expected accuracy by backbone and method."""
    best: dict[tuple[str, str], tuple[TrialResult, AccuracyEstimate]] = {}
    for result, expected in found:
        workload = result.candidate.workload
        key = (workload.model, workload.method)
        if key not in best or _value(expected) > _value(best[key][1]):
            best[key] = (result, expected)
    return best


def _value(expected: AccuracyEstimate) -> float:
    return 0.0 if expected.value is None else expected.value


def _shown(expected: AccuracyEstimate) -> str:
    """Return an expected accuracy in percent, with its interval if it has one."""
    if expected.value is None:
        return "not known"
    value = f"{100 * expected.value:.1f} %"
    if expected.low is None or expected.high is None:
        return value
    return f"{value} ({100 * expected.low:.1f} to {100 * expected.high:.1f} %)"
