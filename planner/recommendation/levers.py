"""Decides which levers a row of the answer takes.

    with_levers            a replayed row with its levers
    composed_with_levers   the composed time and energy that a row of the search would have

Levers change the speed of a step and not its results (``profiler.workload.Lever``), so they are
decided after the search and do not multiply its space. By default (``auto``) a row takes a
lever if the whole interval of its predicted effect is a gain, and the gain is at least
``LEAST_GAIN``. If the row no longer fits the budget with its levers, it takes none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from planner.cost.budget import needed_bytes
from planner.recommendation.lever_choice import LeverChoice
from planner.recommendation.named_rows import is_paper_default
from planner.search.problem import TrialResult
from planner.search.space import ADAMW_VARIANTS
from profiler.errors import UsageError
from profiler.prediction.lever_effects import (
    PREDICTED_LEVERS,
    LeverEffect,
    can_gain,
    effect_of,
    lever_effects,
)
from profiler.records import Report
from profiler.units import DeviceBytes
from profiler.workload import Candidate, Lever

if TYPE_CHECKING:
    from planner.cost.model import CostModel
    from planner.cost.step_estimate import StepEstimate
    from profiler.devices.table import DeviceSpec
    from profiler.replay.event_log import EventLog

LEAST_GAIN = 0.01
"""Least predicted share of the step's time that a lever saves: below it, the plainer plan stays."""

LEVERS_OF_CPU = ("channels_last", "fused")
"""Levers that a step on a CPU can use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeverOutcome:
    """A replayed row with its levers.

    Attributes:
        report: replay of the row with its levers.
        effects: predicted effects of the levers that it takes, where there is a prediction.
        seconds_ratio: seconds with the levers over those without; 1 if either is unknown.
        joules_ratio: the same of energy.
        plain_report: replay without the levers; None if it takes none.
        left_out: levers that the user named, with which the row would exceed the budget.
    """

    report: Report
    effects: tuple[LeverEffect, ...] = ()
    seconds_ratio: float = 1.0
    joules_ratio: float = 1.0
    plain_report: Report | None = None
    left_out: tuple[Lever, ...] = ()

    @property
    def timed_report(self) -> Report:
        """The replay without levers if the time with them is not predicted, else with them."""
        if self.report.step_seconds is None and self.plain_report is not None:
            return self.plain_report
        return self.report

    def result(self, row: TrialResult) -> TrialResult:
        """Return a row of the search with the replayed candidate and the gain of its levers."""
        by_joules = row.energy_joules is not None
        return replace(
            row,
            candidate=self.report.candidate,
            step_seconds=_by_factor(row.step_seconds, self.seconds_ratio),
            energy_joules=_by_factor(row.energy_joules, self.joules_ratio),
            cost=row.cost * (self.joules_ratio if by_joules else self.seconds_ratio),
        )


def with_levers(
    report: Report,
    row: TrialResult,
    *,
    choice: LeverChoice,
    budget_bytes: int,
    device: DeviceSpec,
    log: EventLog,
) -> LeverOutcome:
    """Return a replayed row with the levers that it takes.

    Args:
        report: replay without levers.
        row: the row in the search.
        choice: the user's choice.
        budget_bytes: budget in device bytes.
        device: device that was replayed for.
        log: the replay that the report was read from.
    """
    plain = LeverOutcome(report=report)
    levers = _allowed_levers(row, report.candidate, choice, device)
    if not levers:
        return plain
    effects = lever_effects(
        report.candidate,
        log,
        device=device,
        levers=levers,
        power_limit_watts=report.power_limit_watts,
    )
    if choice == "auto":
        effects = tuple(each for each in effects if _gains(each))
        levers = tuple(each.lever for each in effects)
    if not levers:
        return plain
    changed = _replay_with(report, levers, device, log)
    if needed_bytes(changed) > budget_bytes:
        return replace(plain, left_out=() if choice == "auto" else levers)
    return LeverOutcome(
        report=changed,
        effects=effects,
        seconds_ratio=_ratio(changed.step_seconds, report.step_seconds),
        joules_ratio=_ratio(changed.energy_joules, report.energy_joules),
        plain_report=report,
    )


def composed_with_levers(row: TrialResult, *, choice: LeverChoice, cost: CostModel) -> TrialResult:
    """Return a row with the composed time and energy of the levers that it would take.

    The replay decides which ones it takes (``with_levers``). If no time is predicted with levers,
    the row is unchanged.

    Args:
        row: the row in the search, without levers.
        choice: the user's choice.
        cost: cost model that composed the row.
    """
    levers = _allowed_levers(row, row.candidate, choice, cost.device)
    if not levers:
        return row
    plain = _composed_step(row.candidate, (), cost)
    if choice == "auto":
        levers = tuple(
            lever
            for lever in levers
            if can_gain(cost.device, lever)
            and _gains(effect_of(lever, _composed_ratio(row.candidate, lever, plain, cost)))
        )
    changed = _composed_step(row.candidate, levers, cost)
    return replace(
        row,
        step_seconds=_by_factor(row.step_seconds, _ratio(changed.step_seconds, plain.step_seconds)),
        energy_joules=_by_factor(
            row.energy_joules, _ratio(changed.energy_joules, plain.energy_joules)
        ),
    )


def _composed_ratio(
    candidate: Candidate, lever: Lever, plain: StepEstimate, cost: CostModel
) -> float:
    try:
        changed = _composed_step(candidate, (lever,), cost)
    except UsageError:  # the method has no update that is fused
        return 1.0
    return _ratio(changed.step_seconds, plain.step_seconds)


def _composed_step(
    candidate: Candidate, levers: tuple[Lever, ...], cost: CostModel
) -> StepEstimate:
    changed = replace(candidate, workload=candidate.workload.replace(levers=levers))
    # Only time and energy are used: no bytes are near to 0, so the allocator is not read.
    return cost.estimate(changed, DeviceBytes(0))


def _allowed_levers(
    row: TrialResult, candidate: Candidate, choice: LeverChoice, device: DeviceSpec
) -> tuple[Lever, ...]:
    """Return the levers that are considered for a row, by the choice and its candidate."""
    if not choice or is_paper_default(row) or not (device.is_cuda or choice != "auto"):
        return ()
    wanted = PREDICTED_LEVERS if choice == "auto" else choice
    return tuple(lever for lever in wanted if _allows(candidate, lever, device))


def _replay_with(
    report: Report, levers: tuple[Lever, ...], device: DeviceSpec, log: EventLog
) -> Report:
    from profiler.prediction.report import report_of
    from profiler.replay.step_replay import replay_step

    workload = report.candidate.workload.replace(levers=levers)
    candidate = replace(report.candidate, workload=workload)
    return report_of(
        candidate,
        replay_step(candidate, device=device),
        device=device,
        power_limit_watts=report.power_limit_watts,
        timed=log if levers == ("channels_last",) else None,
    )


def _gains(effect: LeverEffect) -> bool:
    return effect.interval.high < 1.0 and effect.seconds_ratio <= 1.0 - LEAST_GAIN


def _allows(candidate: Candidate, lever: Lever, device: DeviceSpec) -> bool:
    """Return whether a candidate on a device can use a lever."""
    workload = candidate.workload
    if not device.is_cuda and lever not in LEVERS_OF_CPU:
        return False
    if lever == "fused" and workload.method in ADAMW_VARIANTS:
        return False
    try:
        replace(candidate, workload=workload.replace(levers=(lever,)))
    except UsageError:
        return False
    return True


def _ratio(changed: float | None, plain: float | None) -> float:
    return 1.0 if changed is None or not plain else changed / plain


def _by_factor(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
