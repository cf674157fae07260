"""Statistics of a probe's runs: intervals of accuracies, and the probability of being the best.

All runs of a setting answer the same held-out images, so two learners are compared image by image:
the difference of two accuracies has a smaller error than either. The error has three parts.

- The images are a sample. Each draw weighs them anew (Bayesian bootstrap, Rubin 1981: weights are
  uniform on the simplex), with the same weights for all learners.
- Another seed gives another model. Each draw adds a normal error to every learner, with the
  standard deviation of the seeds over the square root of their number. The deviation is pooled over
  the learners with several seeds (``seed_deviation``).
- A run shorter than the planned training is another training. Each draw adds a normal error, with
  the standard deviation ``SHORTFALL_DEVIATION`` for each halving of the steps, in shares of the
  best learner's error rate.

Learners that were dropped early have short runs only. They are compared with the leader at the
last number of steps that both have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.training.probe_records import ProbeRun

if TYPE_CHECKING:
    from numpy.typing import NDArray

COVERAGE = 0.8
"""Stated coverage of an interval."""

DRAWS = 4000
"""Draws of the bootstrap: the standard error of a probability is 0.8 % at most."""

ASSUMED_SEED_DEVIATION = 0.01
"""Standard deviation of an accuracy over seeds where no learner has two; an assumption."""

SHORTFALL_DEVIATION = 0.4
"""Standard deviation by which a halving of the steps changes an accuracy relative to the others, as
a share of the best learner's error rate. From the first two cases of ``studies/probe`` (digits and
glyphs, 25 of 60 steps, gaps to the leader): 0.45 and 0.34. A first estimate."""

NEAR = 0.01
"""Difference of accuracies up to which two learners count as equal: one point."""

LearnerRate = tuple[str, float]
"""Name of a learner, and a factor of its learning rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerEstimate:
    """Accuracy of a learner in a probe.

    Attributes:
        learner: name of the learner.
        rate_factor: factor of the learning rate with the best accuracy.
        accuracy: mean over seeds of the fraction of held-out images classified right.
        low: lower end of the interval.
        high: upper end.
        steps: optimizer steps of the runs.
        seeds: number of seeds.
        best: probability that the learner is the best of the probe.
        near_best: probability that it is within ``NEAR`` of the best.
        diverged: whether every run diverged.
    """

    learner: str
    rate_factor: float
    accuracy: float
    low: float
    high: float
    steps: int
    seeds: int
    best: float
    near_best: float
    diverged: bool = False


def format_chance(probability: float) -> str:
    """Return a probability in percent; a bootstrap shows none above 99 %."""
    return "more than 99 %" if probability > 0.99 else f"{100 * probability:.0f} %"


def estimate_learners(
    runs: Sequence[ProbeRun], *, planned_steps: int | None = None, seed: int = 0
) -> tuple[LearnerEstimate, ...]:
    """Return the estimate of each learner, the best first.

    Args:
        runs: runs of the same setting.
        planned_steps: steps of the training that the runs stand for; None for theirs.
        seed: seed of the bootstrap.
    """
    if not runs:
        return ()
    rng = np.random.default_rng(seed)
    images = runs[0].setting.held_out_images
    weights = rng.dirichlet(np.ones(images), size=DRAWS)
    deviation = seed_deviation(runs)
    rates = best_rates(runs)
    shortfall = _shortfall_deviations(runs, planned_steps)
    drawn = {
        name: _drawn_by_steps(
            [r for r in runs if _key(r) == (name, rate)],
            weights,
            deviation,
            shortfall,
            rng,
        )
        for name, rate in rates.items()
    }
    gaps = _gaps_to_leader(drawn)
    # Draws in which several learners are exactly equal count for each in part.
    is_best = gaps >= gaps.max(axis=0)
    best = (is_best / is_best.sum(axis=0)).mean(axis=1)
    near = (gaps >= gaps.max(axis=0) - NEAR).mean(axis=1)
    estimates = []
    for index, (name, rate) in enumerate(rates.items()):
        mine = [run for run in runs if _key(run) == (name, rate)]
        steps = max(run.steps for run in mine)
        last = [run for run in mine if run.steps == steps]
        low, high = accuracy_interval(last, deviation, rng)
        estimates.append(
            LearnerEstimate(
                learner=name,
                rate_factor=rate,
                accuracy=float(np.mean([run.accuracy for run in last])),
                low=low,
                high=high,
                steps=steps,
                seeds=len({run.seed for run in last}),
                best=float(best[index]),
                near_best=float(near[index]),
                diverged=all(run.diverged for run in mine),
            )
        )
    return tuple(sorted(estimates, key=lambda e: (-e.best, -e.steps, -e.accuracy)))


def seed_deviation(runs: Sequence[ProbeRun]) -> float:
    """Return the standard deviation of an accuracy over seeds, pooled over all groups of runs."""
    groups: dict[tuple[str, float, int], list[float]] = defaultdict(list)
    for run in runs:
        if not run.diverged:
            groups[run.learner, run.rate_factor, run.steps].append(run.accuracy)
    several = [group for group in groups.values() if len(group) > 1]
    freedom = sum(len(group) - 1 for group in several)
    if freedom == 0:
        return ASSUMED_SEED_DEVIATION
    squares = sum((len(group) - 1) * float(np.var(group, ddof=1)) for group in several)
    # With few degrees of freedom, the assumed deviation counts as one more.
    return float(np.sqrt((squares + ASSUMED_SEED_DEVIATION**2) / (freedom + 1)))


