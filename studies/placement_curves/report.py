"""Draw the curves, write ``summary.json`` and ``tables.md``."""

from __future__ import annotations

import curves
import matplotlib as mpl
import rows
import tables
from bound import POLICY as BOUND
from curves import Row
from harness import write_summary
from peers import COMPILED

mpl.use("Agg")
from matplotlib import pyplot as plt

STYLES = {
    "optimal": ("C0", "o-"),
    "optimal + micro-batches": ("C9", "s--"),
    "micro-batches": ("C9", "s"),
    "cheap": ("C2", "D"),
    "light": ("C2", "d"),
    "static": ("black", "X"),
    "adaptive": ("C3", "v-"),
    "rotor": ("0.35", "p"),
    "first-k": ("C1", "^-"),
    "every-k": ("C4", "P"),
    "chen": ("C5", "*"),
    "timm set_grad_checkpointing": ("C6", "+"),
    "sac_ilp": ("C7", "x-"),
    "torch.compile budget": ("C8", "h-"),
    BOUND: ("0.6", ":"),
}


def _draw(axis: plt.Axes, title: str, judged: list[Row]) -> None:
    for policy, (colour, style) in STYLES.items():
        points = [
            (r["peak_share"] * 100, r["added_share"] * 100) for r in judged if r["policy"] == policy
        ]
        if policy != COMPILED:  # which is not monotone: in the order of its budgets
            points.sort()
        if points:
            size = 3.5 if policy == "optimal" else 5
            axis.plot(
                *zip(*points, strict=True), style, color=colour, label=policy, ms=size, lw=1.2
            )
    axis.set_title(title, fontsize=9)
    axis.set_xlabel("peak, % of keeping everything", fontsize=8)
    axis.set_ylabel("added step time, %", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)


def _figure(panels: curves.Curves) -> plt.Figure:
    columns = 3
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(13, 3.7 * lines), squeeze=False)
    for axis, (title, judged) in zip(axes.flat, panels.items(), strict=False):
        _draw(axis, title, judged)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    handles = {
        label: handle
        for axis in axes.flat
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncol=7, fontsize=8)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    return figure


def write() -> None:
    """Write ``curves.png``, ``summary.json`` and ``tables.md``."""
    evaluated, measured = curves.evaluated(), curves.measured()
    panels = evaluated | {f"CPU, measured: {name}": found for name, found in measured.items()}
    _figure(panels).savefig(rows.HERE / "curves.png", dpi=90)
    parts = ("evaluator", "arms", "host", "host_bound")
    raw = [row for part in parts for row in rows.read(part)]
    write_summary(rows.HERE, raw, **tables.summary(evaluated, measured))
    (rows.HERE / "tables.md").write_text("\n".join(tables.lines(evaluated, measured)))
