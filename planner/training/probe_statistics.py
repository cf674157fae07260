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

A learner with a divergence among its longest runs has accuracy 0, and says nothing about the
others.

Learners that were dropped early rise as those that went on did, apart from the difference of their
kinds, with an error of their own. The known effects of the kinds (of other nets and sets) and the
carried-on accuracies are combined by their precisions.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from planner.methods.kinds import known_kind
from planner.scoring.accuracy_prior import COVERAGE
from planner.training.probe_records import ProbeRun
from planner.training.short_runs import DEFAULTS, Gains, ShortRunModel, doublings_left

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
        low: lower end of the interval of an accuracy after the planned training, on the test
            images if their number is known.
        high: upper end.
        steps: optimizer steps of the runs.
        seeds: number of seeds.
        best: probability that the learner is the best of the probe.
        near_best: probability that it is within ``NEAR`` of the best.
        diverged: whether a longest run diverged, at every learning rate that was tried.
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
    test_images: int | None = None,
    short_runs: ShortRunModel = DEFAULTS,
) -> tuple[LearnerEstimate, ...]:
    """Return the estimate of each learner, the best first.

    Args:
        runs: runs of the same setting.
        planned_steps: steps of the training that the runs stand for; None for the most of theirs.
        test_images: images that the accuracy after the training will be read on; None for so many
            that they are no sample.
        short_runs: constants of the extrapolation.
    """
    if not runs:
        return ()
    mine = _runs_by_learner(runs)
    sound = {name: group for name, group in mine.items() if not _ends_in_divergence(group)}
    estimates = [_diverged(name, group) for name, group in mine.items() if name not in sound]
    if sound:
        estimates += _estimate_sound(
            sound, planned_steps=planned_steps, test_images=test_images, short_runs=short_runs
        )
    return tuple(sorted(estimates, key=lambda e: (-e.best, -e.steps, -e.expected)))


def all_diverged(runs: Sequence[ProbeRun]) -> bool:
    """Return whether every learner diverged, so that there is nothing to compare."""
    return bool(runs) and all(map(_ends_in_divergence, _runs_by_learner(runs).values()))


def _runs_by_learner(runs: Sequence[ProbeRun]) -> Mapping[str, Sequence[ProbeRun]]:
    """Return the runs of each learner at its best learning rate."""
    rates = best_rates(runs)
    return {name: [r for r in runs if _key(r) == (name, rate)] for name, rate in rates.items()}


def _diverged(name: str, runs: Sequence[ProbeRun]) -> LearnerEstimate:
    """Return the estimate of a learner with a divergence among its longest runs."""
    steps = max(run.steps for run in runs)
    return LearnerEstimate(
        learner=name, rate_factor=runs[0].rate_factor, accuracy=0.0, expected=0.0, low=0.0,
        high=0.0, steps=steps, seeds=len({run.seed for run in runs if run.steps == steps}),
        best=0.0, near_best=0.0, diverged=True,
    )  # fmt: skip


