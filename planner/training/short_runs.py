"""The accuracy to expect after a whole training, from short trainings of fewer steps.

In log-odds L, with h = log2(S / s) the doublings from the longest short training (s steps) to the
whole one (S steps), and k the kind of the method (``planner.methods.kinds``):

    L(S) = L(s) + h (gain + more[k] + kept * slope)      slope: rise per doubling between two
                                                         short trainings
    L(S) = L(s) + h (first_gain + first_more[k])         if there is one length only

Methods that train more of a net start slower and rise for longer: a linear probe is nearly done
when LoRA and full training still rise. The slope alone does not show this, because after a few
dozen steps all slopes are steep.

The error grows as the root of h. One part is common to all methods of a case (an easy set rises
faster for all), which does not change their order; the rest is each method's own.

``studies/probe`` fits the constants. It has too few cases to show that the order of methods is
right more often with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.methods.kinds import MethodKind

Curve = Mapping[int, float]
"""Log-odds of the accuracy by the number of steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortRunModel:
    """Constants of the extrapolation, in log-odds per doubling of the steps.

    A method whose kind is not known, or not among the fitted ones, has the common gains.

    Attributes:
        first_gain: rise, where only one length is known.
        gain: rise of a method whose slope is zero.
        kept: share of the slope that goes on.
        own_deviation: standard deviation of a method's own error, per root of a doubling.
        common_deviation: standard deviation of the error that all methods share.
        first_own_deviation: the same as ``own_deviation``, where only one length is known.
        first_common_deviation: the same as ``common_deviation``, where only one length is known.
        curves: number of curves that the constants were fitted to.
        more: gain of each kind of methods over ``gain``.
        first_more: the same over ``first_gain``.
    """

    first_gain: float
    gain: float
    kept: float
    own_deviation: float
    common_deviation: float
    first_own_deviation: float
    first_common_deviation: float
    curves: int = 0
    more: Mapping[str, float] = field(default_factory=dict)
    first_more: Mapping[str, float] = field(default_factory=dict)

    def rise(self, curve: Curve, planned_steps: int, kind: MethodKind | None = None) -> float:
        """Return the expected rise from the longest training of a curve to a planned one.

        Args:
            curve: log-odds by steps.
            planned_steps: steps of the planned training.
            kind: kind of the method; None if it is not known.
        """
        steps = sorted(curve)
        doublings = doublings_left(steps[-1], planned_steps)
        if len(steps) == 1:
            return doublings * (self.first_gain + self.first_more.get(kind or "", 0.0))
        before, last = steps[-2:]
        slope = (curve[last] - curve[before]) / math.log2(last / before)
        return doublings * (self.gain + self.more.get(kind or "", 0.0) + self.kept * slope)


DEFAULTS = ShortRunModel(
    first_gain=0.521,
    gain=0.14,
    kept=0.34,
    own_deviation=0.242,
    common_deviation=0.185,
    first_own_deviation=0.229,
    first_common_deviation=0.358,
    curves=90,
    more={"added": -0.06, "affine": 0.014, "full": 0.068, "head": -0.089, "low rank": 0.068},
    first_more={
        "added": -0.082,
        "affine": -0.029,
        "full": 0.156,
        "head": -0.174,
        "low rank": 0.129,
    },
)
"""Constants of the product, from ``studies/probe/constants.json``: three nets, 10 cases and two
of an earlier campaign."""


def doublings_left(steps: int, planned_steps: int) -> float:
    """Return the doublings from a number of steps to the planned one, 0 if there are none."""
    return max(0.0, math.log2(planned_steps / steps))
