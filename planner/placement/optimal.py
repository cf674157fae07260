"""The placement that adds least time within a budget: exact, with its proof.

The chain of ``chain.py`` is rewritten as *moves*. A move leads from position a (before unit a) to a
later position: an option of unit a leads to a+1, a segment of units a..b leads to b+1. It has

    stored   bytes it leaves for all that comes after it in forward
    need     highest live bytes while it runs forward or backward, above the stored bytes of the
             moves before it (static bytes and the gradients of later units are inside)
    seconds  recompute time

A placement is a path of moves; its peak is the largest S + need, S the stored bytes before a move.
From the end towards the start, the part of a path from position a on is a label (M, C): the part
fits a budget exactly when S + M <= budget, and costs C seconds. Putting a move in front gives

    M' = max(need, stored + M)        C' = C + seconds

and both are monotone, so of two labels at a position the one that is no better in M and in C can
be dropped: the dominance is exact, with any real bytes and seconds. What is left at position 0 is
the whole curve of peak against time. Without the seconds the recursion is
M'_a = min max(need, stored + M_stop): the smallest feasible peak, in linear time, and the proof
that a smaller budget is infeasible.

Labels could still be exponentially many. For one budget they are pruned with a lower bound of
what the moves before position a cost when they may leave at most S bytes. Its Lagrangian dual is

    D_a(l) = min over paths to a of (seconds + l stored),   seconds(S) >= max over l of D_a(l) - l S

and a move with cap c = budget - need passes it on by
``D(l) = seconds + l stored + max over m >= l of D_start(m) - (m - l) c``: the inner maximum is the
same minimum under S <= c, by duality (all on a grid of slopes l; any grid gives a valid bound).
Sweeps of growing width keep the labels of least bound; a sweep that dropped nothing, or nothing
below the best path found, proves it optimal. If the last width drops better labels, the answer
is ``FEASIBLE`` and ``bound_seconds`` says how much could still be gained. Bytes are never rounded.

Complexity: n positions, k moves each, L labels, q slopes: O(n k (q + L log L)) time, O(n L) memory.
Tried and lost: bytes bucketed up (a bound too weak for 100 units: each unit loses half a bucket).

Sources: knapsack by dominance lists and surrogate bounds, Kellerer, Pferschy and Pisinger, Knapsack
Problems (2004), sections 3.4 and 11; segments as in Beaumont et al., arXiv:1911.13214 (rotor).
"""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from planner.placement.chain import (
    JOINED,
    Chain,
    Choice,
    Floats,
    Ints,
    Mask,
    Table,
    peak_bytes,
    recompute_seconds,
    tabulate,
    to_placement,
)
from profiler.placement import Placement

