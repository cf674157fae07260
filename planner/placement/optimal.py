"""Exact solver: the placement of least recompute time whose peak fits a budget of live bytes.

Pieces:

    path_moves     the chain as a path problem; the smallest feasible peak
    lower_bounds   Lagrangian lower bounds of the time before, after and through a move
    pareto_labels  dynamic programming over Pareto labels, from the end of the chain to its start

One budget is solved in these steps:

    1. Remove the moves that lie on no feasible path. If none is left, the budget is infeasible. If
       a single path adds no time, and it is feasible, it is the solution.
    2. Start with the path of least peak as the best path known.
    3. Sweep labels over the moves of smallest bound, with few labels a position (a small *width*),
       to find a good path soon.
    4. Sweep again with larger widths over all moves whose bound is below the best time known.

A sweep that dropped no label with a bound below the best time proves the best path ``OPTIMAL``. If
the largest width still drops such labels, the result is ``FEASIBLE`` and ``bound_seconds`` is the
proved lower bound.

The whole curve of peak against time is one sweep without a budget, as long as the labels are few.

Cost: for n positions, k moves a position and at most L labels a position, O(n k L log L) time for
each sweep. studies/placement_solver has measured times, and the chains for which the proof fails:
options whose seconds are exactly proportional to the freed bytes (subset-sum problems).
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import numpy as np

from planner.placement.chain import Chain, OptionIndices, to_placement
from planner.placement.chain_cost import peak_bytes, recompute_seconds
from planner.placement.lower_bounds import DualBounds, NoBounds
from planner.placement.pareto_labels import path_of_label, sweep_labels
from planner.placement.path_moves import (
    SECONDS_TOLERANCE,
    UNREACHABLE,
    PathMoves,
    all_moves,
    feasible_moves,
    free_path,
    indices_of_path,
    least_peak_path,
    least_tails,
    peak_of_path,
)
from profiler.arrays import Floats
from profiler.placement import Placement
from profiler.units import LiveBytes

WIDTHS = (64, 1024, 16384)
"""Largest number of labels at a position, in the order of the sweeps."""

CORE_MOVES = 6
"""Largest number of moves in the first sweep, divided by the number of positions."""

FRONTIER_LABELS = 4096
"""Largest number of labels at a position for which the whole curve is computed in one sweep."""

FRONTIER_BUDGETS = 65
"""Number of budgets solved one by one if a position has more than ``FRONTIER_LABELS`` labels."""


class SolutionStatus(enum.Enum):
    """Whether a solution is proved optimal, only known to be feasible, or does not exist."""

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A placement for a budget, with a lower bound that proves how good it is.

    Attributes:
        status: ``OPTIMAL``: no placement within the budget adds less time; ``FEASIBLE``: none adds
            less than ``bound_seconds``; ``INFEASIBLE``: no placement fits.
        live_budget_bytes: budget of the problem.
        indices: option of each unit; None if infeasible, like the next four.
        placement: the same as decisions by unit name.
        recompute_seconds: time that the placement adds to the step.
        peak_bytes: live bytes at the peak of the placement.
        bound_seconds: proved lower bound of the time within the budget.
        smallest_feasible_bytes: least peak of all placements.
    """

    status: SolutionStatus
    live_budget_bytes: LiveBytes
    indices: OptionIndices | None
    placement: Placement | None
    recompute_seconds: float | None
    peak_bytes: LiveBytes | None
    bound_seconds: float | None
    smallest_feasible_bytes: LiveBytes


def solve(
    chain: Chain,
    live_budget_bytes: LiveBytes,
    *,
    segments: bool = True,
    max_labels: int = WIDTHS[-1],
    relative_gap: float = SECONDS_TOLERANCE,
) -> Solution:
    """Return the placement of least recompute time whose peak is within the budget.

    Args:
        chain: the training step.
        live_budget_bytes: largest live bytes allowed at the peak.
        segments: whether several units may be recomputed as one segment.
        max_labels: labels kept at a position; with fewer, ``FEASIBLE`` is more likely.
        relative_gap: relative distance from the lower bound at which the search stops.
    """
    moves = all_moves(chain, segments=segments)
    return _solve(chain, moves, live_budget_bytes, max_labels, relative_gap)


def smallest_feasible(chain: Chain, *, segments: bool = True) -> Solution:
    """Return the placement of least peak; if several have it, the one that adds least time."""
    moves = all_moves(chain, segments=segments)
    return _solve(chain, moves, _smallest_peak(chain, least_tails(moves)))


def frontier(chain: Chain, *, segments: bool = True) -> list[Solution]:
    """Return the Pareto front of peak against time, from the least peak to the least time.

    If no position has more than ``FRONTIER_LABELS`` labels, the front is complete and each point is
    ``OPTIMAL``. Otherwise ``FRONTIER_BUDGETS`` equally spaced budgets are solved.
    """
    moves = all_moves(chain, segments=segments)
    sweep = sweep_labels(moves, NoBounds(moves), width=FRONTIER_LABELS, best_seconds=math.inf)
    if sweep.dropped_seconds < math.inf:
        return _sampled_frontier(chain, moves)
    last = sweep.labels[0]
    smallest = _smallest_peak(chain, least_tails(moves))
    # All labels at or below the floor have the same peak, the floor; the last one adds least time.
    first = max(int(np.searchsorted(last.need, chain.floor_bytes, side="right")) - 1, 0)
    return [
        _solution(
            chain, indices_of_path(moves, path_of_label(moves, sweep, index)), None, None, smallest
        )
        for index in range(first, len(last.need))
    ]


