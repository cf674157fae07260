"""The command ``calibrate``: real steps of this machine, and the correction of its seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from planner import api
from planner.cli.options import json_option, progress_option, this_device_option
from planner.cli.output import console, print_json
from planner.cli.progress import ProgressKind, progress_bar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from planner.cost.calibrate_device import DeviceCalibration


@click.command()
@this_device_option
@click.option(
    "--no-cells",
    is_flag=True,
    help="Time nothing now; fit the runs that measure, validate and train kept.",
)
@progress_option
@json_option
def calibrate(*, device: str, no_cells: bool, as_json: bool, progress: ProgressKind | None) -> None:
    """Time short training steps, to correct predictions here.

    It takes a few minutes, and needs a machine that does nothing else: cells whose rounds differ by
    more than 10 %, or whose threads waited for a processor, are dropped. Exit codes: 4 the cache
    folder cannot be written, 6 all were dropped, or none ran.
    """
    with progress_bar(progress, as_json=as_json) as notify:
        found = api.calibrate(device=device, with_cells=not no_cells, on_progress=notify)
    if as_json:
        print_json(found.to_json())
        return
    from planner.cli.table_layout import Column, Page, tables
    from profiler.units import format_seconds

    page = Page(console())
    machine = found.machine
    page.heading(f"{machine.device}, {machine.processor}, PyTorch {machine.torch}")
    if found.cells:
        columns = [
            Column(header="cell", cells=[cell.name for cell in found.cells], justify="left"),
            Column(header="step", cells=[format_seconds(cell.seconds) for cell in found.cells]),
            Column(
                header="rounds differ",
                cells=[
                    "-" if cell.disagreement is None else f"{100 * cell.disagreement:.1f} %"
                    for cell in found.cells
                ],
            ),
            Column(
                header="kept",
                cells=["yes" if cell.kept else cell.reason or "no" for cell in found.cells],
                justify="left",
            ),
        ]
        page.block(*tables(columns, keys=1, width=page.width))
    page.sentences(list(_sentences(found)))


def _sentences(found: DeviceCalibration) -> Iterator[str]:
    runs, backbones = len(found.runs), len({run.backbone for run in found.runs})
    kept = f"{runs} real runs of {backbones} backbones are kept for this machine"
    correction = found.correction
    if correction is None:
        yield f"{kept}: too few for a correction"
        return
    before, after = (100 * error for error in correction.errors.tolist())
    change = (
        f"the median error of backbones left out in turn is {before:.1f} % without the correction "
        f"and {after:.1f} % with it"
    )
    if not found.is_used:
        yield f"{kept}; {change}, so it is not used"
        return
    products, other, launches, _ = correction.factors.tolist()
    yield f"{kept}; {change}: predictions of training steps here use it from now on"
    yield (
        f"factors on predicted seconds: matrix products {products:.2f}, other work {other:.2f}, "
        f"launches {launches:.2f}"
    )
