"""Files of a training for people: the readings as CSV, and the curves as SVG.

    run.csv   one line for each accuracy reading: step, seconds, loss, part, images, accuracy
    run.svg   mean training loss and accuracy over the steps; opens in a browser

The SVG is written without a drawing library, so that every installation has it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from planner.disk.drafts import write_file
from planner.training.history import AccuracyReading, TrainResult

CSV_FILE, SVG_FILE = "run.csv", "run.svg"

WIDTH, HEIGHT, MARGIN = 720, 320, 50
"""Size of the picture and of its margins in pixels."""

_CSV_COLUMNS = ("step", "seconds", "loss", "part", "images", "accuracy", "mean_class_accuracy")

_COLOURS = {"loss": "#b3541e", "selection": "#1f6f8b", "test": "#2e7d32"}


def write_run_files(result: TrainResult, folder: Path) -> None:
    """Write both files into the folder of a training.

    Raises:
        InputError: a file cannot be written.
    """
    write_file(folder / CSV_FILE, readings_csv(result.readings).encode())
    write_file(folder / SVG_FILE, readings_svg(result.readings).encode())


def readings_csv(readings: Sequence[AccuracyReading]) -> str:
    """Return the readings as CSV with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for reading in readings:
        writer.writerow([getattr(reading, name) for name in _CSV_COLUMNS])
    return text.getvalue()


def readings_svg(readings: Sequence[AccuracyReading]) -> str:
    """Return the curves of loss (left axis) and accuracy (right axis) over the steps."""
    last = max(reading.step for reading in readings)
    highest = max(reading.loss for reading in readings) or 1.0
    loss = [(r.step / last, r.loss / highest) for r in readings if r.part != "test"]
    loss = loss or [(r.step / last, r.loss / highest) for r in readings]
    parts = [_curve(loss, "loss")]
    for part in ("selection", "test"):
        points = [(r.step / last, r.accuracy) for r in readings if r.part == part]
        if points:
            parts.append(_curve(points, part))
    legend = [("loss", f"training loss (top: {highest:.3g})")]
    legend += [
        (part, f"{part} accuracy (top: 100 %)")
        for part in ("selection", "test")
        if any(r.part == part for r in readings)
    ]
    labels = "".join(
        f'<text x="{MARGIN + 220 * i}" y="20" fill="{_COLOURS[name]}">{text}</text>'
        for i, (name, text) in enumerate(legend)
    )
    frame = (
        f'<rect x="{MARGIN}" y="{MARGIN - 20}" width="{WIDTH - 2 * MARGIN}" '
        f'height="{HEIGHT - 2 * MARGIN + 20}" fill="none" stroke="#999"/>'
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 25}" text-anchor="end">step {last}</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="13">{frame}{"".join(parts)}{labels}</svg>\n'
    )


def _curve(points: Sequence[tuple[float, float]], name: str) -> str:
    """Return a line with dots through points in the unit square, the origin at the bottom left."""
    width, height = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN + 20
    places = [(MARGIN + width * x, MARGIN - 20 + height * (1 - y)) for x, y in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in places)
    colour = _COLOURS[name]
    return (
        f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>'
        f'<g fill="{colour}">{dots}</g>'
    )
