"""The accuracy to expect after a whole training, from short trainings of fewer steps.

In log-odds L, with h = log2(S / s) the doublings from the longest short training (s steps) to the
whole one (S steps), and k the kind of the method (``kind_of_learner``):

    L(S) = L(s) + h (gain + more[k])

Methods that train more of a net start slower and rise for longer: a linear probe is nearly done
when LoRA and full training still rise. The slope between two short trainings is left out: with it,
the choice was right less often, because it is the difference of two noisy accuracies.

The error grows as the root of h. One part is common to all methods of a case (an easy set rises
faster for all), which does not change their order; the rest is each method's own.

Beside its short trainings, a method has the effect of its kind: ``effects`` are the log-odds of a
whole training above the mean of the kinds, on other nets and sets. They count less the nearer the
short trainings come to the whole one (``planner.training.probe_statistics``).

``studies/probe`` fits the constants and says how often the choice is right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

EFFECT_STEPS = 640
"""Steps of the longest planned training for which the effects count: four times the longest
training that they were measured with. An assumption."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gains:
    """The rise of accuracies and its errors, in log-odds per doubling of the steps.

    Attributes:
        gain: rise that all methods have in common.
        more: rise of each kind of methods above it.
        own_deviation: standard deviation of a method's own error, per root of a doubling.
        common_deviation: standard deviation of the error that all methods share.
    """

    gain: float
    more: Mapping[str, float]
    own_deviation: float
    common_deviation: float

    def rise(self, doublings: float, kind: str | None) -> float:
        """Return the expected rise over some doublings; a kind that is not known has the gain."""
        return doublings * (self.gain + self.more.get(kind or "", 0.0))


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
        gain=0.554,
        more={
            "added": -0.124,
            "affine": -0.037,
            "full": 0.225,
            "head": -0.237,
            "low rank": 0.132,
            "partial": 0.041,
        },
        own_deviation=0.295,
        common_deviation=0.569,
    ),
    later=Gains(
        gain=0.449,
        more={
            "added": -0.106,
            "affine": -0.026,
            "full": 0.174,
            "head": -0.196,
            "low rank": 0.11,
            "partial": 0.045,
        },
        own_deviation=0.23,
        common_deviation=0.407,
    ),
    effects={
        "added": -0.312,
        "affine": 0.101,
        "full": 0.427,
        "head": -0.545,
        "low rank": 0.568,
        "partial": -0.239,
    },
    effect_deviation=0.2,
    curves=226,
)
"""Constants of the product, from ``studies/probe/constants.json``: three nets, 27 cases, and
two cases of an earlier campaign."""


def doublings_left(steps: int, planned_steps: int) -> float:
    """Return the doublings from a number of steps to the planned one, 0 if there are none."""
    return max(0.0, math.log2(planned_steps / steps))
