"""The placement that adds least time within a budget: exact, with its proof.

    moves    the chain as paths of moves; the smallest feasible peak
    bounds   lower bounds of the time before, after and through a move
    labels   Pareto labels, swept from the end of the chain to its start

One budget is solved by sweeps of growing width. The first takes only the moves of least bound and
is there to find a good path; the others take every move whose bound is below the best path found.
A sweep that dropped nothing below the best path proves it ``OPTIMAL``. If the last width still
drops better labels, the answer is ``FEASIBLE`` and ``bound_seconds`` says what could be gained.

The whole curve is one sweep without a budget, as long as the labels stay few.
Measured speed and the chains where the proof fails: studies/placement_solver.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import numpy as np

from planner.placement.chain import (
    Chain,
    Choice,
    Floats,
    peak_bytes,
    recompute_seconds,
    to_placement,
)
from planner.placement.lower_bounds import Bounds, Unbounded
from planner.placement.pareto_labels import path_of, sweep_labels
from planner.placement.path_moves import (
    TOLERANCE,
    UNREACHABLE,
    Moves,
    all_moves,
    choice_of,
    feasible_moves,
    least_peak_path,
    least_tails,
)
from profiler.placement import Placement

WIDTHS = (64, 1024, 16384)
CORE = 6  # moves a position in the first sweep
FRONTIER_LABELS = 4096
FRONTIER_BUDGETS = 65


class Status(enum.Enum):
    """What is known of a solution."""

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A placement for a budget, and what is proved of it.

    Attributes:
        status: ``OPTIMAL``: no placement within the budget adds less time; ``FEASIBLE``: none adds
            less than ``bound_seconds``; ``INFEASIBLE``: no placement fits.
        budget_bytes: what was asked for.
        choice: options by unit, or None when infeasible.
        placement: the same by name.
        recompute_seconds: time it adds.
        peak_bytes: its peak.
        bound_seconds: proved lower bound of the time within the budget.
        smallest_feasible_bytes: the least peak of all placements.
    """

    status: Status
    budget_bytes: int
    choice: Choice | None
    placement: Placement | None
    recompute_seconds: float | None
    peak_bytes: int | None
    bound_seconds: float | None
    smallest_feasible_bytes: int


def solve(
    chain: Chain,
    budget_bytes: int,
    *,
    segments: bool = True,
    max_labels: int = WIDTHS[-1],
    relative_gap: float = TOLERANCE,
) -> Solution:
    """Return the placement of least recompute time whose peak is within the budget.

    Args:
        chain: the step.
        budget_bytes: the largest peak allowed.
        segments: whether several units may be recomputed as one.
        max_labels: labels kept at a position before optimality is given up for a bound.
        relative_gap: stop when the time is proved to be within this share of the least.
    """
    moves = all_moves(chain, segments=segments)
    return _solve(chain, moves, budget_bytes, max_labels, relative_gap)


def smallest_feasible(chain: Chain, *, segments: bool = True) -> Solution:
    """Return the placement of least peak, and of those the one that adds least time."""
    moves = all_moves(chain, segments=segments)
    return _solve(chain, moves, _smallest_peak(chain, least_tails(moves)))


def frontier(chain: Chain, *, segments: bool = True) -> list[Solution]:
    """Return the curve of peak against time, from the least peak to the least time.

    The curve is complete, each point ``OPTIMAL``, as long as no position has more than
    ``FRONTIER_LABELS`` labels; otherwise ``FRONTIER_BUDGETS`` equally spaced budgets are solved.
    """
    moves = all_moves(chain, segments=segments)
    sweep = sweep_labels(moves, Unbounded(moves), width=FRONTIER_LABELS, best_seconds=math.inf)
    if sweep.dropped_seconds < math.inf:
        return _sampled_frontier(chain, moves)
    last = sweep.labels[0]
    smallest = _smallest_peak(chain, least_tails(moves))
    # every label below the floor has the floor as its peak: the last of them adds least time
    first = max(int(np.searchsorted(last.need, chain.floor_bytes, side="right")) - 1, 0)
    return [
        _solution(chain, choice_of(moves, path_of(moves, sweep, index)), None, None, smallest)
        for index in range(first, len(last.need))
    ]


