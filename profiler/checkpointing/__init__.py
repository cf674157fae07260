"""Activation checkpointing: recompute whole units or parts of them in backward."""
