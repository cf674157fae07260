"""The command line: ``budgetplan``. It parses, calls and prints; nothing is decided here."""

from planner.cli.commands import cli, main

__all__ = ["cli", "main"]
