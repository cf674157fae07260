"""Decisions: what to run within a budget, and why."""
