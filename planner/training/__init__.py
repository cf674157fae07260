"""Training by a plan: images, loop, checkpoints, evaluation, validation, and a user's own loop."""
