"""The accuracy to expect after a whole training, from short trainings of fewer steps.

In log-odds L, with h = log2(S / s) the doublings from the longest short training (s steps) to the
whole one (S steps):

    L(S) = L(s) + h (gain + kept * slope)       slope: rise per doubling between two short trainings
    L(S) = L(s) + h * first_gain                if there is one length only

A method that starts slowly, as LoRA does from a zero update, has a steep slope while its accuracy
is still low. On EfficientNet-Lite0 more than half of a slope went on, on a small ViT almost
nothing did.

The error grows as the root of h. One part is common to all methods of a case (an easy set rises
faster for all), which does not change their order; the rest is each method's own.

``studies/probe`` fits the constants. It has too few cases to show that the order of methods is
right more often with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

Curve = Mapping[int, float]
"""Log-odds of the accuracy by the number of steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortRunModel:
    """Constants of the extrapolation, in log-odds per doubling of the steps.

    Attributes:
        first_gain: rise, where only one length is known.
        gain: rise of a method whose slope is zero.
        kept: share of the slope that goes on.
        own_deviation: standard deviation of a method's own error, per root of a doubling.
        common_deviation: standard deviation of the error that all methods share.
        curves: number of curves that the constants were fitted to.
    """

    first_gain: float
    gain: float
    kept: float
    own_deviation: float
    common_deviation: float
    curves: int = 0

    def rise(self, curve: Curve, planned_steps: int) -> float:
        """Return the expected rise from the longest training of a curve to a planned one."""
        steps = sorted(curve)
        doublings = doublings_left(steps[-1], planned_steps)
        if len(steps) == 1:
            return doublings * self.first_gain
        before, last = steps[-2:]
        slope = (curve[last] - curve[before]) / math.log2(last / before)
        return doublings * (self.gain + self.kept * slope)


DEFAULTS = ShortRunModel(
    first_gain=0.38,
    gain=0.088,
    kept=0.244,
    own_deviation=0.352,
    common_deviation=0.148,
    curves=42,
)
"""Constants of the product, from ``studies/probe/constants.json``: two nets, six cases."""


def doublings_left(steps: int, planned_steps: int) -> float:
    """Return the doublings from a number of steps to the planned one, 0 if there are none."""
    return max(0.0, math.log2(planned_steps / steps))
