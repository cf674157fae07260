"""The cost model: composed predictions, placements within a budget, calibration."""