# Relative gap below which two costs count as equal: sums of floats in another order differ by more
# than the last bit, and profiled seconds carry three digits.
TOLERANCE = 1e-9
WIDTHS = (64, 1024, 16384)
SLOPES = 128
CORE = 6
FRONTIER_LABELS = 4096
FRONTIER_BUDGETS = 65
_EMPTY = -(1 << 60)  # M of the end of the chain: no need at all
_UNREACHABLE = 1 << 60


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moves:
    """All moves, sorted by start; arrays of one length."""

    start: Ints
    stop: Ints
    option: Ints  # index in the menu of unit ``start``; a longer move joins the units after it
    stored: Ints
    need: Ints
    seconds: Floats
    positions: int

    def pick(self, keep: Mask) -> _Moves:
        return _Moves(
            start=self.start[keep],
            stop=self.stop[keep],
            option=self.option[keep],
            stored=self.stored[keep],
            need=self.need[keep],
            seconds=self.seconds[keep],
            positions=self.positions,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Labels:
    """Pareto labels of one position, M ascending and C descending."""

    need: Ints
    seconds: Floats
    parent: Ints  # index among the labels of the move's stop
    move: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sweep:
    """Labels of every position, and the least bound of all labels that did not fit the width."""

    labels: list[_Labels]
    dropped_seconds: float


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
    moves = _all_moves(chain, segments=segments)
    return _solve(chain, moves, budget_bytes, max_labels, relative_gap)


def smallest_feasible(chain: Chain, *, segments: bool = True) -> Solution:
    """Return the placement of least peak, and of those the one that adds least time."""
    moves = _all_moves(chain, segments=segments)
    return _solve(chain, moves, _smallest_peak(chain, _tails(moves)))


def frontier(chain: Chain, *, segments: bool = True) -> list[Solution]:
    """Return the curve of peak against time, from the least peak to the least time.

    The curve is complete, each point ``OPTIMAL``, as long as no position has more than
    ``FRONTIER_LABELS`` labels; otherwise ``FRONTIER_BUDGETS`` equally spaced budgets are solved.
    """
    moves = _all_moves(chain, segments=segments)
    sweep = _sweep(moves, _Unbounded(moves), width=FRONTIER_LABELS, best_seconds=math.inf)
    if sweep.dropped_seconds < math.inf:
        return _sampled_frontier(chain, moves)
    last = sweep.labels[0]
    smallest = _smallest_peak(chain, _tails(moves))
    # every label below the floor has the floor as its peak: the last of them adds least time
    first = max(int(np.searchsorted(last.need, chain.floor_bytes, side="right")) - 1, 0)
    return [
        _solution(chain, _choice(moves, _path(moves, sweep, index)), None, None, smallest)
        for index in range(first, len(last.need))
    ]


def _sampled_frontier(chain: Chain, moves: _Moves) -> list[Solution]:
    smallest = _smallest_peak(chain, _tails(moves))
    cheapest = _solve(chain, moves, _UNREACHABLE)
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
    moves: _Moves,
    budget_bytes: int,
    max_labels: int = WIDTHS[-1],
    relative_gap: float = TOLERANCE,
) -> Solution:
    tails = _tails(moves)
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
    moves, heads = _feasible(moves, tails, budget)
    bounds = _Bounds(moves, heads, tails, budget)
    path = _least_peak_path(moves)
    best, best_seconds, bound = _choice(moves, path), float(moves.seconds[path].sum()), 0.0
    core: int | None = CORE * moves.positions
    for width in sorted({min(w, max_labels) for w in (*WIDTHS, max_labels)}):
        taken, left_out = _promising(moves, bounds.through, best_seconds, core)
        sweep = _sweep(taken, bounds, width=width, best_seconds=best_seconds)
        last, core = sweep.labels[0], None
        if len(last.need):
            best_seconds = float(last.seconds[-1])
            best = _choice(taken, _path(taken, sweep, len(last.need) - 1))
        bound = max(bound, min(best_seconds, sweep.dropped_seconds, left_out))
        if bound >= best_seconds * (1 - relative_gap):
            break
    return _solution(chain, best, budget_bytes, bound, smallest)


def _promising(
    moves: _Moves, through: Floats, best_seconds: float, core: int | None
) -> tuple[_Moves, float]:
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


# Moves


def _all_moves(chain: Chain, *, segments: bool) -> _Moves:
    """Return the moves of the chain that no other move of the same unit dominates."""
    t = tabulate(chain)
    parts = [_option_moves(chain, t)]
    if segments:
        parts.extend(_segment_moves(chain, t))
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(joined[0], kind="stable")
    start, stop, option, stored, need, seconds = (column[order] for column in joined)
    return _Moves(
        start=start,
        stop=stop,
        option=option,
        stored=stored,
        need=need,
        seconds=seconds,
        positions=len(chain.units) + 1,
    )


_Columns = tuple[Ints, Ints, Ints, Ints, Ints, Floats]


def _option_moves(chain: Chain, t: Table) -> _Columns:
    need = chain.static_bytes + np.maximum(t.forward, t.gradients_after[:, None] + t.backward)
    kept = [
        (i, o)
        for i in range(len(chain.units))
        for o in _undominated(t.stored[i], need[i], t.seconds[i], int(t.count[i]))
    ]
    unit, option = np.array(kept, np.int64).T
    at = (unit, option)
    return unit, unit + 1, option, t.stored[at], need[at], t.seconds[at]


def _undominated(stored: Ints, need: Ints, seconds: Floats, count: int) -> list[int]:
    """Return the options that no other matches in all three numbers; of equal ones the first."""
    rows = list(zip(seconds.tolist(), stored.tolist(), need.tolist(), range(count), strict=False))
    kept: list[tuple[float, int, int, int]] = []
    for row in sorted(rows):
        if not any(k[1] <= row[1] and k[2] <= row[2] for k in kept):
            kept.append(row)
    return sorted(row[3] for row in kept)