def best_rates(runs: Sequence[ProbeRun]) -> Mapping[str, float]:
    """Return the factor of the learning rate to use for each learner, in the order of the runs.

    The recipe's own rate stays unless another classifies more images right in as many steps and
    with the same seed, by more than two standard errors of the paired difference.
    """
    chosen: dict[str, float] = {}
    for name in dict.fromkeys(run.learner for run in runs):
        mine = [run for run in runs if run.learner == name]
        factors = {run.rate_factor for run in mine}
        current = 1.0 if 1.0 in factors else min(factors)
        for factor in sorted(factors - {current}, key=lambda f: abs(np.log(f))):
            if _is_better_rate(mine, factor, current):
                current = factor
        chosen[name] = current
    return chosen


def _is_better_rate(runs: Sequence[ProbeRun], factor: float, current: float) -> bool:
    ours = {(r.steps, r.seed): r for r in runs if r.rate_factor == factor}
    theirs = {(r.steps, r.seed): r for r in runs if r.rate_factor == current}
    shared = ours.keys() & theirs.keys()
    if not shared:
        return False
    last = max(shared)
    gains = ours[last].right_images.astype(float) - theirs[last].right_images
    return bool(gains.mean() > 2 * gains.std() / np.sqrt(len(gains)))


def _key(run: ProbeRun) -> LearnerRate:
    return run.learner, run.rate_factor


def _shortfall_deviations(
    runs: Sequence[ProbeRun], planned_steps: int | None
) -> Mapping[int, float]:
    """Return the error of short runs by their number of steps, as the module describes it."""
    deviations = {}
    for steps in {run.steps for run in runs}:
        best = max(run.accuracy for run in runs if run.steps == steps)
        halvings = max(0.0, np.log2((planned_steps or steps) / steps))
        deviations[steps] = float(SHORTFALL_DEVIATION * (1 - best) * halvings)
    return deviations


def _drawn_by_steps(
    runs: Sequence[ProbeRun],
    weights: NDArray[np.float64],
    deviation: float,
    shortfall: Mapping[int, float],
    rng: np.random.Generator,
) -> dict[int, NDArray[np.float64]]:
    """Return the drawn accuracies [draws] of a learner by the number of steps.

    Args:
        runs: runs of the learner at one learning rate.
        weights: weights of the held-out images, [draws, images].
        deviation: standard deviation of an accuracy over seeds.
        shortfall: standard deviation of the error of short runs, by the number of steps.
        rng: random generator.
    """
    drawn = {}
    for steps in sorted({run.steps for run in runs}):
        group = [run for run in runs if run.steps == steps]
        right = np.mean([run.right_images for run in group], axis=0)
        spread = np.hypot(deviation / np.sqrt(len(group)), shortfall[steps])
        noise = rng.normal(0, spread, size=len(weights))
        drawn[steps] = weights @ right + noise
    return drawn


def _gaps_to_leader(
    drawn: Mapping[str, Mapping[int, NDArray[np.float64]]],
) -> NDArray[np.float64]:
    """Return each learner's accuracy less that of the leader, [learners, draws].

    The leader of a draw is the best learner with the most steps.
    """
    most = max(max(by_steps) for by_steps in drawn.values())
    finalists = [name for name, by_steps in drawn.items() if most in by_steps]
    final = np.stack([drawn[name][most] for name in finalists])
    leader = final.argmax(axis=0)
    draws = np.arange(final.shape[1])
    gaps = []
    for by_steps in drawn.values():
        if most in by_steps:
            gaps.append(by_steps[most] - final[leader, draws])
            continue
        shared = [max(by_steps.keys() & drawn[name].keys(), default=0) for name in finalists]
        gap = np.full(len(draws), -1.0)
        for index, (name, steps) in enumerate(zip(finalists, shared, strict=True)):
            if steps:
                chosen = leader == index
                gap[chosen] = (by_steps[steps] - drawn[name][steps])[chosen]
        gaps.append(gap)
    return np.stack(gaps)


def accuracy_interval(
    runs: Sequence[ProbeRun], deviation: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Return the interval of the accuracy on new images, after a further training.

    The images give a beta distribution (Jeffreys prior). The seeds give a normal error, for those
    that were averaged and for the further one.

    Args:
        runs: runs of a learner with equal steps and rates.
        deviation: standard deviation of an accuracy over seeds.
        rng: random generator.
    """
    right = float(np.mean([run.right_images.sum() for run in runs]))
    images = runs[0].setting.held_out_images
    drawn = rng.beta(right + 0.5, images - right + 0.5, size=DRAWS)
    drawn = drawn + rng.normal(0, deviation * np.sqrt(1 + 1 / len(runs)), size=DRAWS)
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(np.clip(drawn, 0, 1), [tail, 1 - tail])
    return float(low), float(high)