def _sampled_frontier(chain: Chain, moves: PathMoves) -> list[Solution]:
    smallest = _smallest_peak(chain, least_tails(moves))
    fastest = _solve(chain, moves, LiveBytes(UNREACHABLE))
    assert fastest.peak_bytes is not None
    budgets = np.linspace(smallest, fastest.peak_bytes, FRONTIER_BUDGETS)
    solutions: list[Solution] = []
    for budget in budgets:
        found = _solve(chain, moves, LiveBytes(math.floor(budget)), WIDTHS[1])
        assert found.recompute_seconds is not None
        last = solutions[-1].recompute_seconds if solutions else math.inf
        assert last is not None
        # a larger budget with the same time is no point of the front
        if found.recompute_seconds < last * (1 - SECONDS_TOLERANCE):
            solutions.append(found)
    return solutions


def _solve(
    chain: Chain,
    moves: PathMoves,
    live_budget_bytes: LiveBytes,
    max_labels: int = WIDTHS[-1],
    relative_gap: float = SECONDS_TOLERANCE,
) -> Solution:
    tails = least_tails(moves)
    smallest = _smallest_peak(chain, tails)
    if live_budget_bytes < smallest:
        return Solution(
            status=SolutionStatus.INFEASIBLE,
            live_budget_bytes=live_budget_bytes,
            indices=None,
            placement=None,
            recompute_seconds=None,
            peak_bytes=None,
            bound_seconds=None,
            smallest_feasible_bytes=smallest,
        )
    free = free_path(moves)
    if free is not None and peak_of_path(moves, free) <= live_budget_bytes:
        return _solution(chain, indices_of_path(moves, free), live_budget_bytes, 0.0, smallest)
    # A budget far above the largest possible peak only adds rounding error to the bounds.
    budget = min(live_budget_bytes, int(moves.need.max() + np.maximum(moves.stored, 0).sum()))
    moves, heads = feasible_moves(moves, tails, budget)
    bounds = DualBounds(moves, heads, tails, budget)
    path = least_peak_path(moves)
    best, best_seconds, bound = indices_of_path(moves, path), float(moves.seconds[path].sum()), 0.0
    core: int | None = CORE_MOVES * moves.positions
    for width in sorted({min(w, max_labels) for w in (*WIDTHS, max_labels)}):
        taken, left_out = _promising(moves, bounds.through, best_seconds, core)
        sweep = sweep_labels(taken, bounds, width=width, best_seconds=best_seconds)
        last, core = sweep.labels[0], None
        if len(last.need):
            best_seconds = float(last.seconds[-1])
            best = indices_of_path(taken, path_of_label(taken, sweep, len(last.need) - 1))
        # a faster path can only be lost with a dropped label or with a move left out
        bound = max(bound, min(best_seconds, sweep.dropped_seconds, left_out))
        if bound >= best_seconds * (1 - relative_gap):
            break
    return _solution(chain, best, live_budget_bytes, bound, smallest)


def _promising(
    moves: PathMoves, through: Floats, best_seconds: float, core: int | None
) -> tuple[PathMoves, float]:
    """Return the moves for a sweep, and the smallest bound among promising moves left out.

    A move is promising if its bound is below the best time known. If ``core`` is given, at most
    that many are taken, those of smallest bound: few moves find a good path quickly.
    """
    keep = through < best_seconds * (1 - SECONDS_TOLERANCE)
    if core is None or keep.sum() <= core:
        return moves.pick(keep), math.inf
    order = np.argsort(through, kind="stable")
    keep[order[core:]] = False
    return moves.pick(keep), float(through[order[core]])


def _solution(
    chain: Chain,
    indices: OptionIndices,
    live_budget_bytes: LiveBytes | None,
    bound: float | None,
    smallest: LiveBytes,
) -> Solution:
    """Evaluate a solution with ``chain_cost``, independently of the path problem.

    A point of the frontier comes without a budget and a bound: it is optimal for its own peak.
    """
    seconds = recompute_seconds(chain, indices)
    peak = LiveBytes(peak_bytes(chain, indices))
    budget = peak if live_budget_bytes is None else live_budget_bytes
    assert peak <= budget, "the peak of the path differs from the peak of the placement"
    bound = seconds if bound is None else min(bound, seconds)
    proved = bound >= seconds * (1 - SECONDS_TOLERANCE)
    return Solution(
        status=SolutionStatus.OPTIMAL if proved else SolutionStatus.FEASIBLE,
        live_budget_bytes=budget,
        indices=indices,
        placement=to_placement(chain, indices),
        recompute_seconds=seconds,
        peak_bytes=peak,
        bound_seconds=seconds if proved else bound,
        smallest_feasible_bytes=smallest,
    )


def _smallest_peak(chain: Chain, tails: list[int]) -> LiveBytes:
    return LiveBytes(max(chain.floor_bytes, tails[0]))