def _segment_moves(chain: Chain, t: Table) -> Iterator[_Columns]:
    """Yield the segments of 2, 3, ... units; the byte rules are those of ``chain.py``."""
    rows = np.arange(len(chain.units))
    kept = t.stored[rows, t.keep]
    prefix = np.cumsum(kept) - kept
    rerun = prefix + t.forward[rows, t.keep]
    backward = prefix + t.gradients_after + t.backward[rows, t.keep]
    entered = t.forward[rows, t.recompute]
    follow = entered + np.concatenate([[0], t.boundary[:-1]])
    seconds = np.concatenate([[0.0], np.cumsum(t.forward_seconds)])
    last_seconds = t.seconds[rows, t.recompute]

    start = rows[t.can_join]
    highest = [entered[start], rerun[start], backward[start]]  # over the units of each segment
    for length in range(2, len(chain.units) + 1):
        longer = start + length - 1 < len(rows)
        longer[longer] = t.can_join[start[longer] + length - 1]
        start, highest = start[longer], [h[longer] for h in highest]
        if not len(start):
            return
        end = start + length - 1
        highest = [
            np.maximum(h, v[end]) for h, v in zip(highest, (follow, rerun, backward), strict=True)
        ]
        again = highest[1] - prefix[start] + t.gradients_after[end] + t.boundary[end]
        need = np.maximum(highest[0], np.maximum(again, highest[2] - prefix[start]))
        cost = seconds[end] - seconds[start] + last_seconds[end]
        yield start, end + 1, t.recompute[start], t.boundary[end], chain.static_bytes + need, cost


def _groups(moves: _Moves, by: Ints) -> list[Ints]:
    """Return for each position the indices of the moves that have it in column ``by``."""
    order = np.argsort(by, kind="stable")
    edges = np.searchsorted(by[order], np.arange(1, moves.positions))
    return np.split(order, edges)


# Feasibility


def _tails(moves: _Moves) -> list[int]:
    """Return for each position the least M of all paths from it to the end."""
    return _least_peaks(moves)[0]


def _least_peaks(moves: _Moves) -> tuple[list[int], list[int]]:
    """Return for each position the least M, and the move that starts a path of it."""
    tails = [_UNREACHABLE] * (moves.positions - 1) + [_EMPTY]
    best = [0] * moves.positions
    columns = (moves.start, moves.stop, moves.stored, moves.need)
    rows = list(zip(*(c.tolist() for c in columns), strict=True))
    for i in reversed(range(len(rows))):
        start, stop, stored, need = rows[i]
        tail = max(need, stored + tails[stop])
        if tail < tails[start]:
            tails[start], best[start] = tail, i
    return tails, best


def _least_peak_path(moves: _Moves) -> list[int]:
    best = _least_peaks(moves)[1]
    path: list[int] = []
    position = 0
    while position < moves.positions - 1:
        path.append(best[position])
        position = int(moves.stop[path[-1]])
    return path


def _smallest_peak(chain: Chain, tails: list[int]) -> int:
    return max(chain.floor_bytes, tails[0])


def _feasible(moves: _Moves, tails: list[int], budget: int) -> tuple[_Moves, list[int]]:
    """Return the moves that lie on a feasible path, and the least stored bytes at each position."""
    heads = [0] + [_UNREACHABLE] * (moves.positions - 1)
    keep = np.zeros(len(moves.start), np.bool_)
    columns = (moves.start, moves.stop, moves.stored, moves.need)
    for i, (start, stop, stored, need) in enumerate(
        zip(*(c.tolist() for c in columns), strict=True)
    ):
        if heads[start] + max(need, stored + tails[stop]) <= budget:
            keep[i] = True
            heads[stop] = min(heads[stop], heads[start] + stored)
    return moves.pick(keep), heads


# Bounds


class _Unbounded:
    """No budget and no bound: the sweep then finds the whole curve."""

    def __init__(self, moves: _Moves) -> None:
        self.limits = [_UNREACHABLE] * moves.positions

    def at(self, position: int, need: Ints) -> Floats:
        return np.zeros(len(need))


