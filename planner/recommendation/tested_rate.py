"""The learning-rate test of the recommended plan (``--find-lr``).

By default it is made if it costs less than ``LARGEST_SHARE`` of the planned training, and if real
runs were allowed. It is not made after a probe, which tries learning rates itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from planner.recommendation.answer import FrontEntry
from planner.recommendation.probe_front import ProbeOutcome, learners_of, rule_of
from planner.recommendation.request import Notify, Request
from planner.training.find_rate import RATE_STEPS
from planner.training.probe_records import RATE_FACTORS, ProbeRule, ProbeRun
from planner.training.probe_statistics import best_rates
from profiler.errors import BudgetplanError

if TYPE_CHECKING:
    from planner.training.probe_messages import ProbeResult
    from planner.workers.run_pool import RunPool

LARGEST_SHARE = 1 / 20
"""Largest share of the planned training that the test may cost if it was not requested."""


def with_tested_rate(
    request: Request,
    entries: Sequence[FrontEntry],
    *,
    index: int,
    probe: ProbeOutcome | None,
    pool: RunPool | None,
    notify: Notify,
) -> tuple[tuple[FrontEntry, ...], tuple[str, ...]]:
    """Return the entries, that of ``index`` with a tested learning rate, and notes.

    Args:
        request: the request.
        entries: rows of the answer.
        index: the recommended row.
        probe: result of the probe; None without one.
        pool: runs the test; None if nothing is to be run.
        notify: called with (stage, current work, fraction of the stage done).
    """
    entry = entries[index]
    if pool is None or not _is_wanted(request, entry, probe):
        return tuple(entries), ()
    part = request.of_backbone(entry.plan.candidate.workload.model)
    try:
        result = _run_test(part, entry, rule_of(part), pool, notify)
    except BudgetplanError as error:
        return tuple(entries), (f"the learning rate was not tested: {error}",)
    tested, note = _tested(entry, result.runs)
    return (*entries[:index], tested, *entries[index + 1 :]), (note,)


def _run_test(
    request: Request, entry: FrontEntry, rule: ProbeRule, pool: RunPool, notify: Notify
) -> ProbeResult:
    """Train at each of the rates, here or on a worker."""
    from planner.recommendation.probe_run_order import run_probe_order
    from planner.recommendation.run_limits import rate_limit

    learners = learners_of(request, [entry.plan.candidate], rule)
    limit_seconds = rate_limit(request, learners[0], rule)
    return run_probe_order(
        request,
        learners,
        purpose="rates",
        rule=rule,
        seconds=limit_seconds,
        limit_seconds=limit_seconds,
        pool=pool,
        on_progress=lambda text, done: notify("learning rate", text, done),
    )


def _is_wanted(request: Request, entry: FrontEntry, probe: ProbeOutcome | None) -> bool:
    """Return whether the test is requested, or cheap enough to be made unrequested."""
    if request.find_lr is False or (probe is not None and probe.runs):
        return False
    if request.trains_pretrained and not request.has_weights:
        return False
    if request.find_lr:
        return True
    recipe, measured = entry.plan.recipe, entry.plan.measurement
    planned = entry.plan.prediction.step_seconds
    if recipe is None or measured is None or measured.step_seconds is None or planned is None:
        return False
    effective_batch = entry.plan.candidate.workload.effective_batch
    steps = recipe.steps(request.images_of(recipe), effective_batch=effective_batch)
    cost = len(RATE_FACTORS) * RATE_STEPS * measured.step_seconds
    return cost < LARGEST_SHARE * steps * planned


def _tested(entry: FrontEntry, runs: Sequence[ProbeRun]) -> tuple[FrontEntry, str]:
    """Return the entry with the learning rate that the runs show, and a note."""
    recipe = entry.plan.recipe
    assert recipe is not None, "plans that are made here have a recipe"
    (factor,) = best_rates(runs).values()
    shown = ", ".join(
        f"{run.learning_rate:.2g}: "
        + ("diverged" if run.diverged else f"{100 * run.accuracy:.1f} %")
        for run in runs
    )
    tested = (
        f"a test of {RATE_STEPS} steps at each of three rates on {runs[0].setting.train_images} "
        f"images ({shown} of {runs[0].setting.held_out_images} held-out images right)"
    )
    if all(run.diverged for run in runs):
        return entry, f"no learning rate worked in {tested}; try another --learning-rate or method"
    if factor == 1:
        return entry, f"the learning rate {recipe.learning_rate:g} was confirmed by {tested}"
    rate = recipe.learning_rate * factor
    changed = replace(
        recipe, learning_rate=rate, source=f"learning rate by {tested}; otherwise: {recipe.source}"
    )
    note = f"the learning rate {rate:.3g} in place of {recipe.learning_rate:g} is that of {tested}"
    return replace(entry, plan=replace(entry.plan, recipe=changed)), note
