"""Power of a GPU while it trains, from its data sheet and published power traces.

    free watts = idle + a * F * (floor + (1 - floor) * share) + b * W
    watts      = (free ** -k + (c * limit) ** -k) ** (-1 / k)

F is the peak FLOP rate of the FP32 units, W the memory bandwidth, *share* the part of the time that
matrix products take, and *limit* the board's power limit. ``a`` (joules per FLOP) and ``b`` (joules
per byte) belong to a generation of chips. The second line is a smooth minimum: a board stays a few
percent below its limit. ``studies/time_model`` fits the numbers.

Generations without published traces have the ``a`` that lets their largest board reach its limit.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerModel:
    """Power model for a GPU.

    Attributes:
        idle_watts: power of a board that waits.
        product_watts: power of the arithmetic at full load.
        memory_watts: power of the memory at full load.
        floor: share of ``product_watts`` that work without matrix products needs.
        limit_watts: the board's power limit.
        reached: share of the limit that a board reaches.
        sharpness: exponent k of the smooth minimum.
    """

    idle_watts: float
    product_watts: float
    memory_watts: float
    floor: float
    limit_watts: float
    reached: float
    sharpness: float

    def watts(self, *, product_share: float, busy: float = 1.0) -> float:
        """Return the average power.

        Args:
            product_share: share of the time that matrix products take.
            busy: share of the time that the GPU works; it idles in the rest.
        """
        load = self.floor + (1.0 - self.floor) * product_share
        free = self.idle_watts + busy * (self.product_watts * load + self.memory_watts)
        k = self.sharpness
        watts: float = (free**-k + (self.reached * self.limit_watts) ** -k) ** (-1.0 / k)
        return watts