class _Bounds:
    """Lower bounds under a budget, by the two dual functions on a grid of slopes.

    Attributes:
        limits: for each position the largest M that some path before it allows.
        through: for each move a lower bound of all feasible paths with it.
    """

    def __init__(self, moves: _Moves, heads: list[int], tails: list[int], budget: int) -> None:
        self.limits = [budget - head for head in heads]
        self._budget = budget
        self._slopes = slopes = _slopes(moves)
        room = budget - np.array(tails)[moves.stop] - moves.stored
        caps = np.minimum(budget - moves.need, room)[:, None] * 1.0
        own = moves.seconds[:, None] + slopes * moves.stored[:, None]
        self._before = _dual_before(moves, slopes, own, caps)
        after = _dual_after(moves, slopes, own, caps + moves.stored[:, None])
        self.through: Floats = (self._before[moves.start] + after).max(axis=1)
        # line k + 1 of a concave dual lies above line k for room below breaks[k], descending
        reached = np.where(np.isfinite(self._before), self._before, 0.0)
        self._breaks = -np.diff(reached, axis=1) / np.diff(slopes)

    def at(self, position: int, need: Ints) -> Floats:
        """Return the bound of the seconds before a position, for labels with these M."""
        room = (self._budget - need).astype(np.float64)
        line = np.searchsorted(self._breaks[position], -room)
        bound: Floats = self._before[position][line] - self._slopes[line] * room
        return bound


def _dual_before(moves: _Moves, slopes: Floats, own: Floats, caps: Floats) -> Floats:
    """Return D [positions, slopes]: least seconds + l * stored of the paths to a position."""
    dual = np.full((moves.positions, len(slopes)), math.inf)
    dual[0] = 0.0
    for stop, group in enumerate(_groups(moves, moves.stop)):
        if len(group):
            tilt = slopes * caps[group]
            below = dual[moves.start[group]] - tilt
            capped = np.maximum.accumulate(below[:, ::-1], axis=1)[:, ::-1] + tilt
            dual[stop] = (capped + own[group]).min(axis=0)
    return dual


def _dual_after(moves: _Moves, slopes: Floats, own: Floats, caps: Floats) -> Floats:
    """Return [moves, slopes]: least seconds - l * S of the paths from S on that begin with a move.

    As D, from the other end: a larger S is dearer, and a move allows T = S + stored <= cap.
    """
    dual = np.full((moves.positions, len(slopes)), math.inf)
    dual[-1] = np.where(slopes > 0, -math.inf, 0.0)
    passed = np.empty_like(own)
    groups = _groups(moves, moves.start)
    for start in reversed(range(moves.positions - 1)):
        group = groups[start]
        if len(group):
            tilt = slopes * caps[group]
            capped = np.maximum.accumulate(dual[moves.stop[group]] + tilt, axis=1) - tilt
            passed[group] = capped + own[group]
            dual[start] = passed[group].min(axis=0)
    return passed


def _slopes(moves: _Moves) -> Floats:
    """Return the grid of seconds per byte: the edges of each unit's convex menu, and zero."""
    edges = [0.0]
    single = moves.stop - moves.start == 1
    rows = zip(
        moves.start[single].tolist(),
        moves.stored[single].tolist(),
        moves.seconds[single].tolist(),
        strict=True,
    )
    menus: dict[int, list[tuple[int, float]]] = {}
    for start, stored, seconds in rows:
        menus.setdefault(start, []).append((stored, seconds))
    for menu in menus.values():
        edges.extend(_hull_slopes(menu))
    # steeper edges would bring more rounding error than bound
    span = max(int(np.abs(moves.stored).max()), 1) * len(menus)
    steepest = 1e3 * float(moves.seconds.sum()) / span
    grid = np.unique(np.minimum(edges, steepest))
    if len(grid) > SLOPES:
        grid = grid[np.linspace(0, len(grid) - 1, SLOPES).round().astype(np.int64)]
    return grid if len(grid) > 1 else np.array([0.0, 1.0 / span])


def _hull_slopes(menu: list[tuple[int, float]]) -> list[float]:
    """Return the falling slopes, as positive numbers, of the lower convex hull of a menu."""
    hull: list[tuple[int, float]] = []
    for point in sorted(menu):
        while len(hull) > 1 and _rate(hull[-2], point) >= _rate(hull[-2], hull[-1]):
            hull.pop()
        if not hull or point[0] > hull[-1][0]:
            hull.append(point)
    rates = [_rate(a, b) for a, b in itertools.pairwise(hull)]
    return [rate for rate in rates if rate > 0]


def _rate(a: tuple[int, float], b: tuple[int, float]) -> float:
    return (a[1] - b[1]) / (b[0] - a[0]) if b[0] > a[0] else -math.inf


# Labels