def _estimate_sound(
    mine: Mapping[str, Sequence[ProbeRun]],
    *,
    planned_steps: int | None,
    test_images: int | None,
    short_runs: ShortRunModel,
) -> list[LearnerEstimate]:
    """Return the estimates of learners that did not diverge, from their runs at one rate each."""
    runs = [run for group in mine.values() for run in group]
    rng = np.random.default_rng(0)  # the same estimates whenever the runs are the same
    planned = max(planned_steps or 0, *(run.steps for run in runs), 1)
    # One more image counts half, so that a perfect or hopeless score has an error too.
    images = runs[0].setting.held_out_images + 1
    draws = _Draws(
        weights=rng.dirichlet(np.ones(images), size=DRAWS),
        deviation=seed_deviation(runs),
        common=short_runs.common_errors(rng, DRAWS),
        planned=planned,
        model=short_runs,
        rng=rng,
    )
    finals = draws.finals(list(mine.values()), list(mine))
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
        if test_images is not None:  # which are a sample too
            sampled = np.sqrt(finals[index] * (1 - finals[index]) / test_images)
            further += rng.normal(0, 1, size=DRAWS) * sampled
        low, high = np.quantile(np.clip(further, 0, 1), [tail, 1 - tail])
        estimates.append(
            LearnerEstimate(
                learner=name,
                rate_factor=group[0].rate_factor,
                accuracy=float(np.mean([run.accuracy for run in last])),
                expected=float(np.median(finals[index])),
                low=float(low),
                high=float(high),
                steps=steps,
                seeds=len({run.seed for run in last}),
                best=float(best[index]),
                near_best=float(near[index]),
            )
        )
    return estimates


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draws:
    """Everything that the draws of the learners have in common.

    Attributes:
        weights: weights of the held-out images and another one, [draws, images + 1].
        deviation: standard deviation of an accuracy over seeds.
        common: error of the extrapolation that all learners share, [draws], over its deviation.
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
        self, groups: Sequence[Sequence[ProbeRun]], names: Sequence[str]
    ) -> NDArray[np.float64]:
        """Return the drawn accuracies after the planned training, [learners, draws].

        Args:
            groups: runs of each learner at its best learning rate.
            names: names of the learners.
        """
        curves = [
            _Curve(
                kind=kind_of_learner(name),
                drawn={s: _log_odds(self._at(runs, s)) for s in _sound_lengths(runs)},
            )
            for runs, name in zip(groups, names, strict=True)
        ]
        lengths = {steps for curve in curves for steps in curve.drawn}
        most = max(lengths)
        gains = self.model.first if len(lengths) == 1 else self.model.later
        longest = [curve for curve in curves if curve.last == most]
        doublings = doublings_left(most, self.planned)
        unusual = gains.unusual_rise(*_risen(curves, most)) if len(lengths) > 1 else 0.0
        common = np.sqrt(doublings) * gains.common_deviation * self.common
        odds, variances = [], []
        for curve in curves:
            final, variance = curve.drawn[curve.last], 0.0
            if curve.last < most:
                final, variance = self._as_long(curve, longest)
            variance += doublings * gains.own_deviation**2
            rise = gains.rise(doublings, curve.kind, unusual=unusual)
            final = final + rise + self._normal(variance)
            odds.append(final + common)
            variances.append(variance)
        effects = [effect_of_kind(name, self.model) for name in names]
        combined = self._combined(np.stack(odds), np.array(variances), np.array(effects))
        drawn: NDArray[np.float64] = (1 + np.tanh(combined / 2)) / 2  # of the log-odds
        return drawn

    def _as_long(
        self, curve: _Curve, longest: Sequence[_Curve]
    ) -> tuple[NDArray[np.float64], float]:
        """Return the log-odds [draws] of a dropped learner after the most steps.

        The second value is the variance of its own error, which is not drawn yet. The rise of the
        learners that went on is known; the dropped one differs from them as the constants say of
        its kind.
        """
        most, last = longest[0].last, curve.last
        doublings = doublings_left(last, most)
        gains: Gains = self.model.first if len(curve.drawn) == 1 else self.model.later
        beside = [each for each in longest if last in each.drawn]
        expected = gains.rise(doublings, curve.kind)
        if beside:  # otherwise nothing was trained for as long
            risen = [each.means[most] - each.means[last] for each in beside]
            usual = [gains.rise(doublings, each.kind) for each in beside]
            # The common gain cancels: this is the difference of the kinds.
            expected += float(np.mean(risen)) - float(np.mean(usual))
        return curve.drawn[last] + expected, doublings * gains.own_deviation**2

    def _combined(
        self,
        odds: NDArray[np.float64],
        variances: NDArray[np.float64],
        effects: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Return draws of the log-odds given both the short trainings and the effects of the kinds.

        Both are normal, and the mean of all learners is only known from the short trainings. A draw
        of the posterior is its most probable point after both have been drawn anew
        (randomise-then-optimise, exact for normal errors; Bardsley et al. 2014,
        doi:10.1137/140964023).

        Args:
            odds: [learners, draws] drawn log-odds, with their own errors.
            variances: [learners] variance of these errors.
            effects: [learners] effects of the kinds, NaN where they are not known.
        """
        known = np.isfinite(effects)
        counts = self.planned <= self.model.effect_steps and known.sum() > 1
        if not counts or not np.isfinite(self.model.effect_deviation):
            return odds
        variance = self.model.effect_deviation**2
        weights = 1 / (variances[known] + variance)
        prior = effects[known, None] + self.rng.normal(
            0, self.model.effect_deviation, size=(int(known.sum()), odds.shape[1])
        )
        differences = odds[known] - prior
        mean = weights @ differences / weights.sum()
        shift = (variances[known] * weights)[:, None] * (mean - differences)
        combined = odds.copy()
        combined[known] += shift
        return combined

    def _normal(self, variance: float) -> NDArray[np.float64]:
        """Return normal errors [draws]."""
        return self.rng.normal(0, np.sqrt(variance), size=len(self.weights))

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

    kind: str | None
    drawn: Mapping[int, NDArray[np.float64]]

    @property
    def last(self) -> int:
        """Steps of the longest run."""
        return max(self.drawn)

    @property
    def means(self) -> dict[int, float]:
        """The mean of the draws; a drawn rise would count the error of the images twice."""
        return {steps: float(odds.mean()) for steps, odds in self.drawn.items()}


