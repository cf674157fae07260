"""Power of a GPU while it trains, from its data sheet and published power traces.

    free watts = idle + a * F * (floor + (1 - floor) * share) + b * W
    watts      = (free ** -k + (c * limit) ** -k) ** (-1 / k)

F is the peak FLOP rate of the FP32 units, W the memory bandwidth, *share* the part of the time that
matrix products take, and *limit* the board's power limit. ``a`` (joules per FLOP) and ``b`` (joules
per byte) belong to a generation of chips. The second line is a smooth minimum: a board stays a few
percent below its limit. ``studies/time_model`` fits the numbers.

Generations without published traces have the ``a`` that lets their largest board reach its limit.

A power limit below the board's own lowers the clock of the arithmetic, not that of the memory:

    seconds / free seconds = ((free watts - fixed) / (watts - fixed)) ** exponent

where *fixed* is the power of idling and of the memory, times a fitted factor, which the clock does
not change. The published traces hold limits down to 40 % of the largest. Below ``LEAST_LIMIT`` the
left-out errors grow fast, so lower limits are not offered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

LEAST_LIMIT = 0.6
"""Lowest share of a board's limit for which a time is predicted."""

_LEAST_MARGIN = 0.05
"""Lowest share of the power above *fixed* that a limit leaves, which keeps the formula finite."""


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
        fixed_memory: factor on ``memory_watts`` in the power that the clock does not change.
        slowdown_exponent: exponent of the time under a power limit.
    """

    idle_watts: float
    product_watts: float
    memory_watts: float
    floor: float
    limit_watts: float
    reached: float
    sharpness: float
    fixed_memory: float
    slowdown_exponent: float

    def limited(self, limit_watts: float) -> PowerModel:
        """Return the model of the same board at another power limit."""
        return replace(self, limit_watts=limit_watts)

    def slowdown(self, limit_watts: float, *, product_share: float, busy: float = 1.0) -> float:
        """Return the time under a power limit over the time without it, at least 1.

        Args:
            limit_watts: power limit.
            product_share: see ``watts``.
            busy: see ``watts``.
        """
        fixed = self.idle_watts + self.fixed_memory * busy * self.memory_watts
        free = self.watts(product_share=product_share, busy=busy)
        low = self.limited(limit_watts).watts(product_share=product_share, busy=busy)
        if free <= fixed or low >= free:
            return 1.0
        share: float = max((low - fixed) / (free - fixed), _LEAST_MARGIN)
        slowdown: float = share**-self.slowdown_exponent
        return slowdown

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
