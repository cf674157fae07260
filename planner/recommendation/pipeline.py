"""The whole flow from a request (model, data, device, budget) to an answer.

    recommend   profile -> search -> rows -> replay -> probe -> rehearse -> validate -> choose
                -> plan files

Each stage checks the one before it. The search composes estimates, the replay checks the named rows
that are selected from them, and a real run checks the best replayed ones. A candidate that exceeds
the budget in a later stage is dropped, and the answer lists it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from planner.disk.drafts import remove_draft_files
from planner.disk.free_space import check_folder
from planner.plan import write_new_plan
from planner.recommendation.after_probe import accuracy_expected, remake_front
from planner.recommendation.alternatives import named_alternatives
from planner.recommendation.answer import FrontEntry, Recommendation
from planner.recommendation.baselines import paper_baselines
from planner.recommendation.build_entry import build_entry
from planner.recommendation.checks import CheckedCandidate, CheckOutcome
from planner.recommendation.choose import choose
from planner.recommendation.choose_by_probe import best_first, choose_by_probe
from planner.recommendation.infeasible import none_replayed
from planner.recommendation.limits import (
    AccuracyCheck,
    accurate_enough,
    check_limits,
    within_cost_limits,
)
from planner.recommendation.notes import answer_notes
from planner.recommendation.probe_front import (
    ProbeOutcome,
    final_recipe,
    probe_front,
    unused_probe_notes,
)
from planner.recommendation.ranking import Question
from planner.recommendation.real_runs import run_best
from planner.recommendation.rehearse_front import rehearse_front
from planner.recommendation.replay_front import replay_front
from planner.recommendation.request import Notify, Request
from planner.recommendation.search_backbones import search_backbones
from planner.recommendation.several_backbones import with_backbone_reason
from planner.recommendation.smaller_images import with_smaller_images
from planner.recommendation.study_note import annotate
from planner.recommendation.tested_rate import with_tested_rate
from planner.recommendation.without_training import (
    best_without_training,
    list_training_free,
    training_free_notes,
)
from planner.search.storage import default_storage
from planner.search.study_lock import check_storage
from planner.workers.run_device import this_device
from planner.workers.run_pool import opened_pool
from profiler.devices.table import device_spec
from profiler.errors import InputError

if TYPE_CHECKING:
    from planner.cost.model import CostModel
    from planner.search.problem import SearchResult, TrialResult
    from planner.workers.run_pool import RunPool


def recommend(request: Request, *, notify: Notify = lambda *_: None) -> Recommendation:
    """Answer a request and write its plan files.

    Args:
        request: the request.
        notify: called with (stage, current work, fraction of the stage done).

    Raises:
        InfeasibleError: no candidate fits. The error has the smallest budget that would fit, and
            the change that helps most.
        UnmetLimitError: no candidate is within the limits of accuracy, duration and energy.
        InputError: the study, the weights or the data cannot be used.
        MeasurementError: every real run failed.
    """
    began = time.perf_counter()
    check_limits(request, partial(accuracy_expected, request, None))
    storage = _checked_outputs(request)
    cost = _profiled_costs(request, notify)
    found = search_backbones(request, cost, notify)
    with _real_runs(request, storage) as pool:
        rows = _checked_rows(request, found, cost, pool, notify)

        entries, probe, question = rows.entries, rows.probe, Question.of(request)
        choice = choose_by_probe(
            entries, probe, objective=request.objective
        ) or with_backbone_reason(
            choose(entries, question=question, searched=rows.affordable),
            entries,
        )
        request = request.led_by(entries[choice.index].plan.candidate.workload.model)
        entries, rate_notes = with_tested_rate(
            request, entries, index=choice.index, probe=probe, pool=pool, notify=notify
        )
    chosen = entries[choice.index]
    smaller = filter(None, [with_smaller_images(chosen, device=cost.device)])
    baselines = paper_baselines(request.space, cost, request.limit_bytes)
    training_free = list_training_free(request, notify)
    entries = tuple(replace(e, file=write_new_plan(e.plan, e.file)) for e in entries)
    named = named_alternatives(
        entries, choice, baselines, question=question, searched=found.results
    )
    answer = Recommendation(
        request=request,
        study=request.study,
        storage=found.storage,
        trials=found.trials,
        seconds=time.perf_counter() - began,
        front=entries,
        recommended=choice.index,
        reason=choice.reason,
        why=choice.why,
        decided_by=choice.decided_by,
        ties=choice.ties,
        alternatives=(*named, *smaller),
        baselines=baselines,
        dropped=rows.dropped,
        notes=(
            *rows.notes,
            *rate_notes,
            *unused_probe_notes(request, storage),
            *answer_notes(request, found, rows.candidates),
            *training_free_notes(request, training_free, chosen),
        ),
        probe=probe,
        training_free=training_free,
        recommended_training_free=best_without_training(request, training_free, chosen),
    )
    return _annotated(answer, storage)


def _checked_outputs(request: Request) -> str:
    """Check the folder of the plans and the storage before any work; return the storage's URL."""
    check_folder(request.out)
    remove_draft_files(request.out)
    storage = request.storage or default_storage(request.study)
    check_storage(storage)
    return storage


