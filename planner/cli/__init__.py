"""The command line ``budgetplan``: it parses arguments, calls the Python interface and prints.

command_group        exit codes, one-line errors and warnings
help_sections        sections of the help texts
options, output      shared options; JSON, tables and progress
*_commands           the commands
table_layout         tables that fit the terminal
cell_text, *_tables  texts of cells; the tables of each kind of record
"""

from __future__ import annotations

import click

from planner.cli.calibrate_command import calibrate
from planner.cli.check_command import check
from planner.cli.command_group import EPILOG, CommandGroup
from planner.cli.dashboard_command import dashboard
from planner.cli.doctor_command import doctor
from planner.cli.explain_command import explain
from planner.cli.export_command import export
from planner.cli.grid_command import grid
from planner.cli.list_commands import devices, methods, models
from planner.cli.mcp_command import mcp
from planner.cli.output import print_in_any_encoding
from planner.cli.plan_commands import show, train, validate
from planner.cli.recommend_commands import recommend
from planner.cli.rehearse_command import rehearse
from planner.cli.report_command import report
from planner.cli.score_command import score
from planner.cli.serve_command import serve
from planner.cli.trained_commands import classify, evaluate
from planner.cli.training_free_commands import features, training_free, zero_shot
from planner.cli.worker_command import worker
from planner.cli.workload_commands import measure, predict, profile
from profiler.running.rare_collection import collect_rarely

__all__ = ["cli", "main"]


@click.group(
    cls=CommandGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="budgetplan")
def cli() -> None:
    """Plan the fine-tuning of vision models on small GPUs: memory, time, energy, accuracy.

    Sizes: 2GB = 2*10^9 bytes, 2GiB = 2*2^30 bytes, 2048MiB; a plain number is bytes.
    """


for command in (
    recommend, predict, measure, profile, validate, rehearse, check, train, evaluate, classify,
    show, export, report, score, models, methods, devices, dashboard, doctor, features,
    training_free, zero_shot, serve, explain, calibrate, worker, mcp, grid,
):  # fmt: skip
    cli.add_command(command)


def main() -> None:
    """Run the command line."""
    print_in_any_encoding()
    collect_rarely()
    cli(prog_name="budgetplan")
