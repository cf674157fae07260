"""What no choice from the menu can beat, even if options could be taken in fractions.

A placement must fit at two moments at least: when forward ends, static bytes and all that is stored;
and in the last unit's backward, static bytes, what the units before it store, and what that unit
then needs. Each is a knapsack whose fractional relaxation is solved by taking slopes of the units'
convex menus in order (Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, chapter 11).
"""

from __future__ import annotations

import itertools

import rows
from evaluate import BUDGETS, Problem

from planner.placement import Chain
from profiler.workload import Workload


def run() -> None:
    """Add the bounds of ViT-S to the rows."""
    workload = Workload(model="vit_small_patch16_224", micro_batch=64)
    problem = Problem(workload)
    chain = problem.chain(workload)
    known = rows.done("evaluator")
    for share in BUDGETS:
        budget = int(share * problem.kept_bytes)
        for policy, working in (("bound, no working memory", False), ("bound, fractional", True)):
            row = {
                "model": workload.model,
                "method": "full",
                "rank": None,
                "policy": policy,
                "setting": f"{share:.0%}",
                "peak_bytes": budget,
                "added_milliseconds": 1e3 * least_seconds(chain, budget, working=working),
            }
            if rows.key_of(row) not in known:
                rows.append("evaluator", row)
            print(policy, row["setting"], row["added_milliseconds"])


def least_seconds(chain: Chain, budget: int, *, working: bool) -> float:
    """Return a lower bound of the recompute time within a budget.

    Args:
        chain: its last piece is the head.
        budget: live bytes.
        working: take the last unit's backward, not only the end of forward.
    """
    units = chain.units[:-1]
    menus = [[(o.stored_bytes, o.recompute_seconds) for o in unit.options] for unit in units]
    room = budget - chain.static_bytes
    if working:
        menus[-1] = [(o.backward_bytes, o.recompute_seconds) for o in units[-1].options]
        room -= chain.units[-1].gradient_bytes
    hulls = [_hull(menu) for menu in menus]
    over = sum(hull[-1][0] for hull in hulls) - room
    edges = sorted(
        ((b[1] - a[1]) / (a[0] - b[0]), a[0] - b[0])
        for hull in hulls
        for b, a in itertools.pairwise(hull)
    )
    # from the largest point of a hull to the smallest, seconds rise: slopes are positive
    seconds = 0.0
    for slope, size in edges:
        if over <= 0:
            break
        seconds += slope * min(size, over)
        over -= size
    return seconds


def _hull(menu: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return the lower convex hull by size, seconds falling."""
    hull: list[tuple[int, float]] = []
    for point in sorted(menu):
        while len(hull) > 1 and _slope(hull[-2], point) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        if not hull or point[1] < hull[-1][1]:
            hull.append(point)
    return hull


def _slope(a: tuple[int, float], b: tuple[int, float]) -> float:
    return (b[1] - a[1]) / max(b[0] - a[0], 1)