def _profiled_costs(request: Request, notify: Notify) -> CostModel:
    """Return the cost model of the device, with the profile of every workload."""
    from planner.cost.place_by_policy import default_cost_model
    from planner.cost.warm_up import profile_families

    device = device_spec(request.device.name)
    cost = default_cost_model(device, power_limit_watts=request.power_limit_watts)
    workloads = chain.from_iterable(each.space.workloads() for each in request.backbones)
    profile_families(cost.profiles, workloads, lambda t, f: notify("profile", t, f))
    return cost


def _annotated(answer: Recommendation, storage: str) -> Recommendation:
    """Write the notes of the study; without them the answer stands, and says that they lack."""
    try:
        annotate(answer, storage)
    except InputError as error:
        lacking = f"the study has no notes and no plan files of this answer: {error}"
        return replace(answer, notes=(*answer.notes, lacking))
    return answer


@dataclass(frozen=True, slots=True, kw_only=True)
class _CheckedRows:
    """The rows that passed every check.

    Attributes:
        affordable: results of the search within the budget and the limits.
        candidates: the rows that passed, replayed and, if requested, run.
        entries: their plans.
        probe: the probe; None if there was none.
        dropped: one sentence for each row that failed.
        notes: notes of the checks.
    """

    affordable: Sequence[TrialResult]
    candidates: tuple[CheckedCandidate, ...]
    entries: tuple[FrontEntry, ...]
    probe: ProbeOutcome | None
    dropped: tuple[str, ...]
    notes: tuple[str, ...]


def _checked_rows(
    request: Request, found: SearchResult, cost: CostModel, pool: RunPool | None, notify: Notify
) -> _CheckedRows:
    """Select the rows of the answer and check them: replay, probe, rehearsal, real runs."""
    affordable = within_cost_limits(request, found.fitting(request.limit_of), cost)
    accurate = AccuracyCheck(passed=tuple(affordable), dropped=())
    if request.probe_seconds is None:
        accurate = _accurate_rows(request, affordable, None)
    replayed = replay_front(
        request, accurate.passed, cost, notify, every_method=request.probe_seconds is not None
    )
    if not replayed.passed:
        raise none_replayed(request, found, cost, replayed.dropped)
    probe = probe_front(request, replayed.passed, pool, notify)
    if probe is not None:
        accurate = _accurate_rows(request, affordable, probe)
        replayed = remake_front(request, probe, accurate.passed, replayed, cost=cost, notify=notify)
        if not replayed.passed:
            raise none_replayed(request, found, cost, replayed.dropped)
    rehearsed = rehearse_front(request, replayed.passed, notify)
    ran = _run_best(request, rehearsed.passed, probe, pool, notify)
    return _CheckedRows(
        affordable=accurate.passed,
        candidates=ran.passed,
        entries=tuple(build_entry(request, found, candidate, probe) for candidate in ran.passed),
        probe=probe,
        dropped=(*accurate.dropped, *replayed.dropped, *rehearsed.dropped, *ran.dropped),
        notes=(
            *(() if probe is None else probe.notes),
            *replayed.notes,
            *rehearsed.notes,
            *ran.notes,
        ),
    )


def _accurate_rows(
    request: Request, results: Sequence[TrialResult], probe: ProbeOutcome | None
) -> AccuracyCheck:
    """Divide results by the limit of accuracy, so that only rows within it are really run."""
    return accurate_enough(
        request,
        results,
        lambda result: accuracy_expected(request, probe, result.candidate.workload),
    )


@contextmanager
def _real_runs(request: Request, storage: str) -> Iterator[RunPool | None]:
    """Open the queue of the real runs of a question; None if there are none."""
    if not request.has_real_runs:
        yield None
        return
    device = None if request.uses_workers else this_device(request.runs_on)
    at_once = request.validations if request.uses_workers else 1
    with opened_pool(storage, request.question_study, device=device, at_once=at_once) as pool:
        yield pool


def _run_best(
    request: Request,
    candidates: Sequence[CheckedCandidate],
    probe: ProbeOutcome | None,
    pool: RunPool | None,
    notify: Notify,
) -> CheckOutcome:
    """Run the best candidates here or on workers."""
    if request.validations == 0 or pool is None:
        return CheckOutcome(passed=tuple(candidates), dropped=())
    return run_best(
        request,
        best_first(candidates, probe, request.objective),
        pool,
        notify,
        in_order=probe is not None and bool(probe.estimates),
        recipe_of=partial(final_recipe, request, probe),
    )
