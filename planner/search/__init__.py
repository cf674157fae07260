"""The multi-objective search over methods, batches, precisions, optimizers and placements."""
