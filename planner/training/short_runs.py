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
faster for all), which does not change their order; the rest is each method's own. The deviation of
the common part is known from few nets only, so that part follows Student's t.

Beside its short trainings, a method has the effect of its kind: ``effects`` are the log-odds of a
whole training above the mean of the kinds, on other nets and sets. They count less the nearer the
short trainings come to the whole one (``planner.training.probe_statistics``).

``studies/probe`` fits the constants and says how often the choice is right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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
        nets: number of kinds of nets that the common deviations were estimated from; 0 if they are
            exact.
    """

    first: Gains
    later: Gains
    effects: Mapping[str, float] = field(default_factory=dict)
    effect_deviation: float = math.inf
    effect_steps: int = EFFECT_STEPS
    curves: int = 0
    nets: int = 0

    def common_errors(self, rng: np.random.Generator, draws: int) -> NDArray[np.float64]:
        """Return errors [draws] that all methods share, in units of the common deviation.

        A deviation that few nets show has an error itself, so the errors follow Student's t.
        """
        if self.nets == 0:
            return rng.normal(size=draws)
        return rng.standard_t(max(1, self.nets - 1), size=draws)


DEFAULTS = ShortRunModel(
    first=Gains(
        gain=0.719,
        more={
            "added": -0.131,
            "affine": -0.053,
            "full": 0.248,
            "head": -0.275,
            "low rank": 0.145,
            "partial": 0.067,
        },
        own_deviation=0.259,
        common_deviation=0.452,
        decay=0.7,
    ),
    later=Gains(
        gain=0.52,
        more={
            "added": -0.08,
            "affine": -0.051,
            "full": 0.21,
            "head": -0.221,
            "low rank": 0.07,
            "partial": 0.07,
        },
        own_deviation=0.245,
        common_deviation=0.199,
        decay=0.7,
        carried=0.702,
    ),
    effects={
        "added": -0.329,
        "affine": 0.107,
        "full": 0.482,
        "head": -0.628,
        "low rank": 0.531,
        "partial": -0.164,
    },
    effect_deviation=0.3,
    curves=706,
    nets=4,
)
"""Constants of the product, from ``studies/probe/constants.json``: five nets of four kinds, 87
cases, and two of an earlier campaign."""


def doublings_left(steps: int, planned_steps: int) -> float:
    """Return the doublings from a number of steps to the planned one, 0 if there are none."""
    return max(0.0, math.log2(planned_steps / steps))
