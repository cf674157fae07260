"""Checkpoint placement: which activations to keep and which to recompute within a memory budget.

chain            the problem: units, their options, and solutions as option indices
chain_cost       peak bytes and recompute seconds of a solution
placement_table  a solution unit by unit
optimal          exact solver, smallest feasible peak, Pareto front of peak against time
path_moves, lower_bounds, pareto_labels   the parts of the solver
policies         registry of all policies, by name
"""

from planner.placement.chain import (
    JOINED,
    Chain,
    ChainOption,
    ChainUnit,
    OptionIndices,
    option_indices,
    to_placement,
)
from planner.placement.chain_cost import peak_bytes, peak_bytes_many, recompute_seconds
from planner.placement.optimal import Solution, SolutionStatus, frontier, smallest_feasible, solve
from planner.placement.placement_table import PlacementRow, placement_table
from planner.placement.policies import POLICIES, Policy

__all__ = [
    "JOINED",
    "POLICIES",
    "Chain",
    "ChainOption",
    "ChainUnit",
    "OptionIndices",
    "PlacementRow",
    "Policy",
    "Solution",
    "SolutionStatus",
    "frontier",
    "option_indices",
    "peak_bytes",
    "peak_bytes_many",
    "placement_table",
    "recompute_seconds",
    "smallest_feasible",
    "solve",
    "to_placement",
]
