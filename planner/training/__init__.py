"""Training by a plan: data, the training loop, checkpoints, evaluation, short validation runs."""
