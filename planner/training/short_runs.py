"""The accuracy to expect after a whole training, from short trainings of fewer steps.

In log-odds L, with h = log2(S / s) the doublings from the longest short training (s steps) to the
whole one (S steps), and k the kind of the method (``kind_of_learner``):

    L(S) = L(s) + H (gain + more[k]),    H = (1 - decay^h) / (1 - decay)

Each doubling of the steps gives ``decay`` of the one before. Methods that train more of a net start
slower and rise for longer: a linear probe is nearly done when LoRA and full training still rise.

Where methods were trained for two lengths, their mean rise moves ``gain`` by the share ``carried``:
what rose fast goes on rising fast. A method's own rise is left out: with it, the choice was right
less often, because it is the difference of two noisy accuracies.

The error grows as the root of h. One part is common to all methods of a case (an easy set rises
faster for all), which does not change their order; the rest is each method's own. Both deviations
are those of nets that were left out of the fit.

Beside its short trainings, a method has the effect of its kind: ``effects`` are the log-odds of a
whole training above the mean of the kinds, on other nets and sets. They count less the nearer the
short trainings come to the whole one (``planner.training.probe_statistics``).

``studies/probe`` fits the constants and says how often the choice is right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

EFFECT_STEPS = 1200
"""Steps of the longest planned training for which the effects count: four times the longest
training that they were measured with. An assumption."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gains:
    """The rise of accuracies and its errors, in log-odds for the next doubling of the steps.

    Attributes:
        gain: rise that all methods have in common.
        more: rise of each kind of methods above it.
        own_deviation: standard deviation of a method's own error, per root of a doubling.
        common_deviation: standard deviation of the error that all methods share.
        decay: rise of a doubling over that of the doubling before.
        carried: share of an unusual rise of all methods that goes on.
    """

    gain: float
    more: Mapping[str, float]
    own_deviation: float
    common_deviation: float
    decay: float = 1.0
    carried: float = 0.0

    def counted(self, doublings: float) -> float:
        """Return H, the doublings with each counted as ``decay`` times the one before."""
        if self.decay == 1:
            return doublings
        return (1 - math.pow(self.decay, doublings)) / (1 - self.decay)

    def rise(self, doublings: float, kind: str | None, *, unusual: float = 0.0) -> float:
        """Return the expected rise over some doublings.

        Args:
            doublings: doublings of the steps.
            kind: kind of the method; one that is not known has the gain.
            unusual: rise of all methods above the gain, from ``unusual_rise``.
        """
        return self.counted(doublings) * (self.gain + unusual + self.more.get(kind or "", 0.0))

    def unusual_rise(self, risen: Sequence[tuple[str | None, float]], doublings: float) -> float:
        """Return how much more than the gain all methods are expected to rise, by how they rose.

        Args:
            risen: kind of each method, and its rise over the doublings before.
            doublings: these doublings.
        """
        # The doubling that comes has the decay of the last one before.
        share = math.pow(self.decay, doublings) / self.counted(doublings)
        above = [rise * share - self.gain - self.more.get(kind or "", 0.0) for kind, rise in risen]
        if not above:
            return 0.0
        # A diverged training may have fallen; the others are not expected to fall.
        return max(-self.gain, self.carried * sum(above) / len(above))


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortRunModel:
    """Constants of the extrapolation.

    Attributes:
        first: gains from trainings of the fewest steps, where there are no longer ones.
        later: gains from longer ones.
        effects: log-odds of a whole training by kind of methods, above their mean.
        effect_deviation: standard deviation of a method's difference from the effect of its kind.
        effect_steps: steps of the longest planned training that the effects count for.
        curves: number of curves that the constants were fitted to.
    """

    first: Gains
    later: Gains
    effects: Mapping[str, float] = field(default_factory=dict)
    effect_deviation: float = math.inf
    effect_steps: int = EFFECT_STEPS
    curves: int = 0


DEFAULTS = ShortRunModel(
    first=Gains(
        gain=0.744,
        more={
            "added": -0.122,
            "affine": -0.079,
            "full": 0.317,
            "head": -0.335,
            "low rank": 0.173,
            "partial": 0.047,
        },
        own_deviation=0.287,
        common_deviation=0.474,
        decay=0.65,
    ),
    later=Gains(
        gain=0.503,
        more={
            "added": -0.075,
            "affine": -0.05,
            "full": 0.201,
            "head": -0.227,
            "low rank": 0.123,
            "partial": 0.027,
        },
        own_deviation=0.231,
        common_deviation=0.253,
        decay=0.65,
        carried=0.805,
    ),
    effects={
        "added": -0.338,
        "affine": 0.093,
        "full": 0.58,
        "head": -0.732,
        "low rank": 0.668,
        "partial": -0.272,
    },
    effect_deviation=0.2,
    curves=298,
)
"""Constants of the product, from ``studies/probe/constants.json``: three nets, 36 cases, and
two cases of an earlier campaign."""


def doublings_left(steps: int, planned_steps: int) -> float:
    """Return the doublings from a number of steps to the planned one, 0 if there are none."""
    return max(0.0, math.log2(planned_steps / steps))