def _risen(curves: Sequence[_Curve], most: int) -> tuple[list[tuple[str | None, float]], float]:
    """Return the kinds and rises of learners up to the most steps, and over how many doublings.

    The rises are from the next shorter length that a learner with the most steps was trained for.
    """
    longest = [curve for curve in curves if curve.last == most and len(curve.drawn) > 1]
    if not longest:
        return [], 1.0
    before = max(steps for curve in longest for steps in curve.drawn if steps < most)
    means = [(curve.kind, curve.means) for curve in longest if before in curve.drawn]
    return [(kind, at[most] - at[before]) for kind, at in means], doublings_left(before, most)


def kind_of_learner(name: str) -> str | None:
    """Return the kind of the method of a learner; None if it is not known.

    Methods that train the last units only are a kind of their own: ``partial``.

    Args:
        name: name such as ``lora r8, adamw, 32 a step``, with or without a backbone before it.
    """
    for word in name.partition(",")[0].split():
        if word.startswith("partial_"):
            return "partial"
        if known_kind(word) is not None:
            return known_kind(word)
    return None


def effect_of_kind(name: str, model: ShortRunModel) -> float:
    """Return the effect of a learner's kind; NaN if it is not known.

    The effects compare methods on one backbone, so a learner that names its backbone has none.

    Args:
        name: name of the learner.
        model: constants of the extrapolation.
    """
    kind = kind_of_learner(name)
    names_backbone = kind is not None and kind_of_learner(name.split(maxsplit=1)[0]) is None
    return math.nan if names_backbone else model.effects.get(kind or "", math.nan)


def _sound_lengths(runs: Sequence[ProbeRun]) -> list[int]:
    """Return the numbers of steps, in order, after which not every run had diverged."""
    return sorted({run.steps for run in runs if not run.diverged})


def _ends_in_divergence(runs: Sequence[ProbeRun]) -> bool:
    """Return whether one of the longest runs diverged."""
    steps = max(run.steps for run in runs)
    return any(run.diverged for run in runs if run.steps == steps)


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
    with the same seed, by more than two standard errors of the paired difference. A rate
    with a divergence among its longest runs is left while there is another.
    """
    chosen: dict[str, float] = {}
    for name in dict.fromkeys(run.learner for run in runs):
        mine = [run for run in runs if run.learner == name]
        tried = {run.rate_factor for run in mine}
        diverged = {
            factor
            for factor in tried
            if _ends_in_divergence([run for run in mine if run.rate_factor == factor])
        }
        factors = tried - diverged or tried
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
