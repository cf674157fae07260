"""Checkpoint placement: what to keep and what to recompute, within a budget, in the least time.

chain     the problem: units, their menus, and what a choice needs (bytes) and costs (seconds)
optimal   the exact solver, the smallest feasible peak, the whole trade-off curve
policies  every way to fill a placement, by name
"""

from planner.placement.chain import (
    JOINED,
    Chain,
    ChainUnit,
    Choice,
    Option,
    Row,
    explain,
    peak_bytes,
    peak_bytes_many,
    recompute_seconds,
    to_choice,
    to_placement,
)
from planner.placement.optimal import Solution, Status, frontier, smallest_feasible, solve
from planner.placement.policies import POLICIES, Policy

__all__ = [
    "JOINED",
    "POLICIES",
    "Chain",
    "ChainUnit",
    "Choice",
    "Option",
    "Policy",
    "Row",
    "Solution",
    "Status",
    "explain",
    "frontier",
    "peak_bytes",
    "peak_bytes_many",
    "recompute_seconds",
    "smallest_feasible",
    "solve",
    "to_choice",
    "to_placement",
]
