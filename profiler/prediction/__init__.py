"""Predictions: replayed reports, parametric profiles, and memory over the step."""