def _sweep(
    moves: _Moves, bounds: _Bounds | _Unbounded, *, width: int, best_seconds: float
) -> _Sweep:
    """Extend labels from the end of the chain to its start, at most ``width`` a position."""
    none = np.zeros(0, np.int64)
    labels = [_Labels(need=none, seconds=np.zeros(0), parent=none, move=none)] * moves.positions
    end = np.zeros(1, np.int64)
    labels[-1] = _Labels(need=np.array([_EMPTY]), seconds=np.zeros(1), parent=end, move=end)
    starts = _groups(moves, moves.start)
    dropped = math.inf
    goal = best_seconds * (1 - TOLERANCE)
    for position in range(moves.positions - 2, -1, -1):
        fresh = _pareto(_extend(moves, starts[position], labels, bounds.limits[position]))
        bound = fresh.seconds + bounds.at(position, fresh.need)
        keep = bound < goal
        index = np.flatnonzero(keep)
        if len(index) > width:
            chosen = _narrow(fresh.need[index], bound[index], width)
            dropped = min(dropped, float(bound[index[~chosen]].min()))
            index = index[chosen]
        labels[position] = _select(fresh, index)
    return _Sweep(labels=labels, dropped_seconds=dropped)


def _extend(moves: _Moves, group: Ints, labels: list[_Labels], limit: int) -> _Labels:
    """Put every move of the group in front of every label of its stop; keep M within the limit."""
    pieces: list[_Labels] = []
    for stop in np.unique(moves.stop[group]):
        ahead, same = labels[stop], group[moves.stop[group] == stop]
        need = np.maximum(moves.need[same, None], moves.stored[same, None] + ahead.need)
        seconds = moves.seconds[same, None] + ahead.seconds
        move, parent = np.nonzero(need <= limit)
        at = (move, parent)
        pieces.append(_Labels(need=need[at], seconds=seconds[at], parent=parent, move=same[move]))
    if len(pieces) == 1:
        return pieces[0]
    none = np.zeros(0, np.int64)
    return _Labels(
        need=np.concatenate([none, *(p.need for p in pieces)]),
        seconds=np.concatenate([np.zeros(0), *(p.seconds for p in pieces)]),
        parent=np.concatenate([none, *(p.parent for p in pieces)]),
        move=np.concatenate([none, *(p.move for p in pieces)]),
    )


def _pareto(labels: _Labels) -> _Labels:
    """Return the labels that no other dominates, M ascending and C descending."""
    order = np.argsort(labels.need, kind="stable")
    seconds = labels.seconds[order]
    if not len(seconds):
        return labels
    before = np.concatenate([[math.inf], np.minimum.accumulate(seconds)[:-1]])
    order = order[seconds < before]
    need = labels.need[order]
    last = np.append(need[1:] != need[:-1], True)
    return _select(labels, order[last])


def _narrow(need: Ints, bound: Floats, width: int) -> Mask:
    """Choose at most ``width`` labels: half of least bound, half the best of equal ranges of M.

    Where seconds are nearly proportional to bytes all bounds are alike, and the spread in M is
    what lets some path come close to the budget.
    """
    chosen = np.zeros(len(need), np.bool_)
    half = max(width // 2, 1)
    chosen[np.argpartition(bound, half - 1)[:half]] = True
    span = int(need[-1] - need[0]) + 1
    ranges = (need - need[0]) * (1.0 / span) * (width - half)
    order = np.lexsort((bound, ranges.astype(np.int64)))
    ordered = ranges[order].astype(np.int64)
    first = np.append(True, ordered[1:] != ordered[:-1])
    chosen[order[first]] |= width > half
    return chosen


def _select(labels: _Labels, index: Ints) -> _Labels:
    return _Labels(
        need=labels.need[index],
        seconds=labels.seconds[index],
        parent=labels.parent[index],
        move=labels.move[index],
    )


def _path(moves: _Moves, sweep: _Sweep, index: int) -> list[int]:
    """Return the moves that a label of position 0 stands for."""
    path: list[int] = []
    position = 0
    while position < moves.positions - 1:
        labels = sweep.labels[position]
        path.append(int(labels.move[index]))
        index = int(labels.parent[index])
        position = int(moves.stop[path[-1]])
    return path


def _choice(moves: _Moves, path: list[int]) -> Choice:
    """Return the options of a path: a move over several units joins those after its first."""
    choice: list[int] = []
    for move in path:
        choice.append(int(moves.option[move]))
        choice.extend([JOINED] * (int(moves.stop[move]) - len(choice)))
    return tuple(choice)
