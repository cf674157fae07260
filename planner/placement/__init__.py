"""Checkpoint placement: which activations to keep and which to recompute within a memory budget.

chain            the problem: units, their options, and solutions as option indices
chain_cost       peak bytes and recompute seconds of a solution
placement_table  a solution unit by unit
policies         registry of all policies, by name
chain_policies   the policies that place a chain
optimal          exact solver, smallest feasible peak, Pareto front of peak against time
path_moves, lower_bounds, pareto_labels   the parts of the solver
"""