def _sampled_frontier(chain: Chain, moves: Moves) -> list[Solution]:
    smallest = _smallest_peak(chain, least_tails(moves))
    cheapest = _solve(chain, moves, UNREACHABLE)
    assert cheapest.peak_bytes is not None
    budgets = np.linspace(smallest, cheapest.peak_bytes, FRONTIER_BUDGETS)
    solutions: list[Solution] = []
    for budget in budgets:
        found = _solve(chain, moves, math.floor(budget), WIDTHS[1])
        assert found.recompute_seconds is not None
        worst = solutions[-1].recompute_seconds if solutions else math.inf
        assert worst is not None
        if found.recompute_seconds < worst * (1 - TOLERANCE):
            solutions.append(found)
    return solutions


def _solve(
    chain: Chain,
    moves: Moves,
    budget_bytes: int,
    max_labels: int = WIDTHS[-1],
    relative_gap: float = TOLERANCE,
) -> Solution:
    tails = least_tails(moves)
    smallest = _smallest_peak(chain, tails)
    if budget_bytes < smallest:
        return Solution(
            status=Status.INFEASIBLE,
            budget_bytes=budget_bytes,
            choice=None,
            placement=None,
            recompute_seconds=None,
            peak_bytes=None,
            bound_seconds=None,
            smallest_feasible_bytes=smallest,
        )
    # beyond what could ever be needed a budget would only bring rounding error into the bounds
    budget = min(budget_bytes, int(moves.need.max() + np.maximum(moves.stored, 0).sum()))
    moves, heads = feasible_moves(moves, tails, budget)
    bounds = Bounds(moves, heads, tails, budget)
    path = least_peak_path(moves)
    best, best_seconds, bound = choice_of(moves, path), float(moves.seconds[path].sum()), 0.0
    core: int | None = CORE * moves.positions
    for width in sorted({min(w, max_labels) for w in (*WIDTHS, max_labels)}):
        taken, left_out = _promising(moves, bounds.through, best_seconds, core)
        sweep = sweep_labels(taken, bounds, width=width, best_seconds=best_seconds)
        last, core = sweep.labels[0], None
        if len(last.need):
            best_seconds = float(last.seconds[-1])
            best = choice_of(taken, path_of(taken, sweep, len(last.need) - 1))
        bound = max(bound, min(best_seconds, sweep.dropped_seconds, left_out))
        if bound >= best_seconds * (1 - relative_gap):
            break
    return _solution(chain, best, budget_bytes, bound, smallest)


def _promising(
    moves: Moves, through: Floats, best_seconds: float, core: int | None
) -> tuple[Moves, float]:
    """Return the moves that may be on a better path, and the least bound of those left out.

    The first sweep takes only the ``core`` of least bound: it is there to find a good path.
    """
    keep = through < best_seconds * (1 - TOLERANCE)
    if core is None or keep.sum() <= core:
        return moves.pick(keep), math.inf
    order = np.argsort(through, kind="stable")
    keep[order[core:]] = False
    return moves.pick(keep), float(through[order[core]])


def _solution(
    chain: Chain, choice: Choice, budget_bytes: int | None, bound: float | None, smallest: int
) -> Solution:
    """Judge a choice by the evaluator; without a bound it is the frontier's own point."""
    seconds, peak = recompute_seconds(chain, choice), peak_bytes(chain, choice)
    budget = peak if budget_bytes is None else budget_bytes
    assert peak <= budget, "the solver's peak and the evaluator's differ"
    bound = seconds if bound is None else min(bound, seconds)
    proved = bound >= seconds * (1 - TOLERANCE)
    return Solution(
        status=Status.OPTIMAL if proved else Status.FEASIBLE,
        budget_bytes=budget,
        choice=choice,
        placement=to_placement(chain, choice, policy="optimal"),
        recompute_seconds=seconds,
        peak_bytes=peak,
        bound_seconds=seconds if proved else bound,
        smallest_feasible_bytes=smallest,
    )


def _smallest_peak(chain: Chain, tails: list[int]) -> int:
    return max(chain.floor_bytes, tails[0])
