"""Scores of a configuration: expected accuracy, and the NetScore family."""
