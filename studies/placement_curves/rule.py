"""The paper's adaptive rule with the threshold that suits it best."""

from __future__ import annotations

from planner.placement.chain import Chain, option_indices
from planner.placement.chain_cost import peak_bytes, recompute_seconds
from planner.placement.chain_policies import adaptive
from profiler.placement import Placement

OPERATING_POINTS = (0.57, 0.21)
"""Of the peak of keeping everything: the paper's 43 % and "as much as 79 %" less."""


def best_adaptive(chain: Chain, kept_bytes: int, budget_bytes: int) -> Placement:
    """Return the rule's placement of least recompute among those that fit, else of smallest peak.

    Args:
        chain: the placement problem.
        kept_bytes: the peak of keeping everything, of which thresholds are taken.
        budget_bytes: what the peak should be within.
    """
    caps = [kept_bytes * share // 100 for share in range(1, 101)]
    placed = {adaptive(chain, cap, 1.0) for cap in caps}

    def peak(placement: Placement) -> int:
        return peak_bytes(chain, option_indices(chain, placement))

    def seconds(placement: Placement) -> float:
        return recompute_seconds(chain, option_indices(chain, placement))

    fitting = [p for p in placed if peak(p) <= budget_bytes]
    if fitting:
        return min(fitting, key=seconds)
    return min(placed, key=lambda p: (peak(p), seconds(p)))
