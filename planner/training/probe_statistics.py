"""Statistics of a probe's runs: intervals of accuracies, and the probability of being the best.

All runs of a setting answer the same held-out images, so two learners are compared image by image:
the difference of two accuracies has a smaller error than either. The error has three parts.

- The images are a sample. Each draw weighs them anew (Bayesian bootstrap, Rubin 1981: weights are
  uniform on the simplex), with the same weights for all learners.
- Another seed gives another model. Each draw adds a normal error to every learner, with the
  standard deviation of the seeds over the square root of their number. The deviation is pooled over
  the learners with several seeds (``seed_deviation``).
- A run shorter than the planned training is another training. Each draw is carried on to the
  planned steps (``planner.training.short_runs``), with an error that grows with the steps missing.

Learners that were dropped early rise as those that went on did, apart from the effects of their
kind and slope, with an error of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.methods.kinds import known_kind
from planner.training.probe_records import ProbeRun
from planner.training.short_runs import DEFAULTS, ShortRunModel, doublings_left

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from planner.methods.kinds import MethodKind

COVERAGE = 0.8
"""Stated coverage of an interval."""

DRAWS = 4000
"""Draws of the bootstrap: the standard error of a probability is 0.8 % at most."""

ASSUMED_SEED_DEVIATION = 0.01
"""Standard deviation of an accuracy over seeds where no learner has two; an assumption."""

NEAR = 0.01
"""Difference of accuracies up to which two learners count as equal: one point."""

LEAST_DRAWN = 1e-3
"""Drawn accuracies are moved inwards to this share, where their log-odds are finite."""

LearnerRate = tuple[str, float]
"""Name of a learner, and a factor of its learning rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerEstimate:
    """Accuracy of a learner in a probe.

    Attributes:
        learner: name of the learner.
        rate_factor: factor of the learning rate with the best accuracy.
        accuracy: mean over seeds of the fraction of held-out images classified right, in the runs
            with the most steps.
        expected: accuracy expected after the planned training; equal to ``accuracy`` up to rounding
            if the runs are as long.
        low: lower end of the interval of the expected accuracy.
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
    expected: float
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
    runs: Sequence[ProbeRun],
    *,
    planned_steps: int | None = None,
    seed: int = 0,
    short_runs: ShortRunModel = DEFAULTS,
) -> tuple[LearnerEstimate, ...]:
    """Return the estimate of each learner, the best first.

    Args:
        runs: runs of the same setting.
        planned_steps: steps of the training that the runs stand for; None for the most of theirs.
        seed: seed of the bootstrap.
        short_runs: constants of the extrapolation.
    """
    if not runs:
        return ()
    rng = np.random.default_rng(seed)
    planned = max(planned_steps or 0, *(run.steps for run in runs), 1)
    # One more image counts half, so that a perfect or hopeless score has an error too.
    images = runs[0].setting.held_out_images + 1
    draws = _Draws(
        weights=rng.dirichlet(np.ones(images), size=DRAWS),
        deviation=seed_deviation(runs),
        common=rng.normal(size=DRAWS),
        planned=planned,
        model=short_runs,
        rng=rng,
    )
    rates = best_rates(runs)
    mine = {name: [r for r in runs if _key(r) == (name, rate)] for name, rate in rates.items()}
    finals = draws.finals(list(mine.values()), [kind_of_learner(name) for name in mine])
    # Draws in which several learners are exactly equal count for each in part.
    is_best = finals >= finals.max(axis=0)
    best = (is_best / is_best.sum(axis=0)).mean(axis=1)
    near = (finals >= finals.max(axis=0) - NEAR).mean(axis=1)
    tail = (1 - COVERAGE) / 2
    estimates = []
    for index, (name, group) in enumerate(mine.items()):
        steps = max(run.steps for run in group)
        last = [run for run in group if run.steps == steps]
        # A further training has an error of its own beside that of the mean.
        further = finals[index] + rng.normal(0, draws.deviation, size=DRAWS)
        low, high = np.quantile(np.clip(further, 0, 1), [tail, 1 - tail])
        estimates.append(
            LearnerEstimate(
                learner=name,
                rate_factor=rates[name],
                accuracy=float(np.mean([run.accuracy for run in last])),
                expected=float(np.median(finals[index])),
                low=float(low),
                high=float(high),
                steps=steps,
                seeds=len({run.seed for run in last}),
                best=float(best[index]),
                near_best=float(near[index]),
                diverged=all(run.diverged for run in group),
            )
        )
    return tuple(sorted(estimates, key=lambda e: (-e.best, -e.steps, -e.expected)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draws:
    """Everything that the draws of the learners have in common.

    Attributes:
        weights: weights of the held-out images and another one, [draws, images + 1].
        deviation: standard deviation of an accuracy over seeds.
        common: standard normal error of the extrapolation that all learners share, [draws].
        planned: steps of the planned training.
        model: constants of the extrapolation.
        rng: random generator.
    """

    weights: NDArray[np.float64]
    deviation: float
    common: NDArray[np.float64]
    planned: int
    model: ShortRunModel
    rng: np.random.Generator

    def finals(
        self, groups: Sequence[Sequence[ProbeRun]], kinds: Sequence[MethodKind | None]
    ) -> NDArray[np.float64]:
        """Return the drawn accuracies after the planned training, [learners, draws].

        Args:
            groups: runs of each learner at its best learning rate.
            kinds: kind of each learner's method.
        """
        curves = [
            _Curve(
                kind=kind,
                drawn={s: _log_odds(self._at(runs, s)) for s in sorted({r.steps for r in runs})},
            )
            for runs, kind in zip(groups, kinds, strict=True)
        ]
        most = max(curve.last for curve in curves)
        longest = [curve for curve in curves if curve.last == most]
        doublings = doublings_left(most, self.planned)
        odds = []
        for curve in curves:
            is_long = curve.last == most
            final = curve.drawn[most] if is_long else self._as_long(curve, longest)
            if doublings:
                # The slope of a dropped learner at the most steps is that of those that went on.
                slopes_of = [curve] if is_long else longest
                rises = [self.model.rise(c.means, self.planned, curve.kind) for c in slopes_of]
                final = final + float(np.mean(rises))
                final += self._error(doublings, has_slope=len(longest[0].drawn) > 1)
            odds.append(final)
        drawn: NDArray[np.float64] = 1 / (1 + np.exp(-np.stack(odds)))
        return drawn

    def _as_long(self, curve: _Curve, longest: Sequence[_Curve]) -> NDArray[np.float64]:
        """Return the log-odds [draws] of a dropped learner after the most steps of the probe.

        The rise of the learners that went on is known. The dropped one differs from them as the
        constants say of its kind and, if slopes are known, of its slope; and it has an error of
        its own.
        """
        most, last = longest[0].last, curve.last
        doublings = doublings_left(last, most)
        beside = [each for each in longest if last in each.drawn]
        if not beside:  # nothing was trained for as long
            rise = self.model.rise(curve.means, most, curve.kind)
        else:
            rise = float(np.mean([each.means[most] - each.means[last] for each in beside]))
            every = [curve, *beside]
            cut = [{s: odds for s, odds in each.means.items() if s <= last} for each in every]
            # A curve of one length has no slope, and is extrapolated by another constant.
            if len({len(each) > 1 for each in cut}) == 1:
                # The common gain cancels: this is the difference of the kinds and of the slopes.
                expected = [
                    self.model.rise(means, most, each.kind)
                    for means, each in zip(cut, every, strict=True)
                ]
                rise += expected[0] - float(np.mean(expected[1:]))
        own = self._own_error(doublings, has_slope=len(curve.drawn) > 1)
        odds: NDArray[np.float64] = curve.drawn[last] + rise + own
        return odds

    def _error(self, doublings: float, *, has_slope: bool) -> NDArray[np.float64]:
        """Return the error [draws] in log-odds of doublings that no learner was trained for."""
        model = self.model
        common = model.common_deviation if has_slope else model.first_common_deviation
        error: NDArray[np.float64] = np.sqrt(doublings) * common * self.common
        return error + self._own_error(doublings, has_slope=has_slope)

    def _own_error(self, doublings: float, *, has_slope: bool) -> NDArray[np.float64]:
        """Return a learner's own part of the error [draws]."""
        own = self.model.own_deviation if has_slope else self.model.first_own_deviation
        return self.rng.normal(0, np.sqrt(doublings) * own, size=len(self.weights))

    def _at(self, runs: Sequence[ProbeRun], steps: int) -> NDArray[np.float64]:
        """Return the drawn accuracies [draws] of the runs of some steps."""
        group = [run for run in runs if run.steps == steps]
        right = np.append(np.mean([run.right_images for run in group], axis=0), 0.5)
        noise = self.rng.normal(0, self.deviation / np.sqrt(len(group)), size=len(self.weights))
        drawn: NDArray[np.float64] = self.weights @ right + noise
        return drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class _Curve:
    """Drawn log-odds of a learner.

    Attributes:
        kind: kind of its method; None if it is not known.
        drawn: log-odds [draws] by the number of steps.
    """

    kind: MethodKind | None
    drawn: Mapping[int, NDArray[np.float64]]

    @property
    def last(self) -> int:
        """Steps of the longest run."""
        return max(self.drawn)

    @property
    def means(self) -> dict[int, float]:
        """The mean of each draw; a drawn slope would count the error of the images twice."""
        return {steps: float(odds.mean()) for steps, odds in self.drawn.items()}


def kind_of_learner(name: str) -> MethodKind | None:
    """Return the kind of the method of a learner; None if it is not known.

    Args:
        name: name such as ``lora r8, adamw, 32 a step``, with or without a backbone before it.
    """
    words = name.partition(",")[0].split()
    return next((kind for word in words if (kind := known_kind(word)) is not None), None)


def _log_odds(accuracy: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = np.clip(accuracy, LEAST_DRAWN, 1 - LEAST_DRAWN)
    odds: NDArray[np.float64] = np.log(inside / (1 - inside))
    return odds


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
