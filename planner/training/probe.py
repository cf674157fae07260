"""The probe: short trainings of several learners, longer ones of the better learners.

Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943). All learners are trained for a
few steps; the more promising half is trained anew for twice as many, and so on until two are left:

    rung     steps        learners
    0        s            all n; those far behind once more, at 1/3 of the recipe's learning rate
    1        2 s          the half that is expected to be better after the planned training
    k - 1    2^(k-1) s    two; before it, at 1/3 and 3 times their learning rates for half as long
    then     2^(k-1) s    two more seeds of these two
    then     2^k s        and so on up to the recipe's steps, then more seeds
    last     the recipe's the leader, if it was not trained for as long yet

A longer run starts anew, because the cosine of a longer training is another one. The learners are
trained in the order of the known effects of their kinds (``planner.training.short_runs``), then in
the given order, so that a probe whose time does not suffice for all has compared the most promising
ones. Learners with cached features cost seconds and are never dropped. The comparison ends when the
leader is within one point of the best with a probability of ``ENOUGH`` and the last rung was
reached, or when the time that is left is that of the leader's whole training. Without that training
the leader's accuracy is carried on from shorter ones, with an interval of 20 points; with it, the
interval is that of the images. The probe ends when its time is over or nothing is left to do.

Each rung is trained, and decided, at the learning rate that was better in a stored learning-rate
test or in the rungs before; runs of later stages do not change such a decision. A learner that
diverges is trained on the same rung at another rate that was tried.

``next_run`` is a function of the finished runs alone, so an interrupted probe goes on with its next
run, and a later probe of more minutes goes on where the earlier one stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from planner.training.probe_records import RATE_FACTORS, Learner, ProbeRun
from planner.training.probe_statistics import (
    LearnerEstimate,
    all_diverged,
    best_rates,
    effect_of_kind,
    estimate_learners,
    format_chance,
)
from planner.training.short_runs import DEFAULTS, ShortRunModel
from profiler.errors import printable_line

FEWEST_STEPS = 20
"""Steps of a run on the lowest rung, if time allows no more. After 10 steps, ``lora`` was third of
five methods on letters, 15 points behind; after 60 it led by 8 (``studies/probe``)."""

FINALISTS = 2

FINAL_SEEDS, MOST_SEEDS = 3, 5

ENOUGH = 0.95
"""Probability that the leader is within one point of the best, from which the probe ends."""

LAGGING_SHARE = 0.5
"""Share of the best accuracy of the first rung, below which a lower learning rate is tried."""

LARGEST_WHOLE_SHARE = 0.5
"""Share of a probe's time that the leader's whole training may take instead of a comparison that
would fit too."""

EXTRA_RUNGS = 3
"""Work after the rungs in units of a rung: learning rates of the finalists, and their seeds."""


class Runner(Protocol):
    """The part of ``ProbeRunner`` that the schedule uses."""

    def has_features(self, learner: Learner) -> bool:
        """Return whether a learner trains on cached features."""

    def run(
        self,
        learner: Learner,
        *,
        steps: int,
        seed: int,
        rate_factor: float,
        out_of_time: Callable[[], bool],
    ) -> ProbeRun | None:
        """Train a learner and evaluate it; None if time runs out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """A run to do next."""

    learner: Learner
    steps: int
    seed: int
    rate_factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLadder:
    """The numbers of steps of a probe.

    Attributes:
        first: steps of the lowest rung.
        rungs: number of rungs.
        most: steps of the longest recipe on the probe's images, which no run exceeds.
        short_runs: constants that carry accuracies on to these steps.
    """

    first: int
    rungs: int
    most: int
    short_runs: ShortRunModel = DEFAULTS

    @classmethod
    def of(cls, *, learners: int, affordable_steps: float, most: int) -> StepLadder:
        """Return the ladder that uses up a number of steps.

        Args:
            learners: number of learners without cached features.
            affordable_steps: steps that the time allows in all.
            most: steps of the recipe.
        """
        rungs = max(2, math.ceil(math.log2(max(learners, 1) / FINALISTS)) + 1)
        first = int(affordable_steps / (max(learners, 1) * (rungs + EXTRA_RUNGS)))
        highest = max(FEWEST_STEPS, most // 2 ** (rungs - 1))
        return cls(first=min(max(first, FEWEST_STEPS), highest), rungs=rungs, most=most)

    @property
    def last(self) -> int:
        """Steps of a run on the last rung."""
        return self.steps(self.rungs - 1)

    def work(self, learners: int) -> int:
        """Return the steps of all runs up to the seeds of the finalists, about.

        Args:
            learners: number of learners without cached features.
        """
        return learners * (self.rungs + EXTRA_RUNGS) * self.first

    def steps(self, rung: int) -> int:
        """Return the steps of a run on a rung, from 0."""
        return min(self.most, self.first << rung)

    def estimates(self, runs: Sequence[ProbeRun]) -> tuple[LearnerEstimate, ...]:
        """Return the estimates of learners after the recipe's steps, the best first."""
        return estimate_learners(runs, planned_steps=self.most, short_runs=self.short_runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeEnd:
    """The end of a probe.

    Attributes:
        reason: why it ended, one clause.
        failures: why a learner could not be trained, by its name.
    """

    reason: str
    failures: Mapping[str, str] = field(default_factory=dict)


def probe(
    runner: Runner,
    learners: Sequence[Learner],
    *,
    ladder: StepLadder,
    seconds: float,
    known: Sequence[ProbeRun],
    save: Callable[[ProbeRun], None],
    on_progress: Callable[[str, float], None] = lambda text, done: None,
    clock: Callable[[], float] = time.monotonic,
) -> ProbeEnd:
    """Train learners until the choice is clear or the time is over.

    Args:
        runner: trains a learner.
        learners: the learners, the most promising first.
        ladder: numbers of steps.
        seconds: time of the probe.
        known: runs of earlier probes of the same setting.
        save: called with each finished run.
        on_progress: called with (who leads and the current run, share of the time used).
        clock: function that returns seconds.
    """
    began, runs = clock(), list(known)
    alive, failures = list(learners), dict[str, str]()
    quick = frozenset(each.name for each in learners if runner.has_features(each))

    def left() -> float:
        return seconds - (clock() - began)

    while (
        planned := next_affordable_run(
            alive, runs, ladder=ladder, quick=quick, left=left(), budget=seconds
        )
    ) is not None:
        if left() <= 0 or expected_seconds(planned, runs) > left():
            return ProbeEnd(reason="its time was over", failures=failures)
        on_progress(_line(planned, runs, ladder), min(1.0, 1 - left() / seconds))
        try:
            run = runner.run(
                planned.learner,
                steps=planned.steps,
                seed=planned.seed,
                rate_factor=planned.rate_factor,
                out_of_time=lambda: left() <= 0,
            )
        except Exception as error:  # an operation may fail for one method alone
            failures[planned.learner.name] = printable_line(str(error))
            alive.remove(planned.learner)
            continue
        if run is None:
            return ProbeEnd(reason="its time was over", failures=failures)
        runs.append(run)
        save(run)
    reason = "more runs would not change the choice" if runs else "no learner could be trained"
    return ProbeEnd(reason=reason, failures=failures)


def next_affordable_run(
    learners: Sequence[Learner],
    runs: Sequence[ProbeRun],
    *,
    ladder: StepLadder,
    quick: frozenset[str],
    left: float,
    budget: float,
    seconds_of: Callable[[PlannedRun, Sequence[ProbeRun]], float] | None = None,
) -> PlannedRun | None:
    """Return the run to do next, which is the leader's whole training if only that fits yet.

    Args:
        learners: the learners, the most promising first.
        runs: finished runs of the setting.
        ladder: numbers of steps.
        quick: names of learners with cached features.
        left: seconds that are left.
        budget: seconds of the whole probe.
        seconds_of: seconds that a run is expected to take; None for those of earlier runs.
    """
    seconds_of = seconds_of or expected_seconds
    planned = next_run(learners, runs, ladder=ladder, quick=quick)
    trained = {run.learner for run in runs}
    if planned is None or any(learner.name not in trained for learner in learners):
        return planned
    other = seconds_of(planned, runs)
    wholes = [PlannedRun(learner=each, steps=ladder.most, seed=0) for each in learners]
    if left >= other + max(seconds_of(each, runs) for each in wholes):
        return planned  # without the estimates, which take longer than all the rest
    whole = whole_training(learners, _in_order(learners, runs, ladder), ladder)
    if whole is None:
        return planned
    needed = seconds_of(whole, runs)
    is_last_chance = needed <= left < needed + other
    if is_last_chance and (needed <= LARGEST_WHOLE_SHARE * budget or other > left):
        return whole
    return planned


def next_run(
    learners: Sequence[Learner],
    runs: Sequence[ProbeRun],
    *,
    ladder: StepLadder,
    quick: frozenset[str] = frozenset(),
) -> PlannedRun | None:
    """Return the run to do next; None if the choice is clear or nothing is left to do.

    Args:
        learners: the learners, the most promising first.
        runs: finished runs of the setting.
        ladder: numbers of steps.
        quick: names of learners with cached features.
    """
    mine = _in_order(learners, runs, ladder)
    done = {(run.learner, run.steps, run.seed, run.rate_factor) for run in mine}
    for planned in _schedule(learners, mine, ladder, quick):
        if _key_of(planned) not in done:
            return planned
    whole = whole_training(learners, mine, ladder)
    return None if whole is None or _key_of(whole) in done else whole


def _key_of(planned: PlannedRun) -> tuple[str, int, int, float]:
    return planned.learner.name, planned.steps, planned.seed, planned.rate_factor


def _in_order(
    learners: Sequence[Learner], runs: Sequence[ProbeRun], ladder: StepLadder
) -> list[ProbeRun]:
    """Return the runs of some learners, learner by learner as these are trained.

    The draws of the estimates depend on the order of the learners, and a study has its own order.
    """
    places = {each.name: place for place, each in enumerate(_by_effect(learners, ladder))}
    mine = [run for run in runs if run.learner in places]
    return sorted(mine, key=lambda run: places[run.learner])


def whole_training(
    learners: Sequence[Learner], runs: Sequence[ProbeRun], ladder: StepLadder
) -> PlannedRun | None:
    """Return the whole training of the leader; None if it was made, or if nothing was trained."""
    by_name = {each.name: each for each in learners}
    estimates = [each for each in ladder.estimates(runs) if each.learner in by_name]
    if not estimates or estimates[0].steps >= ladder.most or estimates[0].diverged:
        return None
    first = estimates[0]
    return PlannedRun(
        learner=by_name[first.learner], steps=ladder.most, seed=0, rate_factor=first.rate_factor
    )


def _schedule(
    learners: Sequence[Learner], runs: Sequence[ProbeRun], ladder: StepLadder, quick: frozenset[str]
) -> Iterator[PlannedRun]:
    """Yield the runs of a probe in order; those after the first missing run are not known yet."""
    alive = _by_effect(learners, ladder)
    for rung in range(ladder.rungs - 1):
        steps = ladder.steps(rung)
        before = _runs_until(runs, ladder, rung - 1)
        yield from _at_best_rates(alive, before, steps=steps, seed=0)
        if rung == 0:
            yield from _second_tries(alive, runs, ladder)
        for _ in RATE_FACTORS[1:]:  # a rate that diverges gives way to another
            yield from _at_best_rates(alive, _runs_until(runs, ladder, rung), steps=steps, seed=0)
        if all_diverged(runs):
            return
        alive = _better_half(alive, runs, ladder, rung, quick)
    for factor in RATE_FACTORS:
        half = ladder.steps(ladder.rungs - 2)
        for each in alive:
            yield PlannedRun(learner=each, steps=half, seed=0, rate_factor=factor)
    for rung in count(ladder.rungs - 1):
        steps = ladder.steps(rung)
        yield from _at_best_rates(alive, runs, steps=steps, seed=0)
        finalists = _finalists(alive, runs, ladder)
        is_longest = steps >= ladder.most
        for seed in range(1, MOST_SEEDS if is_longest else FINAL_SEEDS):
            if is_clear(runs, ladder):
                return
            yield from _at_best_rates(finalists, runs, steps=steps, seed=seed)
        if is_longest or is_clear(runs, ladder):
            return
        alive = finalists


def _by_effect(learners: Sequence[Learner], ladder: StepLadder) -> list[Learner]:
    """Return the learners in the order in which they are trained."""
    return sorted(learners, key=lambda each: -_known_effect(each, ladder))


def _known_effect(learner: Learner, ladder: StepLadder) -> float:
    """Return the effect of a learner's kind, 0 if it is not known."""
    effect = effect_of_kind(learner.name, ladder.short_runs)
    return 0.0 if math.isnan(effect) else effect


def _second_tries(
    learners: Sequence[Learner], runs: Sequence[ProbeRun], ladder: StepLadder
) -> Iterator[PlannedRun]:
    """Yield a run at the lowest rate for each learner that lags far behind after the first rung.

    Such a learner may have diverged at its rate.
    """
    steps = ladder.steps(0)
    lagging = _lagging(_runs_at(steps, runs, best_rates(_tests_of_rates(runs))))
    for each in learners:
        if each.name in lagging:
            yield PlannedRun(learner=each, steps=steps, seed=0, rate_factor=min(RATE_FACTORS))


def _lagging(first: Sequence[ProbeRun]) -> set[str]:
    """Return the names of learners that lag far behind in the runs of the first rung."""
    most = max((run.accuracy for run in first), default=0.0)
    return {r.learner for r in first if r.diverged or r.accuracy < LAGGING_SHARE * most}


def _at_best_rates(
    learners: Sequence[Learner], runs: Sequence[ProbeRun], *, steps: int, seed: int
) -> Iterator[PlannedRun]:
    rates = best_rates(runs)
    for each in learners:
        rate = rates.get(each.name, 1.0)
        yield PlannedRun(learner=each, steps=steps, seed=seed, rate_factor=rate)


def is_clear(runs: Sequence[ProbeRun], ladder: StepLadder) -> bool:
    """Return whether the leader is within one point of the best with enough probability.

    Nothing is left to compare if every learner diverged.
    """
    if all_diverged(runs):
        return True
    estimates = ladder.estimates(runs)
    return bool(estimates) and estimates[0].near_best >= ENOUGH


def _better_half(
    alive: Sequence[Learner],
    runs: Sequence[ProbeRun],
    ladder: StepLadder,
    rung: int,
    quick: frozenset[str],
) -> list[Learner]:
    """Return the better half of the learners after a rung, at least two, and the quick ones.

    The better ones are those with the higher accuracy expected after the planned training: after a
    few steps a method that starts slowly, as LoRA does, is behind others that it overtakes.
    """
    estimates = ladder.estimates(_runs_of_rung(runs, ladder, rung))
    expected = {each.learner: each.expected for each in estimates}
    slow = [each for each in alive if each.name not in quick]
    slow.sort(key=lambda each: -expected.get(each.name, 0.0))
    kept = {each.name for each in slow[: max(FINALISTS, math.ceil(len(slow) / 2))]}
    return [each for each in alive if each.name in kept | quick]


def _runs_of_rung(runs: Sequence[ProbeRun], ladder: StepLadder, rung: int) -> list[ProbeRun]:
    """Return the runs that decide after a rung, at one learning rate for each learner that had it.

    They are as long as those of the rung at most, so that no learner has a longer one.
    """
    steps, until = ladder.steps(rung), _runs_until(runs, ladder, rung)
    rates = best_rates(until)
    chosen = [r for r in until if r.steps <= steps and r.rate_factor == rates.get(r.learner, 1.0)]
    had_it = {run.learner for run in chosen if run.steps == steps}
    return [run for run in chosen if run.learner in had_it]


def _runs_until(runs: Sequence[ProbeRun], ladder: StepLadder, rung: int) -> list[ProbeRun]:
    """Return the runs of the schedule up to a rung, and those of learning-rate tests.

    Runs of later stages are left out, although they may have as many steps: the rates of a rung and
    the decision after it stay the same when they are added.

    Args:
        runs: finished runs.
        ladder: numbers of steps.
        rung: number of the rung; -1 for the learning-rate tests alone.
    """
    found = _tests_of_rates(runs)
    for each in range(rung + 1):
        steps = ladder.steps(each)
        first = _runs_at(steps, runs, best_rates(found))
        found = _united(found, first)
        if each == 0:
            second = dict.fromkeys(_lagging(first), min(RATE_FACTORS))
            found = _united(
                found, [r for r in _runs_at(steps, runs, second) if r.learner in second]
            )
        for _ in RATE_FACTORS[1:]:
            found = _united(found, _runs_at(steps, runs, best_rates(found)))
    return found


def _tests_of_rates(runs: Sequence[ProbeRun]) -> list[ProbeRun]:
    """Return the runs of learning-rate tests that have the recipe's own rate.

    A test reuses runs of a probe that are as long, so runs beside one of its own belong to it.
    """
    lengths = {(run.learner, run.steps) for run in runs if run.of_rate_test}
    tests = [run for run in runs if run.seed == 0 and (run.learner, run.steps) in lengths]
    complete = {(run.learner, run.steps) for run in tests if run.rate_factor == 1}
    return [run for run in tests if (run.learner, run.steps) in complete]


def _runs_at(steps: int, runs: Sequence[ProbeRun], rates: Mapping[str, float]) -> list[ProbeRun]:
    """Return the runs of some steps with the first seed, at the rate of each learner."""
    return [
        run
        for run in runs
        if (run.steps, run.seed, run.rate_factor) == (steps, 0, rates.get(run.learner, 1.0))
    ]


def _united(runs: Sequence[ProbeRun], others: Sequence[ProbeRun]) -> list[ProbeRun]:
    """Return the runs of two lists, each once."""
    return list(dict.fromkeys([*runs, *others]))


def _finalists(
    alive: Sequence[Learner], runs: Sequence[ProbeRun], ladder: StepLadder
) -> list[Learner]:
    """Return the two learners that are most probably the best."""
    order = [each.learner for each in ladder.estimates(runs)]
    return sorted(alive, key=lambda each: order.index(each.name))[:FINALISTS]


def expected_seconds(planned: PlannedRun, runs: Sequence[ProbeRun]) -> float:
    """Return the seconds that a run is expected to take, from earlier runs; 0 if there is none."""
    mine = [r for r in runs if r.learner == planned.learner.name]
    mine = [r for r in mine if not r.diverged] or mine  # one that diverges ends early
    if not mine:
        return 0.0
    nearest = max(mine, key=lambda r: r.steps)
    # Building and evaluating do not grow with the steps, so this errs on the long side.
    return nearest.seconds * max(1.0, planned.steps / nearest.steps)


def _line(planned: PlannedRun, runs: Sequence[ProbeRun], ladder: StepLadder) -> str:
    """Return a line for the progress bar: the leader, its probability and the current run."""
    rate = "" if planned.rate_factor == 1 else f" at {planned.rate_factor:.2g} times its rate"
    current = f"{planned.learner.name}: {planned.steps} steps{rate}"
    estimates = ladder.estimates(runs)
    if not estimates:
        return current
    return f"{describe_leader(estimates)}; now {current}"


def describe_leader(estimates: Sequence[LearnerEstimate]) -> str:
    """Return the leader and the probability that it is the best."""
    first = estimates[0]
    return (
        f"{first.learner} leads with {100 * first.expected:.1f} % expected, the best with a "
        f"probability of {format_chance(first.best)}"
    )
