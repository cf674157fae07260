"""SVG charts of the page, as text. Coordinates are in a box of ``WIDTH`` x ``HEIGHT`` units.

Only numbers and escaped labels enter the text, so a plan of unknown origin cannot add markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from planner.cli.page.view import PageView
from planner.cost.budget import needed_bytes
from profiler.prediction.timeline import COLOURS, STACK, Timeline
from profiler.records import Report
from profiler.units import format_bytes_in, format_seconds, unit_as_asked

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 300, 60, 40


def front_chart(view: PageView) -> str:
    """Return device memory against step time of every plan and baseline, with the budget line."""
    plan = view.main.plan
    budget, unit = plan.budget_bytes, unit_as_asked(plan.budget_bytes)
    points: list[tuple[int, float | None, str, str]] = [
        (needed_bytes(row.plan.prediction), row.plan.prediction.step_seconds, row.name,
         "#2e7d32" if row.is_recommended else "#1f6f8b")
        for row in view.rows
    ]  # fmt: skip
    points += [(size, seconds, name, "#999999") for name, size, seconds in view.baselines]
    known = [(size, seconds, name, c) for size, seconds, name, c in points if seconds is not None]
    if not known:
        return ""
    right = 1.05 * max(budget, *(size for size, *_ in known))
    top = 1.1 * max(seconds for _, seconds, *_ in known)

    def place(size: float, seconds: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - 20) * size / right
        return x, (HEIGHT - BOTTOM) * (1 - seconds / top)

    line, _ = place(budget, 0)
    parts = [
        f'<line x1="{line:.1f}" x2="{line:.1f}" y1="0" y2="{HEIGHT - BOTTOM}" class="budget"/>',
        f'<text x="{line - 4:.1f}" y="14" text-anchor="end">'
        f"budget {format_bytes_in(budget, unit)}</text>",
        _axes("device memory", f"time of a step, to {format_seconds(top)}"),
    ]
    for size, seconds, name, colour in known:
        x, y = place(size, seconds)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{colour}"/>'
            f'<text x="{x + 9:.1f}" y="{y + 4:.1f}">{escape(name)}</text>'
        )
    return _svg("".join(parts), "Memory and time of the plans")


def bytes_chart(view: PageView) -> str:
    """Return, for each plan, a bar of its live bytes at the peak by owner."""
    rows = [(row, row.plan.prediction.memory.at_peak) for row in view.rows]
    known = [(row, owners) for row, owners in rows if owners is not None]
    if not known:
        return ""
    most = max(owners.total for _, owners in known)
    parts, y = [], 4.0
    for row, owners in known:
        x = float(LEFT)
        parts.append(
            f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(row.name)}</text>'
        )
        for owner in STACK:
            width = (WIDTH - LEFT - 10) * getattr(owners, owner) / most
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="20" '
                f'fill="{COLOURS[owner]}"/>'
            )
            x += width
        y += 28
    return _svg("".join(parts), "Live bytes at the peak by owner", height=y)


def legend() -> Sequence[tuple[str, str]]:
    """Return owner and colour of the charts of bytes."""
    return [(owner, COLOURS[owner]) for owner in STACK]


def step_chart(timeline: Timeline, report: Report, budget_bytes: int) -> str:
    """Return live bytes by owner over one step, with the budget line.

    The line is the budget less the memory outside of live tensors: context, rounding, free blocks.
    """
    outside = needed_bytes(report) - report.memory.peak_bytes
    limit = budget_bytes - outside
    top = 1.05 * max(limit, timeline.peak_bytes)
    columns, height = len(timeline.ticks), HEIGHT - BOTTOM
    step = (WIDTH - LEFT - 20) / max(1, columns - 1)
    base = [0.0] * columns
    parts = []
    for row, owner in enumerate(STACK):
        above = [low + float(size) for low, size in zip(base, timeline.owners[row], strict=True)]
        outline = [(LEFT + step * i, height * (1 - y / top)) for i, y in enumerate(above)]
        outline += [
            (LEFT + step * i, height * (1 - base[i] / top)) for i in reversed(range(columns))
        ]
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in outline)
        parts.append(f'<polygon points="{text}" fill="{COLOURS[owner]}"/>')
        base = above
    y = height * (1 - limit / top)
    unit = unit_as_asked(budget_bytes)
    parts.append(
        f'<line x1="{LEFT}" x2="{WIDTH - 20}" y1="{y:.1f}" y2="{y:.1f}" class="budget"/>'
        f'<text x="{LEFT + 6}" y="{y + 24:.1f}">budget less '
        f"{format_bytes_in(outside, unit)} outside of tensors</text>"
    )
    parts.append(_axes("births and deaths of tensors in one step", "live bytes"))
    return _svg("".join(parts), "Live bytes over one step")


def cost_chart(title: str, values: Mapping[str, float], texts: Mapping[str, str]) -> str:
    """Return a bar for each name, with its text."""
    if not values:
        return ""
    most = max(values.values()) or 1.0
    parts, y = [], 4.0
    for name, value in values.items():
        width = (WIDTH - LEFT - 120) * value / most
        parts.append(
            f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="20" fill="#1f6f8b"/>'
            f'<text x="{LEFT + width + 6:.1f}" y="{y + 15}">{escape(texts[name])}</text>'
        )
        y += 28
    return _svg("".join(parts), title, height=y)


def _axes(horizontal: str, vertical: str) -> str:
    bottom = HEIGHT - BOTTOM
    return (
        f'<path d="M{LEFT} 0V{bottom}H{WIDTH - 20}" fill="none" stroke="#777"/>'
        f'<text x="{WIDTH - 20}" y="{bottom + 24}" text-anchor="end">{escape(horizontal)}</text>'
        f'<text x="{LEFT}" y="{bottom + 24}">{escape(vertical)} &#8593;</text>'
    )


def _svg(content: str, title: str, *, height: float = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"{content}</svg>"
    )
